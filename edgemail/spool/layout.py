"""The bytes of the spool: keys, the envelope record, the meta record, the note beside what was set aside.

Owns the format (docs/spool-format.md says the same in words) and its version; never touches a file or LMDB. Whatever
bytes it is given, reading raises SpoolDamaged and nothing else.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Mapping
from itertools import compress
from operator import attrgetter, is_not
from typing import Any, Final, NamedTuple

from edgemail.envelope import NULL_SENDER, Address, Body, Envelope, Notify, Origin, Recipient, Ret
from edgemail.errors import Kind, SpoolDamaged
from edgemail.spool.verbs import Damaged
from edgemail.value import value

FORMAT: Final = 1  # of the spool as a whole; raised whenever an older release could misread what a newer one wrote
FORMAT_WITH_JOURNAL: Final = 2  # while mail may stand in the journal, which format 1 does not know
META: Final = 0x00  # the one meta record: the key is this byte alone
MAIL: Final = 0x01  # kind, id, part: part 0 the envelope, parts 1..n the body
ASIDE: Final = 0x08  # kind, id: the envelope record of a message that was set aside, as it was found
NOTE: Final = 0x09  # kind, id: when and why it was set aside
PAGES_PER_CHUNK: Final = 16
PAGE_OVERHEAD: Final = 16  # bytes of an LMDB overflow page's header: k pages hold k * psize - 16 bytes of one value
MAX_ID: Final = 2**64 - 1
MAX_WHY: Final = 500  # limit: characters of the reason kept beside a record that was set aside

_KEY: Final = struct.Struct(">BQI")
_SHORT_KEY: Final = struct.Struct(">BQ")
_ENVELOPE: Final = struct.Struct(">BIQII")  # version, CRC, size, parts, CRC of the body
_ENVELOPE_VERSION: Final = 1
_NOTE: Final = struct.Struct(">BId")  # version, CRC, time
_NOTE_VERSION: Final = 1
_META: Final = struct.Struct(">4sHBxIIQdI")  # magic, format, mark, pad, page, chunk, ceiling, wall, CRC
_MAGIC: Final = b"EMSP"
_MARK: Final = struct.Struct(">16sQQQQQ")  # of the journal: identity, size, epoch, number, two salts; before the CRC
_DOUBLE: Final = struct.Struct(">d")


def key(id: int, part: int) -> bytes:
    """Where a part of a message stands."""
    return _KEY.pack(MAIL, id, part)


def run(id: int) -> bytes:
    """What every key of one message begins with."""
    return _SHORT_KEY.pack(MAIL, id)


def aside_key(id: int) -> bytes:
    return _SHORT_KEY.pack(ASIDE, id)


def note_key(id: int) -> bytes:
    return _SHORT_KEY.pack(NOTE, id)


def place(raw: bytes) -> tuple[int, int] | None:
    """Id and part of a mail key; None for a key of that kind which no release ever wrote."""
    if len(raw) != _KEY.size or raw[0] != MAIL:
        return None
    _, message, part = _KEY.unpack(raw)
    return message, part


def note_id(raw: bytes) -> int | None:
    """The id in the key of a note or of an envelope set aside."""
    return int.from_bytes(raw[1:], "big") if len(raw) == _SHORT_KEY.size else None


def chunk_size(page: int) -> int:
    """The longest chunk on a file system with this page size: it fills its overflow pages to the last byte."""
    return PAGES_PER_CHUNK * page - PAGE_OVERHEAD


# --------------------------------------------------------------------------------------------------------------------
# Values: a record is a row of fields, each `tag, length, value`; a field at its default is left out.


class _Field(NamedTuple):
    tag: int
    name: str
    default: object
    write: Callable[[Any], bytes]
    read: Callable[[bytes], Any]


def _length(n: int) -> bytes:
    """Seven bits a byte, low ones first, the top bit says that more follow."""
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _take(data: bytes, at: int) -> tuple[bytes, int]:
    """What stands at `at` behind its length, and where the next thing begins."""
    n = shift = 0
    while True:
        byte = data[at]
        at += 1
        n |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
        if shift > 28:
            raise ValueError("length too long")
    if at + n > len(data):
        raise ValueError("cut short")
    return data[at : at + n], at + n


def _write_text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a log or a peer may have left half a surrogate


def _read_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _write_number(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _read_number(data: bytes) -> int:
    if len(data) != 8:
        raise ValueError("not a number")
    return int.from_bytes(data, "big")


def _write_time(value: float) -> bytes:
    if not math.isfinite(value):
        raise ValueError("a time must be finite")
    return _DOUBLE.pack(value)


def _read_time(data: bytes) -> float:
    value: float = _DOUBLE.unpack(data)[0]
    if not math.isfinite(value):  # would break every comparison that follows
        raise ValueError("not a time")
    return value


def _write_flag(_: bool) -> bytes:
    return b""


def _read_flag(data: bytes) -> bool:
    if data:
        raise ValueError("not a flag")
    return True


def _write_notify(notify: Notify) -> bytes:
    return bytes((notify.value,))


def _read_notify(data: bytes) -> Notify:
    if len(data) != 1 or data[0] > 7:
        raise ValueError("not a NOTIFY")
    return Notify(data[0])


def _write_address(address: Address) -> bytes:
    local = _write_text(address.local)
    return _length(len(local)) + local + _write_text(address.domain)


def _read_address(data: bytes) -> Address:
    local, at = _take(data, 0)
    return Address(_read_text(local), _read_text(data[at:]))


def _writer(fields: tuple[_Field, ...]) -> Callable[[Any], bytes]:
    """How a value of one kind becomes a row of fields. Those at their default, most, cost no step of Python each."""
    items, defaults = attrgetter(*(field.name for field in fields)), [field.default for field in fields]

    def write(value: Any) -> bytes:
        out = bytearray()
        values = items(value)
        for field, item in compress(zip(fields, values, strict=True), map(is_not, values, defaults)):
            if item != field.default:
                data = field.write(item)
                out.append(field.tag)
                out += _length(len(data)) if len(data) > 0x7F else bytes((len(data),))
                out += data
        return bytes(out)

    return write


def _read_fields(data: bytes, at: int, fields: Mapping[int, _Field]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while at < len(data):
        field = fields[data[at]]
        item, at = _take(data, at + 1)
        if field.name in found:
            raise ValueError(f"{field.name} twice")
        found[field.name] = field.read(item)
    return found


def _write_recipients(recipients: tuple[Recipient, ...]) -> bytes:
    out = bytearray()
    for recipient in recipients:
        data = _write_recipient(recipient)
        out += _length(len(data))
        out += data
    return bytes(out)


def _read_recipients(data: bytes) -> tuple[Recipient, ...]:
    out: list[Recipient] = []
    at = 0
    while at < len(data):
        one, at = _take(data, at)
        found = _read_fields(one, 0, _RECIPIENT_BY_TAG)
        out.append(Recipient(found.pop("address", NULL_SENDER), **found))
    return tuple(out)


def _write_kind(kind: Kind) -> bytes:
    return kind.value.encode()


def _read_kind(data: bytes) -> Kind:
    return Kind(data.decode())


def _read_origin(data: bytes) -> Origin:
    return Origin(**_read_fields(data, 0, _ORIGIN_BY_TAG))


def _text(tag: int, name: str, default: str = "") -> _Field:
    return _Field(tag, name, default, _write_text, _read_text)


def _time(tag: int, name: str) -> _Field:
    return _Field(tag, name, 0.0, _write_time, _read_time)


def _flag(tag: int, name: str) -> _Field:
    return _Field(tag, name, False, _write_flag, _read_flag)


# A tag is never given a second meaning. A new one needs a new _ENVELOPE_VERSION and a new FORMAT.
_RECIPIENT: Final = (
    _Field(1, "address", NULL_SENDER, _write_address, _read_address),
    _Field(2, "notify", None, _write_notify, _read_notify),
    _text(3, "orcpt"),
    _text(4, "reason"),
    _text(5, "status"),
    _Field(6, "kind", None, _write_kind, _read_kind),
    _text(7, "relay"),
)
_ORIGIN: Final = (
    _text(1, "client_name", "unknown"),
    _text(2, "client_address"),
    _text(3, "helo"),
    _text(4, "protocol"),
    _text(5, "sasl_username"),
    _text(6, "listener"),
)
_write_origin: Final = _writer(_ORIGIN)
_FIELDS: Final = (
    _Field(1, "sender", NULL_SENDER, _write_address, _read_address),
    _Field(2, "recipients", (), _write_recipients, _read_recipients),
    _time(3, "received_at"),
    _Field(4, "origin", Origin(), _write_origin, _read_origin),
    _Field(5, "body", Body.SEVEN_BIT, lambda body: body.value.encode(), lambda data: Body(data.decode())),
    _flag(6, "eight_bit"),
    _flag(7, "smtputf8"),
    _Field(8, "ret", None, lambda ret: ret.value.encode(), lambda data: Ret(data.decode())),
    _text(9, "envid"),
    _text(10, "message_id"),
    _flag(11, "long_lines"),
    _flag(12, "hold"),
    _text(13, "hold_reason"),
    _Field(14, "attempts", 0, _write_number, _read_number),
    _time(15, "last_attempt"),
    _time(16, "next_attempt"),
    _time(17, "backoff"),
    _time(18, "waited"),
    _flag(19, "delay_warned"),
    _flag(20, "bounce"),
)
_write_recipient: Final = _writer(_RECIPIENT)
_write_envelope: Final = _writer(_FIELDS)
_RECIPIENT_BY_TAG: Final = {field.tag: field for field in _RECIPIENT}
_ORIGIN_BY_TAG: Final = {field.tag: field for field in _ORIGIN}
_BY_TAG: Final = {field.tag: field for field in _FIELDS}


# --------------------------------------------------------------------------------------------------------------------
# The envelope record.


@value
class Head:
    """What the envelope record says of the body: its bytes, the chunks they stand in, their CRC-32."""

    size: int
    parts: int
    crc: int


def fields_of(envelope: Envelope) -> bytes:
    """The part of the record that an update replaces. Raises ValueError for a time that is not finite."""
    return _write_envelope(envelope)


def seal(id: int, head: Head, fields: bytes) -> bytes:
    """The envelope record. Its CRC covers the key too: a record that strayed under another id is not believed."""
    bare = _ENVELOPE.pack(_ENVELOPE_VERSION, 0, head.size, head.parts, head.crc)
    crc = _crc_of(key(id, 0), bare, fields)
    return _ENVELOPE.pack(_ENVELOPE_VERSION, crc, head.size, head.parts, head.crc) + fields


def head_of(id: int, record: bytes) -> Head:
    """What the record says of the body, its checksum verified. Raises SpoolDamaged."""
    if len(record) < _ENVELOPE.size:
        raise SpoolDamaged(id, "envelope cut short")
    version, crc, size, parts, body = _ENVELOPE.unpack_from(record)
    if version != _ENVELOPE_VERSION:
        raise SpoolDamaged(id, f"envelope of unknown version {version}")
    bare = _ENVELOPE.pack(version, 0, size, parts, body)
    if _crc_of(key(id, 0), bare, record[_ENVELOPE.size :]) != crc:
        raise SpoolDamaged(id, "envelope does not match its checksum")
    if (size == 0) != (parts == 0) or parts > size:
        raise SpoolDamaged(id, f"envelope claims {size} bytes in {parts} parts")
    return Head(size, parts, body)


def parse(id: int, record: bytes) -> tuple[Head, Envelope]:
    """The record as values. Raises SpoolDamaged."""
    head = head_of(id, record)
    try:
        found = _read_fields(record, _ENVELOPE.size, _BY_TAG)
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise SpoolDamaged(id, f"envelope does not parse: {error!r}") from error
    sender, recipients = found.pop("sender", NULL_SENDER), found.pop("recipients", ())
    return head, Envelope(id, sender, recipients, head.size, **found)


def _crc_of(*parts: bytes) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


# --------------------------------------------------------------------------------------------------------------------
# The note beside what was set aside.


def write_note(id: int, at: float, why: str) -> bytes:
    text = _write_text(why[:MAX_WHY])
    crc = _crc_of(note_key(id), _NOTE.pack(_NOTE_VERSION, 0, at), text)
    return _NOTE.pack(_NOTE_VERSION, crc, at) + text


def read_note(id: int, record: bytes) -> Damaged:
    """The note, or one that says that the note itself is damaged: what was set aside is listed in any case."""
    try:
        version, crc, at = _NOTE.unpack_from(record)
        text = record[_NOTE.size :]
        if version != _NOTE_VERSION or _crc_of(note_key(id), _NOTE.pack(version, 0, at), text) != crc:
            raise ValueError("checksum")
        return Damaged(id, at if math.isfinite(at) else 0.0, _read_text(text))
    except (ValueError, struct.error):
        return Damaged(id, 0.0, "the note that says why is damaged too")


# --------------------------------------------------------------------------------------------------------------------
# The meta record.


@value
class JournalMark:
    """What LMDB knows of the journal while it is open; journal_layout says what epochs, numbers and salts are.

    Everything up to record `number` has been moved, and with it every epoch before `epoch`. `salts`: of `epoch` and
    of the one behind it.
    """

    identity: bytes
    size: int
    epoch: int
    number: int
    salts: tuple[int, int]


@value
class Meta:
    """What the spool knows of itself.

    Every id that was ever given is below `ceiling`. `wall` is the latest trusted date that was written: the clock's
    floor at the next start. `clean`: it was closed in order, there is nothing to recover. `journal`: None while all
    mail is in LMDB.
    """

    page: int
    chunk: int
    ceiling: int
    wall: float = 0.0
    clean: bool = False
    format: int = FORMAT  # as it was read
    journal: JournalMark | None = None


def meta_key() -> bytes:
    return bytes((META,))


def write_meta(meta: Meta) -> bytes:
    """The record; of format 1 unless the journal is open, so that a spool closed in order is one for any release."""
    number = FORMAT if meta.journal is None else FORMAT_WITH_JOURNAL
    mark = 1 if meta.clean else 0
    wall = meta.wall if math.isfinite(meta.wall) else 0.0
    bare = _META.pack(_MAGIC, number, mark, meta.page, meta.chunk, meta.ceiling, wall, 0)[:-4]
    if meta.journal is not None:
        one = meta.journal
        bare += _MARK.pack(one.identity, one.size, one.epoch, one.number, *one.salts)
    return bare + zlib.crc32(bare).to_bytes(4, "big")


def read_meta(record: bytes) -> Meta:
    """The meta record of this or any later format: a later one begins with the same fields. Raises SpoolDamaged."""
    if len(record) < _META.size or record[:4] != _MAGIC:
        raise SpoolDamaged(0, "meta record is not one of edgemail's")
    if zlib.crc32(record[:-4]) != int.from_bytes(record[-4:], "big"):
        raise SpoolDamaged(0, "meta record does not match its checksum")
    _, number, mark, page, chunk, ceiling, wall, _ = _META.unpack_from(record)
    journal = None
    if number == FORMAT_WITH_JOURNAL:
        if len(record) != _META.size + _MARK.size:
            raise SpoolDamaged(0, "meta record says nothing of the journal")
        identity, size, epoch, last, one, two = _MARK.unpack_from(record, _META.size - 4)
        journal = JournalMark(identity, size, epoch, last, (one, two))
    return Meta(page, chunk, ceiling, wall if math.isfinite(wall) else 0.0, mark == 1, number, journal)
