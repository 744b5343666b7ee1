"""Where one recipient goes now: the box's standard names, transport rows, relayhost, or the recipient's own domain.

Asked at each attempt, so that a changed configuration applies to mail already queued. Owns the order of Postfix's
address classes; never looks up DNS, never fails: what a wrong row says is kept on hold, not bounced.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

from edgemail.domain import ascii_domain
from edgemail.envelope import Address, Disposal, Envelope, Recipient, Route
from edgemail.patterns import parse_address
from edgemail.relay.send.hop import parse_hop
from edgemail.relay.send.rewrite import complete
from edgemail.settings import Configuration, Settings
from edgemail.tables import DomainList, Tables
from edgemail.value import value
from edgemail.watched import Monotonic

STANDARD_NAMES: Final = frozenset({"postmaster", "root", "abuse", "mailer-daemon"})
POSTMASTER_WAITS: Final = "mail for postmaster waits: set admin_address and reload"

DOMAINS_KNOWN: Final = 64  # limit: recipients' domains, and rows of transport_maps, that are remembered as read

ROW = re.compile(r"(?:([A-Za-z0-9_.-]*):)?\s*(.*)", re.DOTALL)
STATUS = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:\s+|$)(.*)", re.DOTALL)  # RFC 3463 2


@value
class Row:
    """A value of transport_maps, or of default_transport and relay_transport. `transport` "" keeps the one in force."""

    transport: str
    hops: tuple[str, ...] = ()
    disposal: Disposal = Disposal.RELAY
    text: str = ""
    status: str = ""


@lru_cache(maxsize=DOMAINS_KNOWN)
def parse_row(value: str, default_port: int = 25) -> Row:
    """`transport:nexthop[, nexthop...]`, `transport:`, `transport`, `:nexthop`, `error:`, `discard:`, `hold:`.

    ValueError with a hint.
    """
    match = ROW.fullmatch(value.strip())
    name, rest = (match[1], match[2].strip()) if match else ("", value)
    if name is None:  # without a colon: a transport
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", rest):
            raise ValueError(f"'{value}': expected transport:nexthop, for example relay:[{rest.strip('[]')}]")
        name, rest = rest, ""
    if name == "error":
        status = STATUS.fullmatch(rest)
        if status and not status[1].startswith("5."):
            raise ValueError(f"'{value}': error: takes a status 5.x.y; hold: keeps the mail")
        code, text = (status[1], status[2]) if status else ("5.0.0", rest)
        return Row(name, disposal=Disposal.ERROR, text=text or "no mail is taken for this address", status=code)
    if name == "discard":
        return Row(name, disposal=Disposal.DISCARD, text=rest or "discarded by a transport row")
    if name == "hold":
        return Row(name, disposal=Disposal.HOLD, text=rest or "held by a transport row")
    hops = tuple(hop for hop in re.split(r"[,\s]+", rest) if hop)
    for hop in hops:
        parse_hop(hop, default_port)
    return Row(name, hops)


class _Rules:
    """One configuration, made ready for routing; replaced whole at a reload."""

    __slots__ = ("admin", "default", "local", "parents", "relay", "relayed", "settings", "table")

    def __init__(self, configuration: Configuration, monotonic: Monotonic) -> None:
        settings = self.settings = configuration.settings
        base = Path(configuration.path).parent
        parents = settings.parent_domain_matches_subdomains
        self.table = Tables.open(settings.transport_maps, base, monotonic=monotonic)
        self.parents = "transport_maps" in parents
        self.local = DomainList(settings.mydestination, "mydestination" in parents, base, monotonic=monotonic)
        self.relayed = DomainList(settings.relay_domains, "relay_domains" in parents, base, monotonic=monotonic)
        self.default = parse_row(settings.default_transport, settings.smtp_tcp_port)
        self.relay = parse_row(settings.relay_transport, settings.smtp_tcp_port)
        self.admin = complete(Address.of(settings.admin_address), settings) if settings.admin_address else None


class Router:
    """Finds routes. `own`: addresses of this box, so that mail to `postmaster@[one of them]` is known as its own."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        own: Callable[[], Collection[str]] = frozenset,
        monotonic: Monotonic = time.monotonic,
    ) -> None:
        """Raises TableError or ValueError where a table, a list or a transport cannot be read."""
        self._own = own
        self._monotonic = monotonic
        self._configuration = configuration
        self._rules = _Rules(configuration, monotonic)

    def reload(self, configuration: Configuration) -> None:
        """Take a new configuration; raises as the constructor does, and then keeps the old one."""
        self._rules = _Rules(configuration, self._monotonic)
        self._configuration = configuration

    def route(self, envelope: Envelope, recipient: Recipient) -> tuple[Route, Address]:
        """Where a recipient of a message goes, and the address for RCPT TO."""
        return self._resolve(recipient.address)

    def route_address(self, address: Address) -> Route:
        """Where mail for an address would go now."""
        return self._resolve(address)[0]

    # ---- the box's own names

    def _resolve(self, address: Address) -> tuple[Route, Address]:
        rules = self._rules
        completed = complete(address, rules.settings)
        name = address.local.lower()
        if self._is_own(address) or self._is_origin(completed):
            sender = Address.of(rules.settings.double_bounce_sender.lower())
            if name == sender.local:
                return Route("discard", disposal=Disposal.DISCARD, text="mail to the sender of notices"), completed
        if name in STANDARD_NAMES and self._is_own(address):
            return self._for_admin(completed)
        return self._route(completed), completed

    def _for_admin(self, asked: Address) -> tuple[Route, Address]:
        """Mail for postmaster and the like; held, never lost, while nobody is named to read it."""
        admin = self._rules.admin
        if admin is None:
            return _held(POSTMASTER_WAITS), asked
        if self._is_own(admin) and admin.local.lower() in STANDARD_NAMES:
            return _held(f"mail for postmaster waits: admin_address {admin} is this box itself"), asked
        route = self._route(admin)
        if route.disposal in (Disposal.ERROR, Disposal.DISCARD):
            return _held(f"mail for postmaster waits: admin_address {admin} cannot be reached: {route.text}"), asked
        return route, admin

    def _is_own(self, address: Address) -> bool:
        """Whether an address, as it was given, is in a domain of this box: bare, mydestination, its own literals."""
        domain = address.domain
        if not domain or domain in self._rules.local:
            return True
        if not domain.startswith("["):
            return False
        literal = _literal(domain)
        outer = (*self._rules.settings.proxy_interfaces, *self._own())
        return literal is not None and any(literal == parse_address(own.strip("[]")) for own in outer)

    def _is_origin(self, address: Address) -> bool:
        settings = self._rules.settings
        return address.domain.lower() in (settings.myorigin.lower(), settings.myhostname.lower())

    # ---- all other mail

    def _route(self, address: Address) -> Route:
        rules, settings = self._rules, self._rules.settings
        try:
            own_hop = _own_hop(address.domain)
        except ValueError as error:
            return Route("error", disposal=Disposal.ERROR, text=f"Bad destination domain: {error}", status="5.1.2")
        local = self._is_own(address)
        relayed = not local and address.domain in rules.relayed
        transport = rules.relay if relayed else rules.default
        value = rules.table.search(_keys(address, rules.parents))
        if value is not None:
            try:
                row = parse_row(value, settings.smtp_tcp_port)
            except ValueError as error:
                return _held(f"wrong row in transport_maps: {error}")
            if row.disposal is not Disposal.RELAY:
                return Route(row.transport, disposal=row.disposal, text=row.text, status=row.status)
            if row.hops or row.transport:
                # transport(5): a transport without a next hop means the recipient's domain, not the relayhost
                hops = row.hops or (own_hop,)
                return self._to(row.transport or transport.transport, hops, configured=bool(row.hops))
            # transport(5): both parts empty: as if there were no row
        if local and not settings.relayhost and value is None:
            return Route("error", disposal=Disposal.ERROR, text="User unknown in local recipient table", status="5.1.1")
        if transport.disposal is not Disposal.RELAY:
            return Route(transport.transport, disposal=transport.disposal, text=transport.text, status=transport.status)
        hops = transport.hops or settings.relayhost
        return self._to(transport.transport, hops or (own_hop,), configured=bool(hops))

    def _to(self, transport: str, hops: tuple[str, ...], *, configured: bool) -> Route:
        fallback = self._configuration.transport(transport).smtp_fallback_relay
        return Route(transport, hops + tuple(hop for hop in fallback if hop not in hops), configured)


def _held(text: str) -> Route:
    return Route("hold", disposal=Disposal.HOLD, text=text)


def _literal(domain: str) -> object:
    bare = domain.strip("[]")
    return parse_address(bare[5:] if bare[:5].lower() == "ipv6:" else bare)


@lru_cache(maxsize=DOMAINS_KNOWN)
def _own_hop(domain: str) -> str:
    """The next hop that a recipient's domain is by itself. ValueError where it can be none."""
    if domain.startswith("["):
        if _literal(domain) is None:
            raise ValueError(f"'{domain}' is no address literal")
        return domain
    name = ascii_domain(domain)
    parse_hop(name, 25)
    return name


def _keys(address: Address, parents: bool) -> Iterator[str]:
    """What transport_maps is asked for, in order (transport(5)): the address, its domain, those above it, `*`."""
    yield address.key
    domain = address.domain.lower().removesuffix(".")
    names = [domain]
    if not domain.isascii():
        names.append(ascii_domain(domain))
        yield f"{address.local.lower()}@{names[1]}"
    yield from names
    if not domain.startswith("["):
        for name in names:
            while "." in name:
                name = name.partition(".")[2]
                yield name if parents else "." + name
    yield "*"


def class_conflicts(settings: Settings) -> list[str]:
    """Domains that are listed as the box's own and as relayed ones too; the box's own counts."""
    local = {_folded(name) for name in settings.mydestination if not name.startswith(("/", "./", "../", "!"))}
    return [
        f"do not list domain {name} in BOTH mydestination and relay_domains"
        for name in settings.relay_domains
        if _folded(name) in local
    ]


def _folded(name: str) -> str:
    try:
        return ascii_domain(name)
    except ValueError:
        return name.lower()
