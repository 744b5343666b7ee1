"""How much can still be stored, and who is told that it is not enough.

Owns the figures and the reserve; never refuses by itself: receive asks `admission` at MAIL, the writer asks `fits`.

The reserve is what lets a full spool drain: to remove or to rewrite anything, LMDB first writes other pages. So new
mail is refused while that much of the map is free, and the file system is made to set that much aside for the file.
On top of it comes room for what the envelopes that are there will grow by while they wait.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from edgemail.clock import Clock
from edgemail.errors import DiskFull, SpoolError, SpoolFull
from edgemail.reply import DISK_FULL, SPOOL_FULL, Reply
from edgemail.spool.environment import Environment
from edgemail.spool.verbs import Room
from edgemail.value import value

RESERVE: Final = 8 << 20  # limit: bytes kept for removals when the spool is full, or RESERVE_SHARE
RESERVE_SHARE: Final = 10  # limit: the reserve is never more than this part (1/10) of the spool
RECORD_GROWTH: Final = 256  # limit: bytes kept for each record that is there: envelopes grow with each try that fails
FREE_LIST_PAGES: Final = 16  # what LMDB's list of free pages takes; the binding does not tell
RESERVE_STEP: Final = 4  # the reserve is set aside anew each time the file grew by this part (1/4) of it
FRESH_SECONDS: Final = 1.0  # limit: age of the figure that `room` gives


def admission(room: Room, size: int, message_size_limit: int, minfree: int) -> Reply | None:
    """The refusal of a message of `size` bytes (0: not said), None to let it come.

    Postfix's rule (smtpd_check.c): refused when what is free is not above `minfree` (queue_minfree), or not above one
    and a half times the largest message, which is the limit or, where there is none, the size that was declared.
    """
    largest = max(size, message_size_limit)
    if room.bytes <= minfree or room.bytes <= largest * 3 // 2:
        return DISK_FULL if room.disk else SPOOL_FULL
    return None


@value
class Figures:
    """One look at the spool: bytes."""

    used: int
    map_size: int
    allocated: int
    available: int
    inodes: int
    reserve: int
    growth: int = 0
    disk: int = 0  # of the whole file system
    all_inodes: int = 0  # 0: the file system does not count them

    @property
    def spare(self) -> int:
        """What is not in use. Space inside the file counts as the file system's: LMDB uses it again."""
        return min(self.map_size - self.used, self._on_disk)

    @property
    def _on_disk(self) -> int:
        return self.available + max(0, self.allocated - self.used)

    @property
    def by_disk(self) -> bool:
        """Whether it is the file system that bounds it, not spool_size."""
        return self._on_disk < self.map_size - self.used

    def short(self) -> SpoolFull:
        """The error of who finds no room by these figures."""
        return DiskFull("the disk is full") if self.by_disk else SpoolFull("the spool is full (spool_size)")

    @property
    def free(self) -> int:
        """What new mail may take."""
        return self.spare - self.reserve - self.growth

    @property
    def rewritable(self) -> int:
        """What updates may take, and bounces that end a message: the rest is for removals alone."""
        return self.spare - self.reserve // 2


class Space:
    """The figures of one spool, a second old at most. Looked at by the loop's thread and the writer's."""

    def __init__(self, environment: Environment, clock: Clock) -> None:
        self._environment = environment
        self._clock = clock
        self.reserve = min(RESERVE, environment.map_size // RESERVE_SHARE)
        self._figures = self._look()
        self._at = clock.monotonic()

    def _look(self) -> Figures:
        environment = self._environment
        file_system = os.statvfs(environment.directory)
        pages, records = environment.used()
        return Figures(
            used=(pages + 2 + FREE_LIST_PAGES) * environment.page,
            map_size=environment.map_size,
            allocated=environment.allocated(),
            available=file_system.f_bavail * file_system.f_frsize,
            inodes=file_system.f_ffree if file_system.f_files else -1,
            reserve=self.reserve,
            growth=records * RECORD_GROWTH,
            disk=file_system.f_blocks * file_system.f_frsize,
            all_inodes=file_system.f_files,
        )

    def measure(self) -> Figures:
        """Look again, now."""
        self._figures = self._look()
        self._at = self._clock.monotonic()
        return self._figures

    def figures(self) -> Figures:
        """The last look, or a new one where it is no longer fresh."""
        if self._clock.monotonic() - self._at >= FRESH_SECONDS:
            with contextlib.suppress(SpoolError, OSError):  # being opened anew, or closed: the last look must do
                self.measure()
        return self._figures

    def room(self) -> Room:
        found = self.figures()
        return Room(max(0, found.free), found.inodes, disk=found.by_disk)

    def keep_reserve(self) -> None:
        """Have the reserve set aside behind the file's last page; what cannot be had is asked for again next time."""
        environment = self._environment
        end = environment.end()
        if environment.allocated() - end < self.reserve and end < environment.map_size:
            with contextlib.suppress(OSError):  # no room now: then there is none for new mail either
                environment.allocate(end + self.reserve + self.reserve // RESERVE_STEP)
