"""One connection to one server: its set-up, TLS, the login; `exchange` has what is said afterwards.

Owns the order of the set-up. Never chooses a server, never decides what a failure means for a message: `SetupFailed`
and the results of a transaction go to `deliver`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from base64 import b64decode
from typing import Final, Protocol

from edgemail.errors import EdgemailError
from edgemail.relay.send.connect import Line
from edgemail.relay.send.exchange import Exchange, Peer
from edgemail.relay.send.tls import JUDGING, MANDATORY, Contexts, matches, wanted_names
from edgemail.relay.wire import sasl
from edgemail.relay.wire.answers import MalformedReply
from edgemail.relay.wire.client import Phase
from edgemail.reply import Reply
from edgemail.settings import Settings

log = logging.getLogger("edgemail.smtp")

AUTH_LINE: Final = 512  # octets of a command line, RFC 5321 4.5.3.1.4: a longer initial response waits for its 334
AUTH_STEPS: Final = 5  # limit: challenges answered in one login; LOGIN needs two


class Login(Protocol):
    """What a server is told to let us in."""

    @property
    def user(self) -> str: ...

    @property
    def password(self) -> str: ...

    def heard(self, refusal: str) -> None:
        """What the server made of it; "" when it took it."""


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


class Session(Exchange):
    """A connection and what is known of it."""

    def __init__(self, line: Line, peer: Peer, settings: Settings, opened_at: float) -> None:
        super().__init__(line, peer, settings)
        self.opened_at = opened_at  # monotonic
        self.login_passed_over = False  # we have a login for this server, and it did not offer AUTH
        self.setup_done = False
        self._verified = False

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
            login.heard(text)
            raise SetupFailed(Reply(454, "4.7.0", text), Phase.AUTH)
        for place, name in enumerate(names):
            reply = await self._exchange(name, login)
            if reply.code // 100 == 2:
                login.heard("")
                return
            last = place == len(names) - 1
            if last or self.client.closing or not sasl.another(reply.code, name):
                login.heard(str(reply))
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
