"""The slot that runs: which it is, whether it is on trial, finding it good, and leaving it for the other one.

Owns the record of what stands in which slot, on the data partition. Knows no bundle and no server, which are
`update`'s: every start of the box goes through here, on boards that have little memory while the relay starts.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgemail.boot import slots
from edgemail.boot.card import BlockCard
from edgemail.boot.places import Places, replace
from edgemail.boot.slots import Release, Slots, UpdateRefused
from edgemail.errors import EdgemailError

if TYPE_CHECKING:
    from edgemail.boot.bundle import Manifest

RECORD: Final = "slots.json"  # on the data partition: which release stands in which slot

Problems = (EdgemailError, OSError)


class Trial:
    """The slots of one box, seen from the one that runs."""

    def __init__(self, places: Places) -> None:
        self.places = places

    def release(self) -> Release:
        """What runs. Raises UpdateRefused where this is no image."""
        return Release.read(self.places.release)

    def running(self) -> str:
        """The slot that the system was started from. Raises UpdateRefused."""
        with contextlib.suppress(OSError):
            for word in Path(self.places.cmdline).read_text().split():
                name, _, value = word.partition("=")
                if name == "edgemail.slot" and value in slots.PARTITION:
                    return value
        raise UpdateRefused("the kernel was not told which slot it was started from: this is no system image")

    @contextlib.contextmanager
    def slots(self, *, write: bool = False) -> Iterator[Slots]:
        """The slots of the card. Raises OSError and UpdateRefused."""
        with BlockCard(self.places.disk, write=write) as medium:
            yield Slots(medium, self.running())

    # ---- good, or not

    def mark_good(self) -> bool:
        """What runs is started from now on. Returns False when that was so. Raises EdgemailError and OSError."""
        release = self.release()
        with self.slots(write=True) as found:
            marked = found.mark_good()
        with contextlib.suppress(OSError):  # a box without its data partition runs all the same
            self._record(found.running, release, good=True)
        with contextlib.suppress(OSError):  # then the older format is written until the next start
            self.note_format()
        return marked

    def unproven(self) -> bool:
        """Whether what runs is a release that never did its work here."""
        about = read_json(self.places.home / RECORD).get(self.running(), {})
        return about.get("serial") == self.release().serial and not about.get("good")

    def roll_back(self) -> str:
        """The other slot is started next; returns its name. Raises EdgemailError and OSError."""
        with self.slots(write=True) as found:
            return found.roll_back()

    def another(self) -> bool:
        """Whether there is another slot to go to."""
        with self.slots() as found:
            state = found.state()
            return found.other in state.order and state.left[found.other] > 0

    # ---- records

    def spool_format(self) -> int:
        """The newest format of the spool that may be written: on trial, the newest that the other slot knows."""
        with self.slots() as found:
            if not found.trial():
                return self.release().spool_format
            other = read_json(self.places.home / RECORD).get(found.other, {})
        return min(self.release().spool_format, int(other.get("spool_format", self.release().spool_format)))

    def note_format(self) -> None:
        """Lay `spool_format` down for the launcher, which is to start fast. Raises EdgemailError and OSError."""
        replace(self.places.spool_format, f"{self.spool_format()}\n")

    def _record(self, slot: str, one: Release | Manifest, *, good: bool = False) -> None:
        about = {"version": one.version, "serial": one.serial, "spool_format": one.spool_format, "good": good}
        record = read_json(self.places.home / RECORD)
        if record.get(slot) != about:
            replace(self.places.home / RECORD, json.dumps({**record, slot: about}) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A small file of ours; {} where there is none, or none that reads."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
