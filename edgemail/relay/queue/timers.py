"""Waiting for a moment of the injected clock. Whoever turns the clock calls `fire`; nothing here asks the machine's."""

from __future__ import annotations

import asyncio
import heapq
import itertools

from edgemail.clock import Clock


class Timers:
    """Sleepers, the earliest first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._numbers = itertools.count()
        self._heap: list[tuple[float, int, asyncio.Future[None]]] = []

    async def sleep(self, seconds: float) -> None:
        """Return when so much time has passed."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._heap, (self._clock.monotonic() + seconds, next(self._numbers), future))
        await future

    def fire(self) -> None:
        """Wake those whose time has come."""
        now = self._clock.monotonic()
        while self._heap and (self._heap[0][0] <= now or self._heap[0][2].done()):
            future = heapq.heappop(self._heap)[2]
            if not future.done():
                future.set_result(None)

    def next(self) -> float | None:
        """When (monotonic) the next one wakes."""
        return self._heap[0][0] if self._heap else None
