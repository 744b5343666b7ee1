"""The sessions there are: in use, shared, idle; who gets which, and how they end.

Owns the connection cache with Postfix's limits and the sharing of connections over links that may have only so many.
Never opens one; that is for `deliver`, which also decides what a failure means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from edgemail.clock import Clock
from edgemail.relay.send.berth import Berth, Berths
from edgemail.relay.send.pool import Key, Pool, idle_until
from edgemail.relay.send.session import Session
from edgemail.settings import Settings

CLOSE_SECONDS: Final = 3.0  # limit: seconds for the QUITs at the end of the process


class Connections:
    """All sessions of the process over which mail goes out."""

    def __init__(self, clock: Clock, settings: Callable[[str], Settings]) -> None:
        """`settings`: those of a transport as they are now; a session that was opened with others is not kept."""
        self._clock = clock
        self._settings = settings
        self._pool: Pool[Session] = Pool()
        self.berths: Berths[Session] = Berths()
        self._farewells: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return repr(self._pool)

    def forget(self) -> None:
        """A changed configuration: what is idle is closed."""
        self._dismiss(self._pool.clear())

    async def close(self) -> None:
        """Say QUIT on what is idle and wait for it, CLOSE_SECONDS at most."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._dismiss(self._pool.clear())
        if self._farewells:
            _, late = await asyncio.wait(self._farewells, timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    # -- one session --------------------------------------------------------------------------------------------------

    def opened(self) -> None:
        """A new session is in use."""
        self._pool.opened()

    def idle(self, key: Key, settings: Settings) -> Session | None:
        """An idle session, in use from now on. Those that have gone stale are closed."""
        while (session := self._pool.acquire(key, self._clock.monotonic())) is not None:
            if session.usable and session.settings is settings:
                return session
            self._retire(session)
        return None

    def give_back(self, session: Session, key: Key) -> None:
        """A session is in use no more: keep it for the next message, if its limits and the configuration allow."""
        if not session.usable:
            self._retire(session)
            return
        now = self._clock.monotonic()
        session.waited_for, session.shared = bool, False
        self._dismiss(self._pool.release(key, session, self._until(session, key, now), now))
        self._arm()

    # -- shared ones --------------------------------------------------------------------------------------------------

    def join(self, key: Key, settings: Settings) -> Berth[Session] | None:
        """A place on a connection to the same server that takes a message now, in use already or idle."""
        now = self._clock.monotonic()
        for berth in self.berths.of(key):
            session = berth.connection
            if session is None or session.settings is not settings or not session.takes_more:
                continue
            if self._until(session, key, now) > now:
                berth.users += 1
                return berth
        return None

    def share_idle(self, key: Key, settings: Settings) -> Berth[Session] | None:
        """A place on a connection that was idle; where it may be taken up."""
        session = self.idle(key, settings)
        if session is None:
            return None
        berth = self.berths.take(key)
        self.share(berth, session)
        return berth

    def share(self, berth: Berth[Session], session: Session) -> None:
        """The session for which a place was taken is ready: others may join it from its first message on."""
        berth.connection = session
        session.shared = True
        session.waited_for = partial(self.berths.stir, berth.key.link)

    def leave(self, berth: Berth[Session], session: Session) -> None:
        """One message over a shared session has ended."""
        if self.berths.leave(berth):
            self.give_back(session, berth.key)

    # -- keeping and closing ------------------------------------------------------------------------------------------

    def _until(self, session: Session, key: Key, now: float) -> float:
        """Until when a session may wait for another message; `now` where it is to carry none."""
        settings = session.settings
        current = settings is self._settings(key.transport) and not self._closed
        return idle_until(
            now,
            session.opened_at,
            session.count,
            cache_time=settings.smtp_connection_cache_time_limit if current else 0,
            reuse_time=settings.smtp_connection_reuse_time_limit,
            reuse_count=settings.smtp_connection_reuse_count_limit,
        )

    def _retire(self, session: Session) -> None:
        """A session in use that is of no more use."""
        self._pool.closed()
        if session.usable:
            self._dismiss((session,))
        else:
            session.abort()

    def _dismiss(self, sessions: Iterable[Session]) -> None:
        """QUIT, without anybody waiting for it."""
        for session in sessions:
            task = asyncio.get_running_loop().create_task(session.quit())
            self._farewells.add(task)
            task.add_done_callback(self._farewells.discard)

    def _arm(self) -> None:
        expiry = self._pool.next_expiry()
        if expiry is not None and self._timer is None and not self._closed:
            delay = max(0.05, expiry - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._dismiss(self._pool.expire(self._clock.monotonic()))
        self._arm()
