"""The real process with a clock that runs fast: `python -m tests.scenarios.day run --config FILE`.

EDGEMAIL_PACE says how many seconds pass in one. What waits for a time (back-off, lifetimes, looks at files, probes, the
page's history) sees a day of it; what the event loop itself times (sockets) keeps the machine's pace.
"""

from __future__ import annotations

import os
import sys
import time

from edgemail import clock
from edgemail.boot import cli, serve
from edgemail.relay.queue import schedule

PACE = float(os.environ.get("EDGEMAIL_PACE", "1"))
STARTED = time.monotonic()
WALL = time.time()


def gone() -> float:
    return (time.monotonic() - STARTED) * PACE


class FastClock(clock.SystemClock):
    """Both clocks at the same pace, and believed."""

    def __init__(self) -> None:
        super().__init__(wall=lambda: WALL + gone(), elapsed=gone, synchronised=lambda: True)

    def monotonic(self) -> float:
        return STARTED + gone()


class FastScheduler(schedule.Scheduler):
    """Sleeps by the fast clock: the loop itself keeps the machine's."""

    def look(self) -> float:
        return super().look() / PACE


if __name__ == "__main__":
    setattr(serve, "SystemClock", FastClock)  # noqa: B010 - a name that is not to be set, elsewhere
    setattr(serve, "Scheduler", FastScheduler)  # noqa: B010
    sys.argv[0] = "edgemail"
    sys.exit(cli.main())
