"""Where a next hop lives: MX, addresses, order. Owns `Host` and `ResolveError`; the only importer of dns here.

Decides what a failed lookup means: the recipient's domain does not exist, the route's next hop does not, this one
domain's servers fail, or there is no resolver at all. Never connects to a host. dnspython is loaded at the first
lookup that needs it: an MX, or nameservers of our own; address literals and `[host]` do without.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import socket
from collections.abc import Callable, Collection
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgemail.clock import Clock
from edgemail.domain import ascii_domain
from edgemail.errors import EdgemailError, Kind
from edgemail.patterns import parse_address
from edgemail.relay.send.hop import NAME, Hop, parse_hop
from edgemail.relay.send.hostnames import Addresses, Hostnames
from edgemail.reply import Reply
from edgemail.settings import Configuration, Settings
from edgemail.value import value

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver as DnsResolver

LOOKUP_SECONDS: Final = 10.0  # limit: for one question, all nameservers and repetitions together
TRY_SECONDS: Final = 2.5  # limit: for one try at one nameserver
PEERNAME_SECONDS: Final = 2.0  # limit: for the name of a client; a dead resolver must not stall a greeting
MAX_QUESTIONS: Final = 16  # limit: DNS questions on their way at once
MAX_CACHE: Final = 1000  # limit: DNS answers kept
MAX_TTL: Final = 3600.0  # limit: seconds an answer is kept, whatever its TTL
MAX_MX: Final = 20  # limit: MX hosts of one domain that are looked at, best first
OWN_SECONDS: Final = 10.0  # limit: seconds between two looks at the interfaces
PROOF_SECONDS: Final = 60.0  # limit: seconds for which one answer shows that the resolver reaches the world

RESOLV_CONF: Final = Path("/etc/resolv.conf")
FAMILIES: Final = {"A": socket.AddressFamily.AF_INET, "AAAA": socket.AddressFamily.AF_INET6}

Nameservers = tuple[tuple[str, ...], tuple[int, int, int] | None]  # our own, and what the system's file looked like

log = logging.getLogger("edgemail.smtp")


@value
class Host:
    """One server of a next hop: `addresses` in the order to try them, never empty; `preference` of its MX or 0."""

    name: str  # as named by the hop or its MX; an address literal without brackets
    addresses: tuple[tuple[socket.AddressFamily, str], ...]
    port: int
    preference: int = 0


class ResolveError(EdgemailError):
    """No host for a next hop. `kind` is ROUTE where the hop is configured and there is nothing wrong with the link."""

    def __init__(self, kind: Kind, reply: Reply) -> None:
        super().__init__(str(reply))
        self.kind = kind
        self.reply = reply


class Fault(Enum):
    """How a lookup failed."""

    NO_NAME = "no name"
    NO_DATA = "no data"
    AGAIN = "again"  # a nameserver answered, but not this
    SILENT = "silent"  # none answered

    @property
    def temporary(self) -> bool:
        return self in (Fault.AGAIN, Fault.SILENT)


FAULT_TEXT: Final = {  # Postfix's words
    Fault.NO_NAME: "Host not found",
    Fault.NO_DATA: "Host found but no data record of requested type",
    Fault.AGAIN: "Host not found, try again",
    Fault.SILENT: "Host not found, try again",
}


class Failure(Exception):
    """One lookup that brought nothing."""

    def __init__(self, fault: Fault, name: str, rdtype: str) -> None:
        super().__init__(f"Name service error for name={name} type={rdtype}: {FAULT_TEXT[fault]}")
        self.fault = fault


class Resolver:
    """Finds the hosts of next hops. `own`: the addresses of this box, asked now and then."""

    def __init__(
        self,
        configuration: Configuration,
        clock: Clock,
        own: Callable[[], Collection[str]] = frozenset,
        *,
        shuffle: random.Random | None = None,
        resolv_conf: Path = RESOLV_CONF,
        seconds: float = LOOKUP_SECONDS,
    ) -> None:
        self._configuration = configuration
        self._clock = clock
        self._own = own
        self._own_known: tuple[float, frozenset[object]] | None = None
        self._random = shuffle or random.Random()
        self._resolv_conf = resolv_conf
        self._seconds = seconds
        self._hostnames = Hostnames()
        self._questions = asyncio.Semaphore(MAX_QUESTIONS)
        self._dns: tuple[Nameservers, DnsResolver] | None = None  # for which nameservers, the resolver
        self._cache: dict[tuple[str, str], tuple[float, tuple[Any, ...]]] = {}
        self._proved = float("-inf")  # when the resolver last gave an answer from the world outside

    def reload(self, configuration: Configuration) -> None:
        """Take a new configuration and forget what is known."""
        self._configuration = configuration
        self._forget()

    async def hosts(self, hop: Hop | str, settings: Settings, *, configured: bool, domain: str) -> tuple[Host, ...]:
        """The hosts of a next hop in the order to try them; raises ResolveError. `domain`: for texts."""
        if isinstance(hop, str):
            try:
                hop = parse_hop(hop, settings.smtp_tcp_port)
            except ValueError as error:
                kind = Kind.ROUTE if configured else Kind.MESSAGE_PERMANENT
                raise ResolveError(kind, _reply(kind, "5.1.2", f"bad next hop {error}")) from None
        if hop.literal:
            family = socket.AddressFamily.AF_INET6 if ":" in hop.host else socket.AddressFamily.AF_INET
            found = [Host(hop.host, ((family, hop.host),), hop.port)]
        elif hop.mx and not settings.disable_dns_lookups:
            return await self._by_mx(hop, settings, configured, domain)
        else:
            try:
                found = [Host(hop.host, await self._addresses(hop.host, settings), hop.port)]
            except Failure as failure:
                raise await self._unresolved(failure, settings, configured) from None
        if not configured and self._self_at(found, hop, settings) is not None:
            raise _loop(domain, configured)
        return tuple(found)

    async def peername(self, address: str) -> str:
        """The name of a client whose name leads back to its address; "unknown" otherwise, and after two seconds."""
        settings = self._configuration.settings
        try:
            async with asyncio.timeout(PEERNAME_SECONDS):
                if settings.dns_nameservers:
                    name = str((await self._ask(_reverse(address), "PTR", settings))[0])
                else:
                    name = ascii_domain(await self._hostnames.name(address, PEERNAME_SECONDS))
                confirmed = {parse_address(found) for _, found in await self._addresses(name, settings)}
        except (Failure, OSError, ValueError):  # TimeoutError and gaierror are OSErrors
            return "unknown"
        return name if NAME.fullmatch(name) and parse_address(address) in confirmed else "unknown"

    # ---- by MX

    async def _by_mx(self, hop: Hop, settings: Settings, configured: bool, domain: str) -> tuple[Host, ...]:
        try:
            records: list[tuple[int, str]] = list(await self._ask(hop.host, "MX", settings))
        except Failure as failure:
            if failure.fault.temporary:
                raise await self._unresolved(failure, settings, configured) from None
            records = []
        if records and all(name == "." for _, name in records):  # RFC 7505
            kind = Kind.ROUTE if configured else Kind.MESSAGE_PERMANENT
            text = f"Domain {domain} does not accept mail (nullMX)"
            raise ResolveError(kind, _reply(kind, "5.1.10", text, code=556))
        if not records:  # RFC 5321 5.1: no MX, then the domain is its own host
            try:
                found = [Host(hop.host, await self._addresses(hop.host, settings, dns=True), hop.port)]
            except Failure as failure:
                raise await self._unresolved(failure, settings, configured) from None
        else:
            found = await self._mx_hosts(records, hop, settings, configured)
        best = min((preference for preference, _ in records), default=0)
        return self._without_self(found, best, hop, settings, configured=configured, domain=domain)

    async def _mx_hosts(
        self, records: list[tuple[int, str]], hop: Hop, settings: Settings, configured: bool
    ) -> list[Host]:
        """The MX hosts that have an address, best first."""
        if settings.smtp_randomize_addresses:
            self._random.shuffle(records)
        records.sort(key=lambda record: record[0])
        best = list({name: pref for pref, name in reversed(records) if name != "."}.items())[::-1][:MAX_MX]
        answers = await asyncio.gather(
            *(self._mx_addresses(name, hop.host, settings) for name, _ in best), return_exceptions=True
        )
        found: list[Host] = []
        failures: list[Failure] = []
        for (name, preference), answer in zip(best, answers, strict=True):
            if isinstance(answer, Failure):
                failures.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found.append(Host(name, answer, hop.port, preference))
        if found:
            return found
        log.warning("warning: no MX host for %s has a valid A record", hop.host)
        kind = Kind.ROUTE if configured else Kind.MESSAGE_TEMPORARY
        if all(failure.fault is Fault.SILENT for failure in failures):
            kind = Kind.LINK
        raise ResolveError(kind, _reply(kind, "4.4.4", str(failures[-1])))

    async def _mx_addresses(self, name: str, domain: str, settings: Settings) -> Addresses:
        if re.fullmatch(r"[0-9.]+", name) or parse_address(name) is not None:
            log.warning("warning: numeric domain name in resource data of MX record for %s: %s", domain, name)
            raise Failure(Fault.NO_NAME, name, "A")
        return await self._addresses(name, settings, dns=True)

    def _without_self(
        self, found: list[Host], best: int, hop: Hop, settings: Settings, *, configured: bool, domain: str
    ) -> tuple[Host, ...]:
        """The hosts better than ourselves (RFC 5321 5.1): what is as good or worse would send it back to us."""
        own = self._self_at(found, hop, settings)
        better = tuple(host for host in found if own is None or host.preference < own)
        if better:
            return better
        if own == best:
            raise _loop(domain, configured)
        kind = Kind.ROUTE if configured else Kind.MESSAGE_TEMPORARY
        raise ResolveError(kind, _reply(kind, "4.4.4", f"unable to find primary relay for {domain}"))

    def _self_at(self, hosts: Collection[Host], hop: Hop, settings: Settings) -> int | None:
        """The best preference at which one of the hosts is this box; only where mail would come in: at port smtp."""
        if hop.port != settings.smtp_tcp_port:
            return None
        own = self._own_addresses() | {parse_address(text.strip("[]")) for text in settings.proxy_interfaces}
        name = settings.myhostname.lower()
        return min(
            (
                host.preference
                for host in hosts
                if host.name == name or any(parse_address(address) in own for _, address in host.addresses)
            ),
            default=None,
        )

    def _own_addresses(self) -> frozenset[object]:
        now = self._clock.monotonic()
        if self._own_known is None or now - self._own_known[0] >= OWN_SECONDS:
            self._own_known = now, frozenset(parse_address(text) for text in self._own())
        return self._own_known[1]

    # ---- addresses

    async def _addresses(self, name: str, settings: Settings, *, dns: bool = False) -> Addresses:
        """The addresses of a host, in order. `dns`: by DNS and nothing else, as MX hosts are; raises Failure."""
        wanted = ["A", "AAAA"]
        if "all" not in settings.inet_protocols:
            wanted = [kind for kind, word in (("A", "ipv4"), ("AAAA", "ipv6")) if word in settings.inet_protocols]
        if dns or settings.dns_nameservers:
            found = await self._by_dns(name, wanted, settings)
            if settings.smtp_randomize_addresses:
                found = self._random.sample(found, len(found))
        else:
            found = await self._by_library(name, wanted)
        six = [pair for pair in found if pair[0] is socket.AF_INET6]
        four = [pair for pair in found if pair[0] is socket.AF_INET]
        if settings.smtp_address_preference == "ipv6":
            return (*six, *four)
        if settings.smtp_address_preference == "ipv4":
            return (*four, *six)
        return _alternating(six, four) if dns or settings.dns_nameservers else tuple(found)

    async def _by_dns(self, name: str, wanted: list[str], settings: Settings) -> list[tuple[socket.AddressFamily, str]]:
        answers = await asyncio.gather(*(self._ask(name, kind, settings) for kind in wanted), return_exceptions=True)
        found: list[tuple[socket.AddressFamily, str]] = []
        faults: list[Fault] = []
        for kind, answer in zip(wanted, answers, strict=True):
            if isinstance(answer, Failure):
                faults.append(answer.fault)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found += [(FAMILIES[kind], address) for address in answer]
        if found:
            return found
        worst = next((fault for fault in (Fault.AGAIN, Fault.SILENT, Fault.NO_DATA) if fault in faults), Fault.NO_NAME)
        raise Failure(worst, name, wanted[0])

    async def _by_library(self, name: str, wanted: list[str]) -> list[tuple[socket.AddressFamily, str]]:
        family = int(FAMILIES[wanted[0]]) if len(wanted) == 1 else 0
        try:
            return list(await self._hostnames.addresses(name, family, self._seconds))
        except socket.gaierror as error:
            fault = {socket.EAI_NONAME: Fault.NO_NAME, socket.EAI_NODATA: Fault.NO_DATA}.get(error.errno or 0)
            raise Failure(fault or Fault.SILENT, name, wanted[0]) from None
        except (OSError, UnicodeError):
            raise Failure(Fault.SILENT, name, wanted[0]) from None

    # ---- DNS

    async def _ask(self, name: str, rdtype: str, settings: Settings) -> tuple[Any, ...]:
        """One question: (preference, host) pairs for MX, else texts; raises Failure."""
        nameservers = self._nameservers(settings)
        known = self._cache.get((name, rdtype))
        if known is not None and known[0] > self._clock.monotonic():
            return known[1]
        async with self._questions:
            answer, ttl = await self._ask_dns(name, rdtype, nameservers)
        if rdtype in ("MX", "NS"):  # a router may know addresses by itself, but no MX
            self._proved = self._clock.monotonic()
        self._cache.pop((name, rdtype), None)
        while len(self._cache) >= MAX_CACHE:
            del self._cache[next(iter(self._cache))]
        self._cache[name, rdtype] = (self._clock.monotonic() + min(ttl, MAX_TTL), answer)
        return answer

    async def _ask_dns(self, name: str, rdtype: str, nameservers: Nameservers) -> tuple[tuple[Any, ...], float]:
        import dns.asyncresolver  # here, not above: 6 MiB that a box with a smarthost never needs
        import dns.exception
        import dns.name

        try:
            asked = dns.name.from_text(name)
        except dns.exception.DNSException:  # an empty or over-long label: there can be no such domain
            raise Failure(Fault.NO_NAME, name, rdtype) from None
        try:
            answer = await self._dns_resolver(nameservers).resolve(asked, rdtype, lifetime=self._seconds, search=False)
        except dns.resolver.NXDOMAIN:
            raise Failure(Fault.NO_NAME, name, rdtype) from None
        except dns.resolver.NoAnswer:
            raise Failure(Fault.NO_DATA, name, rdtype) from None
        except (dns.exception.DNSException, OSError) as error:
            said = [entry[4] for entry in getattr(error, "kwargs", {}).get("errors", ())]
            raise Failure(
                Fault.AGAIN if any(response is not None for response in said) else Fault.SILENT, name, rdtype
            ) from None
        records = answer.rrset or ()
        ttl = float(getattr(records, "ttl", 0))
        if rdtype == "MX":
            return tuple((int(record.preference), _text(record.exchange)) for record in records), ttl
        if rdtype in FAMILIES:
            return tuple(str(record.address) for record in records), ttl
        return tuple(_text(record.target) for record in records), ttl

    def _nameservers(self, settings: Settings) -> Nameservers:
        """Our own nameservers, or the system's file as it is now. Forgets what is known when they change."""
        own, state = settings.dns_nameservers, None
        if not own:
            try:
                status = self._resolv_conf.stat()
                state = (status.st_ino, status.st_mtime_ns, status.st_size)
            except OSError:
                pass  # no file yet: dnspython says so at the first question
        if self._dns is not None and self._dns[0] != (own, state):
            self._forget()
        return own, state

    def _dns_resolver(self, nameservers: Nameservers) -> DnsResolver:
        import dns.asyncresolver
        import dns.nameserver

        if self._dns is None:
            made = dns.asyncresolver.Resolver(configure=False)
            if nameservers[0]:
                made.nameservers = [dns.nameserver.Do53Nameserver(*parse_nameserver(text)) for text in nameservers[0]]
            else:
                made.read_resolv_conf(str(self._resolv_conf))
            made.timeout = TRY_SECONDS
            self._dns = nameservers, made
        return self._dns[1]

    def _forget(self) -> None:
        self._dns = None
        self._cache.clear()
        self._proved = float("-inf")

    async def _answering(self, settings: Settings) -> bool:
        """Whether the resolver reaches the world: a router without a link may say "no such domain" to everything."""
        if self._clock.monotonic() - self._proved < PROOF_SECONDS:
            return True
        try:
            await self._ask(".", "NS", settings)
        except Failure:
            return False
        return True

    async def _unresolved(self, failure: Failure, settings: Settings, configured: bool) -> ResolveError:
        """What a failed lookup means for the mail."""
        if failure.fault is Fault.SILENT:
            kind = Kind.LINK
        elif configured:
            temporary = failure.fault is Fault.AGAIN
            kind = Kind.LINK if temporary and not await self._answering(settings) else Kind.ROUTE
        elif not await self._answering(settings):
            kind = Kind.LINK  # "no such domain" is no more to be believed than "try again"
        else:
            kind = Kind.MESSAGE_TEMPORARY if failure.fault is Fault.AGAIN else Kind.MESSAGE_PERMANENT
        status = "4.4.3" if failure.fault.temporary else "5.1.2"
        return ResolveError(kind, _reply(kind, status, str(failure)))


def parse_nameserver(text: str) -> tuple[str, int]:
    """`192.0.2.53`, `2001:db8::53`, `[2001:db8::53]:5353`, `192.0.2.53:5353`. ValueError with a hint."""
    match = re.fullmatch(r"\[([^\[\]]+)\](?::(\d+))?|([0-9.]+):(\d+)", text)
    address, port = (match[1] or match[3], int(match[2] or match[4] or 53)) if match else (text, 53)
    if parse_address(address) is None or not 1 <= port <= 65535:
        raise ValueError(f"'{text}' is no nameserver; expected an address or [address]:port")
    return address, port


def _alternating(one: list[Any], other: list[Any]) -> tuple[Any, ...]:
    """Addresses of both families by turns, so that one dead family costs one try (RFC 8305 4)."""
    pairs = [pair for both in zip(one, other, strict=False) for pair in both]
    shorter = min(len(one), len(other))
    return (*pairs, *one[shorter:], *other[shorter:])


def _text(name: Any) -> str:
    """A DNS name as we write it: lower case, no final dot; "." alone for the root."""
    return str(name.to_text(omit_final_dot=True)).lower()


def _reverse(address: str) -> str:
    parsed = parse_address(address)
    if parsed is None:
        raise ValueError(f"'{address}' is no address")
    return parsed.reverse_pointer


def _reply(kind: Kind, status: str, text: str, code: int = 550) -> Reply:
    """The failure in the form of a reply: 5xx where it is the message's own, 451 in all other cases."""
    if kind is Kind.MESSAGE_PERMANENT:
        return Reply(code, status, text)
    return Reply(451, "4" + status[1:], text)


def _loop(domain: str, configured: bool) -> ResolveError:
    log.warning("warning: mailer loop: best MX host for %s is local", domain)
    kind = Kind.ROUTE if configured else Kind.MESSAGE_PERMANENT
    return ResolveError(kind, _reply(kind, "5.4.6", f"mail for {domain} loops back to myself", code=554))
