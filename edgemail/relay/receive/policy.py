"""Who may send what to whom: restriction lists, relay control, known recipients. Decisions only, no IO, no state.

Never an open relay: a list that runs out refuses, a word that is not known refuses, and nothing that a client can say
(a sender, a route in a local part) makes it trusted. What is trusted is its address or its login.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from enum import Enum, auto
from pathlib import Path
from typing import Final

from edgemail.envelope import Address
from edgemail.patterns import parse_address
from edgemail.relay.wire import replies
from edgemail.relay.wire.grammar import looks_like_routing
from edgemail.reply import Reply
from edgemail.settings import Settings
from edgemail.tables import DomainList, NetworkList, Tables
from edgemail.value import value
from edgemail.watched import Monotonic

STANDARD_NAMES: Final = frozenset({"postmaster", "root", "abuse", "mailer-daemon"})  # RFC 2142, RFC 5321 4.5.1

# Words of smtpd_relay_restrictions and smtpd_recipient_restrictions.
RESTRICTIONS: Final = (
    "permit_mynetworks",
    "permit_sasl_authenticated",
    "permit_auth_destination",
    "reject_unauth_destination",
    "defer_unauth_destination",
    "permit",
    "reject",
)
REFUSALS: Final = frozenset({"reject_unauth_destination", "defer_unauth_destination", "reject"})


ETRN_RESTRICTIONS: Final = ("permit_mynetworks", "permit_sasl_authenticated", "permit", "reject")


def check_etrn_restrictions(names: Collection[str]) -> str | None:
    """What is wrong with smtpd_etrn_restrictions, one sentence with its hint; None when it is in order."""
    for name in names:
        if name not in ETRN_RESTRICTIONS:
            return f"'{name}' is not one of the restrictions {', '.join(ETRN_RESTRICTIONS)}"
    if names and list(names)[-1] not in ("permit", "reject"):
        return "does not say what becomes of everybody else; put reject at its end"
    return None


def check_restrictions(names: Collection[str], *, relaying: bool = True) -> str | None:
    """What is wrong with a restriction list, one sentence with its hint; None when it is in order.

    `relaying`: it is the list that decides about relaying, and so must end in a refusal that nobody gets past.
    """
    for name in names:
        if name not in RESTRICTIONS:
            return f"'{name}' is not one of the restrictions {', '.join(RESTRICTIONS)}"
    if not relaying:
        return None
    decided = next((name for name in names if name in REFUSALS or name == "permit"), "")
    if decided == "permit":
        return "'permit' lets everybody relay; name who may: permit_mynetworks, permit_sasl_authenticated"
    if not names or list(names)[-1] not in REFUSALS:
        return "does not end in a refusal, so it would be an open relay; put reject_unauth_destination at its end"
    return None


def relaying(settings: Settings) -> tuple[str, ...]:
    """The list that decides about relaying: none where smtpd_recipient_restrictions do it, as before Postfix 2.10.

    A list that would leave the box open cannot come from a checked configuration; then the default stands instead.
    """
    names = settings.smtpd_relay_restrictions
    if check_restrictions(names) is None:
        return names
    if not names and check_restrictions(settings.smtpd_recipient_restrictions) is None:
        return ()
    return ("permit_mynetworks", "permit_sasl_authenticated", "reject_unauth_destination")


class Standing(Enum):
    """What a recipient's domain is to this box."""

    LOCAL = auto()  # mydestination, or one of the box's own addresses
    RELAY = auto()  # relay_domains
    OTHER = auto()


@value
class Client:
    """Who asks: an IP address without scope, and the login, "" for none."""

    address: str
    user: str = ""


class Policy:
    """The rules of one listener, made ready.

    `own`: the addresses of this box, asked when a recipient's domain is an address literal.
    """

    def __init__(
        self,
        settings: Settings,
        base: Path | None = None,
        *,
        own: Callable[[], Collection[str]] = frozenset,
        monotonic: Monotonic = time.monotonic,
    ) -> None:
        """Raises TableError where a list or table cannot be read."""
        self._settings = settings
        self._own = own
        parents = settings.parent_domain_matches_subdomains
        self._networks = NetworkList(settings.mynetworks, base, monotonic=monotonic)
        self._exempt = NetworkList(settings.smtpd_client_event_limit_exceptions, base, monotonic=monotonic)
        self._local = DomainList(settings.mydestination, "mydestination" in parents, base, monotonic=monotonic)
        self._relayed = DomainList(settings.relay_domains, "relay_domains" in parents, base, monotonic=monotonic)
        self._local_recipients = Tables.open(settings.local_recipient_maps, base, monotonic=monotonic)
        self._relay_recipients = Tables.open(settings.relay_recipient_maps, base, monotonic=monotonic)
        self._flushed = DomainList(
            settings.fast_flush_domains, "fast_flush_domains" in parents, base, monotonic=monotonic
        )
        self._relaying = relaying(settings)
        self._notices = settings.double_bounce_sender.partition("@")[0].lower()

    def trusts(self, client: Client) -> bool:
        """In mynetworks, or logged in."""
        return bool(client.user) or client.address in self._networks

    def exempt(self, address: str) -> bool:
        """Whether the limits on clients pass this one over."""
        return address in self._exempt

    def etrn_refusal(self, client: Client, node: str) -> Reply | None:
        """The refusal of ETRN, or None. `node` as it was asked for: a domain, "@" and a domain, "#" and a queue."""
        for name in self._settings.smtpd_etrn_restrictions or ("permit_mynetworks", "permit_sasl_authenticated"):
            if (
                name == "permit"
                or (name == "permit_mynetworks" and client.address in self._networks)
                or (name == "permit_sasl_authenticated" and client.user)
            ):
                break
            if name == "reject":
                return replies.etrn_denied(node)
        else:
            return replies.etrn_denied(node)
        domain = node.removeprefix("@")
        # who asks for all below a domain asks for names that nobody has written down
        below = node.startswith("@") and f"any.{domain}" not in self._flushed
        if not node.startswith("#") and (below or domain not in self._flushed):
            return replies.etrn_not_eligible(node)
        return None

    def refusal(self, client: Client, recipient: Address) -> Reply | None:
        """The refusal of a recipient, or None. The sender has no part in it: anybody can say any."""
        if not recipient.domain and recipient.local.lower() == "postmaster":  # RFC 5321 4.5.1: from anybody, always
            return None
        completed = self._completed(recipient)
        if self._is_for_notices(completed):
            return None
        standing = self._standing(completed)
        return (
            self._walk(self._relaying, client, recipient, standing)
            or self._walk(self._settings.smtpd_recipient_restrictions, client, recipient, standing)
            or self._unlisted(recipient, completed, standing)
        )

    # ---- restriction lists

    def _walk(self, names: Collection[str], client: Client, recipient: Address, standing: Standing) -> Reply | None:
        """The first word of a list that decides."""
        destination = standing is not Standing.OTHER and not self._routes(client, recipient)
        for name in names:
            if name == "permit":
                return None
            if name == "permit_mynetworks":
                if client.address in self._networks:
                    return None
            elif name == "permit_sasl_authenticated":
                if client.user:
                    return None
            elif name == "permit_auth_destination":
                if destination:
                    return None
            elif name == "reject_unauth_destination":
                if not destination:
                    return replies.relay_denied(str(recipient))
            elif name == "defer_unauth_destination":
                if not destination:
                    return replies.relay_denied(str(recipient)).softened()
            else:  # reject, and a word that nobody knows
                return Reply(554, "5.7.1", f"<{recipient}>: Recipient address rejected: Access denied")
        return None

    def _routes(self, client: Client, recipient: Address) -> bool:
        """A route in the local part, from a stranger: whoever gets the mail next may take it for one and relay it."""
        return looks_like_routing(recipient.local) and not self.trusts(client)

    # ---- recipients

    def _unlisted(self, recipient: Address, completed: Address, standing: Standing) -> Reply | None:
        """A recipient that nobody knows is refused here, not bounced later to a sender who may be forged."""
        if not self._settings.smtpd_reject_unlisted_recipient or standing is Standing.OTHER:
            return None
        name, key = completed.local.lower(), completed.key
        if standing is Standing.LOCAL:
            if name in STANDARD_NAMES:
                return None
            if self._local_recipients.search((key, name, f"@{completed.domain.lower()}")) is None:
                return replies.unknown_recipient(str(recipient), replies.UNKNOWN_LOCAL)
            return None
        if not self._relay_recipients or name == "postmaster":  # RFC 5321 4.5.1: there is one in every mail domain
            return None
        if self._relay_recipients.search((key, f"@{completed.domain.lower()}")) is None:
            return replies.unknown_recipient(str(recipient), replies.UNKNOWN_RELAY)
        return None

    def _is_for_notices(self, address: Address) -> bool:
        """The sender of notices: what comes back to it is taken, and dropped later; no notice goes in circles."""
        domain = address.domain.lower()
        settings = self._settings
        return address.local.lower() == self._notices and (
            domain in (settings.myorigin.lower(), settings.myhostname.lower()) or domain in self._local
        )

    def _completed(self, address: Address) -> Address:
        """The address as it will be sent (myorigin, append_dot_mydomain)."""
        domain = address.domain or self._settings.myorigin
        if self._settings.append_dot_mydomain and "." not in domain and not domain.startswith("["):
            domain = f"{domain}.{self._settings.mydomain}"
        return Address(address.local, domain)

    def _standing(self, address: Address) -> Standing:
        if address.domain.startswith("["):
            bare = address.domain[1:-1]
            literal = parse_address(bare[5:] if bare[:5].lower() == "ipv6:" else bare)
            own = (*self._settings.proxy_interfaces, *self._own())
            if literal is not None and any(literal == parse_address(each.strip("[]")) for each in own):
                return Standing.LOCAL
        if address.domain in self._local:
            return Standing.LOCAL
        return Standing.RELAY if address.domain in self._relayed else Standing.OTHER
