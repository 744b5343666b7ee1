"""How much one client may do: sessions at once, connections, messages and recipients in a unit of time (anvil(8)).

Owns the counts and the refusals that they earn. Never a socket, never a clock of its own. A client is an IPv4 address
or an IPv6 network, counted for each listener apart, as Postfix counts for each service apart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final

from edgemail.patterns import parse_address
from edgemail.relay.wire import replies
from edgemail.reply import Reply
from edgemail.settings import Settings

MAX_ASKED: Final = 1000  # limit: domains of which it is remembered how often ETRN asked for them
MAX_CLIENTS: Final = 2000  # limit: clients whose rates are remembered at once, about 400 bytes each
RESERVED: Final = 8  # limit: sessions above default_process_limit, for clients that have no other
CEILING: Final = 0.75  # limit: share of default_process_limit that one client may hold, were it exempt from all else
CLIENTS_KEPT: Final = 256  # limit: clients whose address is kept in the form that logs and lists have it in
IPV6_PREFIX: Final = 84  # bits of an IPv6 address that make a client, Postfix's smtpd_client_ipv6_prefix_length

LOOPBACK: Final = frozenset({"127.0.0.1", "::"})  # as clients are counted: ::1 in its network

Key = tuple[str, str]


class Tally:
    """What one client did at one listener: sessions open, and events since `since`."""

    __slots__ = ("connections", "handshakes", "messages", "recipients", "sessions", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.sessions = 0
        self.connections = 0
        self.messages = 0
        self.recipients = 0
        self.handshakes = 0  # of TLS, but for sessions that were resumed


class Anvil:
    """The counts of all clients. `unit` is anvil_rate_time_unit, `most` default_process_limit; a reload sets both."""

    def __init__(self, monotonic: Callable[[], float], unit: float, most: int) -> None:
        self.unit = unit
        self.most = most
        self.sessions = 0  # of all clients
        self._monotonic = monotonic
        self._tallies: OrderedDict[Key, Tally] = OrderedDict()  # the client heard of longest ago first
        self._asked: OrderedDict[str, tuple[float, int]] = OrderedDict()  # by ETRN; the one asked for longest ago first

    def __len__(self) -> int:
        return len(self._tallies)

    def visit(self, listener: str, address: str, settings: Settings, *, exempt: bool) -> Visit:
        """Count a connection. The visit's `leave` must be called when it ends, refused or not.

        `exempt`: one of smtpd_client_event_limit_exceptions.
        """
        self.sessions += 1
        return Visit(self, (listener, client_of(address)), settings, exempt)

    def tally(self, key: Key) -> Tally:
        """The client's counts, those of the unit that has passed forgotten."""
        now = self._monotonic()
        tally = self._tallies.get(key)
        if tally is None:
            self._make_room(now)
            tally = self._tallies[key] = Tally(now)
        else:
            self._tallies.move_to_end(key)
            self._forget(tally, now)
        return tally

    def current(self, tally: Tally) -> Tally:
        """A tally that somebody keeps, who is here: so it is not given up. What it counted before this unit is."""
        self._forget(tally, self._monotonic())
        return tally

    def _forget(self, tally: Tally, now: float) -> None:
        if now - tally.since >= self.unit:
            tally.since = now
            tally.connections = tally.messages = tally.recipients = tally.handshakes = 0

    def asked(self, node: str) -> int:
        """Count that ETRN asks for a domain; how often somebody did in this unit, this time included."""
        now = self._monotonic()
        since, count = self._asked.pop(node, (now, 0))
        if now - since >= self.unit:
            since, count = now, 0
        self._asked[node] = since, count + 1
        while len(self._asked) > MAX_ASKED:
            self._asked.popitem(last=False)
        return count + 1

    def left(self, key: Key) -> None:
        """A session of this client is over."""
        self.sessions -= 1
        tally = self._tallies.get(key)
        if tally is not None:
            tally.sessions -= 1

    def _make_room(self, now: float) -> None:
        """Forget clients of whom there is nothing to remember any more; past MAX_CLIENTS, the quietest."""
        for _ in range(len(self._tallies)):
            key, quietest = next(iter(self._tallies.items()))
            if quietest.sessions:
                self._tallies.move_to_end(key)  # still here: it must not hide those that have left
            elif now - quietest.since >= self.unit or len(self._tallies) >= MAX_CLIENTS:
                del self._tallies[key]
            else:
                return


class Visit:
    """One session's account with the anvil."""

    __slots__ = ("_anvil", "_exempt", "_key", "_left", "_settings", "_tally")

    def __init__(self, anvil: Anvil, key: Key, settings: Settings, exempt: bool) -> None:
        self._anvil = anvil
        self._key = key
        self._settings = settings
        self._exempt = exempt
        self._left = False
        self._tally = anvil.tally(key)
        self._tally.sessions += 1
        self._tally.connections += 1

    def leave(self) -> None:
        """The session is over. Safe to call twice."""
        if not self._left:
            self._left = True
            self._anvil.left(self._key)

    @property
    def others(self) -> int:
        """Sessions that this client has beside this one."""
        return self._tally.sessions - 1

    def at_connect(self, client: str) -> Reply | None:
        """The refusal of the session, if any. `client` is "name[address]"; the texts are Postfix's."""
        host, settings = self._settings.myhostname, self._settings
        tally = self._anvil.current(self._tally)
        if self._anvil.sessions > self._anvil.most + (RESERVED if tally.sessions == 1 else 0):
            return replies.too_busy(host)
        if tally.sessions > max(1, CEILING * self._anvil.most) and self._key[1] not in LOOPBACK:
            return replies.too_many_connections(host, client)
        if self._exempt:
            return None
        if 0 < settings.smtpd_client_connection_count_limit < tally.sessions:
            return replies.too_many_connections(host, client)
        if 0 < settings.smtpd_client_connection_rate_limit < tally.connections:
            return replies.too_many_connections(host, client)
        return None

    def at_mail(self, client: str) -> Reply | None:
        """Count a message; the refusal, if any."""
        tally = self._anvil.current(self._tally)
        tally.messages += 1
        if not self._exempt and 0 < self._settings.smtpd_client_message_rate_limit < tally.messages:
            return replies.too_much_mail(client)
        return None

    def at_recipient(self, client: str) -> Reply | None:
        """Count a recipient; the refusal, if any."""
        tally = self._anvil.current(self._tally)
        tally.recipients += 1
        if not self._exempt and 0 < self._settings.smtpd_client_recipient_rate_limit < tally.recipients:
            return replies.too_many_recipients_from(client)
        return None

    def at_starttls(self, client: str) -> Reply | None:
        """Before a handshake: the refusal of a client that has had its share of new TLS sessions."""
        limit, tally = self._settings.smtpd_client_new_tls_session_rate_limit, self._anvil.current(self._tally)
        refused = not self._exempt and 0 < limit <= tally.handshakes
        return replies.too_many_handshakes(self._settings.myhostname, client) if refused else None

    def at_handshake(self, client: str) -> Reply | None:
        """Count a TLS session that was not resumed; the refusal, if any."""
        limit, tally = self._settings.smtpd_client_new_tls_session_rate_limit, self._anvil.current(self._tally)
        tally.handshakes += 1
        refused = not self._exempt and 0 < limit < tally.handshakes
        return replies.too_many_handshakes(self._settings.myhostname, client) if refused else None

    def at_etrn(self, node: str) -> Reply | None:
        """Count that a domain is asked for; the refusal, if any. Nobody is an exception: it spares the queue."""
        count = self._anvil.asked(node.lower())
        return replies.ETRN_UNABLE if 0 < self._settings.fast_flush_rate_limit < count else None


def client_of(address: str) -> str:
    """Under which name a client is counted: who has one IPv6 address has many."""
    if ":" not in address:
        return address
    try:
        value = int(IPv6Address(address))
    except ValueError:
        return address
    return str(IPv6Address(value >> (128 - IPV6_PREFIX) << (128 - IPV6_PREFIX)))


@lru_cache(maxsize=CLIENTS_KEPT)
def address_of(host: str) -> str:
    """A client's address as logs and lists name it: an IPv4-mapped one is an IPv4 address."""
    parsed = parse_address(host)
    return str(parsed) if parsed is not None else host
