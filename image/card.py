"""The card: partition table, boot state, boot partition, slot A filled, slot B empty. Data comes at the first start."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from edgemail.boot import bootstate
from image.definition import BOOT_SIZE, BOOT_START, SECTOR, SLOT_SIZE

SIGNATURE: Final = 0xED9E3A11  # the first root knows the card by it
FAT16_LBA: Final = 0x0E
SLOT_A: Final = BOOT_START + BOOT_SIZE
SLOT_B: Final = SLOT_A + SLOT_SIZE
CARD_SIZE: Final = SLOT_B + SLOT_SIZE


def table() -> bytes:
    """The master boot record: three partitions; the fourth, for data, is made on the card."""
    rows = [
        _row(0x80, BOOT_START, BOOT_SIZE),
        _row(0, SLOT_A, SLOT_SIZE),
        _row(0, SLOT_B, SLOT_SIZE),
        bytes(16),
    ]
    return bytes(440) + struct.pack("<IH", SIGNATURE, 0) + b"".join(rows) + b"\x55\xaa"


def _row(active: int, start: int, size: int) -> bytes:
    far = b"\xfe\xff\xff"  # cylinders and heads are not used
    return struct.pack("<B3sB3sII", active, far, FAT16_LBA, far, start // SECTOR, size // SECTOR)


def build(target: Path, boot: Path, slot: Path) -> None:
    """The whole image, sparse where nothing is."""
    with target.open("wb") as file:
        file.truncate(CARD_SIZE)
        file.write(table())
        for place in (bootstate.PRIMARY, bootstate.SPARE):
            file.seek(place)
            file.write(bootstate.BootState(("A",), {"A": bootstate.ATTEMPTS, "B": 0}).pack())
        for place, path in ((BOOT_START, boot), (SLOT_A, slot)):
            file.seek(place)
            with path.open("rb") as source:
                while chunk := source.read(1 << 20):
                    if chunk.count(0) == len(chunk):
                        file.seek(len(chunk), 1)
                    else:
                        file.write(chunk)
