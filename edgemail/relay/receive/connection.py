"""One SMTP connection: octets in and out, patience with the client, and the end; on top of aiosmtpd's plumbing.

Owns the socket's life. What is said over it is the session's: `_heard` gets what came, from the loop's own callback and
without a task, as long as that can be answered at once. Where something must be waited for (a commit, a pause, TLS) the
session's task does it, and what comes meanwhile is held here, the socket paused when that is much.

Of aiosmtpd's `SMTP` the making of a connection is used: its writer, and the task that serves it. Its reader, verbs,
replies, limits and timers are not.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Final

from edgemail.later import imported_when_used
from edgemail.relay.receive.tls import RECEIVE_SIZE

with imported_when_used("email._header_value_parser", "aiosmtpd.proxy_protocol", "attr", "public"):
    from aiosmtpd.smtp import SMTP

READ_AHEAD: Final = RECEIVE_SIZE  # limit: bytes held of a session that is busy; past it the socket is paused
WRITE_BUFFER: Final = 16 * 1024  # limit: bytes of replies that wait for a client that does not read them
CLOSE_SECONDS: Final = 5.0  # limit: for a client to take our last words, TLS's included
LINGER_SECONDS: Final = 2.0  # limit: for a client that still sends to stop, so that it can read why we hung up
LINGER_BYTES: Final = 1024 * 1024  # limit: octets read and dropped meanwhile


class Overdue(Exception):
    """Somebody's time is up: the client's, or ours."""


class _Nobody:
    """The handler that aiosmtpd looks through for hooks."""

    def __dir__(self) -> Iterable[str]:
        return ()


_NOBODY: Final = _Nobody()


class Connection(SMTP, ABC):  # type: ignore[misc]  # aiosmtpd has no types
    """The plumbing of a session."""

    line_length_limit = READ_AHEAD  # what aiosmtpd makes its reader's limit, which reads nothing here

    def __init__(self, hostname: str) -> None:
        self._made = False
        super().__init__(_NOBODY, hostname=hostname, loop=asyncio.get_running_loop())
        for table in (self._smtp_methods, self._auth_methods, self._handle_hooks):
            table.clear()  # the stock verbs; and they would tie the session into a cycle
        self._made = True
        self._held: list[bytes] = []  # came while the task was busy
        self._held_size = 0
        self._ended = False  # the client has said all it will say
        self._error: Exception | None = None  # what the connection broke of
        self._listening: asyncio.Future[None] | None = None  # the task waits, and what comes is answered at once
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0  # loop's time: so long we have been waiting
        self._patience: asyncio.Timeout | None = None  # of a wait that is not listening
        self._pausing: asyncio.Future[None] | None = None
        self._lingering: asyncio.Future[None] | None = None
        self._dropped = 0
        self._over = False  # nobody is waiting for an answer any more

    def __dir__(self) -> Iterable[str]:
        """Nothing until it is made: the stock class looks all names through for verbs, a tenth of a session's cost."""
        return super().__dir__() if self._made else ()

    # ---- what the session does

    @abstractmethod
    def _heard(self, data: bytes, now: float) -> bool:
        """Answer what came, b"" at the end of input, at `now` of the loop; False when that takes the task."""

    @abstractmethod
    def _left(self) -> float:
        """Seconds for the next bytes to come, counted from `_since`; the moment that this makes never moves back."""

    @property
    @abstractmethod
    def _must_end(self) -> bool:
        """It is not to listen any more."""

    # ---- the connection, as asyncio tells it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._client_connected_cb = None  # done, and a cycle: ended sessions would wait for the collector
        transport.set_write_buffer_limits(high=WRITE_BUFFER)  # type: ignore[attr-defined]

    def _reset_timeout(self, duration: float | None = None) -> None:
        """The stock class's timer would end the session without a word."""

    def data_received(self, data: bytes) -> None:
        if self._listening is not None:
            self._hear(data)
        elif self._lingering is not None:
            self._dropped += len(data)
            if self._dropped >= LINGER_BYTES:
                _resolve(self._lingering)
        else:
            self._hold(data)

    def eof_received(self) -> bool:
        """The client has said all it will say; what it said is still answered, and a commit goes on."""
        self._end_of_input()
        return not self._over_ssl  # True keeps our half open; TLS has no halves

    def connection_lost(self, error: Exception | None) -> None:
        """As eof_received: the session finds out by itself. (The stock class cancels it, in mid-commit if need be.)"""
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self.transport = None
        self._hurry()
        if error is not None:
            self._error = error
            self._interrupt(error)
        self._end_of_input()

    def _end_of_input(self) -> None:
        self._ended = True
        if self._listening is not None:
            self._hear(b"")
        _resolve(self._lingering)

    @property
    def task(self) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._handler_coroutine
        return task

    @property
    def _at_end(self) -> bool:
        """Nothing will come any more that was not looked at."""
        return self._ended and not self._held

    # ---- listening

    async def _listen(self) -> None:
        """Until something takes the task. Raises Overdue, and OSError when the connection broke."""
        if self._must_end:
            raise Overdue
        if self._error is not None:
            raise self._error
        listening = self._listening = self.loop.create_future()
        try:
            self._since = self.loop.time()
            if self._held:
                data = b"".join(self._held)
                self._held.clear()
                self._held_size = 0
                if self.transport is not None:
                    self.transport.resume_reading()
                self._hear(data)
            elif not self._ended:
                self._wait_on(self._since)
            if self._ended and not listening.done():
                self._hear(b"")
            await listening
        finally:
            self._listening = None

    def _hear(self, data: bytes) -> None:
        """Have it answered; while nothing takes the task, listen on."""
        listening = self._listening
        if listening is None or listening.done():
            self._hold(data)  # it came behind what woke the task, in the same turn of the loop
            return
        now = self.loop.time()
        try:
            more = self._heard(data, now)
        except Exception as error:
            listening.set_exception(error)
            return
        if not more:
            listening.set_result(None)
        elif not self._ended:
            self._wait_on(now)

    def _hold(self, data: bytes) -> None:
        """Until the task listens again."""
        if data:
            self._held.append(data)
            self._held_size += len(data)
            if self._held_size > READ_AHEAD and self.transport is not None:
                self.transport.pause_reading()

    def _wait_on(self, now: float) -> None:
        """Wait for the next bytes, from `now` on.

        One timer for the whole session, which is not set again at each command: the end of our patience only moves
        away while a client speaks, and where it is now is asked when the timer rings.
        """
        self._since = now
        if self._timer is None:
            self._ring()

    def _ring(self) -> None:
        """The session must end, or when to look again."""
        self._timer = None
        if self._listening is None or self._listening.done():
            return  # it is set when we listen again
        deadline = self._since + self._left()
        if deadline > self.loop.time():
            self._timer = self.loop.call_at(deadline, self._ring)
        else:
            self._interrupt(Overdue())

    def _interrupt(self, error: Exception) -> None:
        """End whatever the task waits for on the client's behalf."""
        if self._listening is not None:
            if not self._listening.done():
                self._listening.set_exception(error)
        elif isinstance(error, Overdue) and self._patience is not None and not self._patience.expired():
            self._patience.reschedule(self.loop.time())

    def _hurry(self) -> None:
        """Pause no more."""
        self._over = True
        _resolve(self._pausing)

    @property
    def _awaiting(self) -> bool:
        """It is the client that we wait for."""
        return self._listening is not None or self._patience is not None

    # ---- writing, and waiting

    def _write(self, data: bytes) -> bool:
        """Write; False when the client does not take it, and `_drained` must be awaited."""
        if self.transport is None:
            return True
        if data:
            self.transport.write(data)
        return bool(self.transport.get_write_buffer_size() <= WRITE_BUFFER)

    async def _drained(self, seconds: float) -> None:
        """Wait while the client does not take what it was answered. Raises Overdue."""
        if self.transport is None or self.transport.get_write_buffer_size() <= WRITE_BUFFER:
            return
        try:
            async with asyncio.timeout(seconds) as self._patience:
                await self._writer.drain()
        except TimeoutError:
            raise Overdue from None
        finally:
            self._patience = None

    async def _rest(self, seconds: float) -> None:
        """Keep the client waiting, no longer than anybody is there to wait."""
        if seconds <= 0 or self._over:
            return
        self._pausing = self.loop.create_future()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._pausing
        self._pausing = None

    # ---- the end

    async def _close(self, *, orderly: bool) -> None:
        """Hang up, so that the client can read our last words; and without waiting long for one that does not.

        `orderly`: it expects that.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        transport = self.transport
        if transport is None:
            return
        try:
            if not orderly and not self._at_end and transport.can_write_eof():
                transport.write_eof()
                await self._linger()
            transport.close()
            if self._over_ssl or transport.get_write_buffer_size():
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._writer.wait_closed()
        except (OSError, TimeoutError):  # the finally of the session aborts
            pass

    async def _linger(self) -> None:
        """Drop what still comes: a socket closed with unread input resets the connection, and our 421 with it."""
        self._held.clear()
        if self._ended or self.transport is None:
            return
        self._lingering = self.loop.create_future()
        self.transport.resume_reading()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await self._lingering
        self._lingering = None

    def _let_go(self) -> None:
        """The session is over."""
        if self.transport is not None:
            self.transport.abort()
        del self._writer  # a cycle


def _resolve(future: asyncio.Future[Any] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
