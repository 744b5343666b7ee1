"""The two slots of the card: what runs, what may be written over, and the way from a bundle to the next start.

Owns the order of writes that leaves a box which starts, wherever it is cut: the slot that is written to leaves the boot
order first, and comes back, in front, when all of it was read back from the medium. Opens no connection, knows no key.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgemail.boot import bootstate, card
from edgemail.boot.bootstate import ATTEMPTS, SLOTS, BootState, StateDamaged
from edgemail.errors import EdgemailError
from edgemail.value import value

if TYPE_CHECKING:
    from edgemail.boot.bundle import Bundle, Manifest

RELEASE_FILE: Final = "/usr/lib/edgemail/release"
PARTITION: Final = {"A": 2, "B": 3}
MAX_RELEASE: Final = 4096  # limit: bytes of the file that names the release
TABLE_SECTOR: Final = 0


class UpdateRefused(EdgemailError):
    """The update cannot be done now; the message says why. The box starts as it would have."""


@value
class Release:
    """What runs: the release file of the image."""

    version: str
    board: str
    serial: int
    spool_format: int
    built: int

    @classmethod
    def read(cls, path: str | Path = RELEASE_FILE) -> Release:
        """Raises UpdateRefused where there is none: this is no image."""
        try:
            with Path(path).open() as file:
                values = dict(line.strip().split("=", 1) for line in file.read(MAX_RELEASE).splitlines() if "=" in line)
            return cls(
                values["VERSION"],
                values["BOARD"],
                int(values["SERIAL"]),
                int(values.get("SPOOL_FORMAT", "1")),
                int(values["BUILD_DATE"]),
            )
        except (OSError, KeyError, ValueError) as error:
            raise UpdateRefused(f"this is not a system image of edgemail: {path}: {error}") from error


@value
class Slots:
    """The slots of one card. `running`: the one that the system was started from."""

    medium: bootstate.Card
    running: str

    @property
    def other(self) -> str:
        return SLOTS[1 - SLOTS.index(self.running)]

    def state(self) -> BootState:
        """The boot state; where it cannot be read, what runs is all that is known to start."""
        try:
            return bootstate.load(self.medium)
        except StateDamaged:
            return BootState((self.running,), {**dict.fromkeys(SLOTS, 0), self.running: ATTEMPTS})

    def trial(self) -> bool:
        """Whether what runs has not been marked good since it was started."""
        return self.state().left[self.running] < ATTEMPTS

    def mark_good(self) -> bool:
        """What runs is to be started from now on, first of all. Returns False when that was so."""
        before = self.state()
        after = before.first(self.running)
        if after == before:
            return False
        bootstate.store(self.medium, after)
        return True

    def roll_back(self) -> str:
        """The other slot is to be started next. Returns its name; raises UpdateRefused when it would not start."""
        state = self.state()
        if self.other not in state.order or state.left[self.other] <= 0:
            raise UpdateRefused(f"slot {self.other} holds no release that is known to start")
        bootstate.store(self.medium, state.first(self.other))
        return self.other

    def place(self, slot: str) -> card.Partition:
        """Where a slot stands. Raises CardRefused."""
        table = card.partitions(self.medium.read(TABLE_SECTOR, card.SECTOR))
        if PARTITION[slot] not in table:
            raise card.CardRefused(f"the card has no partition {PARTITION[slot]}")
        return table[PARTITION[slot]]

    def install(self, bundle: Bundle, release: Release, progress: Callable[[int], None] = lambda done: None) -> None:
        """Write a bundle into the other slot, and have it started next. `progress` hears of the bytes written.

        Raises BundleRefused, UpdateRefused, CardRefused, OSError: the box then starts what it would have started,
        but for the other slot, which is started no more once it was written to.
        """
        from edgemail.boot.bundle import BundleRefused

        manifest = bundle.manifest
        suits(manifest, release)
        place = self.place(self.other)
        if manifest.size > place.sectors * card.SECTOR:
            raise BundleRefused(f"the release is larger than slot {self.other}")
        if self.trial():
            raise UpdateRefused("what runs has not been marked good yet: the other slot may still be needed")
        state = self.state().without(self.other)
        bootstate.store(self.medium, state)
        start = at = place.start * card.SECTOR
        for piece in bundle.payload():
            self.medium.write(at, piece)
            at += len(piece)
            progress(at - start)
        self.medium.flush()
        if self._digest(start, manifest.size) != manifest.sha256:
            raise UpdateRefused("the card does not give back what was written to it: it may be worn out")
        bootstate.store(self.medium, state.first(self.other))

    def _digest(self, start: int, size: int) -> str:
        import hashlib

        digest = hashlib.sha256()
        for at in range(0, size, card.BLOCK):
            digest.update(self.medium.read(start + at, min(card.BLOCK, size - at)))
        return digest.hexdigest()


def suits(manifest: Manifest, release: Release) -> None:
    """Whether a release may follow what runs. Raises BundleRefused."""
    from edgemail.boot.bundle import BundleRefused

    if manifest.board != release.board:
        raise BundleRefused(f"the release is for {manifest.board}, and this is {release.board}")
    if manifest.serial < release.serial:
        raise BundleRefused(
            f"the release {manifest.version} is older than {release.version}, which runs; `edgemail update rollback` "
            "goes back to the release before"
        )
    if manifest.min_from > release.serial:
        raise BundleRefused(f"the release {manifest.version} needs a release between it and {release.version}")
    if manifest.spool_format > release.spool_format + 1:
        raise BundleRefused(f"the release {manifest.version} could not be left again: its spool is two formats newer")
