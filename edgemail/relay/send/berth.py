"""Connections that deliveries share: over a link that may have only so many, one carries several messages at once.

Owns who joins which connection, who may open one, and the line of those who wait for either. A connection that could
not be opened has failed for all who waited for it: one try tells as much as twenty. Never opens or closes one itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final, Generic, TypeVar

from edgemail.relay.send.pool import Key
from edgemail.relay.send.verdict import Verdict

NOTHING: Final[tuple[Verdict, ...]] = ()


C = TypeVar("C")


class Berth(Generic[C]):
    """One connection of a link: being opened while there is no `connection`."""

    __slots__ = ("connection", "key", "users")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.connection: C | None = None
        self.users = 1


class Berths(Generic[C]):
    """All connections of links with a bound, in use or being opened, and who waits."""

    def __init__(self) -> None:
        self._berths: dict[str, list[Berth[C]]] = {}  # by link
        self._lines: dict[str, deque[tuple[Key, asyncio.Future[tuple[Verdict, ...]]]]] = {}

    def of(self, key: Key) -> tuple[Berth[C], ...]:
        """The connections to one place, in use or being opened."""
        return tuple(berth for berth in self._berths.get(key.link, ()) if berth.key == key)

    def may_open(self, key: Key, most: int) -> bool:
        """Whether one more connection may be opened or taken up: there is room, and none to the same place on its way
        over which this message could go as well."""
        same = self.of(key)
        return len(self._berths.get(key.link, ())) < most and (
            not same or any(berth.connection is not None for berth in same)
        )

    def take(self, key: Key) -> Berth[C]:
        """Take a place for a connection; its first user is who took it."""
        berth: Berth[C] = Berth(key)
        self._berths.setdefault(key.link, []).append(berth)
        return berth

    def leave(self, berth: Berth[C]) -> bool:
        """One user less; True for the last, who closes the connection or keeps it."""
        berth.users -= 1
        if not berth.users:
            self._remove(berth)
        self.stir(berth.key.link)
        return not berth.users

    def failed(self, berth: Berth[C], why: Sequence[Verdict]) -> None:
        """No connection came of it: those who waited for it need not try the same again."""
        self._remove(berth)
        line = self._lines.get(berth.key.link)
        for place in tuple(line or ()):
            key, waiter = place
            if why and key == berth.key and line is not None and not waiter.done():
                line.remove(place)
                waiter.set_result(tuple(why))
        self.stir(berth.key.link)

    def stir(self, link: str) -> bool:
        """Let the first in the line look again. Whether there is one. It stirs the next if it has found something."""
        line = self._lines.get(link)
        while line:
            _, waiter = line.popleft()
            if not waiter.done():
                waiter.set_result(NOTHING)
                return True
        return False

    async def wait(self, key: Key, *, first: bool) -> tuple[Verdict, ...]:
        """Until it is worth to look again; or why the connection that was waited for has failed.

        `first`: at the head of the line, for one who stood there already.
        """
        waiter: asyncio.Future[tuple[Verdict, ...]] = asyncio.get_running_loop().create_future()
        line = self._lines.setdefault(key.link, deque())
        place = (key, waiter)
        if first:
            line.appendleft(place)
        else:
            line.append(place)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.stir(key.link)  # it was this one's turn: now it is the next one's
            raise
        finally:
            if not line and self._lines.get(key.link) is line:
                del self._lines[key.link]

    def _remove(self, berth: Berth[C]) -> None:
        berths = self._berths[berth.key.link]
        berths.remove(berth)
        if not berths:
            del self._berths[berth.key.link]
