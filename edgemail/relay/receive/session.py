"""One SMTP session: the sans-IO dialog driven over a connection.

Owns what is done with each event, when a session ends, and TLS. What a client may have is the clerk's, octets and
waiting are the connection's. An event that can be answered without waiting is answered in the callback that brought its
last octet; the others are for the session's task.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final

from edgemail.relay.receive.clerk import COMMANDS, EXCEPTIONS, Clerk
from edgemail.relay.receive.connection import CLOSE_SECONDS, WRITE_BUFFER, Connection, Overdue
from edgemail.relay.receive.limits import Visit
from edgemail.relay.receive.policy import Client
from edgemail.relay.receive.reception import Reception
from edgemail.relay.receive.service import Service
from edgemail.relay.receive.stamp import cipher_words, harmless
from edgemail.relay.receive.tls import RECEIVE_SIZE
from edgemail.relay.receive.transcript import Transcript
from edgemail.relay.wire import replies
from edgemail.relay.wire.dialog import Dialog
from edgemail.relay.wire.events import Atrn, Begin, Command, Content, End, StartTls, verb_of
from edgemail.reply import Reply

PEERNAME_SECONDS: Final = 2.0  # limit: for the lookup of a client's name
HEARD: Final = 4096  # limit: octets of content from which on a client counts as busy


class Session(Connection):
    """One connection's session. `gone` is called once, when it is over."""

    def __init__(
        self,
        reception: Reception,
        service: Service,
        visit: Visit,
        address: str,
        gone: Callable[[Session], None],
        *,
        tls: str = "",
    ) -> None:
        """`address`: the client's, without scope. The visit is left when the session ends.

        `tls`: what there is to say of it on a connection that has it already.
        """
        settings = service.settings
        super().__init__(settings.myhostname)
        etrn = service.etrn and reception.flush is not None
        atrn = service.atrn and reception.turn is not None
        mechanisms = service.in_clear(address)
        offer = service.offer(mechanisms, tls=bool(tls), etrn=etrn, atrn=atrn)
        self.dialog = Dialog(settings, bool(tls), mechanisms, etrn=etrn, atrn=atrn, offer=offer)
        self.clerk = Clerk(reception, service, visit, self.dialog, Client(address))
        self.clerk.tls = tls
        self._settings = settings
        self._gone = gone
        self._event: Command | End | None = None  # one for the task,
        self._reply: Reply | None = None  # and what it is to be answered after a pause, where that is known
        self._choked = False  # the client does not take what it was answered
        self._retiring = False
        self._said: dict[str, int] = {}  # commands, for the last line of the log
        self._last = "CONNECT"
        self._transcript = Transcript() if service.notify else None
        self._heard_at = self.loop.time()  # when the client last said something whole
        self._waited = 0.0  # seconds that we have waited for what the client is sending now
        self._came = 0  # octets of it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._settings.smtpd_tls_wrappermode:
            transport.pause_reading()  # type: ignore[attr-defined]  # the handshake is not for our reader

    def retire(self, *, now: bool = False) -> None:
        """End with 421 when the transaction in hand is done; `now`: at the next pause whatever is in hand."""
        self._retiring = True
        if now:
            self._hurry()
        if now or not self._busy:
            self._interrupt(Overdue())

    @property
    def stalled(self) -> float:
        """Seconds since the client last said something whole; 0.0 while it waits for us."""
        return self.loop.time() - self._heard_at if self._awaiting else 0.0

    def give_up(self) -> None:
        """The client's time is up, as if smtpd_timeout had passed: somebody else needs the room."""
        self._interrupt(Overdue())

    @property
    def committing(self) -> bool:
        """A message is being made durable: this session must not be cut off."""
        return self.clerk.committing

    @property
    def _must_end(self) -> bool:
        return self._retiring and (self._over or not self._busy)

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
                await self._close(orderly=self._last in ("CONNECT", "QUIT", "STARTTLS"))
            finally:
                counts = "".join(f" {verb.lower()}={count}" for verb, count in self._said.items())
                log.info("disconnect from %s%s commands=%d", clerk.label, counts, sum(self._said.values()))
                self._complain()
                clerk.visit.leave()
                self._gone(self)
                self._let_go()

    async def _serve(self) -> None:
        clerk, settings = self.clerk, self._settings
        if settings.smtpd_tls_wrappermode and not (await self._wrap() and self._may_go_on()):
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
        except Overdue:
            self._say(self._dismissal())
        except OSError as error:  # the connection; TLS errors among them
            clerk.service.log.info("lost connection after %s from %s: %s", self._after, clerk.label, error)

    async def _converse(self) -> None:
        """What takes waiting for, until one side has had enough."""
        clerk = self.clerk
        listening = self._advance()
        while True:
            if listening:
                await self._listen()
            if self._event is not None:
                await self._attend(self._event, self._reply)
            elif clerk.unsettled:
                await clerk.settle()
            if self._choked:
                await self._flush()
            if self.dialog.closed:
                await self._flush()
                break
            listening = self._advance()
        if self._last != "QUIT" and self._at_end:
            clerk.service.log.info("lost connection after %s from %s", self._after, clerk.label)

    def _heard(self, data: bytes, now: float) -> bool:
        dialog = self.dialog
        self._waited += now - self._since
        self._came += len(data)
        if self._came >= HEARD and dialog.in_content:
            self._heard_at = now
        dialog.receive_data(data)
        return self._advance() and not self._must_end

    def _advance(self) -> bool:
        """Answer what can be answered at once; all that one read brings by one write. False: the task is needed."""
        dialog, clerk = self.dialog, self.clerk
        while (event := dialog.next_event()) is not None:
            if isinstance(event, Content):
                clerk.take(event.data)
            elif not self._respond(event):
                return False
        if not dialog.unread and not dialog.in_content:
            self._waited, self._came = 0.0, 0
        self._choked = not self._write(dialog.data_to_send())
        return not (dialog.closed or clerk.unsettled or self._choked)

    def _respond(self, event: Command | End) -> bool:
        """Answer an event, if that takes no waiting; else it is left to the task."""
        self._heard_at = self.loop.time()
        self._last = verb = verb_of(event)
        if type(event) is not End:
            self._said[verb] = self._said.get(verb, 0) + 1
            COMMANDS.add(verb)
        if self._transcript is not None:
            self._transcript.heard(event, self.dialog.said, tried_auth=self.clerk.tried_auth)
        reply = None
        if type(event) is not Begin or self.clerk.reception.flow() <= 0:
            reply = self.clerk.at_once(event)
        if reply is None or self._errs(self.dialog.error_number(reply)):
            self._event, self._reply = event, reply
            return False
        self._give(reply)
        return True

    def _errs(self, number: int) -> bool:
        """This many errors take a pause, or the end."""
        settings = self._settings
        return number > 0 and (number > settings.smtpd_soft_error_limit or number >= settings.smtpd_hard_error_limit)

    async def _attend(self, event: Command | End, reply: Reply | None) -> None:
        """Answer an event that takes waiting: for the spool, a password, the client's own good."""
        dialog, settings = self.dialog, self._settings
        if isinstance(event, StartTls):
            await self._starttls()
            self._event = None
            return
        if reply is None:
            if isinstance(event, Begin):
                await self._pause(self.clerk.reception.flow())
            elif isinstance(event, End):
                await self._flush()  # the commit may take its time
            early = isinstance(event, Atrn) and (dialog.unread or self._held)
            reply = replies.ATRN_PIPELINED if early else await self.clerk.answer(event)
        number = dialog.error_number(reply)
        if number >= settings.smtpd_hard_error_limit:
            self.clerk.service.log.info("too many errors after %s from %s", self._last, self.clerk.label)
            self.clerk.blame.add("protocol")
            reply = replies.too_many_errors(settings.myhostname)
        elif number > settings.smtpd_soft_error_limit or reply.code == replies.AUTH_REFUSED.code:
            await self._pause(settings.smtpd_error_sleep_time)
        self._give(reply)
        self._event = self._reply = None
        if self.clerk.turning is not None:
            await self._flush()
            dialog.closed, transport, self.transport = True, self.transport, None
            if transport is not None:
                await self.clerk.turning.run(transport)  # the connection is not ours any more

    def _give(self, reply: Reply) -> None:
        self.dialog.answer(reply)
        if self._transcript is not None and not (reply.code == 354 and self._last == "BDAT"):
            self._transcript.said(reply)

    def _left(self) -> float:
        """Seconds for the next bytes to come: a command line has smtpd_timeout, content a rate that it must keep.

        What counts is the time in which we waited for the client, not that in which it waited for us.
        """
        settings = self._settings
        if not self.dialog.in_content:
            return settings.smtpd_timeout - self._waited
        if not settings.smtpd_min_data_rate:
            return settings.smtpd_timeout
        earned = settings.smtpd_timeout + self._came / settings.smtpd_min_data_rate
        return min(settings.smtpd_timeout, earned - self._waited)

    async def _flush(self) -> None:
        """Write what the dialog has to say; wait while the client does not take it."""
        self._choked = False
        if not self._write(self.dialog.data_to_send()):
            await self._drained(self._settings.smtpd_timeout)

    async def _pause(self, seconds: float) -> None:
        """Keep the client waiting, what was answered already left to it."""
        if seconds > 0:
            await self._flush()
            await self._rest(seconds)

    def _dismissal(self) -> Reply:
        """Why it ends, unasked."""
        host = self._settings.myhostname
        if self._retiring:
            return replies.shutting_down(host)
        self.clerk.service.log.info("timeout after %s from %s", self._after, self.clerk.label)
        self.clerk.blame.add("protocol")
        return replies.timed_out(host)

    def _say(self, reply: Reply) -> None:
        """A reply to no command: 421."""
        if self._transcript is not None:
            self._transcript.said(reply)
        self._last = "421"
        self._write(self.dialog.data_to_send() + reply.encode())

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
        if dialog.unread or self._held:
            # Commands from before the handshake would count as said under TLS (CVE-2011-0411).
            service.log.warning("warning: %s: commands behind STARTTLS in clear", self.clerk.label)
            self.clerk.blame.add("protocol")
            self._give(Reply(421, "4.7.0", f"{self._settings.myhostname} Error: commands behind STARTTLS"))
            return
        refusal = self.clerk.visit.at_starttls(self.clerk.label)
        if refusal is not None:
            self._note_too_many()
            self._give(refusal)
            return
        self._give(replies.READY_FOR_TLS)
        await self._flush()
        self._last = "STARTTLS"
        if dialog.unread or self._held or not await self._handshake(context) or not self._may_go_on():
            dialog.closed = True

    def _may_go_on(self) -> bool:
        """After a handshake: whether this client may have had one more."""
        reused = self._transport.get_extra_info("ssl_object").session_reused
        refusal = None if reused else self.clerk.visit.at_handshake(self.clerk.label)
        if refusal is not None:
            self._note_too_many()
            self._say(refusal)
        return refusal is None

    def _note_too_many(self) -> None:
        self.clerk.service.log.warning("warning: New TLS session rate limit exceeded: %s", self.clerk.label)
        self.clerk.blame.add("policy")

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
