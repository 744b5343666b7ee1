"""What the spool remembers of itself from one start to the next: the ids it gave, the latest date it knows of.

Owns the meta record. It is never written on its own account: it rides in transactions that have other business.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgemail.clock import Clock
from edgemail.errors import SpoolFull
from edgemail.spool import layout, records
from edgemail.spool.environment import Transaction
from edgemail.spool.layout import JournalMark, Meta

ID_BLOCK: Final = 4096  # limit: ids reserved on the medium ahead of use; so many are skipped after a power cut
WALL_SECONDS: Final = 60.0  # limit: how old the date in the spool may be while mail moves
YEAR_1990: Final = 631_152_000  # a clock before it has never been set
MAX_FIRST_ID: Final = 1 << 43  # queue ids keep to 11 digits whatever the clock says


def first_id(wall: float) -> int:
    """Where a new spool begins: a spool made anew later does not give the old one's ids again."""
    return min(int(wall) << 8, MAX_FIRST_ID) if wall >= YEAR_1990 else 1


class Register:
    """`give` is for the loop's thread, `ride` and `landed` for the writer's.

    No id is given that is not below a ceiling which is on the medium: so none is ever given twice.
    """

    def __init__(self, meta: Meta, clock: Clock) -> None:
        self._clock = clock
        self._written = meta  # as on the medium
        self._riding: Meta | None = None
        self._next = meta.ceiling
        self.sound = True  # nothing was left behind that only the next recovery can clear away

    @property
    def chunk(self) -> int:
        return self._written.chunk

    @property
    def written(self) -> Meta:
        """The record as it stands on the medium."""
        return self._written

    @property
    def wall(self) -> float:
        """The latest date that the spool knows to have passed; 0.0 for none."""
        return self._written.wall

    @property
    def low(self) -> bool:
        """Whether the next transaction should come soon, to reserve more ids."""
        return self._written.ceiling - self._next < ID_BLOCK // 2

    def give(self) -> int:
        """A new id. Raises SpoolFull where the reserved ones are used up and the medium takes nothing."""
        if self._next >= self._written.ceiling:
            raise SpoolFull("no queue id is left that was reserved on the medium")
        self._next += 1
        return self._next - 1

    def ride(self, transaction: Transaction, journal: JournalMark | None = None) -> None:
        """Write the record into this transaction, if it is time to, or with what is new of the journal."""
        if self._riding is not None:
            return  # the last word of an orderly end is in this transaction, and must not be taken back
        old = self._written
        wall = self._clock.wall() if self._clock.trusted() else 0.0
        short = old.ceiling - self._next < ID_BLOCK * 3 // 4
        if short or old.clean or journal is not None or wall - old.wall >= WALL_SECONDS:
            ceiling = max(old.ceiling, self._next + ID_BLOCK)
            new = replace(old, ceiling=ceiling, wall=max(old.wall, wall), clean=False, journal=journal or old.journal)
            self._put(transaction, new)

    def sign_off(self, transaction: Transaction) -> None:
        """The last record of an orderly end: no id is skipped, nothing is in the journal or to be recovered."""
        wall = self._clock.wall() if self._clock.trusted() else 0.0
        old = self._written
        self._put(
            transaction, replace(old, ceiling=self._next, wall=max(old.wall, wall), clean=self.sound, journal=None)
        )

    def _put(self, transaction: Transaction, meta: Meta) -> None:
        records.put(transaction, layout.meta_key(), layout.write_meta(meta))
        self._riding = meta

    def aborted(self) -> None:
        self._riding = None

    def landed(self) -> None:
        """The transaction is on the medium."""
        if self._riding is not None:
            self._written, self._riding = self._riding, None
