"""One SMTP session: the socket's life around the sans-IO dialog, on top of aiosmtpd's connection handling.

Owns reading and writing, every timeout, TLS, and the end of a connection. What a client may have is the clerk's.

Of aiosmtpd's `SMTP` only the plumbing is used: the stream reader of a connection and the task that serves it. None of
its verbs, replies, limits and timers is: `_handle_client` and the ends of a connection are overridden.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeVar

from edgemail.relay.receive.clerk import COMMANDS, EXCEPTIONS, Clerk, verb_of
from edgemail.relay.receive.later import imported_when_called
from edgemail.relay.receive.limits import Visit
from edgemail.relay.receive.policy import Client
from edgemail.relay.receive.reception import Reception
from edgemail.relay.receive.service import Service
from edgemail.relay.receive.stamp import cipher_words, harmless
from edgemail.relay.receive.tls import RECEIVE_SIZE
from edgemail.relay.receive.transcript import Transcript
from edgemail.relay.wire import replies
from edgemail.relay.wire.dialog import Dialog
from edgemail.relay.wire.events import Atrn, Begin, Command, Content, End, StartTls
from edgemail.reply import Reply

with imported_when_called():
    from aiosmtpd.smtp import SMTP

READER_LIMIT: Final = 32 * 1024  # limit: bytes read ahead of a session; the socket is paused at twice as much
WRITE_BUFFER: Final = 16 * 1024  # limit: bytes of replies that wait for a client that does not read them
PEERNAME_SECONDS: Final = 2.0  # limit: for the lookup of a client's name
CLOSE_SECONDS: Final = 5.0  # limit: for a client to take our last words, TLS's included
LINGER_SECONDS: Final = 2.0  # limit: for a client that still sends to stop, so that it can read why we hung up
HEARD: Final = 4096  # limit: octets of content from which on a client counts as busy
LINGER_BYTES: Final = 1024 * 1024  # limit: octets read and dropped meanwhile

T = TypeVar("T")


class _Dismissed(Exception):
    """The session is to end with this reply, unasked."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply


class Session(SMTP):  # type: ignore[misc]  # aiosmtpd has no types
    """One connection. `ended` is called once, when its socket is closed."""

    line_length_limit = READER_LIMIT  # what aiosmtpd makes the stream reader's limit

    def __init__(
        self,
        reception: Reception,
        service: Service,
        visit: Visit,
        address: str,
        ended: Callable[[Session], None],
        *,
        tls: str = "",
    ) -> None:
        """`address`: the client's, without scope. The visit is left when the session ends.

        `tls`: what there is to say of it on a connection that has it already.
        """
        settings = service.settings
        super().__init__(None, hostname=settings.myhostname, loop=asyncio.get_running_loop())
        for table in (self._smtp_methods, self._auth_methods, self._handle_hooks):
            table.clear()  # the stock verbs; and they would tie the session into a cycle
        self.dialog = Dialog(
            settings,
            tls=bool(tls),
            mechanisms=service.in_clear(address),
            etrn=service.etrn and reception.flush is not None,
            atrn=service.atrn and reception.turn is not None,
        )
        self.clerk = Clerk(reception, service, visit, self.dialog, Client(address))
        self.clerk.tls = tls
        self._settings = settings
        self._ended = ended
        self._waiting: asyncio.Timeout | None = None  # what an impatient server may cut short
        self._over = asyncio.Event()  # nobody is waiting for an answer any more
        self._retiring = False
        self._said: Counter[str] = Counter()  # commands, for the last line of the log
        self._last = "CONNECT"
        self._transcript = Transcript() if service.notify else None
        self._heard_at = self.loop.time()  # when the client last said something whole
        self._waited = 0.0  # seconds that we have waited for what the client is sending now
        self._came = 0  # octets of it

    def __dir__(self) -> Iterable[str]:
        """Nothing until it is made: the stock class looks all names through for verbs, a tenth of a session's cost."""
        return super().__dir__() if "dialog" in self.__dict__ else ()

    # ---- the connection, as asyncio tells it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._client_connected_cb = None  # done, and a cycle: ended sessions would wait for the collector
        self._timeout_handle.cancel()  # it would end the session without a word
        transport.set_write_buffer_limits(high=WRITE_BUFFER)  # type: ignore[attr-defined]
        if self._settings.smtpd_tls_wrappermode:
            transport.pause_reading()  # type: ignore[attr-defined]  # the handshake is not for our reader

    def eof_received(self) -> bool:
        """The client has said all it will say; what it said is still answered, and a commit goes on."""
        self._reader.feed_eof()
        return not self.dialog.tls  # True keeps our half open; TLS has no halves

    def connection_lost(self, error: Exception | None) -> None:
        """As eof_received: the session finds out by itself. (The stock class cancels it, in mid-commit if need be.)"""
        asyncio.StreamReaderProtocol.connection_lost(self, error)
        self.transport = None
        self._over.set()

    def retire(self, *, now: bool = False) -> None:
        """End with 421 when the transaction in hand is done; `now`: at the next pause whatever is in hand."""
        self._retiring = True
        if now:
            self._over.set()
        if self._waiting is not None and (now or not self._busy) and not self._waiting.expired():
            self._waiting.reschedule(self.loop.time())

    @property
    def stalled(self) -> float:
        """Seconds since the client last said something whole; 0.0 while it waits for us."""
        return self.loop.time() - self._heard_at if self._waiting is not None else 0.0

    def give_up(self) -> None:
        """The client's time is up, as if smtpd_timeout had passed: somebody else needs the room."""
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(self.loop.time())

    @property
    def committing(self) -> bool:
        """A message is being made durable: this session must not be cut off."""
        return self.clerk.committing

    @property
    def task(self) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._handler_coroutine
        return task

    @property
    def _busy(self) -> bool:
        return self.dialog.in_transaction or self.dialog.in_content

    # ---- the session

    async def _handle_client(self) -> None:
        """All of it, from the greeting to the last byte. Raises nothing but a cancellation."""
        log, clerk = self.clerk.service.log, self.clerk
        try:
            await self._serve()
        except Exception:
            EXCEPTIONS.add()
            log.exception("%s: session", clerk.label)
            self._say(Reply(421, "4.3.0", f"{self._settings.myhostname} Error: internal error"))
        except asyncio.CancelledError:
            if self.transport is not None:
                self.transport.abort()
            raise
        finally:
            try:
                await clerk.abandon()
                await self._close()
            finally:
                if self.transport is not None:
                    self.transport.abort()
                counts = "".join(f" {verb.lower()}={count}" for verb, count in self._said.items())
                log.info("disconnect from %s%s commands=%d", clerk.label, counts, self._said.total())
                self._complain()
                clerk.visit.leave()
                self._ended(self)
                del self._writer  # the other cycle

    async def _serve(self) -> None:
        clerk, settings = self.clerk, self._settings
        if settings.smtpd_tls_wrappermode and not await self._wrap():
            return
        if settings.smtpd_peername_lookup:
            clerk.name = await self._peername()
        clerk.service.log.info("connect from %s", clerk.label)
        greeting = Reply(220, "", settings.smtpd_banner)
        self.dialog.greet(greeting)
        if self._transcript is not None:
            self._transcript.said(greeting)
        try:
            await self._converse()
        except _Dismissed as dismissed:
            self._say(dismissed.reply)
        except OSError as error:  # the connection; TLS errors among them
            clerk.service.log.info("lost connection after %s from %s: %s", self._after, clerk.label, error)

    async def _converse(self) -> None:
        """Drive the dialog until one side has had enough. All that one read brings is answered by one write."""
        dialog, clerk = self.dialog, self.clerk
        while True:
            event = dialog.next_event()
            if event is None:
                await self._flush()
                if dialog.closed:
                    break
                dialog.receive_data(await self._read())
            elif isinstance(event, Content):
                await clerk.content(event.data)
            else:
                await self._answer(event)
        if self._last != "QUIT" and self._reader.at_eof():
            clerk.service.log.info("lost connection after %s from %s", self._after, clerk.label)

    async def _answer(self, event: Command | End) -> None:
        dialog, settings = self.dialog, self._settings
        self._heard_at = self.loop.time()
        self._last = verb_of(event)
        if not isinstance(event, End):
            self._said[self._last] += 1
            COMMANDS.add(self._last)
        if self._transcript is not None:
            self._transcript.heard(event, dialog.said, tried_auth=self.clerk.tried_auth)
        if isinstance(event, StartTls):
            await self._starttls()
            return
        if isinstance(event, Begin):
            await self._pause(self.clerk.reception.flow())
        elif isinstance(event, End):
            await self._flush()  # the commit may take its time
        early = isinstance(event, Atrn) and (dialog.unread or self._reader._buffer)
        reply = replies.ATRN_PIPELINED if early else await self.clerk.answer(event)
        number = dialog.error_number(reply)
        if number >= settings.smtpd_hard_error_limit:
            self.clerk.service.log.info("too many errors after %s from %s", self._last, self.clerk.label)
            self.clerk.blame.add("protocol")
            reply = replies.too_many_errors(settings.myhostname)
        elif number > settings.smtpd_soft_error_limit or reply.code == replies.AUTH_REFUSED.code:
            await self._pause(settings.smtpd_error_sleep_time)
        self._give(reply)
        if self.clerk.turning is not None:
            await self._flush()
            dialog.closed, transport, self.transport = True, self.transport, None
            if transport is not None:
                await self.clerk.turning.run(transport)  # the connection is not ours any more

    def _give(self, reply: Reply) -> None:
        self.dialog.answer(reply)
        if self._transcript is not None and not (reply.code == 354 and self._last == "BDAT"):
            self._transcript.said(reply)

    # ---- reading and writing

    async def _read(self) -> bytes:
        """The next bytes, b"" at the end of input. Raises _Dismissed when the client's or the server's time is up."""
        if self._retiring and (self._over.is_set() or not self._busy):
            raise _Dismissed(replies.shutting_down(self._settings.myhostname))
        began = self.loop.time()
        data: bytes = await self._within(self._left(), self._reader.read(RECEIVE_SIZE))
        self._waited += self.loop.time() - began
        self._came += len(data)
        return data

    def _left(self) -> float:
        """Seconds for the next bytes to come: a command line has smtpd_timeout, content a rate that it must keep.

        What counts is the time in which we waited for the client, not that in which it waited for us.
        """
        settings, dialog = self._settings, self.dialog
        if not dialog.in_content:
            if not dialog.unread:
                self._waited, self._came = 0.0, 0
            return max(0.0, settings.smtpd_timeout - self._waited)
        if not settings.smtpd_min_data_rate:
            return settings.smtpd_timeout
        if self._came >= HEARD:
            self._heard_at = self.loop.time()
        earned = settings.smtpd_timeout + self._came / settings.smtpd_min_data_rate
        return max(0.0, min(settings.smtpd_timeout, earned - self._waited))

    async def _flush(self) -> None:
        """Write what the dialog has to say; wait while the client does not take it."""
        data = self.dialog.data_to_send()
        if data and self.transport is not None:
            self._writer.write(data)
            if self.transport.get_write_buffer_size() > WRITE_BUFFER:
                await self._within(self._settings.smtpd_timeout, self._writer.drain())

    async def _within(self, seconds: float, step: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(seconds) as self._waiting:
                return await step
        except TimeoutError:
            host = self._settings.myhostname
            if self._retiring:
                raise _Dismissed(replies.shutting_down(host)) from None
            self.clerk.service.log.info("timeout after %s from %s", self._after, self.clerk.label)
            self.clerk.blame.add("protocol")
            raise _Dismissed(replies.timed_out(host)) from None
        finally:
            self._waiting = None

    async def _pause(self, seconds: float) -> None:
        """Keep the client waiting, what was answered already left to it; no longer than anybody is there to wait."""
        if seconds > 0:
            await self._flush()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._over.wait()

    def _say(self, reply: Reply) -> None:
        """A reply to no command: 421."""
        if self._transcript is not None:
            self._transcript.said(reply)
        self._last = "421"
        if self.transport is not None:
            self._writer.write(self.dialog.data_to_send() + reply.encode())

    @property
    def _after(self) -> str:
        taken = self.clerk.taken
        return f"{self._last} ({taken} bytes)" if taken >= 0 else self._last

    # ---- TLS

    async def _wrap(self) -> bool:
        """TLS from the first byte (smtpd_tls_wrappermode)."""
        tls = self.clerk.service.tls
        context = tls.context() if tls is not None else None
        if context is None:
            self.clerk.service.log.error("error: no TLS for %s: there is no certificate", self.clerk.label)
            return False
        self._last = "CONNECT"
        return await self._handshake(context)

    async def _starttls(self) -> None:
        service, dialog = self.clerk.service, self.dialog
        context = service.tls.context() if service.tls is not None else None
        if context is None:
            self._give(replies.TLS_UNAVAILABLE)
            return
        if dialog.unread or self._reader._buffer:
            # Commands from before the handshake would count as said under TLS (CVE-2011-0411).
            service.log.warning("warning: %s: commands behind STARTTLS in clear", self.clerk.label)
            self.clerk.blame.add("protocol")
            self._give(Reply(421, "4.7.0", f"{self._settings.myhostname} Error: commands behind STARTTLS"))
            return
        self._give(replies.READY_FOR_TLS)
        await self._flush()
        self._last = "STARTTLS"
        if dialog.unread or self._reader._buffer or not await self._handshake(context):
            dialog.closed = True

    async def _handshake(self, context: ssl.SSLContext) -> bool:
        """Put TLS between the socket and the reader; whether it came about."""
        service, clerk = self.clerk.service, self.clerk
        plain: Any = self.transport
        try:
            if plain is None:
                raise ConnectionResetError("connection lost")
            tls: Any = await self.loop.start_tls(
                plain,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=self._settings.smtpd_starttls_timeout,
                ssl_shutdown_timeout=CLOSE_SECONDS,
            )
            if tls is None:
                raise ConnectionResetError("connection lost")
        except OSError as error:  # SSLError is one
            service.log.info("SSL_accept error from %s: %s", clerk.label, error)
            service.log.info("lost connection after %s from %s", self._last, clerk.label)
            if plain is not None:
                plain.abort()
            self.transport = None
            return False
        tls.set_write_buffer_limits(high=WRITE_BUFFER)
        tls.set_read_buffer_limits(high=RECEIVE_SIZE)
        # What StreamReaderProtocol has no public way for; StreamWriter.start_tls of 3.11 forgets the reader.
        self.transport = self._transport = self._writer._transport = self._reader._transport = tls
        self._over_ssl = True
        name, version, bits = tls.get_extra_info("cipher")
        clerk.tls = cipher_words(version, name, bits, bits)
        clerk.forget()
        self.dialog.tls_started(service.mechanisms)
        if self._settings.smtpd_tls_loglevel > 0:
            service.log.info("Anonymous TLS connection established from %s: %s", clerk.label, clerk.tls)
        return True

    # ---- the end

    async def _close(self) -> None:
        """Hang up, so that the client can read our last words; and without waiting long for one that does not."""
        transport = self.transport
        if transport is None:
            return
        try:
            if (
                self._last not in ("CONNECT", "QUIT", "STARTTLS")
                and not self._reader.at_eof()
                and transport.can_write_eof()
            ):
                transport.write_eof()
                await self._linger()
            transport.close()
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):  # the finally of the session aborts
            pass

    async def _linger(self) -> None:
        """Drop what still comes: a socket closed with unread input resets the connection, and our 421 with it."""
        dropped = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while dropped < LINGER_BYTES and (data := await self._reader.read(RECEIVE_SIZE)):
                    dropped += len(data)

    def _complain(self) -> None:
        """Tell the postmaster, where notify_classes ask for it."""
        classes = sorted(self.clerk.blame & self.clerk.service.notify)
        if self._transcript is None or not classes:
            return
        subject = f"{self._settings.mail_name} SMTP server: errors from {self.clerk.label}"
        try:
            self.clerk.reception.notice(classes[0], subject, self._transcript.text())
        except Exception:
            EXCEPTIONS.add()
            self.clerk.service.log.exception("%s: notice", self.clerk.label)

    async def _peername(self) -> str:
        try:
            async with asyncio.timeout(PEERNAME_SECONDS):
                return harmless(await self.clerk.reception.peername(self.clerk.client.address)) or "unknown"
        except TimeoutError:
            return "unknown"
        except Exception:
            self.clerk.service.log.exception("%s: peername", self.clerk.label)
            return "unknown"


__all__ = ["Reception", "Session"]
