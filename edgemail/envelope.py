"""The values that travel: address, recipient, envelope, route, delivery, outcome. Standard library only, no IO.

Wire and bodies are bytes; addresses are `Address` after parsing. Everything here is frozen: a change makes a new value.
"""

from __future__ import annotations

from dataclasses import field
from enum import Enum, IntFlag

from edgemail.errors import Kind
from edgemail.reply import Reply
from edgemail.value import value
from edgemail.via import Via


@value
class Address:
    """A mailbox of RFC 5321 4.1.2, as it stood on the wire: case and quoting kept, source route dropped.

    `domain` is "" for a bare local part, and may be an address literal ("[192.0.2.1]"). Both empty: the null
    reverse-path. False when null.
    """

    local: str
    domain: str = ""

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}" if self.domain else self.local

    def __bool__(self) -> bool:
        return bool(self.local or self.domain)

    @property
    def key(self) -> str:
        """How tables and site lists know it: all in lower case."""
        return str(self).lower()

    @classmethod
    def of(cls, text: str) -> Address:
        """Split trusted text at its last '@'. For text from outside use relay.wire.grammar."""
        local, at, domain = text.rpartition("@")
        return cls(local, domain) if at else cls(text, "")


NULL_SENDER = Address("", "")


class Notify(IntFlag):
    """RFC 3461 4.1. `NEVER` stands alone; an absent NOTIFY is None where it is kept, and means FAILURE (and DELAY)."""

    NEVER = 0
    SUCCESS = 1
    FAILURE = 2
    DELAY = 4


class Ret(Enum):
    """RFC 3461 4.3: how much of the message a failure notice returns."""

    FULL = "FULL"
    HDRS = "HDRS"


class Body(Enum):
    """RFC 6152: what the client declared."""

    SEVEN_BIT = "7BIT"
    EIGHT_BIT = "8BITMIME"


@value
class Recipient:
    """One recipient that is not finished. Finished ones leave the envelope."""

    address: Address
    notify: Notify | None = None
    orcpt: str = ""  # as received, still xtext: "rfc822;Bob+2B1@example.com"
    reason: str = ""  # why it still waits, as mailq shows it; "" before the first attempt
    status: str = ""  # RFC 3463 code of that reason: "4.4.1"
    kind: Kind | None = None  # of the last failure
    relay: str = ""  # who said so: "mx.example.com[192.0.2.1]:25" or "none"


@value
class Origin:
    """Where a message came from; what the trace header, the log, routing and notices need of it."""

    client_name: str = "unknown"
    client_address: str = ""  # "" for mail made on the box
    helo: str = ""
    protocol: str = ""  # RFC 3848: SMTP, ESMTP, ESMTPS, ESMTPSA, UTF8SMTP...; "" for mail made on the box
    sasl_username: str = ""
    listener: str = ""


@value
class Envelope:
    """What the spool keeps beside the body. `id` is 0 until an intake gave one."""

    id: int
    sender: Address
    recipients: tuple[Recipient, ...]
    size: int = 0  # bytes of the stored message, trace header included
    received_at: float = 0.0  # wall clock
    origin: Origin = field(default_factory=Origin)
    body: Body = Body.SEVEN_BIT  # as declared
    eight_bit: bool = False  # what the content really is: an octet over 127 somewhere
    smtputf8: bool = False
    ret: Ret | None = None
    envid: str = ""  # as received, still xtext
    message_id: str = ""  # of the header, for log and dedup; may be ""
    long_lines: bool = False  # a line of more than 998 octets somewhere
    hold: bool = False
    hold_reason: str = ""
    attempts: int = 0
    last_attempt: float = 0.0  # wall clock; 0.0 before the first
    next_attempt: float = 0.0  # wall clock; 0.0 = as soon as possible
    backoff: float = 0.0  # seconds waited before `next_attempt`; doubles
    waited: float = 0.0  # seconds of lifetime used up (lifetime_counts)
    delay_warned: bool = False
    bounce: bool = False  # made here: a notice; never bounced again

    @property
    def queue_id(self) -> str:
        return queue_id(self.id)


def queue_id(id: int) -> str:
    """Upper-case hex, at least 8 digits."""
    return f"{id:08X}"


class Disposal(Enum):
    """What the router found for one recipient."""

    RELAY = "relay"  # send it to `hops`
    ERROR = "error"  # bounce it with `text` (an `error:` row)
    HOLD = "hold"  # keep it and say `text` (postmaster mail without admin_address)
    DISCARD = "discard"  # finished without sending (mail to double-bounce@)


@value
class Route:
    """Where one recipient goes now. Deliveries to equal routes may share a connection.

    `hops` are tried in order: "[host]:port", "[192.0.2.1]", "host" (MX), "host:port"; never empty for RELAY.
    `configured` tells a next hop named by configuration (its failure is the route's) from a recipient's own domain.
    `tls`/timeouts and all else come from the settings of `transport`.
    """

    transport: str
    hops: tuple[str, ...] = ()
    configured: bool = False
    disposal: Disposal = Disposal.RELAY
    text: str = ""
    status: str = ""  # RFC 3463 code for ERROR

    @property
    def site(self) -> str:
        """The name under which concurrency, dead-site list, status and flush know it: "smtp:[isp.example]:587"."""
        return f"{self.transport}:{self.hops[0].lower() if self.hops else self.disposal.value}"


@value
class Target:
    """A recipient on its way: `index` into the envelope's recipients, and the address to send to now."""

    index: int
    recipient: Recipient
    address: Address  # after routing and completion; the one for RCPT TO


@value
class Delivery:
    """One transaction to be tried: a message, some of its recipients, one route."""

    envelope: Envelope
    targets: tuple[Target, ...]
    route: Route
    via: Via | None = None  # the uplink it goes by; None: as the system routes
    link: str = ""  # the uplink that is charged for it, "" for none
    urgent: bool = False  # it goes before others that wait for a connection
    connections: int = 0  # that this one may have at once, so that deliveries share them; 0: each has its own


@value
class Outcome:
    """What became of one target.

    `kind` None: the peer took it (`reply` is its 2xx). `site_failed`: the destination as a whole did not work
    (no connection, refused greeting, TLS, login): the dead-site list and the concurrency hear of it.
    `relayed_dsn`: the peer offers DSN and got the parameters, so that success is for it to report (RFC 3461 5.2.2).
    """

    index: int
    kind: Kind | None
    reply: Reply  # a peer's, or one made here in the same form
    relay: str = "none"
    remote: bool = False  # `reply` was said by the peer
    site_failed: bool = False
    relayed_dsn: bool = False
    connect_delay: float = 0.0  # seconds until the connection was ready
    transfer_delay: float = 0.0  # seconds for the transaction itself
    text: str = field(default="", compare=False)  # as the log and mailq say it; "" where `reply` says all

    @property
    def delivered(self) -> bool:
        return self.kind is None
