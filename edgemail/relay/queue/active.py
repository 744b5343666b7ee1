"""A message in hand: its parts, one for each delivery, and what has become of its recipients so far.

Owns how a message is split: by route, in pieces of `<transport>_destination_recipient_limit`; and what a route that
needs no delivery means. Nothing here waits or writes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from edgemail.envelope import Address, Delivery, Disposal, Envelope, Outcome, Recipient, Route, Target
from edgemail.errors import Kind
from edgemail.relay.queue.keep import Kept
from edgemail.relay.queue.link import Uplink
from edgemail.relay.queue.sites import OWN_SIDE, Site
from edgemail.relay.queue.waiting import Flag, rank
from edgemail.reply import Reply
from edgemail.value import changed, value

log = logging.getLogger("edgemail.qmgr")

Router = Callable[[Envelope, Recipient], tuple[Route, Address]]

NOT_ROUTED: Final = Reply(451, "4.3.5", "local trouble while routing; see the log")
NO_OUTCOME: Final = Reply(451, "4.3.0", "local trouble while sending; see the log")


@value
class Part:
    """What one delivery takes."""

    route: Route
    targets: tuple[Target, ...]

    def delivery(self, active: Active, uplink: Uplink | None) -> Delivery:
        """What is asked of those who send: over that link, where one is named."""
        if uplink is None:
            return Delivery(active.envelope, self.targets, self.route)
        via, name, shared = uplink.via, uplink.name, uplink.shared
        return Delivery(active.envelope, self.targets, self.route, via, name, active.urgent, shared)


@dataclass(slots=True, eq=False)
class Active:
    """A message in hand. Indexes are those of `envelope`, which stays as it was found."""

    envelope: Envelope
    flags: int = Flag.NONE
    urgent: bool = False  # it goes before most mail
    parts: list[Part] = field(default_factory=list)  # not begun
    running: int = 0
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)  # those whose route says that they wait for a person
    suspended: dict[int, float] = field(default_factory=dict)  # not tried, their site is dead until (monotonic)
    kept: bool = False  # some of those are on demand or wait for a link
    recorded: set[int] = field(default_factory=set)  # delivered, and the spool knows
    hold: str | None = None  # somebody put it on hold meanwhile, and why
    removed: bool = False  # somebody removed it meanwhile
    decided: set[int] = field(default_factory=set)  # those of which an outcome is known without a delivery
    finishing: bool = False
    asked: bool = False  # somebody flushed it while it was being written down why it was not tried
    copied: bool = False  # the postmaster has a copy of its bounce
    returned: bool = False  # the spool knows of those that have failed
    settled: Envelope | None = None  # what is left of it after the round, once the spool knows
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while the spool is told of this message

    @property
    def id(self) -> int:
        return self.envelope.id

    @property
    def busy(self) -> bool:
        """Whether some of it is still under way or waits for its turn."""
        return self.running > 0 or bool(self.parts)

    @property
    def lasting(self) -> int:
        """What the index knows of it while it waits on: its rank, and whether for a link or for somebody to ask."""
        return self.flags & Flag.RANK | (Flag.KEPT if self.kept else Flag.NONE)

    @property
    def rank(self) -> int:
        return rank(self.flags)

    @property
    def fresh(self) -> bool:
        return bool(self.flags & Flag.FRESH)

    @property
    def delivered(self) -> set[int]:
        """Those that are delivered and of which the spool does not know yet."""
        return {index for index, outcome in self.outcomes.items() if outcome.delivered} - self.recorded

    def current(self, without: Iterable[int] = ()) -> Envelope:
        """The envelope as the spool should have it now."""
        gone = self.recorded.union(without)
        envelope = self.settled or changed(
            self.envelope,
            recipients=tuple(each for index, each in enumerate(self.envelope.recipients) if index not in gone),
        )
        return envelope if self.hold is None else changed(envelope, hold=True, hold_reason=self.hold)

    def take(self, part: Part, outcomes: Sequence[Outcome]) -> None:
        """Note what became of a part; a target of which nothing was said is our own trouble."""
        said = {outcome.index: outcome for outcome in outcomes}
        for target in part.targets:
            self.outcomes[target.index] = said.get(target.index) or Outcome(target.index, Kind.LOCAL, NO_OUTCOME)

    def suspend(self, part: Part, site: Site) -> None:
        """Do not try a part, its site is dead."""
        text = f"delivery temporarily suspended: {site.reason}"
        status = "4" + site.status[1:] if site.status else "4.4.1"
        for target in part.targets:
            reply = Reply(451, status, text)
            self.outcomes[target.index] = Outcome(target.index, site.kind or Kind.MESSAGE_TEMPORARY, reply)
            self.suspended[target.index] = site.retry_at or 0.0
            self.decided.add(target.index)

    def keep(self, part: Part, why: Kept, until: float) -> None:
        """Do not try a part: it is on demand, or no link takes it; look again then at the latest."""
        self.kept = True
        for target in part.targets:
            self.outcomes[target.index] = Outcome(target.index, why.kind, Reply(451, "4.4.1", why.reason))
            self.suspended[target.index] = until
            self.decided.add(target.index)

    def part_for(self, site: Site) -> Part | None:
        """The next part that waits for its turn at a site; it waits no more."""
        for place, part in enumerate(self.parts):
            if part.route.site == site.name:
                return self.parts.pop(place)
        return None

    def waits_for(self, site: Site) -> bool:
        return any(part.route.site == site.name for part in self.parts)


def split(
    active: Active,
    route: Router,
    recipient_limit: Callable[[str], int],
    *,
    soft_bounce: bool,
) -> None:
    """Find the route of every recipient: parts to be delivered, outcomes where there is nothing to deliver."""
    groups: dict[Route, list[Target]] = {}
    for index, recipient in enumerate(active.envelope.recipients):
        try:
            found, address = route(active.envelope, recipient)
        except Exception:
            log.exception("%s: error: no route for <%s>", active.envelope.queue_id, recipient.address)
            active.outcomes[index] = Outcome(index, Kind.LOCAL, NOT_ROUTED)
            continue
        if found.disposal is Disposal.RELAY and found.hops:
            groups.setdefault(found, []).append(Target(index, recipient, address))
        else:
            active.outcomes[index] = _disposed(index, found, soft_bounce)
            if found.disposal is Disposal.HOLD:
                active.held.add(index)
    active.decided.update(active.outcomes)
    for found, targets in groups.items():
        limit = recipient_limit(found.transport) or len(targets)
        for start in range(0, len(targets), limit):
            active.parts.append(Part(found, tuple(targets[start : start + limit])))


def goes_to(route: Router, envelope: Envelope, site: str) -> bool:
    """Whether something of a message goes to a site now: named with or without its transport, or by either half."""
    for recipient in envelope.recipients:
        try:
            found = route(envelope, recipient)[0]
        except Exception:  # looked at, it would wait with that reason
            log.debug("%s: no route for <%s>", envelope.queue_id, recipient.address, exc_info=True)
            continue
        names = {found.site.lower(), found.site.lower().partition(":")[2], found.transport.lower()}
        names.update(hop.lower() for hop in found.hops)
        if site in names:
            return True
    return False


def domains(envelope: Envelope) -> Iterable[str]:
    """The domains of those of a message that are not finished."""
    return (recipient.address.domain for recipient in envelope.recipients)


def has_domain(envelope: Envelope, domain: str) -> bool:
    """Whether a message has a recipient in `domain`; "@example.com" stands for what is below it too."""
    name = domain.lower().removeprefix("@")
    found = {each.lower() for each in domains(envelope)}
    return name in found or (domain.startswith("@") and any(each.endswith("." + name) for each in found))


def quiet_flag(envelope: Envelope) -> int:
    """Whose doing it is that a message waits, by what its envelope says; NONE where that cannot be told."""
    if any(not recipient.reason for recipient in envelope.recipients):
        return Flag.NONE
    sides = {recipient.kind in OWN_SIDE for recipient in envelope.recipients}
    if len(sides) != 1:
        return Flag.NONE
    return Flag.OWN_SIDE if sides.pop() else Flag.PEER_SIDE


def side_flag(site: Site) -> int:
    """Whose doing it is that a site does not work."""
    return Flag.OWN_SIDE if site.own_side else Flag.PEER_SIDE


def _disposed(index: int, route: Route, soft_bounce: bool) -> Outcome:
    """What becomes of a recipient whose route ends here."""
    if route.disposal is Disposal.DISCARD:
        # Nothing is reported: what was thrown away on purpose was not delivered anywhere.
        return Outcome(index, None, Reply(250, "2.0.0", route.text or "discarded"), relayed_dsn=True)
    if route.disposal is Disposal.ERROR:
        reply = Reply(550, route.status or "5.0.0", route.text)
        if soft_bounce:
            return Outcome(index, Kind.MESSAGE_TEMPORARY, reply.softened())
        return Outcome(index, Kind.MESSAGE_PERMANENT, reply)
    return Outcome(index, Kind.LOCAL, Reply(451, "4.3.5", route.text or "no next hop"))
