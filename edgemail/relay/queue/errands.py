"""What the queue has under way beside its loop: deliveries, results on their way into the spool, orders.

Owns that each ends before the scheduler does, and that nothing that goes wrong in one is silent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from edgemail.counters import Counter

log = logging.getLogger("edgemail.qmgr")

EXCEPTIONS: Final = Counter("edgemail_qmgr_exceptions", "Unexpected exceptions in the queue; the mail stays")


class Errands:
    """The tasks. `closed`: no more deliveries begin."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self.closed = False

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that has to wait; it ends before the scheduler does, and its errors are logged."""
        task = asyncio.get_running_loop().create_task(work)
        self.keep_task(task)
        task.add_done_callback(_report)

    def keep_task(self, task: asyncio.Task[Any]) -> None:
        """Let a task end before the scheduler does."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, grace: float) -> None:
        """Begin nothing more; give what is under way `grace` seconds of the machine's clock, then break it off."""
        self.closed = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in list(self._tasks):
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        EXCEPTIONS.add()
        log.error("error: unexpected trouble in the queue", exc_info=error)
