"""A card for tests: its partitions, two slots, a boot state, and a log of every write and flush for power cuts."""

from __future__ import annotations

import hashlib
import io
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from edgemail.boot import bootstate, bundle, card
from edgemail.boot.bootstate import BootState, StateDamaged
from edgemail.boot.slots import Release

SLOT: Final = 256 * 1024
SLOT_A, SLOT_B = 4 << 20, 5 << 20
KEYS: Final = (bytes(range(32)), bytes(range(32, 64)))
PUBLIC: Final = tuple(bundle.public_of(key) for key in KEYS)
RELEASE: Final = Release("1.0", "arm64", 10, 1, 1_795_219_200)
ENTRY: Final = struct.Struct("<B3sB3sII")


def table(*places: tuple[int, int], kind: int = 0x0E) -> bytes:
    """A partition table; places in bytes: start and size."""
    entries = b"".join(
        ENTRY.pack(0, b"\0\0\0", kind, b"\0\0\0", start // card.SECTOR, size // card.SECTOR) for start, size in places
    )
    return b"\0" * 446 + entries.ljust(64, b"\0") + b"\x55\xaa"


def slot_image(version: str, size: int = SLOT) -> bytes:
    return random.Random(version).randbytes(size)


def blank(size: int = 6 << 20) -> bytearray:
    """A card as it is flashed: slot A filled, B empty."""
    out = bytearray(size)
    out[: card.SECTOR] = table((1 << 20, 1 << 20), (SLOT_A, SLOT), (SLOT_B, SLOT))
    out[SLOT_A : SLOT_A + SLOT] = slot_image("1.0")
    sector = BootState(("A",), {"A": 3, "B": 0}).pack()
    for at in (bootstate.PRIMARY, bootstate.SPARE):
        out[at : at + card.SECTOR] = sector
    return out


def release(
    version: str = "1.1", *, keys: Sequence[bytes] = KEYS[:1], payload: bytes | None = None, **about: object
) -> bytes:
    """A bundle."""
    content = slot_image(version) if payload is None else payload
    given = {"version": version, "board": "arm64", "serial": 11, **about}
    return bundle.header(bundle.described(io.BytesIO(content), given), keys) + content


@dataclass
class LoggedCard:
    """A card in memory that keeps what was written to it, and when it was flushed (None)."""

    image: bytearray = field(default_factory=blank)
    log: list[tuple[int, bytes] | None] = field(default_factory=list)
    deaf: bool = False  # writes are lost

    def read(self, at: int, size: int) -> bytes:
        return bytes(self.image[at : at + size])

    def write(self, at: int, data: bytes) -> None:
        self.log.append((at, data))
        if not self.deaf:
            self.image[at : at + len(data)] = data

    def flush(self) -> None:
        self.log.append(None)


def cuts(before: bytes, log: Sequence[tuple[int, bytes] | None], chance: random.Random) -> Iterator[bytearray]:
    """The card after a power cut: after each write, in the midst of each, and with any of what was not flushed."""
    sure = bytearray(before)
    pending: list[tuple[int, bytes]] = []

    def with_these(writes: Sequence[tuple[int, bytes]]) -> bytearray:
        out = bytearray(sure)
        for at, data in writes:
            out[at : at + len(data)] = data
        return out

    yield with_these(())
    for entry in log:
        if entry is None:
            for at, data in pending:
                sure[at : at + len(data)] = data
            pending = []
            continue
        at, data = entry
        for _ in range(4):  # in the midst: also within a sector, and its end before its beginning
            cut = chance.randrange(len(data) + 1)
            yield with_these([*pending, (at, data[:cut])])
            yield with_these([*pending, (at + cut, data[cut:])])
        pending.append(entry)
        yield with_these(pending)
        yield with_these([one for one in pending if chance.random() < 0.5])


def startable(image: bytes | bytearray) -> list[str]:
    """What the boot script takes: the digest of the slot it takes now, then of those it takes after that one failed."""
    state = BootState()
    for at in (bootstate.PRIMARY, bootstate.SPARE):
        try:
            state = BootState.of(bytes(image[at : at + card.SECTOR]))
            break
        except StateDamaged:
            continue
    begins = {"A": SLOT_A, "B": SLOT_B}
    slots = dict.fromkeys([state.chosen(), *(slot for slot in state.order if state.left[slot] > 0)])
    return [hashlib.sha256(image[begins[slot] : begins[slot] + SLOT]).hexdigest() for slot in slots]


def started(image: bytes | bytearray) -> str:
    return startable(image)[0]
