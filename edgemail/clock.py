"""Time, injected. Intervals are monotonic; dates need a trusted clock. Standard library only."""

from __future__ import annotations

import time
from typing import Protocol

RELEASE_DATE = 1_795_219_200.0  # 2026-11-21 00:00 UTC; a wall clock before it cannot be right


class Clock(Protocol):
    """What every part may ask about time."""

    def monotonic(self) -> float:
        """Seconds that only go forward; means nothing across a restart."""

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC, right or wrong."""

    def trusted(self) -> bool:
        """Whether `wall` may be used to let something expire."""


class SystemClock:
    """The machine's clock. `floor` is the latest date known to have passed (release, last write to the spool)."""

    __slots__ = ("floor",)

    def __init__(self, floor: float = RELEASE_DATE) -> None:
        self.floor = floor

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    def trusted(self) -> bool:
        return time.time() >= self.floor


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

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks."""
        self.now += seconds
