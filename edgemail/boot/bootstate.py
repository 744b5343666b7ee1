"""Which slot the board starts: one sector, in the form of U-Boot's environment, with the names that RAUC uses.

Owns LBA 64, its spare in LBA 65, and what the words in them mean. The boot script reads the first of the two whose
checksum is right, takes the first slot of BOOT_ORDER that has attempts left, and counts one off in LBA 64. A slot that
is not whole does not stand in BOOT_ORDER: where no attempt is left anywhere, the script gives them back to the slots in
BOOT_ORDER, and to no other.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Final, Protocol

from edgemail.boot.card import SECTOR
from edgemail.errors import EdgemailError
from edgemail.value import value

PRIMARY: Final = 64 * SECTOR  # bytes from the card's beginning
SPARE: Final = 65 * SECTOR
SLOTS: Final = ("A", "B")
ATTEMPTS: Final = 3  # limit: starts of a slot that was not marked good, before the other is taken

_CRC: Final = struct.Struct("<I")  # U-Boot's, on every board that it runs on here


class Card(Protocol):
    """The card, or a file that stands for one. Offsets are bytes from its beginning, whole sectors."""

    def read(self, at: int, size: int) -> bytes: ...
    def write(self, at: int, data: bytes) -> None: ...
    def flush(self) -> None:
        """What was written is on the medium when this returns."""


class StateDamaged(EdgemailError):
    """A sector that holds no state."""


@value
class BootState:
    """The order in which slots are tried, and how often each still may be. `rest`: variables of others, kept."""

    order: tuple[str, ...] = SLOTS
    left: Mapping[str, int] = field(default_factory=lambda: {"A": ATTEMPTS, "B": ATTEMPTS})
    rest: tuple[tuple[str, str], ...] = ()

    def chosen(self) -> str:
        """The slot that the boot script takes next."""
        return next((slot for slot in self.order if self.left[slot] > 0), self.order[0] if self.order else SLOTS[0])

    def without(self, slot: str) -> BootState:
        """While `slot` is being written: it is not to be started."""
        return replace(self, order=tuple(s for s in self.order if s != slot), left={**self.left, slot: 0})

    def first(self, slot: str) -> BootState:
        """`slot` is tried first, with all its attempts."""
        order = (slot, *(s for s in self.order if s != slot))
        return replace(self, order=order, left={**self.left, slot: ATTEMPTS})

    def pack(self) -> bytes:
        """As a sector."""
        values = {
            **dict(self.rest),
            "BOOT_ORDER": " ".join(self.order),
            **{f"BOOT_{slot}_LEFT": str(self.left[slot]) for slot in SLOTS},
        }
        text = b"".join(f"{name}={value}".encode() + b"\0" for name, value in values.items()) + b"\0"
        body = text.ljust(SECTOR - _CRC.size, b"\0")
        if len(body) > SECTOR - _CRC.size:
            raise StateDamaged("the boot state does not fit its sector")
        return _CRC.pack(zlib.crc32(body)) + body

    @classmethod
    def of(cls, sector: bytes) -> BootState:
        """Raises StateDamaged."""
        (crc,) = _CRC.unpack_from(sector)
        body = sector[_CRC.size : SECTOR]
        if len(sector) != SECTOR or zlib.crc32(body) != crc:
            raise StateDamaged("the boot state's checksum is wrong")
        values = dict(
            line.split("=", 1) for line in body.split(b"\0\0")[0].decode("latin-1").split("\0") if "=" in line
        )
        try:
            order = tuple(dict.fromkeys(slot for slot in values.pop("BOOT_ORDER").split() if slot in SLOTS))
            left = {slot: int(values.pop(f"BOOT_{slot}_LEFT")) for slot in SLOTS}
        except (KeyError, ValueError) as error:
            raise StateDamaged(f"the boot state does not parse: {error}") from error
        return cls(order, left, tuple(values.items()))


def load(card: Card) -> BootState:
    """The state in force, by the same rule as the boot script's. Raises StateDamaged when neither sector holds one."""
    for at in (PRIMARY, SPARE):
        try:
            return BootState.of(card.read(at, SECTOR))
        except StateDamaged as error:
            damaged = error
    raise damaged


def store(card: Card, state: BootState) -> None:
    """Put a state into force. Cut at any instant, the old or the new is: the spare is whole before LBA 64 is not."""
    sector = state.pack()
    for at in (SPARE, PRIMARY):
        card.write(at, sector)
        card.flush()
