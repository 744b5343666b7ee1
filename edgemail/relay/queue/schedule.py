"""The queue manager: takes up what the spool holds, decides what is looked at when, and answers for the queue's verbs.

Owns what goes into the lanes of due mail, the queue run, and the one loop that drives it all. Only the spool outlives
it: it may be made anew over the same spool at any moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgemail.clock import Clock
from edgemail.envelope import Envelope
from edgemail.errors import Kind
from edgemail.relay.queue.active import Router, domains
from edgemail.relay.queue.dispatch import Deliver, Dispatch
from edgemail.relay.queue.errands import EXCEPTIONS
from edgemail.relay.queue.flush import Flush
from edgemail.relay.queue.keep import Keep
from edgemail.relay.queue.lanes import Lanes
from edgemail.relay.queue.ledger import Ledger
from edgemail.relay.queue.lifetime import Timeline, still_to_wait
from edgemail.relay.queue.link import Links
from edgemail.relay.queue.notices import Notices
from edgemail.relay.queue.orders import Orders
from edgemail.relay.queue.pauses import Pauses
from edgemail.relay.queue.settle import Settling
from edgemail.relay.queue.sites import Sites, SiteStatus
from edgemail.relay.queue.slots import Slots
from edgemail.relay.queue.timers import Timers
from edgemail.relay.queue.waiting import Flag, Stand, Waiting, ranked
from edgemail.settings import Configuration, Settings
from edgemail.spool.verbs import Spool

if TYPE_CHECKING:
    from edgemail.relay.queue.bounce import Bounces

log = logging.getLogger("edgemail.qmgr")

LOOKS: Final = 50  # limit: messages that are looked at before others on the loop have their turn
AHEAD: Final = 4  # limit: messages that are looked at in one turn while others are being delivered
TURNS: Final = 4  # of the loop until a new connection waits for its greeting; as many between two looks at more mail
ARRIVALS: Final = 64  # limit: envelopes of new mail kept in memory until they are looked at; of more, the ids
PAUSE: Final = 60.0  # limit: seconds between two looks at the clock when nothing happens


class Scheduler:
    """The queue. `load`, then `run` until `stop`; everything else may be called between."""

    def __init__(
        self,
        spool: Spool,
        clock: Clock,
        configuration: Configuration,
        route: Router,
        deliver: Deliver,
        *,
        random: random.Random,
        links: Links | None = None,
        directory: Path | None = None,
    ) -> None:
        """`directory`: where what outlasts the process is kept, beside what is in the spool; None for nowhere."""
        self._spool = spool
        self._clock = clock
        self._configuration = configuration
        self._random = random
        self._writer: Bounces | None = None
        self._timeline = Timeline(clock)
        self._timers = Timers(clock)
        self._waiting = Waiting()
        self._arrivals: deque[Envelope] = deque()
        self._lanes = Lanes(self._waiting)
        self._run_at = clock.monotonic()  # the next queue run
        self._run_from: int | None = None  # the id at which the one under way goes on
        self._event = asyncio.Event()
        self._calm = False  # nothing wakes the loop: it is woken in a moment
        self._loaded = asyncio.Event()  # all that the spool held at the start is known
        self._old = 0  # messages with lower ids were there at the start; 0 = not known yet
        self._stopping = False
        self._wakes = 0  # asked for since the last time that what is kept was woken whole
        self._pauses = Pauses(directory, self._spawn)
        self._all_sites = Sites(clock, configuration, random, self._pauses.since)
        self._keep = Keep(configuration, links)
        self._slots = Slots(clock, configuration, self._keep.busy, self._keep.limited)
        self._notices = Notices(
            self._bounces,
            clock,
            self._settings,
            route=route,
            accepted=self.accepted,
            spawn=self._spawn,
        )
        self._ledger = Ledger(
            spool,
            self._bounces,
            self._notices,
            settling=self._settling,
            accepted=self.accepted,
            sleep=self._timers.sleep,
        )
        self._dispatch = Dispatch(
            spool,
            clock,
            configuration,
            route=route,
            deliver=deliver,
            waiting=self._waiting,
            sites=self._all_sites,
            slots=self._slots,
            ledger=self._ledger,
            notices=self._notices,
            settling=self._settling,
            again=self._look_again,
            wake=self._wake,
            keep=self._keep,
            pauses=self._pauses,
        )
        self._orders = Orders(
            spool,
            clock,
            self._settings,
            waiting=self._waiting,
            dispatch=self._dispatch,
            ledger=self._ledger,
            timeline=self._timeline,
            again=self._look_again,
            accepted=self.accepted,
        )

    def __len__(self) -> int:
        """Messages known: waiting, new and in hand; not those on hold."""
        return len(self._waiting) + len(self._arrivals) + len(self._dispatch.active)

    def _bounces(self) -> Bounces:
        """The writer of notices: loaded with the first of them."""
        if self._writer is None:
            from edgemail.relay.queue.bounce import Bounces

            self._writer = Bounces(self._spool, self._clock, self._settings, self._random)
        return self._writer

    def _settings(self) -> Settings:
        return self._configuration.settings

    def _settling(self) -> Settling:
        return Settling(self._configuration.settings, self._clock, self._timeline, self._random)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._dispatch.spawn(work)

    # ---- life

    async def open(self) -> None:
        """Find out which messages are there before any other comes in; before `run` and before mail is taken."""
        intake = self._spool.intake()
        self._old = intake.id
        await intake.abort()

    async def load(self) -> int:
        """Take up what the spool holds since before `open`; new mail may come meanwhile. How much is on hold."""
        if not self._old:
            await self.open()
        try:
            held = await self._load()
        finally:
            self._loaded.set()
            self._run_at = self._clock.monotonic()  # the run that came before it found nothing, or not all
            self._event.set()
        self.links_changed()
        return held

    async def _load(self) -> int:
        now, count, held = self._clock.monotonic(), 0, 0
        settings = self._configuration.settings
        for envelope in self._spool.envelopes():
            if envelope.id >= self._old:
                break
            count += 1
            if envelope.hold:
                held += 1
            elif envelope.id not in self._waiting and envelope.id not in self._dispatch.active:
                due = now + still_to_wait(envelope, settings, self._clock)
                kept = any(recipient.kind is Kind.LINK for recipient in envelope.recipients)
                flags = ranked(Flag.KEPT if kept else Flag.NONE, self._keep.rank(envelope))
                self._waiting.add(envelope.id, domains(envelope), due=due, flags=flags)
            if count % LOOKS == 0:
                await asyncio.sleep(0)
        log.info("queue: %d messages, %d of them on hold", count, held)
        return held

    async def run(self) -> None:
        """Serve until `stop`."""
        while not self._stopping:
            self._event.clear()
            pause = self._look()
            if pause <= 0:
                for _ in range(TURNS if self._slots.running else 1):  # what is under way comes first
                    await asyncio.sleep(0)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._event.wait()

    def _wake(self) -> None:
        if not self._calm:
            self._event.set()

    def _wake_in(self, turns: int) -> None:
        wake = partial(self._wake_in, turns - 1) if turns else self._wake
        asyncio.get_running_loop().call_soon(wake)

    def _due(self) -> bool:
        return bool(self._arrivals or self._lanes)

    def _look(self) -> float:
        try:
            return self.look()
        except Exception:
            EXCEPTIONS.add()
            log.exception("error: unexpected trouble in the queue")
            return 1.0

    async def stop(self, grace: float) -> None:
        """Begin no more deliveries; those under way have `grace` seconds. What is not finished is tried again later."""
        self._stopping = True
        self._event.set()
        await self._dispatch.close(grace)

    def reload(self, configuration: Configuration) -> None:
        """Take a new configuration; deliveries under way end with the old one. Paused routes are tried at once."""
        self._configuration = configuration
        self._all_sites.reload(configuration)
        self._slots.reload(configuration)
        self._dispatch.reload(configuration)
        self._keep.reload(configuration)
        self.links_changed()
        self._run_at = min(self._run_at, self._clock.monotonic() + configuration.settings.queue_run_delay)
        self._event.set()

    def look(self) -> float:
        """Do what is due now, a bounded piece of it; seconds until there is more."""
        self._timeline.watch()
        self._timers.fire()
        if self._stopping:
            return PAUSE
        now = self._clock.monotonic()
        self._queue_run(now)
        self._dispatch.turn()
        opened = self._dispatch.opened
        for _ in range(AHEAD if self._slots.running else LOOKS):
            if not self._take_next():
                break
            if self._dispatch.opened > opened and self._due():
                return 0.0  # a connection is to be made: the others are looked at when that is under way
        else:
            return 0.0
        if self._run_from is not None:
            return 0.0
        times = (self._run_at, self._timers.next(), self._slots.next_change())
        return min(PAUSE, *(max(0.001, at - now) for at in times if at is not None))

    # ---- lanes

    def _queue_run(self, now: float) -> None:
        """Let what has become due into the backlog's lane, a slice at a time."""
        if self._run_from is None:
            if now < self._run_at:
                return
            self._run_at = now + self._configuration.settings.queue_run_delay
            self._run_from = 0
        found, following = self._waiting.due(now, self._run_from)
        if self._keep.priorities:
            found = self._waiting.by_rank(found)
        for mail in found:
            self._waiting.move(mail, Stand.LANE)
        self._lanes.backlog.extend(found)
        self._run_from = following or None

    def _look_again(self, id: int, flags: int = Flag.NONE, domain: str = "") -> None:
        """A message that waits, to be looked at as soon as there is time; `domain`: see `Dispatch.look_at`."""
        self._waiting.move(id, Stand.LANE, flags)
        if flags & Flag.FLUSHED:
            self._lanes.flushed.append(id, domain)
        else:
            self._lanes.backlog.append(id)
        self._wake()

    def _take_next(self) -> bool:
        """Look at one message; False when there is none, or no room for it."""
        if not self._dispatch.room():
            return False
        if self._arrivals:
            self._dispatch.consider(self._arrivals.popleft(), Flag.FRESH)
            return True
        found = self._lanes.next(self._configuration.settings.qmgr_message_active_limit)
        if found is not None:
            self._dispatch.look_at(*found)
        return found is not None

    # ---- new mail

    def accepted(self, envelope: Envelope) -> None:
        """A message has been committed to the spool. Never raises."""
        if envelope.hold:
            return
        if len(self._arrivals) < ARRIVALS and not self._lanes.new:
            self._arrivals.append(envelope)
        else:
            self._queue_new(envelope)
        self._event.set()

    def _queue_new(self, envelope: Envelope) -> None:
        self._waiting.add(envelope.id, domains(envelope), stand=Stand.LANE, flags=Flag.FRESH)
        self._lanes.new.append(envelope.id)

    def flow(self) -> float:
        """Seconds to wait before a message is taken: more than nothing when arrivals outrun deliveries."""
        untried, settings = self._waiting.fresh + len(self._arrivals), self._configuration.settings
        # As in Postfix, a burst that the queue manager can hold in hand is taken at full speed.
        return settings.in_flow_delay if untried > settings.qmgr_message_active_limit else 0.0

    def links_changed(self) -> None:
        """A link has become usable, or on demand means other transports now: look at what was kept."""
        self._wakes += 1
        if self._wakes == 1:
            self._spawn(self._wake_kept())

    async def _wake_kept(self) -> None:
        """All that is kept, a piece at a time; once more if something has come up meanwhile."""
        try:
            done = 0
            while done < self._wakes:
                done = self._wakes
                for number, mail in enumerate(self._waiting.kept(), 1):
                    if number % LOOKS == 0:
                        await asyncio.sleep(0)
                    if self._waiting.flags(mail) & Flag.KEPT:
                        self._look_again(mail)
        finally:
            self._wakes = 0

    def bind_deliveries(self, bound: Callable[[int], int]) -> None:
        """Ask `bound` from now on how many of so many deliveries at once are good: fewer when the box runs short."""
        self._slots.bound = bound

    def notice(self, cls: str, subject: str, text: str) -> None:
        """Tell the postmaster, if notify_classes has that class (policy, protocol, resource, software)."""
        self._notices.post(cls, subject, text)

    # ---- what is asked

    def active(self, id: int) -> bool:
        """Whether a message is in hand."""
        return id in self._dispatch.active

    def sites(self) -> tuple[SiteStatus, ...]:
        """Every destination as it stands, least recently used first."""
        return self._keep.shown(self._all_sites.snapshot())

    # ---- what a person does

    async def flush(
        self,
        ids: Collection[int] | None = None,
        domain: str | None = None,
        site: str | None = None,
        account: Flush | None = None,
    ) -> int:
        """See `Orders.flush`. An `account` is to be given back by `leave`."""
        await self._loaded.wait()
        self._settle_arrivals()
        return await self._orders.flush(ids, domain, site, account)

    def flush_at_once(self, domain: str) -> int | None:
        """See `Orders.flush_domain`; the first delivery has begun when it returns. None where only `flush` will do."""
        if not self._loaded.is_set() or self._stopping:
            return None
        self._settle_arrivals()
        self._calm = True  # what is not looked at here comes when the first connection is under way
        try:
            count = self._orders.flush_domain(domain)
            if count:
                self._look()
        finally:
            self._calm = False
            self._wake_in(TURNS)
        return count

    def leave(self, account: Flush) -> None:
        """See `Orders.leave`."""
        self._orders.leave(account)

    def waits(self, names: Collection[str]) -> bool:
        """See `Orders.waits`. While it is not known, there may be some."""
        self._settle_arrivals()
        return not self._loaded.is_set() or self._orders.waits(names)

    def pressing(self, names: Collection[str]) -> bool:
        """See `Orders.pressing`."""
        self._settle_arrivals()
        return self._orders.pressing(names)

    def busy(self, site: str) -> bool:
        """Whether mail for a site is under way or in line there, or may be when what is due has been looked at."""
        found = self._all_sites.find(site)
        at_work = found is not None and found.running + found.waiting > 0
        return at_work or bool(self._arrivals or self._lanes.new or self._lanes.flushed)

    def forget(self, site: str) -> None:
        """A destination that was there for a while only is no more: nothing is to be shown of it."""
        self._all_sites.forget(site)
        self._pauses.over(site)

    async def hold(self, ids: Collection[int], reason: str = "") -> list[int]:
        """See `Orders.hold`."""
        await self._loaded.wait()
        self._settle_arrivals()
        return await self._orders.hold(ids, reason)

    async def release(self, ids: Collection[int]) -> list[int]:
        """See `Orders.release`."""
        await self._loaded.wait()
        return await self._orders.release(ids)

    async def remove(self, ids: Collection[int]) -> list[int]:
        """See `Orders.remove`."""
        await self._loaded.wait()
        self._settle_arrivals()
        return await self._orders.remove(ids)

    async def requeue(self, ids: Collection[int]) -> list[tuple[int, int]]:
        """See `Orders.requeue`."""
        await self._loaded.wait()
        self._settle_arrivals()
        return await self._orders.requeue(ids)

    def _settle_arrivals(self) -> None:
        """Put new mail where all other mail waits, so that orders find it."""
        while self._arrivals:
            self._queue_new(self._arrivals.popleft())
