"""Calls to a provider who keeps mail for us: sessions in which we ask for it by ETRN (RFC 1985) or ATRN (RFC 2645).

Owns finding the host, the set-up and what is said of failures. Carries no message; that is the courier's business.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from edgemail.clock import Clock
from edgemail.errors import EdgemailError, TableError
from edgemail.relay.send.connect import Place, Unreached, connect, interleave, told
from edgemail.relay.send.exchange import Broken, Peer
from edgemail.relay.send.hop import parse_hop
from edgemail.relay.send.resolve import Host, ResolveError
from edgemail.relay.send.session import ClearInstead, Login, Session, SetupFailed
from edgemail.relay.send.tls import Contexts
from edgemail.relay.wire.client import Phase
from edgemail.reply import Reply
from edgemail.settings import Configuration, Maps, Settings
from edgemail.via import Via

log = logging.getLogger("edgemail.smtp")

ETRN_PORT: Final = 25
ATRN_PORT: Final = 366  # RFC 2645 4


class CallFailed(EdgemailError):
    """The provider could not be asked, and why. `temporary`: the same may work later, without anybody's doing."""

    def __init__(self, text: str, *, temporary: bool = True) -> None:
        super().__init__(text)
        self.temporary = temporary


class Resolver(Protocol):
    """Where a provider lives."""

    async def hosts(self, hop: str, settings: Settings, *, configured: bool, domain: str) -> tuple[Host, ...]: ...


class Credentials(Protocol):
    """Whom to log in as, where nobody says so."""

    def login(self, maps: Maps, hop: str, host: str = "") -> Login | None: ...


class Caller:
    """Opens sessions to providers, with the settings of the `smtp` transport."""

    def __init__(
        self, clock: Clock, configuration: Configuration, resolver: Resolver, credentials: Credentials
    ) -> None:
        self._clock = clock
        self._configuration = configuration
        self._resolver = resolver
        self._credentials = credentials
        self._contexts = Contexts()

    def reload(self, configuration: Configuration) -> None:
        """Take new settings; calls under way end with the old ones."""
        self._configuration = configuration
        self._contexts.forget()

    async def call(self, hop: str, login: Login | None = None, via: Via | None = None) -> Session:
        """A session with `hop`, as `provider` gives it, ready for commands. Raises CallFailed.

        `login`: as whom; by default what smtp_sasl_password_maps say, if they are in use. `via`: the uplink to keep to.
        """
        settings = self._configuration.transport("smtp")
        name = parse_hop(hop, ETRN_PORT).host
        try:
            hosts = await self._resolver.hosts(hop, settings, configured=True, domain=name)
            if login is None and settings.smtp_sasl_auth_enable:
                login = self._credentials.login(settings.smtp_sasl_password_maps, hop, name)
        except ResolveError as error:
            raise CallFailed(str(error)) from error
        except TableError as error:
            raise CallFailed(f"smtp_sasl_password_maps: {error}", temporary=False) from error
        failure = CallFailed(f"{hop} has no address")
        for host in hosts:
            for place in interleave(host.addresses, settings.smtp_address_preference):
                try:
                    return await self._open(settings, host, place, name, login, via=via)
                except CallFailed as error:
                    failure = error
        raise failure

    async def _open(
        self, settings: Settings, host: Host, place: Place, name: str, login: Login | None, *, via: Via | None
    ) -> Session:
        peer = Peer(host.name, place[1], host.port)
        for clear in (False, True):
            try:
                line, _ = await connect([place], host.port, settings.smtp_connect_timeout, via)
            except Unreached as error:
                why = told(next(iter(error.errors.values())))
                raise CallFailed(f"connect to {peer.relay}: {why}") from error
            session = Session(line, peer, settings, self._clock.monotonic())
            try:
                await session.open(self._contexts, name, login, clear=clear, dated=self._clock.trusted())
                return session
            except ClearInstead as failed:
                log.info("%s; trying without TLS", failed.reply.text)
            except SetupFailed as failed:
                said = f"host {peer} said: " if failed.remote else ""
                raise CallFailed(f"{said}{failed.reply}", temporary=failed.reply.temporary) from failed
            except Broken as broken:
                raise CallFailed(broken.reply.text) from broken
            finally:
                if not session.setup_done:
                    session.abort()
        raise CallFailed(f"no TLS with {peer}, and none without")

    async def etrn(self, hop: str, nodes: Sequence[str], via: Via | None = None) -> list[tuple[str, Reply]]:
        """Ask a provider to start its queue for each of `nodes`; what it said to each. Raises CallFailed."""
        session = await self.call(hop, via=via)
        try:
            if not session.client.abilities.offers("ETRN"):
                raise CallFailed(f"host {session.peer} does not offer ETRN", temporary=False)
            found = []
            for node in nodes:
                reply = await session.ask(f"ETRN {node}", Phase.ETRN)
                log.info("etrn %s to %s: %s", node, session.peer.relay, reply)
                found.append((node, reply))
                if session.client.closing:
                    break
            await session.quit()
        except Broken as broken:
            raise CallFailed(broken.reply.text) from broken
        finally:
            session.abort()
        return found

    async def atrn(
        self,
        hop: str,
        login: Login,
        names: Sequence[str],
        before: Callable[[str, Session], Awaitable[None]],
        via: Via | None = None,
    ) -> tuple[Reply, Session | None]:
        """Ask a provider to send the mail of our domains over this very connection. Raises CallFailed.

        `before`: what else is to be done in the session, as long as we are its client.
        What it said; and where that was a 250, the session, of which only the connection is to be used any more.
        """
        session = await self.call(hop, login, via)
        turned = False
        try:
            if session.login_passed_over:
                raise CallFailed(f"host {session.peer} does not offer AUTH", temporary=False)
            await before(hop, session)
            if session.client.in_transaction:
                session.client.reset()
            reply = await session.ask(f"ATRN {','.join(names)}", Phase.ATRN)
            log.info("atrn %s to %s: %s", ",".join(names), session.peer.relay, reply)
            turned = reply.code // 100 == 2
            if not turned:
                await session.quit()
        except Broken as broken:
            raise CallFailed(broken.reply.text) from broken
        finally:
            if not turned:
                session.abort()
        return reply, session if turned else None
