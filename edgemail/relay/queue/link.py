"""The uplinks as configured: which are usable, what may go over them now, what they have carried.

Owns the rules of `[[link]]`: state, windows, byte budgets, size ceilings, connections. Mail of a transport that names
links (`smtp_links`) waits while none of them is usable, and its lifetime stands still. Pure and synchronous: what the
kernel and the probes say comes in by `observe`; `uplink` asks them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from edgemail.clock import Clock
from edgemail.relay.queue.window import Window, is_open, next_change, parse_window
from edgemail.settings import Configuration, Link
from edgemail.value import value
from edgemail.via import Via

log = logging.getLogger("edgemail.link")

MAX_WORDS: Final = 300  # limit: characters of what a provider answered that are kept
OVERHEAD: Final = 1024  # of each message in the accounts: commands, replies, TLS and TCP around its content
RECHECK: Final = 3600.0  # limit: seconds until hours and budgets are looked at again, however the wall clock is set
RECHECK_UNTRUSTED: Final = 60.0  # limit: the same, while the clock is not trusted

# What a class of link means: connections at once (0 = as many as the destination takes), and the messages that may be
# on their way over each of them before the first is answered (1 = one after the other).
CONNECTIONS: Final[Mapping[str, int]] = {"fibre": 0, "lte": 4, "satellite": 1}
MESSAGES: Final[Mapping[str, int]] = {"fibre": 1, "lte": 8, "satellite": 32}
WINDOW: Final = 65_536  # limit: octets of messages on their way over one connection of a link, and one message more


class State(Enum):
    """What a link is good for now."""

    UP = "up"
    DOWN = "down"  # the kernel or a probe says so
    CLOSED = "closed"  # it works, but not in these hours
    SPENT = "spent"  # it works, but has carried what it may


class Answer(Enum):
    """What a provider made of being asked for our mail."""

    OK = "ok"  # nothing waited there, or it comes
    LATER = "later"  # it may be otherwise in a while
    REFUSED = "refused"


@value
class Ask:
    """The last time that the provider of a link was asked, by one verb."""

    host: str
    at: float  # wall clock
    answer: Answer
    words: str  # the provider's, or why there were none


@value
class LinkStatus:
    """One link as the status shows it. `since` is wall clock; budgets of 0 are none."""

    name: str
    kind: str
    state: State
    reason: str
    since: float
    running: int
    day_bytes: int
    day_budget: int
    month_bytes: int
    month_budget: int
    asked: Mapping[str, Ask]  # by verb: "etrn", "atrn"


@dataclass(slots=True, eq=False)
class Uplink:
    """One link and what is known of it."""

    link: Link
    windows: tuple[Window, ...]
    since: float
    works: bool = False
    why: str = "not looked at yet"
    state: State = State.DOWN
    reason: str = "not looked at yet"
    running: int = 0  # deliveries
    sites: dict[str, tuple[int, int]] = field(default_factory=dict)  # of them, by destination: how many, their octets
    ups: int = 0  # how often it came up
    addresses: tuple[str, ...] = ()  # of its interface
    spent: dict[str, int] = field(default_factory=lambda: {"day": 0, "month": 0})
    period: dict[str, str] = field(default_factory=lambda: {"day": "", "month": ""})
    asked: dict[str, Ask] = field(default_factory=dict)  # of its providers, by verb

    @property
    def name(self) -> str:
        return self.link.name

    @property
    def connections(self) -> int:
        return self.link.connections or CONNECTIONS[self.link.kind]

    @property
    def up(self) -> bool:
        return self.state is State.UP

    @property
    def via(self) -> Via | None:
        """What connections over it keep to; None where that is left to the system's routes."""
        interface = self.link.interface
        return Via(self.name, interface, self.addresses) if interface and self.link.bind else None

    @property
    def shared(self) -> int:
        """How many connections its deliveries have to share; 0 where each has its own."""
        return self.connections if MESSAGES[self.link.kind] > 1 else 0

    def full(self, site: str) -> bool:
        """Whether one more delivery to a destination would take more connections than it may have."""
        if not self.connections:
            return False
        count, octets = self.sites.get(site, (0, 0))
        taken = sum(self._needed(*each) for each in self.sites.values())
        return taken - self._needed(count, octets) + self._needed(count + 1, octets + 1) > self.connections

    def _needed(self, count: int, octets: int) -> int:
        """Connections that so many deliveries to one destination take."""
        messages = MESSAGES[self.link.kind]
        return min(count, max(-(-count // messages), -(-octets // WINDOW)))

    def load(self, site: str, count: int, octets: int) -> None:
        """Deliveries to a destination have begun, or ended (negative)."""
        had = self.sites.pop(site, (0, 0))
        self.running += count
        if had[0] + count > 0:
            self.sites[site] = (had[0] + count, had[1] + octets)


class Links:
    """All links. `opened` is called with those that have just become usable; it must not block."""

    def __init__(
        self,
        clock: Clock,
        configuration: Configuration,
        opened: Callable[[tuple[Link, ...]], None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._opened = opened
        self._uplinks: dict[str, Uplink] = {}
        self._configuration = configuration
        self.dirty = False  # the accounts have changed since they were last kept
        self.reload(configuration)

    def reload(self, configuration: Configuration) -> None:
        """Take new rules. A link that keeps its name keeps its state and its accounts."""
        self._configuration = configuration
        before = self._uplinks
        self._uplinks = {}
        for link in configuration.links:
            windows = tuple(parse_window(text) for text in link.windows)
            uplink = before.get(link.name) or Uplink(link, windows, self._clock.wall())
            hosts = {"etrn": link.etrn, "atrn": link.atrn}
            uplink.asked = {verb: ask for verb, ask in uplink.asked.items() if ask.host == hosts[verb]}
            uplink.link, uplink.windows = link, windows
            self._uplinks[link.name] = uplink
        self.review()

    # ---- what is found out

    def observe(self, name: str, works: bool, why: str = "") -> None:
        """What the kernel and the probes say of a link now."""
        uplink = self._uplinks.get(name)
        if uplink is not None and (uplink.works, uplink.why) != (works, why):
            uplink.works, uplink.why = works, why
            self.review()

    def addressed(self, name: str, addresses: Iterable[str]) -> None:
        """What addresses the interface of a link has now."""
        uplink = self._uplinks.get(name)
        if uplink is not None:
            uplink.addresses = tuple(sorted(addresses))

    def via(self, name: str) -> Via | None:
        """See `Uplink.via`."""
        uplink = self._uplinks.get(name)
        return uplink.via if uplink is not None else None

    def known(self, name: str) -> tuple[bool, str]:
        """What `observe` said last."""
        uplink = self._uplinks[name]
        return uplink.works, uplink.why

    def review(self) -> None:
        """Look again at hours and budgets; tell of what has become usable."""
        opened = []
        self._turn_periods()
        for uplink in self._uplinks.values():
            state, reason = self._judge(uplink)
            if state is not uplink.state:
                uplink.since = self._clock.wall()
                if state is State.UP:
                    uplink.ups += 1
                    opened.append(uplink.link)
                log.info("link %s: %s%s", uplink.name, state.value, f", {reason}" if reason else "")
            uplink.state, uplink.reason = state, reason
        if opened:
            self._opened(tuple(opened))

    def _judge(self, uplink: Uplink) -> tuple[State, str]:
        link = uplink.link
        if not uplink.works:
            return State.DOWN, uplink.why
        if uplink.windows:
            wall = self._clock.wall()
            if not self._clock.trusted():
                return State.CLOSED, "its hours cannot be told while the clock is not trusted"
            if not is_open(uplink.windows, wall):
                opens = next_change(uplink.windows, wall)
                when = time.strftime("%a %H:%M", time.localtime(opens)) if opens is not None else "never"
                return State.CLOSED, f"its hours begin {when}"
        for period, budget in (("day", link.budget_day), ("month", link.budget_month)):
            if budget and uplink.spent[period] >= budget:
                return State.SPENT, f"it has carried {uplink.spent[period]} bytes of {budget} this {period}"
        return State.UP, ""

    def _turn_periods(self) -> None:
        """Begin new accounts with a new day and month. A clock that is not trusted begins none."""
        if not self._clock.trusted():
            return
        when = time.localtime(self._clock.wall())
        for period, now in (("day", time.strftime("%Y-%m-%d", when)), ("month", time.strftime("%Y-%m", when))):
            for uplink in self._uplinks.values():
                if uplink.period[period] != now:
                    # what was spent before the first trusted date counts for the period of that date
                    if uplink.period[period]:
                        uplink.spent[period] = 0
                    uplink.period[period] = now
                    self.dirty = True

    def next_review(self) -> float | None:
        """Seconds until the hours or budgets may say something else; None when time changes nothing."""
        timed = [uplink for uplink in self._uplinks.values() if uplink.windows]
        if not timed and not any(
            uplink.link.budget_day or uplink.link.budget_month for uplink in self._uplinks.values()
        ):
            return None
        if not self._clock.trusted():
            return RECHECK_UNTRUSTED
        wall = self._clock.wall()
        day = time.localtime(wall)
        midnight = time.mktime((day.tm_year, day.tm_mon, day.tm_mday + 1, 0, 0, 0, 0, 0, -1))
        found = [midnight, wall + RECHECK, *(next_change(uplink.windows, wall) for uplink in timed)]
        return max(0.5, min(at for at in found if at is not None) - wall)

    # ---- what the queue asks

    def shut(self, transport: str) -> str:
        """Why no mail of a transport can go now, "" when some can."""
        shutters = self.shutters(transport)
        return "; ".join(f"link {uplink.name} is {uplink.state.value}: {uplink.reason}" for uplink in shutters)

    def shutters(self, transport: str) -> tuple[Uplink, ...]:
        """The links of a transport, when none of them is usable."""
        mine = self._of(transport)
        return () if any(uplink.up for uplink in mine) else tuple(mine)

    def too_large(self, transport: str, size: int) -> str:
        """Why a message waits for a better link than those that are up, "" when it need not."""
        usable = [uplink for uplink in self._of(transport) if uplink.up]
        if not usable or any(_fits(uplink, size) for uplink in usable):
            return ""
        largest = max(usable, key=lambda uplink: uplink.link.size_limit)
        return (
            f"waits for a better link: {size} bytes are more than link {largest.name} takes ({largest.link.size_limit})"
        )

    def messages(self, transport: str) -> int:
        """How many messages of a transport may be on their way over one connection of the links that are up."""
        return max((MESSAGES[uplink.link.kind] for uplink in self._of(transport) if uplink.up), default=1)

    def busy(self, transport: str, site: str = "") -> bool:
        """Whether the links of a transport have as many connections as they may, and none takes mail for `site`."""
        usable = [uplink for uplink in self._of(transport) if uplink.up]
        return bool(usable) and all(uplink.full(site) for uplink in usable)

    def limited(self, transport: str) -> bool:
        """Whether each of the links of a transport that are up has a number of connections."""
        usable = [uplink for uplink in self._of(transport) if uplink.up]
        return bool(usable) and all(uplink.connections for uplink in usable)

    def begin(self, transport: str, size: int, site: str = "") -> Uplink | None:
        """A delivery begins; the link that is charged for it. None for a transport without links."""
        usable = [uplink for uplink in self._of(transport) if uplink.up and _fits(uplink, size)]
        if not usable:
            return None
        free = [uplink for uplink in usable if not uplink.full(site)]
        uplink = (free or usable)[0]
        uplink.load(site, 1, size)
        return uplink

    def end(self, uplink: Uplink | None, carried: int, size: int = 0, site: str = "") -> None:
        """A delivery of `size` octets has ended; `carried`: those that went over the link, 0 when none came so far."""
        if uplink is None:
            return
        uplink.load(site, -1, -size)
        self._turn_periods()
        for period in uplink.spent:
            uplink.spent[period] += carried + OVERHEAD
        self.dirty = True
        if uplink.link.budget_day or uplink.link.budget_month:
            self.review()

    def heard(self, name: str, verb: str, host: str, answer: Answer, words: str) -> None:
        """What the provider of a link said when it was asked for our mail."""
        uplink = self._uplinks.get(name)
        if uplink is not None:
            uplink.asked[verb] = Ask(host, self._clock.wall(), answer, words[:MAX_WORDS])
            self.dirty = True

    def times_up(self, name: str) -> int | None:
        """How often a link came up so far; None where it is not up now."""
        uplink = self._uplinks.get(name)
        return uplink.ups if uplink is not None and uplink.up else None

    def uses(self, transport: str, links: Iterable[Link]) -> bool:
        """Whether a transport may use one of these links."""
        names = {link.name for link in links}
        return any(name in names for name in self._configuration.transport(transport).smtp_links)

    def _of(self, transport: str) -> list[Uplink]:
        names = self._configuration.transport(transport).smtp_links
        return [self._uplinks[name] for name in names if name in self._uplinks]

    # ---- what is shown and kept

    def snapshot(self) -> tuple[LinkStatus, ...]:
        """Every link as it stands."""
        return tuple(
            LinkStatus(
                uplink.name,
                uplink.link.kind,
                uplink.state,
                uplink.reason,
                uplink.since,
                uplink.running,
                uplink.spent["day"],
                uplink.link.budget_day,
                uplink.spent["month"],
                uplink.link.budget_month,
                dict(uplink.asked),
            )
            for uplink in self._uplinks.values()
        )

    def accounts(self) -> dict[str, Any]:
        """What has to be kept over a restart."""
        return {
            name: {
                "period": one.period,
                "spent": one.spent,
                "asked": {verb: [ask.host, ask.at, ask.answer.value, ask.words] for verb, ask in one.asked.items()},
            }
            for name, one in self._uplinks.items()
        }

    def restore(self, accounts: Mapping[str, Any]) -> None:
        """Take what `accounts` gave before the restart. What does not look like it is passed over."""
        for name, kept in accounts.items():
            uplink = self._uplinks.get(name)
            if uplink is None or not isinstance(kept, dict):
                continue
            spent, period = kept.get("spent"), kept.get("period")
            for key in uplink.spent:
                bytes_ = spent.get(key) if isinstance(spent, dict) else None
                if isinstance(bytes_, int) and not isinstance(bytes_, bool) and bytes_ >= 0:
                    uplink.spent[key] = bytes_
                    uplink.period[key] = str(period.get(key, "")) if isinstance(period, dict) else ""
            asked = kept.get("asked")
            for verb, host in (("etrn", uplink.link.etrn), ("atrn", uplink.link.atrn)):
                ask = _ask_of(asked.get(verb)) if isinstance(asked, dict) else None
                if ask is not None and ask.host == host:
                    uplink.asked[verb] = ask
        self.review()


def _ask_of(kept: Any) -> Ask | None:
    """What `accounts` made of an `Ask`; None where it does not look like it."""
    if not isinstance(kept, list) or [type(each) for each in kept] != [str, float, str, str]:
        return None
    host, at, answer, words = kept
    return Ask(host, at, Answer(answer), words[:MAX_WORDS]) if answer in {each.value for each in Answer} else None


def _fits(uplink: Uplink, size: int) -> bool:
    return not uplink.link.size_limit or size <= uplink.link.size_limit
