"""One thing that the writer is asked to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from edgemail.errors import SpoolError
from edgemail.spool.environment import Transaction
from edgemail.spool.journal_layout import Entry

Fate = list[SpoolError]  # shared by jobs that stand or fall together: the first failure fails those that come after


class Need(Enum):
    """What a job asks of the spool's room."""

    NOTHING = 0  # removes: may use the whole reserve
    REWRITE = 1  # updates, or brings new mail for old (a bounce for its message): may use half of it
    ROOM = 2  # brings new mail


@dataclass(eq=False, slots=True)
class Job:
    """One thing to do in a transaction. `cost` is the bytes it brings."""

    steps: Callable[[Transaction], Any]
    cost: int
    need: Need
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    at: float  # time.monotonic(), when it was submitted
    due: float  # time.monotonic(); 0.0 = at once
    entry: Entry | None = None  # the same for the journal
    touches: tuple[int, ...] = ()  # messages that may stand in the journal and must not, if this is LMDB's job
    last: bool = False  # nothing at all may stand in the journal
    fate: Fate | None = None
    result: Any = None
    error: SpoolError | None = None

    def doom(self, error: SpoolError) -> None:
        """It failed: those that share its fate are to fail too."""
        if self.fate is not None:
            self.fate.append(error)
