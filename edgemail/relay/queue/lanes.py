"""The lanes in which mail that is due waits to be looked at: new mail, what somebody asked for, the backlog.

Owns whose turn it is: by turns, so that none starves another. Ids alone; what has become of a message meanwhile is
asked of the index.
"""

from __future__ import annotations

from collections import deque

from edgemail.relay.queue.waiting import Line, Stand, Waiting


class Asked:
    """Ids that somebody asked for, in order, each with the domain for which that was, "" for another reason."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: deque[tuple[str, Line]] = deque()  # none of them empty

    def __bool__(self) -> bool:
        return bool(self._runs)

    def append(self, id: int, domain: str = "") -> None:
        if not self._runs or self._runs[-1][0] != domain:
            self._runs.append((domain, Line()))
        self._runs[-1][1].append(id)

    @property
    def domain(self) -> str:
        """That of the first one."""
        return self._runs[0][0]

    def pop(self) -> int:
        """The first one. IndexError when there is none."""
        line = self._runs[0][1]
        mail = line.pop()
        if not line:
            self._runs.popleft()
        return mail


class Lanes:
    """All three."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._turn = 0
        self.new = Line()
        self.flushed = Asked()
        self.backlog = Line()

    def __bool__(self) -> bool:
        return bool(self.new or self.flushed or self.backlog)

    def next(self, ahead: int) -> tuple[int, str] | None:
        """The next message, and the domain for which it was asked for; None when there is none, or enough are parked.

        `ahead`: so many may be parked before the backlog has to wait, and twice as many before what was asked for has.
        """
        crowded, full = self._waiting.parked >= ahead, self._waiting.parked >= 2 * ahead
        lanes = (self.new, self.flushed, self.backlog)
        for _ in lanes:
            self._turn += 1
            lane = lanes[self._turn % 3]
            if (lane is self.backlog and crowded) or (lane is self.flushed and full):
                continue
            while lane:
                domain = self.flushed.domain if lane is self.flushed else ""
                mail = lane.pop()
                if self._waiting.stand(mail) is Stand.LANE:
                    return mail, domain
        return None
