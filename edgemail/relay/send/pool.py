"""Idle connections, kept a short while for the next message to the same place. Decisions only: no IO, no clock.

Each verb returns at once, and what it returns is for the caller to close. Nothing here waits, so nothing here races.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from edgemail.value import value

IDLE_CONNECTIONS: Final = 100  # limit: idle connections kept in all
IDLE_FOR_ONE: Final = 20  # limit: idle connections kept for one next hop; default_destination_concurrency_limit

C = TypeVar("C")


@value
class Key:
    """What must be equal for a connection to be used again."""

    transport: str
    hop: str
    tls: str  # level and names judged: a connection is never used for a stricter demand than it met
    login: str  # the user name it logged in with, "" for none
    link: str = ""  # the uplink it goes over, "" where none is named


@value
class _Idle(Generic[C]):
    key: Key
    connection: C
    until: float


class Pool(Generic[C]):
    """Connections that are idle, oldest first, and the number of those in use."""

    def __init__(self) -> None:
        self._idle: list[_Idle[C]] = []
        self._active = 0

    def __repr__(self) -> str:
        return f"<Pool {self._active} active, {len(self._idle)} idle>"

    @property
    def idle(self) -> int:
        return len(self._idle)

    def opened(self) -> None:
        """A new connection is in use."""
        self._active += 1

    def closed(self) -> None:
        """A connection in use is gone."""
        self._active -= 1

    def acquire(self, key: Key, now: float) -> C | None:
        """The connection that was used last for `key`, in use from now on; None when there is none."""
        for place in range(len(self._idle) - 1, -1, -1):
            idle = self._idle[place]
            if idle.key == key and idle.until > now:
                del self._idle[place]
                self._active += 1
                return idle.connection
        return None

    def release(self, key: Key, connection: C, until: float, now: float) -> tuple[C, ...]:
        """A connection in use has become idle and may be used until `until` (monotonic seconds).

        Returns what must be closed now: it, when its time is over already, or others for which there is no room.
        """
        self._active -= 1
        if until <= now:
            return (connection,)
        self._idle.append(_Idle(key, connection, until))
        out = list(self.expire(now))
        if len(self._idle) > IDLE_FOR_ONE:
            same = [idle for idle in self._idle if idle.key == key]
            for idle in same[: max(0, len(same) - IDLE_FOR_ONE)]:
                self._idle.remove(idle)
                out.append(idle.connection)
        while len(self._idle) > IDLE_CONNECTIONS:
            out.append(self._idle.pop(0).connection)
        return tuple(out)

    def expire(self, now: float) -> tuple[C, ...]:
        """What has been idle for too long; to be closed."""
        over = [idle for idle in self._idle if idle.until <= now]
        if over:
            self._idle = [idle for idle in self._idle if idle.until > now]
        return tuple(idle.connection for idle in over)

    def next_expiry(self) -> float | None:
        """When `expire` has something to do next; None when nothing is idle."""
        return min((idle.until for idle in self._idle), default=None)

    def clear(self) -> tuple[C, ...]:
        """All that is idle; to be closed (changed configuration, end)."""
        out = tuple(idle.connection for idle in self._idle)
        self._idle.clear()
        return out


def idle_until(
    now: float, opened_at: float, count: int, *, cache_time: float, reuse_time: float, reuse_count: int
) -> float:
    """Until when a connection may wait for another message; `now` when it may not.

    The limits are smtp_connection_cache_time_limit, _reuse_time_limit and _reuse_count_limit (0 = none).
    """
    if 0 < reuse_count <= count or now - opened_at >= reuse_time:
        return now
    return min(now + cache_time, opened_at + reuse_time)
