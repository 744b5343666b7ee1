"""What a flush has done: which of the messages that it found were sent, which were returned, which still wait, and why.

Owns the account of one flush, 9 bytes a message. Changes nothing; the queue tells it what happens anyway.
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from edgemail.relay.queue.active import Active
    from edgemail.relay.queue.settle import Settlement

REASONS: Final = 100  # limit: different reasons that the account of a flush keeps apart
OTHER: Final = "other reasons"


class Flush:
    """The account of one flush. `begin` is called when its messages are known, before the first is tried."""

    def __init__(self) -> None:
        self._ids = array("Q")
        self._known = bytearray()
        self._left = 0
        self._passed = 0
        self._all = asyncio.Event()
        self.sent = 0
        self.returned = 0  # some of their recipients, at least, were given up
        self.waiting = 0
        self.reasons: dict[str, int] = {}

    def begin(self, ids: array[int]) -> None:
        """What it has found, in order of id."""
        self._ids = ids
        self._known = bytearray(len(ids))
        self._left = len(ids)
        if not ids:
            self._all.set()

    def _heard(self, id: int) -> bool:
        """Whether this is the first that is heard of one of its messages."""
        row = bisect_left(self._ids, id)
        if row == len(self._ids) or self._ids[row] != id or self._known[row]:
            return False
        self._known[row] = 1
        self._left -= 1
        if not self._left:
            self._all.set()
        return True

    @property
    def count(self) -> int:
        return len(self._ids) - self._passed

    @property
    def untried(self) -> int:
        """Of those, the ones of which nothing was heard so far."""
        return self._left

    def gone(self, id: int, *, sent: bool) -> None:
        """A message has left the queue: all of it was sent, or something was given up."""
        if self._heard(id):
            self.sent += sent
            self.returned += not sent

    def waits(self, id: int, reasons: Iterable[str]) -> None:
        """A message waits on."""
        if self._heard(id):
            self.waiting += 1
            for reason in dict.fromkeys(reasons):
                key = reason if reason in self.reasons or len(self.reasons) < REASONS else OTHER
                self.reasons[key] = self.reasons.get(key, 0) + 1

    def passed_over(self, id: int) -> None:
        """A message is not to be tried after all: somebody else had it, holds it, has removed it."""
        self._passed += self._heard(id)

    async def end(self, seconds: float) -> bool:
        """Wait until something is known of each; whether that is so within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._all.wait()
        except TimeoutError:
            return False
        return True

    def as_json(self) -> dict[str, Any]:
        """What was heard so far."""
        found = sorted(self.reasons.items(), key=lambda one: (-one[1], one[0]))
        return {
            "count": self.count,
            "sent": self.sent,
            "returned": self.returned,
            "waiting": self.waiting,
            "untried": self.untried,
            "reasons": [{"reason": reason, "messages": messages} for reason, messages in found],
        }


class Accounts:
    """Those that somebody waits for."""

    def __init__(self) -> None:
        self.open: list[Flush] = []

    def waits(self, id: int, reasons: Iterable[str]) -> None:
        """See `Flush.waits`."""
        if self.open:
            said = tuple(reasons)
            for account in self.open:
                account.waits(id, said)

    def passed_over(self, id: int) -> None:
        """See `Flush.passed_over`."""
        for account in self.open:
            account.passed_over(id)

    def settled(self, active: Active, result: Settlement) -> None:
        """A round of a message has ended; if somebody of it has not had a turn, it comes again by itself."""
        if not self.open or (result.again and active.hold is None):
            return
        if result.finished:
            sent = all(outcome.delivered for outcome in active.outcomes.values())
            for account in self.open:
                account.gone(active.id, sent=sent)
        else:
            self.waits(active.id, (each.reason for each in result.envelope.recipients))
