"""Time, injected. Intervals are monotonic; dates need a trusted clock. Standard library only."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Final, Protocol

RELEASE_DATE: Final = 1_795_219_200.0  # 2026-11-21 00:00 UTC; a wall clock before it cannot be right
MAX_JUMP: Final = 86_400.0  # limit: seconds that the wall clock may go wrong by and still be believed without NTP
STA_UNSYNC: Final = 0x0040  # adjtimex(2): nobody keeps the kernel's clock right


class Clock(Protocol):
    """What every part may ask about time."""

    def monotonic(self) -> float:
        """Seconds that only go forward; means nothing across a restart."""

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC, right or wrong."""

    def trusted(self) -> bool:
        """Whether `wall` may be used to let something expire."""

    def passed(self, wall: float) -> None:
        """A date is known to have passed: the spool's latest, told once when it is opened. 0.0 for none."""


class SystemClock:
    """The machine's clock, and whether it is to be believed: a small board often has none that runs without power.

    NTP's word counts before all else. Without it the wall clock must not stand before `floor` (the release, or the
    latest date in the spool), must not stand more than MAX_JUMP after the latest date in the spool, and must not have
    jumped by more than MAX_JUMP since. A box that was off for longer than that waits for NTP: a wrong guess would
    bounce mail.
    """

    __slots__ = ("_drift", "_elapsed", "_synchronised", "_wall", "floor")

    def __init__(
        self,
        floor: float = RELEASE_DATE,
        *,
        wall: Callable[[], float] | None = None,
        elapsed: Callable[[], float] | None = None,
        synchronised: Callable[[], bool] | None = None,
    ) -> None:
        """`elapsed` counts the machine's sleep too; the three are given by tests."""
        self._wall = wall or time.time
        self._elapsed = elapsed or _since_boot
        self._synchronised = synchronised or ntp_synchronised
        self.floor = floor
        self._drift = self._wall() - self._elapsed()  # constant, while nobody sets the wall clock

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return self._wall()

    def trusted(self) -> bool:
        return not self.doubt()

    def doubt(self) -> str:
        """Why the wall clock is not trusted, a sentence's end; "" when it is."""
        wall, elapsed = self._wall(), self._elapsed()
        if self._synchronised():
            # what is right now replaces what was believed before
            self._drift = wall - elapsed
            self.floor = wall
            return ""
        if wall < self.floor:
            return f"it stands {_span(self.floor - wall)} before a date that has passed, and NTP has not set it"
        jump = wall - elapsed - self._drift
        if abs(jump) > MAX_JUMP:
            return f"it is {_span(abs(jump))} {'ahead' if jump > 0 else 'behind'}, and NTP has not confirmed that"
        return ""

    def passed(self, wall: float) -> None:
        if wall <= 0.0:
            return
        self.floor = max(self.floor, wall)
        # as if it had been seen right at that date: more than a day since is a jump, until NTP says otherwise
        if self._wall() - wall > MAX_JUMP:
            self._drift = wall - self._elapsed()


class ManualClock:
    """A clock that a test turns by hand."""

    __slots__ = ("now", "started", "trust")

    def __init__(self, started: float = RELEASE_DATE) -> None:
        self.started = started
        self.now = 0.0
        self.trust = True

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.started + self.now

    def trusted(self) -> bool:
        return self.trust

    def passed(self, wall: float) -> None:
        """Nothing: `trust` is set by hand."""

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks."""
        self.now += seconds


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _span(seconds: float) -> str:
    for unit, length in (("years", 31_557_600.0), ("days", 86_400.0), ("hours", 3600.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


class _Timeval(ctypes.Structure):
    _fields_ = [("tv_sec", ctypes.c_long), ("tv_usec", ctypes.c_long)]


class _Timex(ctypes.Structure):
    """struct timex of adjtimex(2), as every Linux libc lays it out for its own `long`."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("time", _Timeval),
        ("rest", ctypes.c_char * 256),  # further fields and room for those of a later libc; not read
    ]


_LIBC: Final = ctypes.CDLL(None)
_ADJTIMEX: Final = getattr(_LIBC, "adjtimex", None)


def ntp_synchronised() -> bool:
    """Whether the kernel says that something keeps its clock right. Asks, sets nothing, needs no privilege.

    False where the kernel does not answer (a sandbox that forbids the call): then the other rules count.
    """
    if _ADJTIMEX is None:
        return False
    state = _Timex()  # modes 0: read only
    if _ADJTIMEX(ctypes.byref(state)) < 0:
        return False
    return not state.status & STA_UNSYNC
