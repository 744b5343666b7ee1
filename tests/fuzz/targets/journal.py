"""A hostile journal: the file as it stands, and records of it that say anything with a checksum that is right.

Invariants: no exception; numbers rise, each once; what a record brings stands in the file where it says; what is
gathered is a message or is damage by name; what was read is written as what reads the same again; only what has the
salt of the epoch is believed, with a mark and without.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Final

from edgemail.envelope import Address, Envelope, Recipient
from edgemail.errors import SpoolDamaged
from edgemail.spool import journal_layout, layout
from edgemail.spool.journal_layout import BLOCK, Entry, Scan, half, salt_of, start, write_group, write_header
from edgemail.spool.layout import Head, JournalMark

SIZE: Final = 35 * BLOCK  # two halves with room for one record of the largest body
IDENTITY: Final = bytes(range(16))
MARK: Final = JournalMark(IDENTITY, SIZE, 1, 0, (salt_of(IDENTITY, 1), salt_of(IDENTITY, 2)))
FIELDS: Final = layout.fields_of(Envelope(0, Address("a", "b.example"), (Recipient(Address("c", "d.example")),)))
RECORD: Final = layout.seal(7, Head(5, 1, 0x3610A686), FIELDS)  # of the body "hello"
PARTING: Final = b"\xff\xfe\xfd"  # between two records
WORDS: Final = (
    *(b"\x01", b"\x02", b"\x03", PARTING, b"hello", RECORD, FIELDS),
    *(struct.pack(">Q", number) for number in (0, 7, 8, 2**63, 2**64 - 1)),
    *(struct.pack(">I", number) for number in (0, 5, len(RECORD), len(FIELDS), 131_072, 2**32 - 1)),
    b"\x01" + struct.pack(">QII", 7, len(RECORD), 5) + RECORD + b"hello",
    b"\x02" + struct.pack(">QI", 7, len(FIELDS)) + FIELDS,
    b"\x03" + struct.pack(">Q", 7),
    *(struct.pack(">Q", salt) for salt in MARK.salts),
)
_PUT: Final = b"\x01" + struct.pack(">QII", 7, len(RECORD), 5) + RECORD + b"hello"
# Longer than a fuzzer makes them.
LARGE: Final = (
    *(_PUT + PARTING + b"x" * 100_000, (_PUT + PARTING) * 1000, (b"\x03" + struct.pack(">Q", 7) + PARTING) * 5000),
    *(b"\x01" + struct.pack(">QII", 9, len(RECORD), 60_000) + RECORD + b"y" * 60_000, PARTING * 20_000),
)


def image(first: bytes, second: bytes = b"") -> bytes:
    """A whole file: the header, and what stands at the start of the two epochs' halves."""
    found = bytearray(SIZE)
    found[:BLOCK] = write_header(SIZE, IDENTITY)
    for epoch, data in ((1, first), (2, second)):
        at = start(SIZE, epoch)
        found[at : at + min(len(data), half(SIZE))] = data[: half(SIZE)]
    return bytes(found)


def seal(payload: bytes, salt: int, number: int, first: bool) -> bytes:
    """A record of this payload, right but for what it says."""
    made = bytearray(write_group([Entry(remove=(7,))], salt, number, 0.0)[: journal_layout._RECORD.size])
    struct.pack_into(">IIB", made, 24, len(made) + len(payload), 0, first)
    crc = zlib.crc32(payload, zlib.crc32(made))
    struct.pack_into(">I", made, 28, crc)
    return bytes(made) + payload


def sealed(data: bytes, epoch: int, number: int) -> tuple[bytes, int]:
    """Records of the parts of `data`, each one write; and the number of the last."""
    out = bytearray()
    salt = salt_of(IDENTITY, epoch)
    for payload in data.split(PARTING):
        record = seal(payload[: journal_layout.LARGEST - 64], salt, number + 1, True)
        if len(out) + len(record) > half(SIZE):
            break
        number += 1
        out += record.ljust(journal_layout.blocks(len(record)), b"\0")
    return bytes(out), number


def reading(data: bytes) -> Callable[[int, int], bytes]:
    """A file's reads, which ask for what can be asked for."""

    def read(at: int, count: int) -> bytes:
        assert at >= 0
        assert 0 <= count <= journal_layout.LARGEST
        return data[at : at + count]

    return read


def judge_file(data: bytes, mark: JournalMark) -> None:
    """All that is made of a file, under a mark."""
    read = reading(data)
    scan = Scan()
    last = mark.number
    for record in scan.records(read, mark):
        assert record.number > last
        last = record.number
        if record.entry.put is not None:
            _, _, body = record.entry.put
            assert data[record.at : record.at + len(body)] == body
        again = write_group([record.entry], mark.salts[0], record.number, record.date)
        alone = JournalMark(IDENTITY, SIZE, 1, record.number - 1, mark.salts)
        back = next(Scan().records(reading(image(again)), alone))
        assert (back.entry, back.number) == (record.entry, record.number)
    assert all(first <= end < last for first, end in scan.lost)
    leaves, date = journal_layout.gather(Scan().records(read, mark))
    assert date >= 0.0
    for mail, leaf in leaves.items():
        assert 0 <= leaf.at <= leaf.at + leaf.size <= len(data)
        try:
            layout.parse(mail, leaf.record)
        except SpoolDamaged as error:
            assert error.id == mail


def judge(data: bytes) -> None:
    foreign = salt_of(bytes(16), 1)
    one, number = sealed(data, 1, 0)
    two, _ = sealed(data[len(data) // 2 :], 2, number)
    for file in (image(data, data), image(one, two), image(one[:-BLOCK] + data, two), image(two, one)):
        judge_file(file, MARK)
        found = journal_layout.newest(reading(file), SIZE, IDENTITY)
        if found is not None:
            assert found.epoch in (1, 2)
            judge_file(file, found)
    for file in (image(seal(data, foreign, 1, True)), image(seal(data, MARK.salts[1], 1, True))):
        assert not list(Scan().records(reading(file), MARK))
    journal_layout.read_header(data)
