"""One connection to one server, from the greeting to QUIT: set-up, TLS, login, any number of messages.

Owns time limits and the order of the set-up. Never chooses a server, never decides what a failure means for a message:
`SetupFailed` and the results of a transaction go to `deliver`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from edgemail.errors import EdgemailError
from edgemail.relay.send.connect import Line
from edgemail.relay.send.conversation import LISTENING
from edgemail.relay.send.tls import JUDGING, MANDATORY, Contexts, matches, wanted_names
from edgemail.relay.wire import sasl
from edgemail.relay.wire.answers import MalformedReply
from edgemail.relay.wire.client import Answer, Client, Phase
from edgemail.relay.wire.transaction import Transaction
from edgemail.reply import Reply
from edgemail.settings import Settings

log = logging.getLogger("edgemail.smtp")

WRITE_SIZE: Final = 32_768  # limit: octets of content gathered before they are written; a small message is one write
AUTH_LINE: Final = 512  # octets of a command line, RFC 5321 4.5.3.1.4: a longer initial response waits for its 334
AUTH_STEPS: Final = 5  # limit: challenges answered in one login; LOGIN needs two


class Login(Protocol):
    """What a server is told to let us in."""

    @property
    def user(self) -> str: ...

    @property
    def password(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Peer:
    """The server at the other end."""

    host: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}[{self.address}]"

    @property
    def relay(self) -> str:
        """As the log names it: "mx.example.com[192.0.2.1]:25"."""
        return f"{self.host}[{self.address}]:{self.port}"


class SetupFailed(EdgemailError):
    """The server does not work for us. `reply` is its own (`remote`) or one made here."""

    def __init__(self, reply: Reply, phase: Phase, *, remote: bool = False) -> None:
        super().__init__(str(reply))
        self.reply = reply
        self.phase = phase
        self.remote = remote


class LoopsBack(SetupFailed):
    """The server bears our own name."""


class ClearInstead(SetupFailed):
    """The handshake failed where TLS is only welcome: a fresh connection without it may do (as Postfix)."""


class Broken(EdgemailError):
    """The conversation cannot go on: time is up, the connection is gone, or what came is no SMTP (`malformed`)."""

    def __init__(self, reply: Reply, phase: Phase, *, malformed: bool = False) -> None:
        super().__init__(reply.text)
        self.reply = reply
        self.phase = phase
        self.malformed = malformed


class BodyFailed(EdgemailError):
    """The message could not be read; `__cause__` says why. The server has not got it."""


class Session:
    """A connection and what is known of it. One task at a time uses it."""

    def __init__(self, line: Line, peer: Peer, settings: Settings, opened_at: float) -> None:
        self.peer = peer
        self.settings = settings
        self.opened_at = opened_at  # monotonic
        self.count = 0  # messages carried so far
        self.client = Client(settings.smtp_helo_name, discard=settings.smtp_discard_ehlo_keywords)
        self.tls: ssl.SSLObject | None = None
        self.login_passed_over = False  # we have a login for this server, and it did not offer AUTH
        self.setup_done = False
        self._line = line
        self._verified = False
        self._limits = {
            Phase.GREETING: settings.smtp_helo_timeout,
            Phase.HELLO: settings.smtp_helo_timeout,
            Phase.STARTTLS: settings.smtp_starttls_timeout,
            Phase.AUTH: settings.smtp_helo_timeout,
            Phase.ETRN: settings.smtp_mail_timeout,
            Phase.ATRN: settings.smtp_mail_timeout,
            Phase.RSET: settings.smtp_rset_timeout,
            Phase.MAIL: settings.smtp_mail_timeout,
            Phase.RCPT: settings.smtp_rcpt_timeout,
            Phase.DATA: settings.smtp_data_init_timeout,
            Phase.CONTENT: settings.smtp_data_xfer_timeout,
            Phase.END: settings.smtp_data_done_timeout,
            Phase.QUIT: settings.smtp_quit_timeout,
            Phase.IDLE: settings.smtp_rset_timeout,
        }

    @property
    def usable(self) -> bool:
        """Whether another message can be sent: in step, still open, and the server has said nothing since."""
        return not self.client.closing and self.client.awaiting is None and self._line.quiet

    # -- set-up -------------------------------------------------------------------------------------------------------

    async def open(self, contexts: Contexts, nexthop: str, login: Login | None, *, clear: bool, dated: bool) -> None:
        """Make the connection ready for MAIL. `clear`: do without TLS although it is offered.

        Raises SetupFailed or Broken; then the connection is to be aborted.
        """
        settings = self.settings
        if settings.smtp_tls_wrappermode:
            await self._handshake(contexts, nexthop, dated)
        greeting = await self._answer()
        if greeting.code // 100 != 2:
            raise SetupFailed(greeting, Phase.GREETING, remote=True)
        self._mirror(greeting.text)
        await self._hello()
        if not settings.smtp_tls_wrappermode and settings.smtp_tls_security_level != "none" and not clear:
            await self._starttls(contexts, nexthop, dated)
        if login is not None:
            await self._authenticate(login)
        self.setup_done = True

    async def _hello(self) -> None:
        """EHLO, or HELO for a server that does not know EHLO."""
        self.client.hello()
        reply = await self._answer()
        if reply.permanent and self.tls is None:
            self.client.hello(extended=False)
            reply = await self._answer()
        if reply.code // 100 != 2:
            raise SetupFailed(reply, Phase.HELLO, remote=True)
        self._mirror(reply.text)

    def _mirror(self, text: str) -> None:
        """RFC 5321 6.3: a server that bears our own name is we ourselves."""
        name = text.split("\n", 1)[0].split(" ", 1)[0]
        if name and name.lower() == self.settings.myhostname.lower():
            raise LoopsBack(Reply(554, "5.4.6", f"mail for {self.peer} loops back to myself"), Phase.HELLO)

    async def _starttls(self, contexts: Contexts, nexthop: str, dated: bool) -> None:
        needed = self.settings.smtp_tls_security_level in MANDATORY
        if not self.client.abilities.offers("STARTTLS"):
            if needed:
                text = f"TLS is required, but was not offered by host {self.peer}"
                raise SetupFailed(Reply(454, "4.7.4", text), Phase.STARTTLS)
            return
        self.client.starttls()
        reply = await self._answer()
        if reply.code // 100 != 2:
            if needed or self.client.closing:
                raise SetupFailed(reply, Phase.STARTTLS, remote=True)
            return  # at level may the conversation goes on in clear
        await self._handshake(contexts, nexthop, dated)
        self.client.tls_started()
        await self._hello()

    async def _handshake(self, contexts: Contexts, nexthop: str, dated: bool) -> None:
        settings = self.settings
        try:
            context = contexts.context(settings, dated=dated)
        except (OSError, ValueError) as error:  # roots that cannot be read, or a word that only OpenSSL could judge
            raise SetupFailed(Reply(454, "4.7.5", f"TLS is not configured well: {error}"), Phase.STARTTLS) from error
        try:
            self.client.receive_data(self._line.take())
            self.client.injected()
            async with asyncio.timeout(settings.smtp_starttls_timeout):
                self.tls = await self._line.start_tls(context, self.peer.host, settings.smtp_starttls_timeout)
        except ssl.SSLCertVerificationError as error:
            raise self._tls_failed(f"Server certificate not trusted: {error.verify_message}") from error
        except ssl.SSLError as error:
            raise self._tls_failed(f"Cannot start TLS: {error.reason or 'handshake failure'}") from error
        except MalformedReply as error:
            raise self._malformed(error, Phase.STARTTLS) from error
        except TimeoutError as error:
            raise self._timed_out(Phase.STARTTLS) from error
        except OSError as error:
            raise self._tls_failed("Cannot start TLS: lost connection in the handshake") from error
        except ValueError as error:  # a host name that cannot be one
            raise self._tls_failed(f"Cannot start TLS: {error}") from error
        names = wanted_names(settings, self.peer.host, nexthop)
        if names and not matches(self.tls.getpeercert() or {}, names):
            raise self._tls_failed(f"Server certificate not verified: it is not for {' or '.join(names)}")
        self._verified = settings.smtp_tls_security_level in JUDGING
        self._tell(self.tls)

    def _tell(self, connection: ssl.SSLObject) -> None:
        """One line about TLS for each connection, in Postfix's words. "Untrusted" is what nobody has looked at."""
        name, _, bits = connection.cipher() or ("unknown", "", 0)
        log.info(
            "%s TLS connection established to %s: %s with cipher %s (%d/%d bits)",
            "Verified" if self._verified else "Untrusted",
            self.peer.relay,
            connection.version(),
            name,
            bits,
            bits,
        )

    def _tls_failed(self, text: str) -> SetupFailed:
        optional = self.settings.smtp_tls_security_level not in MANDATORY and not self.settings.smtp_tls_wrappermode
        failure = ClearInstead if optional else SetupFailed
        return failure(Reply(454, "4.7.5", f"{text} ({self.peer})"), Phase.STARTTLS)

    # -- logging in ---------------------------------------------------------------------------------------------------

    async def _authenticate(self, login: Login) -> None:
        """AUTH with the server's preferred mechanism that is allowed here, or the next one if that is no good."""
        settings = self.settings
        offered = self.client.abilities.mechanisms
        if not offered:
            self.login_passed_over = True  # as Postfix; but then no refusal of it is the message's fault
            return
        options = settings.smtp_sasl_security_options
        if self.tls is not None:
            options = settings.smtp_sasl_tls_security_options
        if self._verified:
            options = settings.smtp_sasl_tls_verified_security_options
        names = sasl.usable(offered, options)
        if not names:
            secure = "" if self.tls is not None else " outside TLS"
            text = f"SASL authentication failed; none of {' '.join(offered)} may be used{secure} with host {self.peer}"
            raise SetupFailed(Reply(454, "4.7.0", text), Phase.AUTH)
        for place, name in enumerate(names):
            reply = await self._exchange(name, login)
            if reply.code // 100 == 2:
                return
            last = place == len(names) - 1
            if last or self.client.closing or not sasl.another(reply.code, name):
                raise SetupFailed(reply, Phase.AUTH, remote=True)

    async def _exchange(self, name: str, login: Login) -> Reply:
        """One mechanism to its end; the server's verdict."""
        exchange = sasl.mechanism(name, login.user, login.password)
        initial = exchange.initial
        if initial is not None and len(initial) * 4 // 3 + len(name) + 12 > AUTH_LINE:
            initial = None
        self.client.auth(name, initial)
        reply = await self._answer()
        for _ in range(AUTH_STEPS):
            if reply.code != 334:
                break
            try:
                response = exchange.respond(b64decode(reply.text, validate=True))
            except ValueError:
                response = None
            if response is None:
                self.client.auth_cancel()
            else:
                self.client.auth_response(response)
            reply = await self._answer()
        if reply.code // 100 == 3:
            raise self._malformed(MalformedReply("endless AUTH exchange"), Phase.AUTH)
        return reply

    # -- messages -----------------------------------------------------------------------------------------------------

    async def send(self, transaction: Transaction, body: Iterator[bytes]) -> Broken | None:
        """Drive a transaction that was just made on this session's client to its end; every target has its result.

        Returns what broke the conversation, if something did. Raises BodyFailed; the connection is then aborted, and
        the server has seen no end of the message.
        """
        self.count += 1
        try:
            while not transaction.done:
                if transaction.wants_content:
                    await self._send_piece(transaction, body)
                else:
                    await self._answer()
        except Broken as broken:
            transaction.lost(broken.reply)
            self._line.abort()
            return broken
        except BodyFailed:
            self._line.abort()
            raise
        return None

    async def _send_piece(self, transaction: Transaction, body: Iterator[bytes]) -> None:
        try:
            piece = next(body, None)
        except Exception as error:
            raise BodyFailed(str(error)) from error
        if piece is None:
            transaction.finish()
            self._flush(content=True)
            return
        transaction.write(piece)
        if self.client.pending < WRITE_SIZE:
            return
        self._flush(content=True)
        await asyncio.sleep(0)  # a peer that takes everything at once must not keep the loop to itself
        while True:
            self._pump(Phase.CONTENT)
            if not (transaction.wants_content and self._line.blocked):
                return
            try:
                async with asyncio.timeout(self._limits[Phase.CONTENT]):
                    await self._line.wait()
            except TimeoutError:
                raise self._timed_out(Phase.CONTENT) from None

    def release(self) -> asyncio.Transport:
        """The connection, for the peer is the client from here on. Raises Broken."""
        try:
            if self.client.unread:
                raise ConnectionResetError
            return self._line.release()
        except OSError as error:
            raise self._lost(Phase.ATRN) from error

    async def ask(self, command: str, phase: Phase) -> Reply:
        """One command that is not about a message, and its reply. Raises Broken."""
        self.client.say(command, phase)
        return await self._answer()

    async def quit(self) -> None:
        """End in good order: QUIT, its reply, close. Never raises; never takes longer than smtp_quit_timeout allows."""
        try:
            if self.usable:
                self._line.keep_session()
                self.client.quit()
                await self._answer()
            await self._line.close()
        except (Broken, OSError):
            pass
        finally:
            self._line.abort()

    def abort(self) -> None:
        """End at once."""
        self._line.abort()

    # -- the wire -----------------------------------------------------------------------------------------------------

    async def _answer(self) -> Reply:
        """The next reply, within the time of its phase. Raises Broken."""
        phase = self.client.awaiting or Phase.IDLE
        try:
            answer = self._next_answer()
            if answer is None:
                self._flush()
                answer = await self._wait_for_answer(self._limits[phase])
        except MalformedReply as error:
            raise self._malformed(error, phase) from error
        except TimeoutError as error:
            raise self._timed_out(phase) from error
        except OSError as error:
            raise self._lost(phase) from error
        if answer is None:
            raise self._lost(phase)
        return answer.reply

    async def _wait_for_answer(self, seconds: float) -> Answer | None:
        async with asyncio.timeout(seconds):
            while True:
                data = await self._line.read()
                if not data:
                    return None
                self.client.receive_data(data)
                answer = self._next_answer()
                if answer is not None:
                    return answer

    def _pump(self, phase: Phase) -> None:
        """Take what has come without waiting for more."""
        self.client.receive_data(self._line.take())
        try:
            while self._next_answer() is not None:
                pass
        except MalformedReply as error:
            raise self._malformed(error, phase) from error
        if self._line.ended and not self.client.closing:
            raise self._lost(phase)

    def _next_answer(self) -> Answer | None:
        answer = self.client.next_answer()
        listening = LISTENING.get()
        if answer is not None and listening is not None:
            listening.said(answer.reply)
        return answer

    def _flush(self, *, content: bool = False) -> None:
        data = self.client.data_to_send()
        listening = LISTENING.get()
        if data and listening is not None:
            listening.sent(data, secret=self.client.awaiting is Phase.AUTH, content=content)
        self._line.write(data)

    def _lost(self, phase: Phase) -> Broken:
        return Broken(Reply(421, "4.4.2", f"lost connection with {self.peer} while {phase.doing}"), phase)

    def _timed_out(self, phase: Phase) -> Broken:
        return Broken(Reply(421, "4.4.2", f"conversation with {self.peer} timed out while {phase.doing}"), phase)

    def _malformed(self, error: MalformedReply, phase: Phase) -> Broken:
        reply = Reply(421, "4.5.0", f"protocol error from {self.peer} while {phase.doing}: {error}")
        return Broken(reply, phase, malformed=True)
