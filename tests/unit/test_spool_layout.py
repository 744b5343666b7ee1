"""The bytes of the spool: what is written is read back, and no bytes whatever raise anything but SpoolDamaged."""

from __future__ import annotations

import dataclasses
import struct
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgemail.envelope import Address, Body, Envelope, Notify, Origin, Recipient, Ret
from edgemail.errors import Kind, SpoolDamaged
from edgemail.spool import layout
from edgemail.spool.layout import Head, JournalMark, Meta

TEXT = st.text(st.characters(codec=None), max_size=40) | st.just("half \udc80 a surrogate")
TIME = st.floats(allow_nan=False, allow_infinity=False)
ID = st.integers(1, layout.MAX_ID)
ADDRESS = st.builds(Address, TEXT, TEXT)
NOTIFY = st.none() | st.integers(0, 7).map(Notify)
RECIPIENT = st.builds(
    Recipient, ADDRESS, NOTIFY, orcpt=TEXT, reason=TEXT, status=TEXT, kind=st.none() | st.sampled_from(Kind), relay=TEXT
)
ORIGIN = st.builds(Origin, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT)
ENVELOPE = st.builds(
    Envelope,
    id=ID,
    sender=ADDRESS,
    recipients=st.lists(RECIPIENT, max_size=4).map(tuple),
    size=st.integers(0, 2**40),
    received_at=TIME,
    origin=ORIGIN,
    body=st.sampled_from(Body),
    eight_bit=st.booleans(),
    smtputf8=st.booleans(),
    ret=st.none() | st.sampled_from(Ret),
    envid=TEXT,
    message_id=TEXT,
    long_lines=st.booleans(),
    hold=st.booleans(),
    hold_reason=TEXT,
    attempts=st.integers(0, 2**63),
    last_attempt=TIME,
    next_attempt=TIME,
    backoff=TIME,
    waited=TIME,
    delay_warned=st.booleans(),
    bounce=st.booleans(),
)
PLAIN = Envelope(0x6B0000000007, Address("a", "example.com"), (Recipient(Address("b", "example.net")),), 5, 1.5)
HEAD = Head(5, 1, 0x12345678)


def record(envelope: Envelope = PLAIN, head: Head = HEAD) -> bytes:
    return layout.seal(envelope.id, head, layout.fields_of(envelope))


def forged(fields: bytes, id: int = 7, head: Head = HEAD) -> bytes:
    """A record whose checksum is right, whatever it says."""
    return layout.seal(id, head, fields)


@given(ENVELOPE)
def test_an_envelope_is_read_as_it_was_written(envelope: Envelope) -> None:
    head = Head(envelope.size, 1 if envelope.size else 0, 0xFFFFFFFF)
    assert layout.parse(envelope.id, record(envelope, head)) == (head, envelope)


def test_every_field_of_the_values_has_its_place_in_the_record() -> None:
    for value, fields in ((Envelope, layout._FIELDS), (Recipient, layout._RECIPIENT), (Origin, layout._ORIGIN)):
        names = {field.name for field in dataclasses.fields(value)} - {"id", "size"}
        assert {field.name for field in fields} == names
        assert len({field.tag for field in fields}) == len(fields)
        declared = {
            field.name: field.default
            for field in dataclasses.fields(value)
            if field.default is not dataclasses.MISSING and field.name in names
        }
        assert {field.name: field.default for field in fields if field.name in declared} == declared


def test_a_fresh_envelope_is_small() -> None:
    origin = Origin("printer.example.com", "192.0.2.17", "printer", "ESMTP", "", "lan")
    envelope = dataclasses.replace(PLAIN, origin=origin, message_id="<20261121.1@printer.example.com>")
    assert len(record(envelope)) < 200


GOLDEN = Envelope(
    0x6B00C0FFEE,
    Address("Box", "example.com"),
    (Recipient(Address("ops", "example.net"), Notify.FAILURE, reason="timed out", status="4.4.1", kind=Kind.LINK),),
    4100,
    1795219200.0,
    Origin("gw", "192.0.2.17", "gw.lan", "ESMTP"),
    eight_bit=True,
    attempts=2,
    next_attempt=1795219500.0,
)
GOLDEN_RECORD = (
    "01f7687b3e000000000000100400000001deadbeef010f03426f786578616d706c652e636f6d022d2c010f036f7073657861"
    "6d706c652e6e6574020102040974696d6564206f75740505342e342e3106046c696e6b030841dac037c0000000041f010267"
    "77020a3139322e302e322e3137030667772e6c616e040545534d545006000e080000000000000002100841dac0380b000000"
)


def test_format_1_is_what_it_was() -> None:
    """A spool that an earlier release wrote must be read as it was meant. New fields need a new version."""
    data = bytes.fromhex(GOLDEN_RECORD)
    head = Head(4100, 1, 0xDEADBEEF)
    assert layout.parse(GOLDEN.id, data) == (head, GOLDEN)
    assert record(GOLDEN, head) == data
    assert (
        layout.write_meta(Meta(4096, 65520, 0x6B00C10000, 1795219200.0, True)).hex()
        == "454d535000010100000010000000fff00000006b00c1000041dac037c0000000058a206b"
    )
    assert layout.write_note(GOLDEN.id, 1795219200.0, "why").hex() == "014caeb05841dac037c0000000776879"


@settings(max_examples=400)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\x01" * 21)
def test_hostile_bytes_raise_nothing_else(data: bytes) -> None:
    for reader in (layout.parse, layout.head_of):
        with pytest.raises(SpoolDamaged) as caught:
            reader(7, data)
        assert caught.value.id == 7
    with pytest.raises(SpoolDamaged):
        layout.read_meta(data)
    assert layout.read_note(7, data).id == 7
    layout.place(data)
    layout.note_id(data)


@settings(max_examples=1000)
@given(
    st.binary(max_size=60)
    | st.lists(st.tuples(st.integers(0, 25), st.binary(max_size=12)), max_size=6).map(
        lambda rows: b"".join(bytes((tag, len(value))) + value for tag, value in rows)
    )
)
def test_hostile_fields_with_a_right_checksum_parse_or_are_damaged(fields: bytes) -> None:
    try:
        _, envelope = layout.parse(7, forged(fields))
    except SpoolDamaged:
        return
    assert layout.parse(7, record(envelope)) == (HEAD, envelope)


@given(ENVELOPE, st.data())
def test_one_turned_bit_is_noticed(envelope: Envelope, data: st.DataObject) -> None:
    whole = record(envelope, Head(envelope.size, min(envelope.size, 1), 0))
    at = data.draw(st.integers(0, len(whole) * 8 - 1))
    turned = bytearray(whole)
    turned[at // 8] ^= 1 << at % 8
    with pytest.raises(SpoolDamaged):
        layout.parse(envelope.id, bytes(turned))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (b"\x63\x00", "a tag that no release wrote"),
        (b"\x06\x00\x06\x00", "twice"),
        (b"\x06\x01\x01", "a flag with a value"),
        (b"\x03\x08" + struct.pack(">d", float("nan")), "not a time"),
        (b"\x10\x08" + struct.pack(">d", float("inf")), "not a time"),
        (b"\x03\x07" + bytes(7), "a short time"),
        (b"\x0e\x01\x05", "a short number"),
        (b"\x05\x04NONE", "an unknown body type"),
        (b"\x09\x02\xff\xfe", "not UTF-8"),
        (b"\x09\xff\xff\xff\xff\xff\xff\x01", "an endless length"),
        (b"\x09\x05ab", "cut short"),
        (b"\x02\x04\x03\x02\x01\x08", "a recipient with NOTIFY 8"),
        (b"\x02\x05\x04\x06\x02xx", "a recipient with an unknown kind"),
    ],
)
def test_fields_that_mean_nothing_are_damage(fields: bytes, why: str) -> None:
    with pytest.raises(SpoolDamaged):
        layout.parse(7, forged(fields))


@pytest.mark.parametrize("head", [Head(0, 1, 0), Head(1, 0, 0), Head(1, 2, 0)])
def test_a_body_that_cannot_be_is_damage(head: Head) -> None:
    with pytest.raises(SpoolDamaged):
        layout.parse(7, forged(b"", head=head))


def test_an_envelope_of_another_version_is_not_guessed_at() -> None:
    other = bytearray(record())
    other[0] = 2
    with pytest.raises(SpoolDamaged, match="version 2"):
        layout.parse(PLAIN.id, bytes(other))


def test_a_record_under_another_id_is_not_believed() -> None:
    with pytest.raises(SpoolDamaged, match="checksum"):
        layout.parse(PLAIN.id + 1, record())


def test_a_time_that_is_not_finite_is_not_written() -> None:
    with pytest.raises(ValueError, match="finite"):
        layout.fields_of(dataclasses.replace(PLAIN, backoff=float("inf")))


@given(ID, st.integers(0, 2**32 - 1))
def test_keys_sort_as_their_ids_and_parts_do(id: int, part: int) -> None:
    key = layout.key(id, part)
    assert layout.place(key) == (id, part)
    assert key.startswith(layout.run(id))
    assert layout.key(id - 1, 2**32 - 1) < layout.key(id, 0) <= key
    assert layout.note_id(layout.note_key(id)) == layout.note_id(layout.aside_key(id)) == id
    assert layout.meta_key() < layout.key(0, 0) < key < layout.aside_key(0) < layout.note_key(0)


@pytest.mark.parametrize(("page", "chunk"), [(4096, 65520), (16384, 262128), (65536, 1048560)])
def test_a_chunk_fills_its_pages(page: int, chunk: int) -> None:
    assert layout.chunk_size(page) == chunk
    assert (15 + chunk) // page + 1 == layout.PAGES_PER_CHUNK  # OVPAGES of lmdb


@given(ID, TIME, TEXT)
def test_a_note_is_read_as_it_was_written(id: int, at: float, why: str) -> None:
    note = layout.read_note(id, layout.write_note(id, at, why))
    assert (note.id, note.at, note.why) == (id, at, why)


def test_a_damaged_note_is_still_listed() -> None:
    whole = layout.write_note(7, 1.0, "because")
    assert layout.read_note(7, whole[:-1]).why == "the note that says why is damaged too"
    assert layout.read_note(8, whole).why == "the note that says why is damaged too"
    assert len(layout.write_note(7, 1.0, "x" * 10_000)) < 600


@given(st.integers(0, layout.MAX_ID), TIME, st.booleans())
def test_meta_is_read_as_it_was_written(ceiling: int, wall: float, clean: bool) -> None:
    meta = Meta(4096, 65520, ceiling, wall, clean)
    assert layout.read_meta(layout.write_meta(meta)) == meta


def test_meta_of_a_later_format_still_says_its_format() -> None:
    record = layout.write_meta(Meta(4096, 65520, 9))
    body = record[:4] + (3).to_bytes(2, "big") + record[6:-4] + b"what a later release adds"
    later = body + zlib.crc32(body).to_bytes(4, "big")
    assert layout.read_meta(later).format == 3


def test_meta_of_an_open_journal_has_a_format_that_older_releases_refuse() -> None:
    mark = JournalMark(bytes(range(16)), 1 << 20, 7, 4711, (2**64 - 1, 5))
    record = layout.write_meta(Meta(4096, 65520, 9, journal=mark))
    assert layout.read_meta(record) == Meta(4096, 65520, 9, format=2, journal=mark)
    assert layout.read_meta(layout.write_meta(Meta(4096, 65520, 9, format=2))).format == 1  # closed in order
    short = layout.write_meta(Meta(4096, 65520, 9))
    claim = short[:4] + (2).to_bytes(2, "big") + short[6:-4]
    with pytest.raises(SpoolDamaged):
        layout.read_meta(claim + zlib.crc32(claim).to_bytes(4, "big"))
