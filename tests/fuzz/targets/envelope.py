"""A hostile spool: records of every kind that say anything, with a checksum that is right and with one that is not.

Invariants: a value or SpoolDamaged; what parses is written as what parses to the same again; a damaged note and a
damaged meta record say that they are.
"""

from __future__ import annotations

import math
import struct
from typing import Final

from edgemail.envelope import Envelope
from edgemail.errors import SpoolDamaged
from edgemail.spool import layout
from edgemail.spool.layout import Head

WORDS: Final = (
    *(bytes((tag,)) for tag in range(1, 22)),
    *(b"7BIT", b"8BITMIME", b"FULL", b"HDRS", b"message-permanent", b"message-temporary", b"route", b"link", b"local"),
    *(struct.pack(">d", value) for value in (1e9, -1.0, float("inf"), float("nan"), 1e308)),
    *(b"\x80\x80\x80\x80\x10", b"\xff\xff\xff\xff\x7f", b"\xed\xa0\x80", b"\xff", b"EMSP", b"\x00" * 8),
)
HEAD: Final = Head(5, 1, 0x12345678)


def judge(data: bytes) -> None:
    for record in (data, layout.seal(7, HEAD, data)):
        try:
            head, found = layout.parse(7, record)
        except SpoolDamaged as error:
            assert error.id == 7
            assert error.why
            continue
        assert isinstance(found, Envelope)
        times = (found.received_at, found.last_attempt, found.next_attempt, found.backoff, found.waited)
        assert all(map(math.isfinite, times))
        assert layout.parse(7, layout.seal(7, head, layout.fields_of(found))) == (head, found)
        try:
            layout.parse(8, record)
        except SpoolDamaged:
            pass
        else:
            raise AssertionError("a record under another id was believed")
    assert layout.read_note(7, data).id == 7
    why = data.decode("utf-8", "surrogateescape")[: layout.MAX_WHY]
    assert layout.read_note(7, layout.write_note(7, 1.0, why)).why == why
    try:
        meta = layout.read_meta(data)
    except SpoolDamaged:
        pass
    else:
        if meta.format == layout.FORMAT:
            assert layout.read_meta(layout.write_meta(meta)) == meta
    for raw in (data, data[:13], data[:9]):
        layout.note_id(raw or b"\0")
        place = layout.place(raw) if raw else None
        assert place is None or layout.key(*place) == raw
