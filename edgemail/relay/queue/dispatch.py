"""From a message that is due to deliveries under way, and from their outcomes to what the ledger writes.

Owns the messages in hand and whose turn it is at each site. A message whose destinations take no more now is not kept
in hand: its id waits in the site's line, and its envelope is read again when its turn comes. Nothing here sleeps.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from edgemail.clock import Clock
from edgemail.counters import Counter
from edgemail.envelope import Delivery, Envelope, Outcome, queue_id
from edgemail.errors import Kind, SpoolDamaged
from edgemail.relay.queue.active import (
    NO_OUTCOME,
    Active,
    Part,
    Router,
    domains,
    goes_to,
    has_domain,
    quiet_flag,
    side_flag,
    split,
)
from edgemail.relay.queue.errands import EXCEPTIONS, Errands
from edgemail.relay.queue.flush import Accounts
from edgemail.relay.queue.keep import Keep
from edgemail.relay.queue.ledger import Ledger
from edgemail.relay.queue.lifetime import still_to_wait
from edgemail.relay.queue.link import Uplink
from edgemail.relay.queue.notices import Notices
from edgemail.relay.queue.pauses import Pauses
from edgemail.relay.queue.priority import beginning
from edgemail.relay.queue.settle import Settlement, Settling, log_decided, reason
from edgemail.relay.queue.sites import OWN_SIDE, Gate, Site, Sites
from edgemail.relay.queue.slots import Slot, Slots
from edgemail.relay.queue.waiting import Flag, Stand, Waiting, ranked
from edgemail.settings import Configuration
from edgemail.spool.verbs import Spool

log = logging.getLogger("edgemail.qmgr")

Deliver = Callable[[Delivery], Awaitable[tuple[Outcome, ...]]]

IDLE_KICKS: Final = (
    8  # limit: sites that are asked in vain, while deliveries are under way, before it is left for later
)
UNPROVEN_SHARE: Final = 0.75  # of what may be in hand, for mail to destinations that have not answered lately

ATTEMPTS: Final = Counter("edgemail_qmgr_attempts", "Recipients by the outcome of an attempt", ("outcome",))


class Dispatch(Errands):
    """The messages in hand. `again` puts an id back where messages that are due wait to be looked at."""

    def __init__(
        self,
        spool: Spool,
        clock: Clock,
        configuration: Configuration,
        *,
        route: Router,
        deliver: Deliver,
        waiting: Waiting,
        sites: Sites,
        slots: Slots,
        ledger: Ledger,
        notices: Notices,
        settling: Callable[[], Settling],
        again: Callable[..., None],
        wake: Callable[[], None],
        keep: Keep,
        pauses: Pauses,
    ) -> None:
        super().__init__()
        self._spool = spool
        self._clock = clock
        self._configuration = configuration
        self._route = route
        self._deliver = deliver
        self._waiting = waiting
        self._sites = sites
        self._slots = slots
        self._ledger = ledger
        self._notices = notices
        self._settling = settling
        self._again = again
        self._wake = wake
        self._keep = keep
        self._pauses = pauses
        self._recipients = 0  # of the messages in hand
        self.active: dict[int, Active] = {}
        self.flushes = 0  # how often somebody has asked to try now
        self.accounts = Accounts()  # of flushes that somebody waits for
        self.opened = 0  # deliveries so far that were the first of those under way to their site: a connection is made

    def reload(self, configuration: Configuration) -> None:
        """Take new limits."""
        self._configuration = configuration

    # ---- a message that is due

    def room(self, *, proven: bool = True) -> bool:
        """Whether one more message may be taken in hand."""
        settings = self._configuration.settings
        share = 1.0 if proven else UNPROVEN_SHARE
        return (
            not self.closed
            and not self._ledger.stalled
            and len(self.active) < max(1, settings.qmgr_message_active_limit * share)
            and self._recipients < settings.qmgr_message_recipient_limit * share
        )

    def look_at(self, id: int, domain: str = "") -> None:
        """A message whose turn has come: read its envelope and see what can be done.

        `domain`: it was asked for as one with a recipient there, which only the envelope tells for certain.
        """
        flags = self._waiting.flags(id)
        try:
            envelope = self._spool.envelope(id)
        except SpoolDamaged as error:
            self._waiting.drop(id)
            self.spawn(self._ledger.set_aside(error))
            return
        except Exception as error:  # a spool that is being opened anew, above all
            log.warning("warning: %s: not read, it waits: %r", queue_id(id), error)
            self._waiting.move(id, Stand.LATER, flags, due=self._soon())
            return
        if envelope is None or envelope.hold or id in self.active:
            self._waiting.drop(id)
            if id not in self.active:
                self.accounts.passed_over(id)
            return
        if domain and not has_domain(envelope, domain):
            self.accounts.passed_over(id)
            due = self._clock.monotonic() + still_to_wait(envelope, self._configuration.settings, self._clock)
            self._waiting.move(id, Stand.LATER, flags & ~Flag.FLUSHED, due=due)
            return
        self.consider(envelope, flags & ~(Flag.QUIET | Flag.KEPT))

    def consider(self, envelope: Envelope, flags: int) -> None:
        """Begin what can begin; let the rest wait where it has to. Whatever goes wrong, the message stays known."""
        try:
            self._consider(envelope, flags)
        except Exception:
            self._slip(envelope)
            active = self.active.get(envelope.id)
            if active is None:
                self._waiting.add(envelope.id, domains(envelope), due=self._soon(), flags=flags)
            else:
                self.hold_back(active)

    def _consider(self, envelope: Envelope, flags: int) -> None:
        self._waiting.drop(envelope.id)
        rank = self._keep.rank(envelope, lambda: beginning(self._spool, envelope.id))
        active = Active(envelope, ranked(flags, rank), urgent=rank < self._keep.priorities.normal)
        split(
            active,
            self._route,
            lambda name: self._configuration.transport(name).default_destination_recipient_limit,
            soft_bounce=self._configuration.settings.soft_bounce,
        )
        quiet = quiet_flag(envelope) if not active.outcomes else Flag.NONE
        sites, sides = self._suspend(active)
        if not active.parts:
            if active.suspended and not self._must_tell(active, quiet, sides):
                due = min(active.suspended.values())
                self._waiting.add(envelope.id, domains(envelope), due=due, flags=active.lasting)
                self.accounts.waits(envelope.id, map(reason, active.outcomes.values()))
            else:
                self._take(active)
                self.spawn(self._finish(active))
            return
        rooms = (self._may_begin(part, active) and self._room_for(self._sites.of(part.route)) for part in active.parts)
        if any(rooms):
            self._begin_some(active)
        else:
            self._park(active, quiet if len(sites) == 1 and not self._pressing(envelope, quiet) else Flag.NONE)

    def goes_to(self, envelope: Envelope, site: str) -> bool:
        """See `active.goes_to`."""
        return goes_to(self._route, envelope, site)

    def _suspend(self, active: Active) -> tuple[set[Site], set[int]]:
        """Take out what is kept and what goes to dead sites. All sites of the message, and whose doing it is."""
        now = self._clock.monotonic()
        sites: set[Site] = set()
        sides: set[int] = set()
        parts = []
        for part in active.parts:
            site = self._sites.of(part.route)
            sites.add(site)
            site.messages = self._keep.messages(site)
            asked = bool(active.flags & Flag.FLUSHED)
            why = self._keep.kept(part.route.transport, active.envelope.size, asked=asked)
            if why is not None:
                active.keep(part, why, now + self._look_again_after())
                sides.add(Flag.OWN_SIDE if why.kind in OWN_SIDE else Flag.PEER_SIDE)
                continue
            sides.add(side_flag(site))
            if asked and site.retry_at is not None and site.flushes < self.flushes:
                self._sites.revive(site)
            if site.gate(now) is Gate.DEAD:
                active.suspend(part, site)
            else:
                parts.append(part)
        active.parts = parts
        return sites, sides

    def _soon(self) -> float:
        """When to look again at what could not be looked at."""
        return self._clock.monotonic() + self._configuration.settings.minimal_backoff_time

    def _look_again_after(self) -> float:
        """Seconds until kept mail is looked at though nothing has happened: its time may have run out."""
        settings = self._configuration.settings
        return max(settings.minimal_backoff_time, settings.maximal_backoff_time)

    def _must_tell(self, active: Active, quiet: int, sides: set[int]) -> bool:
        """Whether the envelope has to change although nothing was tried."""
        if sides != {quiet}:
            return True
        return self._pressing(active.envelope, quiet)

    def _pressing(self, envelope: Envelope, quiet: int) -> bool:
        """Whether a message's time has come, so that it must not wait on unread."""
        settling = self._settling()
        return settling.late(envelope) or (quiet == Flag.PEER_SIDE and settling.expires(envelope))

    def _may_begin(self, part: Part, active: Active) -> bool:
        site = self._sites.of(part.route)
        return site.gate(self._clock.monotonic()) is Gate.OPEN and self._slots.free(
            site, fresh=active.fresh, rank=active.rank
        )

    def _room_for(self, site: Site) -> bool:
        return self.room(proven=site.proven(self._clock.monotonic()))

    def _park(self, active: Active, quiet: int) -> None:
        """No part can begin: wait in the lines of its sites, out of hand."""
        envelope = active.envelope
        self._waiting.add(envelope.id, domains(envelope), stand=Stand.PARKED, flags=active.flags | quiet)
        for name in dict.fromkeys(part.route.site for part in active.parts):
            site = self._sites.find(name)
            if site is None:
                continue
            site.park(envelope.id, fresh=active.fresh, rank=active.rank)
            if site.gate(self._clock.monotonic()) is Gate.OPEN:
                self._slots.wait(site)

    def _begin_some(self, active: Active) -> None:
        """Begin what can begin. What waits for a site at work stays in hand; for the rest there is a next round."""
        self._take(active)
        mail = active.envelope
        sizes = mail.size, len(mail.recipients)
        log.info("%s: from=<%s>, size=%d, nrcpt=%d (queue active)", mail.queue_id, mail.sender, *sizes)
        parts, active.parts = active.parts, []
        left = []
        for part in parts:
            if self._may_begin(part, active):
                self._begin(active, part)
            else:
                left.append(part)
        for part in left:
            site = self._sites.of(part.route)
            if site.running:
                if not active.waits_for(site):
                    site.take_in_hand(active.id, active.rank)
                active.parts.append(part)

    def hold_back(self, active: Active) -> None:
        """Begin no more parts of a message in hand."""
        active.parts.clear()
        if not active.busy:
            self.spawn(self._finish(active))

    # ---- turns

    def _kick(self, site: Site) -> bool:
        """Begin one of what waits at a site, if it takes it; False when nothing came of it."""
        before = self._slots.running, site.waiting
        for _ in range(site.waiting):
            if site.gate(self._clock.monotonic()) is not Gate.OPEN or self.closed:
                break
            free = self._slots.free(site, fresh=site.fresh)
            mail = site.next_id(room=self._room_for(site)) if free else None
            if mail is None:
                break
            active = self.active.get(mail)
            if active is not None:
                part = active.part_for(site)
                if part is not None:
                    self._begin(active, part)
                if active.waits_for(site):
                    site.take_in_hand(mail, active.rank)
            elif self._waiting.stand(mail) is Stand.PARKED:
                self.look_at(mail)
            if self._slots.running > before[0]:
                break
        if site.waiting and site.gate(self._clock.monotonic()) is Gate.OPEN:
            self._slots.wait(site)
        return self._slots.running > before[0] or site.waiting < before[1]

    def turn(self) -> None:
        """Give free slots to the sites that wait for one, one each and round again."""
        idle = 0
        while (site := self._slots.next_site()) is not None:
            idle = 0 if self._kick(site) else idle + 1
            if idle > (IDLE_KICKS if self._slots.running else self._slots.waiting):
                return  # there is no room; the next delivery that ends goes on with the others

    # ---- a delivery

    def _take(self, active: Active) -> None:
        self.active[active.id] = active
        self._recipients += len(active.envelope.recipients)

    def _begin(self, active: Active, part: Part) -> None:
        site = self._sites.of(part.route)
        slot = self._slots.take(site)
        uplink = self._keep.begin(site, active.envelope.size)
        self.opened += not site.running
        site.running += 1
        active.running += 1
        self.spawn(self._attempt(active, part, site, slot, uplink))

    async def _attempt(self, active: Active, part: Part, site: Site, slot: Slot, uplink: Uplink | None) -> None:
        """One delivery, and what follows from it."""
        outcomes: tuple[Outcome, ...] = ()
        try:
            try:
                outcomes = await self._deliver(part.delivery(active, uplink))
            except Exception:
                self._slip(active.envelope)
                outcomes = tuple(Outcome(target.index, Kind.LOCAL, NO_OUTCOME) for target in part.targets)
            self._hear(site, outcomes)
        finally:
            self._slots.give_back(slot)
            self._keep.end(uplink, site, active.envelope.size, outcomes)
            site.running -= 1
            active.running -= 1
        active.take(part, outcomes)
        for target in part.targets:
            kind = active.outcomes[target.index].kind
            ATTEMPTS.add("sent" if kind is None else kind.value)
            if kind is Kind.LOCAL:
                self._notices.trouble(active.envelope, reason(active.outcomes[target.index]))
        if site.waiting:
            self._slots.wait(site)
        self.turn()
        self._wake()
        if active.busy:
            await self._ledger.deliveries(active)
        if not active.busy and active.id in self.active:
            await self._finish(active)

    def _hear(self, site: Site, outcomes: tuple[Outcome, ...]) -> None:
        """What a delivery says about the site as a whole."""
        if any(each.kind is None or (each.remote and not each.site_failed) for each in outcomes):
            self._pauses.over(site.name)
            if self._sites.answered(site):
                log.info("site %s answers again", site.name)
            return
        failure = next((each for each in outcomes if each.site_failed), None)
        if failure is not None and self._sites.failed(site, failure, reason(failure)):
            self._bury(site)

    def _bury(self, site: Site) -> None:
        """A site has died: nothing waits for a turn there any more."""
        retry_at = site.retry_at or 0.0
        seconds = max(0.0, retry_at - self._clock.monotonic())
        site.flushes = self.flushes
        word, level = ("route paused", logging.WARNING) if site.configured else ("site is dead", logging.INFO)
        log.log(level, "%s: %s, next attempt in %.0f s: %s", site.name, word, seconds, site.reason)
        if site.configured and not site.told:
            told = partial(self._pauses.told, site.name, site.failed_wall)
            self._notices.paused(site, f"in about {max(1, round(seconds / 60))} min", told)
        self._slots.forget(site)
        side = side_flag(site)
        for mail in site.clear():
            active = self.active.get(mail)
            if active is not None:
                while (part := active.part_for(site)) is not None:
                    active.suspend(part, site)
                if not active.busy:
                    self.spawn(self._finish(active))
            elif self._waiting.stand(mail) is Stand.PARKED:
                if self._waiting.flags(mail) & side:
                    self._waiting.move(mail, Stand.LATER, due=retry_at)
                    self.accounts.waits(mail, (site.reason,))
                else:
                    self._again(mail)

    # ---- the end of a round

    async def _finish(self, active: Active) -> None:
        """Nothing of a message is under way any more: write down what has become of it."""
        if active.finishing:
            return
        active.finishing = True
        for index in sorted(active.decided):
            log_decided(active.envelope, active.envelope.recipients[index], active.outcomes[index], self._clock.wall())
        try:
            result = await self._ledger.settle(active)
        except Exception:
            self._slip(active.envelope)
            result = await self._ledger.salvage(active, self._configuration.settings.minimal_backoff_time)
        finally:
            del self.active[active.id]
            self._recipients -= len(active.envelope.recipients)
        self._leave(active, result)
        self.turn()
        self._wake()

    def _slip(self, envelope: Envelope) -> None:
        """A mistake of ours, in an `except`: logged and told; the message waits."""
        EXCEPTIONS.add()
        log.exception("%s: error: unexpected trouble; the message waits", envelope.queue_id)
        self._notices.trouble(envelope, "unexpected trouble in the queue; the log has the details")

    def _leave(self, active: Active, result: Settlement | None) -> None:
        """A message is out of hand: gone, or waiting again."""
        if result is None or active.removed:
            self.accounts.passed_over(active.id)
            return
        envelope = result.envelope
        self.accounts.settled(active, result)
        if result.finished:
            log.info("%s: removed", envelope.queue_id)
        elif active.hold is not None or envelope.hold:
            log.info("%s: on hold: %s", envelope.queue_id, active.hold or envelope.hold_reason)
        else:
            due = self._clock.monotonic() + result.wait
            self._waiting.add(envelope.id, domains(envelope), due=due, flags=active.lasting)
            if active.asked or result.again:
                self._again(envelope.id, Flag.FLUSHED if active.asked else Flag.NONE)
