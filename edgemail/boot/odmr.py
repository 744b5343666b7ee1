"""ATRN (RFC 2645), as the queue sees it: who may have which mail, and sending over a connection that is there already.

Owns the sessions that are turned round. While one is, mail for its domains has one more way to go, found by `route`;
everything else about it (whose turn, outcomes, bounces) is the queue's as ever. Nothing here touches a message.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final, Protocol

from edgemail.clock import Clock
from edgemail.envelope import Address, Disposal, Envelope, Recipient, Route
from edgemail.errors import TableError
from edgemail.relay.send.connect import Line
from edgemail.relay.send.deliver import Courier
from edgemail.relay.send.exchange import Broken, Peer
from edgemail.relay.send.hop import TURNED
from edgemail.relay.send.session import Session, SetupFailed
from edgemail.relay.send.tls import Contexts
from edgemail.relay.wire import replies
from edgemail.reply import Reply
from edgemail.settings import Configuration
from edgemail.tables import Tables

log = logging.getLogger("edgemail.smtp")

LOOK_SECONDS: Final = 0.05  # limit: seconds between two looks whether anything still waits for a session of ATRN

Find = Callable[[Envelope, Recipient], tuple[Route, Address]]


class Queue(Protocol):
    """The scheduler, as far as ATRN needs it."""

    def waits(self, names: Collection[str]) -> bool: ...

    def pressing(self, names: Collection[str]) -> bool: ...

    def busy(self, site: str) -> bool: ...

    def forget(self, site: str) -> None: ...

    async def flush(
        self, ids: Collection[int] | None = None, domain: str | None = None, site: str | None = None
    ) -> int: ...


class Provider:
    """All sessions of ATRN. `queue` is to be set before the first."""

    queue: Queue

    def __init__(
        self, clock: Clock, configuration: Configuration, courier: Courier, find: Find, stopping: asyncio.Event
    ) -> None:
        """Raises TableError. `find`: the router's; `stopping`: the relay ends, so begin no more deliveries."""
        self.clock = clock
        self.courier = courier
        self.stopping = stopping
        self.serving: dict[str, Turning] = {}  # by domain
        self.ways: dict[str, Route] = {}  # by domain, while its session takes mail
        self._up: dict[str, Route] = {}  # by next hop, while a session of ours to it takes mail
        self._find = find
        self.reload(configuration)

    def reload(self, configuration: Configuration) -> None:
        """Take new domains, for new sessions. Raises TableError, and then keeps the old ones."""
        base = Path(configuration.path).parent
        self._domains = Tables.open(configuration.settings.odmr_domain_maps, base, monotonic=self.clock.monotonic)
        self.configuration = configuration

    def route(self, envelope: Envelope, recipient: Recipient) -> tuple[Route, Address]:
        """Where a recipient's mail goes now: as the router says, but to who has asked for it."""
        found, address = self._find(envelope, recipient)
        if not (self.ways or self._up) or found.disposal is not Disposal.RELAY or not found.hops:
            return found, address
        return self.ways.get(address.domain.lower()) or self._up.get(found.hops[0].lower()) or found, address

    async def send_up(self, hop: str, session: Session) -> None:
        """Send what waits for the next hop `hop` over a session that was made to it for another purpose."""
        way = Route(TURNED, (hop,), configured=True)
        if hop in self.courier.turned:
            return
        self.courier.turned[hop] = session
        self._up[hop] = way
        try:
            await self.queue.flush(site=hop)
            while hop in self.courier.carrying or (self.queue.busy(way.site) and not self.stopping.is_set()):
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            del self._up[hop], self.courier.turned[hop]
            self.queue.forget(way.site)

    def turn(self, user: str, address: str, domains: Sequence[str]) -> Turning | Reply:
        """What becomes of ATRN: a session to be run, its domains reserved for it; or why not (RFC 2645 5.2.1)."""
        try:
            value = self._domains.find(user) or ""
        except TableError as error:
            log.error("error: odmr_domain_maps: %s", error)
            return replies.ATRN_UNABLE
        theirs = tuple(name for name in re.split(r"[,\s]+", value.lower()) if name)
        names = tuple(dict.fromkeys(name.lower() for name in domains)) or theirs
        if not names or not set(names) <= set(theirs):
            return replies.ATRN_REFUSED
        if self.stopping.is_set() or any(name in self.serving for name in names):
            return replies.ATRN_UNABLE
        if not self.queue.waits(names):
            return replies.ATRN_NO_MAIL
        turning = Turning(self, user, address, names)
        self.serving.update(dict.fromkeys(names, turning))
        return turning


class Turning:
    """One session, from the 250 to ATRN on."""

    def __init__(self, provider: Provider, user: str, address: str, names: tuple[str, ...]) -> None:
        self._provider = provider
        self._user = user
        self._address = address
        self._names = names

    def release(self) -> None:
        """Another session may ask for these domains. Safe to call twice."""
        for name in self._names:
            if self._provider.serving.get(name) is self:
                del self._provider.serving[name]

    async def run(self, transport: asyncio.Transport) -> None:
        """Send what waits over this connection, and close it. Raises CancelledError alone."""
        provider = self._provider
        port = (transport.get_extra_info("peername") or ("", 0))[1]
        settings = provider.configuration.transport(TURNED)
        session = Session(
            Line.over(transport), Peer(self._user, self._address, port), settings, provider.clock.monotonic()
        )
        try:
            await session.open(Contexts(), self._user, None, clear=True, dated=False)
            log.info("atrn: sending to %s: %s", session.peer.relay, ",".join(self._names))
            await self._send(session)
            log.info("atrn: done with %s, %d messages", session.peer.relay, session.count)
        except SetupFailed as failed:
            log.warning("warning: atrn: %s: %s", session.peer.relay, failed.reply)
        except Broken as broken:
            log.warning("warning: atrn: %s", broken.reply.text)
        except Exception:
            log.exception("error: atrn: %s", session.peer.relay)
        finally:
            self.release()
            session.abort()

    async def _send(self, session: Session) -> None:
        """Show the queue the way, and wait until it has nothing more to send."""
        provider, names, hop = self._provider, self._names, self._names[0]
        provider.courier.turned[hop] = session
        way = Route(TURNED, (hop,))
        provider.ways.update(dict.fromkeys(names, way))
        try:
            for name in names:
                await provider.queue.flush(domain=name)
            while hop in provider.courier.carrying or (
                provider.queue.pressing(names) and not provider.stopping.is_set()
            ):
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            for name in names:
                provider.ways.pop(name, None)
            provider.courier.turned.pop(hop, None)
            provider.queue.forget(way.site)
        await session.quit()
