"""What waits in the queue, by cause and by age, for the page and the metrics: looked at now and then, at little cost.

Owns one walk over the envelopes at a time, with a breath after every few, and its result. A queue of 100,000 takes
seconds to walk, so the next walk waits for a multiple of what the last one took. Changes nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import field
from typing import TYPE_CHECKING, Any, Final

from edgemail.clock import Clock
from edgemail.envelope import Envelope
from edgemail.spool.verbs import Spool
from edgemail.value import value

if TYPE_CHECKING:
    from edgemail.boot.entries import Entry, Site
    from edgemail.boot.listing import Cause

BATCH: Final = 20  # limit: messages that a walk looks at before others have their turn
REST: Final = 20.0  # limit: a walk of t seconds is followed by this many times t without one
SHORTEST_REST: Final = 2.0  # limit: seconds between two walks of a short queue
SHOWN: Final = 40  # limit: causes that the page lists; the rest is counted together
AGES: Final = 10  # columns of qshape


@value
class Queue:
    """One look at the queue. Times are wall clock, 0.0 for none."""

    depth: int = 0
    states: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    damaged: int = 0
    oldest: float = 0.0
    next_attempt: float = 0.0  # the earliest of what is not on hold; 0.0 = now, or nothing waits
    causes: tuple[Cause, ...] = ()
    ages: tuple[int, ...] = ()
    age_heads: tuple[str, ...] = ()


class Survey:
    """Walks the queue when somebody wants to know. `queue` is the last result."""

    def __init__(self, spool: Spool, clock: Clock, active: Callable[[int], bool], site: Site) -> None:
        self.queue = Queue()
        self._spool = spool
        self._clock = clock
        self._active = active
        self._site = site
        self._rested = float("-inf")  # when the next walk may begin

    @property
    def due(self) -> bool:
        return self._clock.monotonic() >= self._rested

    async def take(self) -> Queue:
        """Walk the queue. Time is counted by what was really used, not by what others did meanwhile."""
        envelopes = self._spool.envelopes()
        first = next(envelopes, None)
        if first is None:
            self.queue = Queue(damaged=sum(1 for _ in self._spool.damaged()))
            self._rested = self._clock.monotonic() + SHORTEST_REST
            return self.queue
        from edgemail.boot.entries import HOLD
        from edgemail.boot.listing import Causes, Shape

        causes, shape = Causes(), Shape(now=self._clock.wall())
        states: Counter[str] = Counter()
        size, oldest, upcoming, used = 0, 0.0, float("inf"), 0.0
        envelopes = itertools.chain((first,), envelopes)
        while True:
            began = time.perf_counter()
            batch = [self._entry(envelope) for envelope in itertools.islice(envelopes, BATCH)]
            for one in batch:
                causes.add(one)
                shape.add(one)
                states[one.queue_name] += 1
                size += one.message_size
                oldest = min(oldest or one.arrival_time, one.arrival_time)
                if one.queue_name != HOLD:
                    upcoming = min(upcoming, one.next_attempt)
            used += time.perf_counter() - began
            if not batch:
                break
            await asyncio.sleep(0)
        total = shape.counts.get("TOTAL", [0] * (AGES + 1))
        self.queue = Queue(
            depth=states.total(),
            states=dict(states),
            bytes=size,
            damaged=sum(1 for _ in self._spool.damaged()),
            oldest=oldest,
            next_attempt=0.0 if upcoming == float("inf") else upcoming,
            causes=tuple(causes.found()),
            ages=tuple(total[1:]),
            age_heads=tuple(shape.heads()[1:]),
        )
        self._rested = self._clock.monotonic() + max(SHORTEST_REST, REST * used)
        return self.queue

    def _entry(self, envelope: Envelope) -> Entry:
        from edgemail.boot.entries import entry

        return entry(envelope, self._active(envelope.id), self._site)


def by_cause(queue: Queue, now: float) -> list[dict[str, Any]]:
    """The page's rows: destination, reason, counts; the ones past SHOWN in one row."""
    from edgemail.boot.entries import HOLD

    rows = [
        {
            "destination": cause.destination,
            "reason": cause.reason,
            "state": cause.state,
            "messages": cause.messages,
            "oldest": max(0.0, now - cause.oldest),
            "next": None if cause.state == HOLD else max(0.0, cause.next_attempt - now),
        }
        for cause in queue.causes[:SHOWN]
    ]
    rest = queue.causes[SHOWN:]
    if rest:
        waits = [cause.next_attempt - now for cause in rest if cause.state != HOLD]
        rows.append(
            {
                "destination": f"{len(rest)} more",
                "reason": "",
                "state": "",
                "messages": sum(cause.messages for cause in rest),
                "oldest": max(0.0, now - min(cause.oldest for cause in rest)),
                "next": max(0.0, min(waits)) if waits else None,
            }
        )
    return rows
