"""The card as a block device: reads and writes past the page cache, and the partitions that stand on it.

Owns the partition table (MBR, four primary partitions) and how a sector gets on the medium. Knows nothing of what
stands in a partition.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Final

from edgemail.errors import EdgemailError
from edgemail.value import value

SECTOR: Final = 512
BLOCK: Final = 1 << 20  # limit: bytes of one request to the card
ALIGN: Final = 2048  # sectors: partitions begin at whole MiB
MIN_DATA: Final = 16 * 2048  # limit: sectors of the smallest data partition, 16 MiB
MAX_SECTORS: Final = 0xFFFF_FFFF  # limit: sectors that an MBR can name; what is beyond 2 TiB stays unused

LINUX: Final = 0x83
_ENTRIES: Final = 446
_ENTRY: Final = struct.Struct("<B3sB3sII")
_NO_CHS: Final = b"\xfe\xff\xff"  # "look at the sector numbers", for what lies beyond 8 GB or does not care


class CardRefused(EdgemailError):
    """The card is not as it should be; the message says what is wrong."""


@value
class Partition:
    """Where it stands, in sectors."""

    number: int  # from 1
    start: int
    sectors: int
    kind: int


class BlockCard:
    """A block device or an image file. Where the file system allows it, nothing goes through the page cache."""

    def __init__(self, path: str | Path, *, write: bool = True) -> None:
        """Raises OSError."""
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
        try:
            self._file = os.open(path, flags | os.O_DIRECT)
        except OSError:
            self._file = os.open(path, flags)  # tmpfs knows no O_DIRECT
        self.size = os.lseek(self._file, 0, os.SEEK_END)
        self._buffer = mmap.mmap(-1, BLOCK)  # page-aligned, as O_DIRECT wants it

    def __enter__(self) -> BlockCard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._file)
        self._buffer.close()

    def read(self, at: int, size: int) -> bytes:
        """Raises OSError, and CardRefused at the card's end."""
        out = bytearray()
        while len(out) < size:
            with memoryview(self._buffer) as whole, whole[: _sectors(min(size - len(out), BLOCK))] as part:
                count = os.preadv(self._file, [part], at + len(out))
            if not count:
                raise CardRefused("the card ends too early")
            out += self._buffer[:count]
        return bytes(out[:size])

    def write(self, at: int, data: bytes) -> None:
        """Whole sectors: what is missing in the last is filled with zeros. Raises OSError."""
        for begin in range(0, len(data), BLOCK):
            piece = data[begin : begin + BLOCK]
            length = _sectors(len(piece))
            self._buffer[:length] = piece.ljust(length, b"\0")
            done = 0
            while done < length:
                with memoryview(self._buffer) as whole, whole[done:length] as part:
                    done += os.pwritev(self._file, [part], at + begin + done)

    def flush(self) -> None:
        os.fsync(self._file)
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)


def _sectors(size: int) -> int:
    return -(-size // SECTOR) * SECTOR


# ---- the partition table


def partitions(table: bytes) -> dict[int, Partition]:
    """The partitions in the card's first sector, by number. Raises CardRefused when it holds no table."""
    if len(table) != SECTOR or table[510:] != b"\x55\xaa":
        raise CardRefused("the card has no partition table")
    found = {}
    for number in range(1, 5):
        _, _, kind, _, start, sectors = _ENTRY.unpack_from(table, _ENTRIES + (number - 1) * _ENTRY.size)
        if kind and sectors:
            found[number] = Partition(number, start, sectors, kind)
    return found


def with_data(table: bytes, total: int) -> tuple[bytes, Partition]:
    """The first sector with a fourth partition in the free space behind the third; `total`: the card's sectors.

    Raises CardRefused when there is no room for it. The table fits one sector: it is the old or the new one.
    """
    found = partitions(table)
    if 4 in found:
        raise CardRefused("the card has a data partition")
    start = -(-max(each.start + each.sectors for each in found.values()) // ALIGN) * ALIGN
    sectors = (min(total, MAX_SECTORS) - start) // ALIGN * ALIGN
    if sectors < MIN_DATA:
        raise CardRefused("the card is too small: there is no room for a data partition of 16 MiB")
    entry = _ENTRY.pack(0, _NO_CHS, LINUX, _NO_CHS, start, sectors)
    at = _ENTRIES + 3 * _ENTRY.size
    return table[:at] + entry + table[at + _ENTRY.size :], Partition(4, start, sectors, LINUX)


def device(disk: str, number: int) -> str:
    """The device of a partition: /dev/vda4, /dev/mmcblk0p4."""
    return f"{disk}p{number}" if disk[-1:].isdigit() else f"{disk}{number}"
