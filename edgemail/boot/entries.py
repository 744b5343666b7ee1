"""One queued message as the queue commands know it: the same value from the daemon's socket and from the spool.

Owns the names of the states, what an entry holds, its JSON form and the selection of entries by a person's filters.
Reads envelopes; changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final

from edgemail.envelope import Envelope, Recipient, queue_id
from edgemail.value import value

ACTIVE: Final = "active"  # a delivery is under way
INCOMING: Final = "incoming"  # not tried yet
DEFERRED: Final = "deferred"  # tried, and waiting
HOLD: Final = "hold"  # waits for a person
STATES: Final = (ACTIVE, INCOMING, DEFERRED, HOLD)  # the order in which Postfix lists its queues

MAX_ID: Final = 2**64 - 1

Site = Callable[[Envelope, Recipient], str]  # the site a recipient's mail goes to now, "" where it cannot be told


@value
class Waiting:
    """One recipient that is not finished."""

    address: str
    reason: str = ""  # "" before the first attempt
    status: str = ""
    kind: str = ""
    relay: str = ""
    site: str = ""
    notify: int | None = None
    orcpt: str = ""

    @property
    def domain(self) -> str:
        return self.address.rpartition("@")[2].lower() if "@" in self.address else ""


@value
class Entry:
    """One message; the first six names are those of `postqueue -j`. Times are wall clock seconds, 0 for none."""

    queue_name: str
    queue_id: str
    arrival_time: float
    message_size: int
    sender: str  # "" for a notice
    recipients: tuple[Waiting, ...]
    hold_reason: str = ""
    attempts: int = 0
    last_attempt: float = 0.0
    next_attempt: float = 0.0
    client_name: str = ""
    client_address: str = ""
    helo: str = ""
    protocol: str = ""
    sasl_username: str = ""
    message_id: str = ""
    envid: str = ""
    ret: str = ""
    smtputf8: bool = False
    eight_bit: bool = False
    bounce: bool = False

    @property
    def id(self) -> int:
        return int(self.queue_id, 16)

    def as_json(self) -> dict[str, Any]:
        """A mapping that `json.dumps` takes; `of_json` reads it back."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data["recipients"] = [{name: getattr(r, name) for name in r.__dataclass_fields__} for r in self.recipients]
        return data

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Entry:
        """Read `as_json` back; names of a newer daemon are passed over."""
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in data.items() if name in known}
        inner = {f.name for f in fields(Waiting)}
        values["recipients"] = tuple(
            Waiting(**{name: value for name, value in one.items() if name in inner}) for one in data["recipients"]
        )
        return cls(**values)


def state(envelope: Envelope, active: bool) -> str:
    """The queue in which Postfix would have it."""
    if active:
        return ACTIVE
    if envelope.hold:
        return HOLD
    tried = envelope.attempts or envelope.last_attempt or any(r.reason for r in envelope.recipients)
    return DEFERRED if tried else INCOMING


def entry(envelope: Envelope, active: bool = False, site: Site | None = None) -> Entry:
    """What the queue commands show of an envelope."""
    origin = envelope.origin
    return Entry(
        queue_name=state(envelope, active),
        queue_id=envelope.queue_id,
        arrival_time=envelope.received_at,
        message_size=envelope.size,
        sender=str(envelope.sender),
        recipients=tuple(_waiting(envelope, r, site) for r in envelope.recipients),
        hold_reason=envelope.hold_reason if envelope.hold else "",
        attempts=envelope.attempts,
        last_attempt=envelope.last_attempt,
        next_attempt=envelope.next_attempt,
        client_name=origin.client_name,
        client_address=origin.client_address,
        helo=origin.helo,
        protocol=origin.protocol,
        sasl_username=origin.sasl_username,
        message_id=envelope.message_id,
        envid=envelope.envid,
        ret=envelope.ret.value if envelope.ret else "",
        smtputf8=envelope.smtputf8,
        eight_bit=envelope.eight_bit,
        bounce=envelope.bounce,
    )


def _waiting(envelope: Envelope, recipient: Recipient, site: Site | None) -> Waiting:
    return Waiting(
        address=str(recipient.address),
        reason=recipient.reason,
        status=recipient.status,
        kind=recipient.kind.value if recipient.kind else "",
        relay=recipient.relay,
        site=site(envelope, recipient) if site else "",
        notify=None if recipient.notify is None else int(recipient.notify),
        orcpt=recipient.orcpt,
    )


def parse_id(text: str) -> int:
    """The number behind a queue id as a person writes it; ValueError when it cannot be one."""
    if not 1 <= len(text) <= 16 or not all(c in "0123456789abcdefABCDEF" for c in text):
        raise ValueError(f"invalid queue id: {text[:100]}")
    return int(text, 16)


@value
class Selection:
    """Which messages a command is about: all filters that are given must fit. Nothing given fits everything."""

    ids: frozenset[int] | None = None
    states: tuple[str, ...] = ()
    sender: str = ""  # an address, or "<>" for notices; in lower case
    recipient: str = ""
    domain: str = ""  # of a recipient
    reason: str = ""  # part of a reason, in any case

    def __contains__(self, one: object) -> bool:
        if not isinstance(one, Entry):
            return False
        if self.ids is not None and one.id not in self.ids:
            return False
        if self.states and one.queue_name not in self.states:
            return False
        if self.sender and one.sender.lower() != ("" if self.sender == "<>" else self.sender.lower()):
            return False
        if self.recipient and not any(r.address.lower() == self.recipient.lower() for r in one.recipients):
            return False
        if self.domain and not any(r.domain == self.domain.lower() for r in one.recipients):
            return False
        if self.reason:
            reasons = [one.hold_reason, *(r.reason for r in one.recipients)]
            return any(self.reason.lower() in reason.lower() for reason in reasons)
        return True

    def as_json(self) -> dict[str, Any]:
        """Only what is given; ids as queue ids."""
        data: dict[str, Any] = {
            "states": list(self.states),
            "sender": self.sender,
            "recipient": self.recipient,
            "domain": self.domain,
            "reason": self.reason,
        }
        data = {name: value for name, value in data.items() if value}
        if self.ids is not None:
            data["ids"] = [queue_id(one) for one in sorted(self.ids)]
        return data

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Selection:
        """Read a request's filters; ValueError for what is none."""
        ids = data.get("ids")
        if ids is not None and not isinstance(ids, list):
            raise ValueError("ids: a list of queue ids is wanted")
        states = data.get("states", [])
        if not isinstance(states, list) or not all(isinstance(s, str) and s in STATES for s in states):
            raise ValueError(f"states: some of {', '.join(STATES)} are wanted")
        texts = {name: data.get(name, "") for name in ("sender", "recipient", "domain", "reason")}
        for name, text in texts.items():
            if not isinstance(text, str):
                raise ValueError(f"{name}: text is wanted")
        return cls(None if ids is None else frozenset(parse_id(str(i)) for i in ids), tuple(states), **texts)
