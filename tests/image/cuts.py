"""What a virtual card was asked to write and flush (dm-log-writes' format), and the cards that a power cut can leave.

A flush makes sure of all that was written before it. What was written since may be there in any combination, and the
last of it torn at a sector.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SECTOR: Final = 512
MAGIC: Final = 0x6A736677736872
FLUSH: Final = 1
FUA: Final = 2
DISCARD: Final = 4
_SUPER: Final = struct.Struct("<QQQI")
_ENTRY: Final = struct.Struct("<QQQQ")


@dataclass(frozen=True, slots=True)
class Entry:
    """One request: where, in bytes; what; and whether it flushes."""

    at: int
    data: bytes
    flags: int


def count(log: Path) -> int:
    """Requests that the log holds so far; the emulator writes it with each."""
    with log.open("rb") as file:
        magic, _, entries, _ = _SUPER.unpack(file.read(_SUPER.size))
    assert magic == MAGIC
    return int(entries)


def entries(log: Path) -> list[Entry]:
    found = []
    with log.open("rb") as file:
        magic, _, number, size = _SUPER.unpack(file.read(_SUPER.size))
        assert magic == MAGIC
        file.seek(size)
        for _ in range(number):
            head = file.read(size)
            sector, sectors, flags, _ = _ENTRY.unpack_from(head)
            data = b"" if flags & DISCARD else file.read(sectors * SECTOR)
            found.append(Entry(sector * SECTOR, data, flags))
    return found


@dataclass(frozen=True, slots=True)
class Cut:
    """A card that a cut can leave: after how many requests, which of them are not there, and what is torn."""

    after: int
    how: str
    image: bytearray


class Medium:
    """A range of the card, as far as it is surely there. Cuts are made in the order of the log."""

    def __init__(self, image: bytes, start: int, *, lies: bool = False) -> None:
        """`lies`: a medium that does nothing when it is told to flush; for controls."""
        self.sure = bytearray(image)
        self._start = start
        self._lies = lies
        self._waiting: list[Entry] = []

    def _apply(self, image: bytearray, entry: Entry, size: int | None = None) -> None:
        data = entry.data if size is None else entry.data[:size]
        begin = entry.at - self._start
        skip = max(0, -begin)
        if skip < len(data) and begin < len(image):
            image[begin + skip : begin + len(data)] = data[skip : skip + len(image) - begin - skip]

    def take(self, entry: Entry) -> None:
        if entry.flags & FLUSH and not self._lies:
            self.settle()
        if entry.flags & FUA:
            self._apply(self.sure, entry)
        elif entry.data:
            self._waiting.append(entry)

    def settle(self) -> None:
        for waiting in self._waiting:
            self._apply(self.sure, waiting)
        self._waiting.clear()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def prefix(self) -> bytearray:
        """All that was asked for is there."""
        image = bytearray(self.sure)
        for entry in self._waiting:
            self._apply(image, entry)
        return image

    def torn(self, chance: random.Random) -> bytearray:
        """Some of what was not flushed is there, in another order, one request of it in part."""
        image = bytearray(self.sure)
        share = chance.random()
        some = [entry for entry in self._waiting if chance.random() < share]
        chance.shuffle(some)
        for entry in some[:-1]:
            self._apply(image, entry)
        if some:
            self._apply(image, some[-1], chance.randrange(len(some[-1].data) // SECTOR + 1) * SECTOR)
        return image


def cuts(log: list[Entry], medium: Medium, chance: random.Random, wanted: int, first: int) -> Iterator[Cut]:
    """About `wanted` cuts after request number `first`: prefixes, and what reordering and tearing leave."""
    places = max(1, len(log) - first)
    per_place = max(1, -(-wanted // (2 * places)))
    share = min(1.0, wanted / (2 * places * per_place))
    for number, entry in enumerate(log, 1):
        medium.take(entry)
        if number < first or chance.random() >= share:
            continue
        yield Cut(number, "prefix", medium.prefix())
        for _ in range(per_place):
            if medium.waiting:
                yield Cut(number, "torn", medium.torn(chance))
