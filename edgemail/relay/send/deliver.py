"""The courier: from a delivery to one outcome for each of its recipients.

Owns the order of attempts (next hops, hosts, addresses, connections kept from before) and what is left to try after
each. Never raises: what nobody expected is a LOCAL outcome and a traceback in the log. Never changes the queue.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, Protocol

from edgemail.clock import Clock
from edgemail.counters import Counter, Histogram
from edgemail.envelope import Delivery, Disposal, Outcome, Target
from edgemail.errors import Kind, TableError
from edgemail.relay.send.berth import Berth
from edgemail.relay.send.carry import Attempt, Carrier, Notice, Rewriter, no_notice
from edgemail.relay.send.connect import Line, Place, Unreached, connect, interleave, told
from edgemail.relay.send.connections import Connections
from edgemail.relay.send.conversation import LISTENING, Watch
from edgemail.relay.send.exchange import Broken, Peer
from edgemail.relay.send.hop import TURNED, parse_hop
from edgemail.relay.send.pool import Key
from edgemail.relay.send.resolve import Host, ResolveError
from edgemail.relay.send.rewrite import rewrite
from edgemail.relay.send.session import ClearInstead, Login, LoopsBack, Session, SetupFailed
from edgemail.relay.send.tls import Contexts, wanted_names
from edgemail.relay.send.verdict import Verdict, log_outcome, site_verdict, worst_excuse
from edgemail.relay.wire.client import Phase
from edgemail.reply import Reply
from edgemail.settings import Configuration, Maps, Settings
from edgemail.spool.verbs import Spool
from edgemail.value import value

log = logging.getLogger("edgemail.smtp")

HOPS_KNOWN: Final = 256  # limit: next hops whose syntax is remembered
DELIVERIES: Final = Counter("edgemail_smtp_recipients", "Recipients by route and outcome", ("route", "outcome"))
SENT_BYTES: Final = Counter("edgemail_smtp_bytes", "Bytes of messages that a server took", ("route",))
DURATIONS: Final = Histogram(
    "edgemail_smtp_delivery_seconds",
    "Time of a delivery, from the first look at its next hop to the last answer",
    (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
)
LOCAL_TROUBLE: Final = Reply(451, "4.3.0", "local trouble while sending; see the log")


class Resolver(Protocol):
    """Where a next hop lives."""

    async def hosts(self, hop: str, settings: Settings, *, configured: bool, domain: str) -> tuple[Host, ...]:
        """Hosts in the order to try them; raises ResolveError."""


class Credentials(Protocol):
    """Whom to log in as."""

    def login(self, maps: Maps, hop: str, host: str = "") -> Login | None:
        """The login for a host of a next hop, found by either's name; None for none. Raises TableError."""

    def reload(self, configuration: Configuration) -> None:
        """Take a new configuration. Raises TableError, and then keeps the old one."""


@value
class _Hop:
    """The next hop that is being tried."""

    text: str
    name: str  # without brackets and port: what a certificate may be for
    key: Key


class Courier:
    """Delivers. One for the process; any number of deliveries at once."""

    def __init__(
        self,
        spool: Spool,
        clock: Clock,
        configuration: Configuration,
        *,
        resolver: Resolver,
        credentials: Credentials,
        rewriter: Rewriter = rewrite,
        notice: Notice = no_notice,
    ) -> None:
        self._clock = clock
        self._configuration = configuration
        self._resolver = resolver
        self._credentials = credentials
        self._carrier = Carrier(spool, clock, rewriter, notice)
        self._contexts = Contexts()
        self._connections = Connections(clock, self._settings)
        self._watch = Watch()
        self.turned: dict[str, Session] = {}  # by the next hop that stands for them; whoever made them closes them
        self.carrying: set[str] = set()  # those of them over which a message goes just now

    def _settings(self, transport: str) -> Settings:
        return self._configuration.transport(transport)

    def __repr__(self) -> str:
        return f"<Courier {self._connections!r}>"

    def reload(self, configuration: Configuration) -> None:
        """Take a new configuration. Deliveries under way end with the old one; idle connections are closed.

        Raises TableError where the logins cannot be read; then all is as before.
        """
        self._credentials.reload(configuration)
        self._configuration = configuration
        self._contexts.forget()
        self._connections.forget()

    def watch(self, id: int) -> None:
        """Remember what will be said to servers about this message."""
        self._watch.begin(id)

    def conversation(self, id: int) -> list[str] | None:
        """What was said so far about a message that is watched; None for another."""
        found = self._watch.of(id)
        return None if found is None else list(found.lines)

    async def close(self) -> None:
        """Say QUIT on what is idle and wait a little for it."""
        await self._connections.close()

    # -- one delivery -------------------------------------------------------------------------------------------------

    async def deliver(self, delivery: Delivery) -> tuple[Outcome, ...]:
        """Try every target; one outcome for each, in their order. Raises nothing but CancelledError."""
        attempt = Attempt(
            delivery,
            self._settings(delivery.route.transport),
            self._clock.monotonic(),
            pending={target.index: target for target in delivery.targets},
        )
        arrived = self._clock.wall()
        LISTENING.set(self._watch.of(delivery.envelope.id))
        try:
            await self._try_route(attempt)
        except Exception:
            log.exception("%s: error: unexpected trouble in a delivery", delivery.envelope.queue_id)
            attempt.failures.append(Verdict(Kind.LOCAL, LOCAL_TROUBLE))
        before = max(0.0, arrived - delivery.envelope.received_at) if delivery.envelope.received_at else 0.0
        outcomes = tuple(self._conclude(attempt, target, before) for target in delivery.targets)
        _count(delivery, outcomes, self._clock.monotonic() - attempt.started)
        return outcomes

    def _conclude(self, attempt: Attempt, target: Target, before: float) -> Outcome:
        """The outcome of one target, logged."""
        now = self._clock.monotonic()
        if target.index in attempt.pending:
            # What was said about this very recipient tells more than that another server could not be reached.
            said = attempt.said.get(target.index)
            attempt.settle(target.index, said or worst_excuse(attempt.failures), now)
        result, text = attempt.outcomes[target.index]
        total = before + now - attempt.started
        listening = LISTENING.get()
        if listening is not None:
            listening.note(f"to=<{target.address}>, relay={result.relay}: {text}")
        log_outcome(attempt.delivery.envelope, target, result, text, uses=attempt.uses, before=before, total=total)
        return result

    async def _try_route(self, attempt: Attempt) -> None:
        """Every next hop in its turn, while somebody is left to be served."""
        route = attempt.delivery.route
        if route.disposal is not Disposal.RELAY or not route.hops:
            raise ValueError(f"a delivery without a next hop: {route}")
        if route.transport == TURNED:
            await self._try_turned(attempt, route.hops[0])
            return
        for place, text in enumerate(route.hops):
            if not attempt.pending:
                return
            try:
                hop = self._hop(attempt, text)
            except TableError as error:
                attempt.failures.append(Verdict(Kind.LOCAL, Reply(451, "4.3.0", f"smtp_sasl_password_maps: {error}")))
                continue
            except ValueError as error:
                reply = Reply(451, "4.3.5", f"bad next hop {error}")
                attempt.failures.append(site_verdict(reply, attempt.configured, Phase.IDLE))
                continue
            # A next hop behind a recipient's own domain is smtp_fallback_relay: that one is configured.
            await self._try_hop(attempt, hop, configured=attempt.configured or place > 0)

    async def _try_turned(self, attempt: Attempt, hop: str) -> None:
        """The one connection there is, as long as it is there."""
        session = self.turned.get(hop)
        if session is None or not session.usable:
            reply = Reply(421, "4.4.2", f"the session of ATRN with {hop} is over")
            attempt.failures.append(site_verdict(reply, attempt.configured, Phase.IDLE))
            return
        attempt.ready = self._clock.monotonic()
        healthy = False
        self.carrying.add(hop)
        try:
            healthy = await self._carrier.carry(attempt, session, reused=False)
        finally:
            self.carrying.discard(hop)
            if not healthy:
                session.abort()

    def _hop(self, attempt: Attempt, text: str) -> _Hop:
        """What a next hop demands of a connection. Raises ValueError for a bad one, TableError for a bad table."""
        settings = attempt.settings
        name = _name_of(text, settings.smtp_tcp_port)
        login = self._login(settings, text)
        words = [settings.smtp_tls_security_level, *wanted_names(settings, "", name)]
        user = login.user if login is not None else ""
        link, transport = attempt.delivery.link, attempt.delivery.route.transport
        return _Hop(text, name, Key(transport, text.lower(), " ".join(words), user, link))

    def _login(self, settings: Settings, hop: str, host: str = "") -> Login | None:
        if not settings.smtp_sasl_auth_enable:
            return None
        return self._credentials.login(settings.smtp_sasl_password_maps, hop, host)

    async def _try_hop(self, attempt: Attempt, hop: _Hop, *, configured: bool) -> None:
        """A connection kept from before, then every host of one next hop within the limits."""
        if attempt.delivery.connections:
            await self._try_shared(attempt, hop, configured=configured)
            return
        session = self._connections.idle(hop.key, attempt.settings)
        if session is not None:
            await self._carry(attempt, session, hop.key, reused=True)
        if attempt.pending:
            await self._try_hosts(attempt, hop, configured=configured)

    async def _try_shared(self, attempt: Attempt, hop: _Hop, *, configured: bool) -> None:
        """The same over a link that may have only so many connections: over one that is there already, as soon as it
        takes another message, or over a new one when there may be one more."""
        berths, key, most = self._connections.berths, hop.key, attempt.delivery.connections
        joining, stood = True, attempt.delivery.urgent
        while attempt.pending:
            berth = self._connections.join(key, attempt.settings) if joining else None
            open_ = berth is None and berths.may_open(key, most)
            if open_ and joining:
                berth = self._connections.share_idle(key, attempt.settings)
            if berth is not None and berth.connection is not None:
                stale = attempt.stale
                await self._carry_shared(attempt, berth, berth.connection, reused=True)
                joining = attempt.stale > stale
            elif open_:
                attempt.berth = berths.take(key)
                try:
                    await self._try_hosts(attempt, hop, configured=configured)
                finally:
                    if attempt.berth is not None:
                        berths.failed(attempt.berth, attempt.failures)
                        attempt.berth = None
                return
            else:
                why = await berths.wait(key, first=stood)
                stood = True
                if why:
                    attempt.failures.extend(why)
                    return

    async def _try_hosts(self, attempt: Attempt, hop: _Hop, *, configured: bool) -> None:
        """Every host of one next hop, over new connections."""
        settings = attempt.settings
        domain = attempt.domain or hop.name
        try:
            hosts = await self._resolver.hosts(hop.text, settings, configured=configured, domain=domain)
        except ResolveError as error:
            attempt.failures.append(_unresolved(error, attempt.configured))
            return
        addresses: float = settings.smtp_mx_address_limit or float("inf")
        sessions: float = settings.smtp_mx_session_limit or float("inf")
        for host in hosts:
            places = [
                place
                for place in interleave(host.addresses, settings.smtp_address_preference)
                if (host.name, place[1], host.port) not in attempt.tried
            ]
            while places and attempt.pending and sessions > 0 and addresses > 0:
                places = places[: int(min(addresses, len(places)))]
                used, ready = await self._try_places(attempt, hop, host, places)
                places = places[used:]
                addresses -= used
                sessions -= ready  # as Postfix: one whose set-up failed does not count
                if not ready and _turned_away(attempt):
                    return

    # -- connections --------------------------------------------------------------------------------------------------

    async def _try_places(self, attempt: Attempt, hop: _Hop, host: Host, places: Sequence[Place]) -> tuple[int, bool]:
        """Connect to one of `places` and deliver. How many of them are used up, and whether a session came about."""
        seconds = attempt.settings.smtp_connect_timeout
        await self._room(attempt, hop.key)
        try:
            line, place = await connect(places, host.port, seconds, attempt.delivery.via)
        except Unreached as error:
            attempt.failures.append(_unreached(error, host, attempt.configured))
            return len(places), False
        used = places.index(place) + 1
        attempt.tried.add((host.name, place[1], host.port))
        peer = Peer(host.name, place[1], host.port)
        session, clear = await self._open(attempt, hop, line, peer, clear=False)
        if clear:
            try:
                line, _ = await connect([place], host.port, seconds, attempt.delivery.via)
            except Unreached as error:
                attempt.failures.append(_unreached(error, host, attempt.configured))
                return used, False
            session, _ = await self._open(attempt, hop, line, peer, clear=True)
        if session is None:
            return used, False
        self._connections.opened()
        if attempt.berth is None:
            await self._carry(attempt, session, hop.key, reused=False)
        else:
            berth, attempt.berth = attempt.berth, None
            self._connections.share(berth, session)
            await self._carry_shared(attempt, berth, session, reused=False)
        return used, True

    async def _room(self, attempt: Attempt, key: Key) -> None:
        """Wait until the link may have one connection more, where its last one proved not to be enough."""
        berths, stood = self._connections.berths, False
        while attempt.delivery.connections and attempt.berth is None:
            if berths.may_open(key, attempt.delivery.connections):
                attempt.berth = berths.take(key)
            else:
                await berths.wait(key, first=stood)
                stood = True

    async def _open(
        self, attempt: Attempt, hop: _Hop, line: Line, peer: Peer, *, clear: bool
    ) -> tuple[Session | None, bool]:
        """A session ready for MAIL; or None, why being noted, and whether to try once more without TLS."""
        session = Session(line, peer, attempt.settings, self._clock.monotonic())
        configured = attempt.configured
        verdict: Verdict | None = None
        try:
            login = self._login(attempt.settings, hop.text, peer.host)
            dated = self._clock.trusted()
            await session.open(self._contexts, hop.name, login, clear=clear, dated=dated)
        except ClearInstead as failure:
            log.info("%s: %s; trying without TLS", attempt.delivery.envelope.queue_id, failure.reply.text)
            return None, True
        except LoopsBack:
            verdict = _loops_back(attempt.domain or hop.name, peer, configured)
        except SetupFailed as failure:
            reply, phase, remote = failure.reply, failure.phase, failure.remote
            verdict = site_verdict(reply, configured, phase, peer=str(peer), relay=peer.relay, remote=remote)
        except Broken as broken:
            verdict = site_verdict(broken.reply, configured, broken.phase, peer=str(peer), relay=peer.relay)
        else:
            return session, False
        finally:
            if not session.setup_done:
                session.abort()
        attempt.failures.append(verdict)
        return None, False

    async def _carry(self, attempt: Attempt, session: Session, key: Key, *, reused: bool) -> None:
        """One message over a session in use, which is given back or closed afterwards."""
        attempt.ready = self._clock.monotonic()
        try:
            await self._carrier.carry(attempt, session, reused=reused)
        finally:
            self._connections.give_back(session, key)

    async def _carry_shared(self, attempt: Attempt, berth: Berth[Session], session: Session, *, reused: bool) -> None:
        """One message over a session that may have others on their way."""
        attempt.ready = self._clock.monotonic()
        try:
            await self._carrier.carry(attempt, session, reused=reused)
        finally:
            self._connections.leave(berth, session)


def _count(delivery: Delivery, outcomes: Iterable[Outcome], seconds: float) -> None:
    """Recipients' own domains are counted together: there may be any number of them."""
    route = delivery.route.site if delivery.route.configured else f"{delivery.route.transport}:*"
    DURATIONS.observe(seconds)
    for result in outcomes:
        DELIVERIES.add(route, "sent" if result.kind is None else result.kind.value)
    if any(result.delivered for result in outcomes):
        SENT_BYTES.add(route, by=float(delivery.envelope.size))


@lru_cache(maxsize=HOPS_KNOWN)
def _name_of(hop: str, default_port: int) -> str:
    """The host or domain of a next hop. ValueError for a bad one."""
    return parse_hop(hop, default_port).host


def _unresolved(error: ResolveError, configured: bool) -> Verdict:
    kind = error.kind
    if kind in {Kind.MESSAGE_PERMANENT, Kind.MESSAGE_TEMPORARY, Kind.ROUTE}:
        if configured:
            kind = Kind.ROUTE
        elif kind is Kind.ROUTE:  # a fallback relay behind a recipient's own domain
            kind = Kind.MESSAGE_TEMPORARY
    return Verdict(kind, error.reply, site_failed=kind is not Kind.MESSAGE_PERMANENT)


def _unreached(error: Unreached, host: Host, configured: bool) -> Verdict:
    (_, address), last = list(error.errors.items())[-1]
    reply = Reply(450, "4.4.1", f"connect to {host.name}[{address}]:{host.port}: {told(last)}")
    verdict = site_verdict(reply, configured, Phase.GREETING)
    return Verdict(Kind.LINK, reply, site_failed=True) if error.link else verdict


def _turned_away(attempt: Attempt) -> bool:
    """Whether the last failure was a 5xx greeting that, by smtp_skip_5xx_greeting, ends the search for a host."""
    last = attempt.failures[-1]
    greeted = last.remote and last.phase is Phase.GREETING
    return greeted and last.reply.permanent and not attempt.settings.smtp_skip_5xx_greeting


def _loops_back(domain: str, peer: Peer, configured: bool) -> Verdict:
    """RFC 5321 5.1, 6.3: only those who run the domain can mend it; or, where we named the server, we."""
    reply = Reply(554, "5.4.6", f"mail for {domain} loops back to myself")
    if configured:
        return site_verdict(reply, True, Phase.HELLO, peer=str(peer), relay=peer.relay)
    return Verdict(Kind.MESSAGE_PERMANENT, reply, Phase.HELLO, str(peer), peer.relay)
