"""The bytes of the journal: its header, its records, and how they are found again after a cut.

Owns the format (docs/spool-format.md says the same in words); never touches a file. A record is one transaction:
applied whole or not at all. Records are numbered without a gap, over both halves of the file. Each carries the salt of
its epoch, 64 random bits that are in no message, and a checksum over both: neither a record of an earlier epoch, nor a
body that holds a forged one, is ever taken for one.

What one write brings begins on a fresh block, so no block that holds an acknowledged record is written again within
its epoch. The first record of a write says so: behind a block that does not read, only such a one is believed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from edgemail.errors import SpoolDamaged
from edgemail.spool import layout
from edgemail.spool.layout import JournalMark
from edgemail.value import value

BLOCK: Final = 4096  # what the medium writes at once, and loses at once
LARGEST_BODY: Final = 61_440  # limit: octets of a message that goes through the journal; docs/adr/0022 says why
LARGEST: Final = 131_072  # limit: bytes of one record of the journal: body, envelope, what goes with them
MIN_SIZE: Final = 262_144  # limit: bytes of the smallest journal: each half must hold a record and room for outcomes

_SEED: Final = struct.Struct(">QQ")  # the identity, as salts are made of it
_SALTS: Final = 1 << 64
_EPOCHS: Final = 1 << 32  # more than any journal sees

_HEADER: Final = struct.Struct(">4sHxxIQ16s")  # magic, version, block, size, identity; a CRC behind it
_MAGIC: Final = b"EMSJ"
_VERSION: Final = 1
_RECORD: Final = struct.Struct(">QQdIIB")  # salt, number, date, length with this header, CRC, flags
_FIRST: Final = 0x01  # of what one write brought
_PUT: Final = struct.Struct(">BQII")  # 1, id, length of the envelope record, length of the body
_UPDATE: Final = struct.Struct(">BQI")  # 2, id, length of the fields
_REMOVE: Final = struct.Struct(">BQ")  # 3, id


@value
class Entry:
    """What one record does: a message comes (mail, envelope record, body), others are rewritten, others end."""

    put: tuple[int, bytes, bytes] | None = None
    update: tuple[tuple[int, bytes], ...] = ()
    remove: tuple[int, ...] = ()

    @property
    def touches(self) -> tuple[int, ...]:
        """The messages that must stand in the journal already."""
        return (*(mail for mail, _ in self.update), *self.remove)

    @property
    def size(self) -> int:
        """Bytes of its record."""
        put = _PUT.size + len(self.put[1]) + len(self.put[2]) if self.put is not None else 0
        updates = sum(_UPDATE.size + len(fields) for _, fields in self.update)
        return _RECORD.size + put + updates + _REMOVE.size * len(self.remove)


class Record(NamedTuple):
    """One that was found. `at`: where its body stands in the file."""

    number: int
    date: float  # wall clock when it was written, 0.0 where the clock was not trusted
    entry: Entry
    at: int


def blocks(count: int) -> int:
    """So many bytes in whole blocks."""
    return -(-count // BLOCK) * BLOCK


def half(size: int) -> int:
    """Bytes of each half of a journal of `size`; the first block is the header's."""
    return (size // BLOCK - 1) // 2 * BLOCK


def start(size: int, epoch: int) -> int:
    """Where an epoch begins: the halves take turns."""
    return BLOCK + epoch % 2 * half(size)


def _seed(identity: bytes) -> tuple[int, int]:
    first, step = _SEED.unpack(identity)
    return first, step | 1


def salt_of(identity: bytes, epoch: int) -> int:
    """64 bits that nobody who sends mail can know: the identity is random, and is told to nobody."""
    first, step = _seed(identity)
    return (first + epoch * step) % _SALTS


def _epoch_of(identity: bytes, salt: int) -> int:
    """The epoch that has this salt; 0 for a salt that is none of this identity's."""
    first, step = _seed(identity)
    epoch = (salt - first) * pow(step, -1, _SALTS) % _SALTS
    return epoch if epoch < _EPOCHS else 0


def write_header(size: int, identity: bytes) -> bytes:
    """The first block: whose journal this is, and since when."""
    bare = _HEADER.pack(_MAGIC, _VERSION, BLOCK, size, identity)
    return (bare + zlib.crc32(bare).to_bytes(4, "big")).ljust(BLOCK, b"\0")


def read_header(block: bytes) -> tuple[int, bytes] | None:
    """Size and identity; None for what is no header of this version."""
    bare, crc = block[: _HEADER.size], block[_HEADER.size : _HEADER.size + 4]
    if len(crc) < 4 or zlib.crc32(bare) != int.from_bytes(crc, "big"):
        return None
    magic, version, unit, size, identity = _HEADER.unpack(bare)
    return (size, identity) if (magic, version, unit) == (_MAGIC, _VERSION, BLOCK) else None


def write_group(entries: list[Entry], salt: int, number: int, date: float) -> bytes:
    """What one write brings: the records from `number` on, in whole blocks."""
    out = bytearray()
    for count, entry in enumerate(entries):
        parts = []
        if entry.put is not None:
            mail, record, body = entry.put
            parts += [_PUT.pack(1, mail, len(record), len(body)), record, body]
        for mail, fields in entry.update:
            parts += [_UPDATE.pack(2, mail, len(fields)), fields]
        parts += [_REMOVE.pack(3, mail) for mail in entry.remove]
        payload = b"".join(parts)
        words = (salt, number + count, date, _RECORD.size + len(payload))
        flags = 0 if count else _FIRST
        crc = zlib.crc32(payload, zlib.crc32(_RECORD.pack(*words, 0, flags)))
        out += _RECORD.pack(*words, crc, flags)
        out += payload
    return bytes(out.ljust(blocks(len(out)), b"\0"))


def _read_entry(payload: bytes) -> tuple[Entry, int]:
    """What a record does, and where in the payload the body begins. Raises ValueError, IndexError, struct.error."""
    put: tuple[int, bytes, bytes] | None = None
    update: list[tuple[int, bytes]] = []
    remove: list[int] = []
    at = body = 0

    def take(count: int) -> bytes:
        nonlocal at
        if at + count > len(payload):
            raise ValueError("cut short")
        at += count
        return payload[at - count : at]

    while at < len(payload):
        kind = payload[at]
        if kind == 1 and put is None:
            _, mail, length, size = _PUT.unpack(take(_PUT.size))
            record = take(length)
            body = at
            put = (mail, record, take(size))
        elif kind == 2:
            _, mail, length = _UPDATE.unpack(take(_UPDATE.size))
            update.append((mail, take(length)))
        elif kind == 3:
            remove.append(_REMOVE.unpack(take(_REMOVE.size))[1])
        else:
            raise ValueError(f"a part of kind {kind}")
    return Entry(put, tuple(update), tuple(remove)), body


Read = Callable[[int, int], bytes]  # offset, count


def _read_record(read: Read, at: int, end: int, salt: int) -> tuple[Record, int, bool] | None:
    """The record at `at`, where the next one would be, and whether it is the first of a write; None for no record."""
    head = read(at, _RECORD.size) if at + _RECORD.size <= end else b""
    if len(head) < _RECORD.size:
        return None
    found, number, date, length, crc, flags = _RECORD.unpack(head)
    if found != salt or not _RECORD.size <= length <= LARGEST or at + length > end:
        return None
    payload = read(at + _RECORD.size, length - _RECORD.size)
    if zlib.crc32(payload, zlib.crc32(_RECORD.pack(found, number, date, length, 0, flags))) != crc:
        return None
    try:
        entry, body = _read_entry(payload)
    except (ValueError, IndexError, struct.error):
        return None
    return Record(number, date, entry, at + _RECORD.size + body), at + length, bool(flags & _FIRST)


@dataclass(slots=True)
class Scan:
    """The records above a mark, in order. `lost`: runs of numbers that should have been there and do not read."""

    lost: list[tuple[int, int]] = field(default_factory=list)

    def records(self, read: Read, mark: JournalMark) -> Iterator[Record]:
        """Bad before good is damage, and noted in `lost`; bad at the end is what a cut tore, and nobody was told."""
        expected = mark.number + 1
        for epoch, salt in zip((mark.epoch, mark.epoch + 1), mark.salts, strict=True):
            at = start(mark.size, epoch)
            end = at + half(mark.size)
            while at < end:
                found = self._next(read, at, end, salt)
                if found is None:
                    break
                record, at = found
                if record.number < expected:
                    continue  # moved already
                if record.number > expected:
                    self.lost.append((expected, record.number - 1))
                expected = record.number + 1
                yield record

    @staticmethod
    def _next(read: Read, at: int, end: int, salt: int) -> tuple[Record, int] | None:
        """The record at `at`, or the first one behind it that begins a write; None at the end of the epoch."""
        here = _read_record(read, at, end, salt)
        if here is not None:
            return here[0], here[1]
        at = blocks(at) if at % BLOCK else at + BLOCK
        while at < end:
            here = _read_record(read, at, end, salt)
            if here is not None and here[2]:
                return here[0], here[1]
            at += BLOCK
        return None


def newest(read: Read, size: int, identity: bytes) -> JournalMark | None:
    """The mark as the file itself shows it: where its latest records begin; None where none of this identity's stand.

    For where LMDB does not know it any more. How much of it LMDB has is not to be told from it.
    """
    first: dict[int, int] = {}  # epoch -> number of its first record
    for turn in (0, 1):
        begin = start(size, turn)
        end = begin + half(size)
        for at in range(begin, end, BLOCK):
            salt = int.from_bytes(read(at, 8), "big")
            epoch = _epoch_of(identity, salt)
            if epoch == 0 or epoch % 2 != turn or epoch in first:
                continue
            found = _read_record(read, at, end, salt)
            if found is not None and found[2]:
                first[epoch] = found[0].number
    if not first:
        return None
    epoch = max(first)
    epoch -= epoch - 1 in first
    number = first[epoch] - 1 if epoch > 1 else 0
    return JournalMark(identity, size, epoch, number, (salt_of(identity, epoch), salt_of(identity, epoch + 1)))


@dataclass(slots=True)
class Leaf:
    """A message that stands in the journal. `body` None: it is to be read at `at`."""

    number: int  # of the record that brought it
    record: bytes  # its envelope, as LMDB would hold it
    body: bytes | None
    at: int
    size: int  # of the body


def gather(records: Iterator[Record]) -> tuple[dict[int, Leaf], float]:
    """The messages that are left when all records were applied, in order of their numbers; and the latest date.

    What a record says of a message that no record above the mark brought was true when that message moved, and went
    with it; what came later is in LMDB. So it is passed over.
    """
    leaves: dict[int, Leaf] = {}
    latest = 0.0
    for record in records:
        latest = max(latest, record.date)
        if record.entry.put is not None:
            mail, envelope, body = record.entry.put
            leaves[mail] = Leaf(record.number, envelope, None, record.at, len(body))
        rewrite(leaves, record.entry)
    return leaves, latest


def rewrite(leaves: dict[int, Leaf], entry: Entry) -> None:
    """Apply what a record does to messages that are there."""
    for mail, fields in entry.update:
        leaf = leaves.get(mail)
        if leaf is not None:
            try:
                leaf.record = layout.seal(mail, layout.head_of(mail, leaf.record), fields)
            except SpoolDamaged:
                continue  # stays as it is: whoever reads it sets it aside
    for mail in entry.remove:
        leaves.pop(mail, None)
