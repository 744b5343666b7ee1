"""What is known of each destination: how many deliveries it takes at once, whether it is dead, until when.

Owns the window that starts small, grows with successes and shrinks with failures, and the dead-site list: Postfix's
scheduler, except that a failure the site's server answers for good (a login) needs no second opinion. Pure and
synchronous; never delivers, never reads the spool.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from edgemail.clock import Clock
from edgemail.envelope import Outcome, Route
from edgemail.errors import Kind
from edgemail.relay.queue.waiting import Line
from edgemail.settings import Configuration, Settings
from edgemail.value import value

MAX_SITES: Final = 10_000  # limit: destinations remembered; those that were idle longest are forgotten
FORGETTING: Final = 64  # limit: of those, how many are looked at to find one that may be forgotten
JITTER: Final = 0.1  # of a wait, added at random so that what failed together does not come back together
PROVEN_SECONDS: Final = 3600.0  # limit: how long an answer counts as proof that a destination answers

OWN_SIDE: Final = frozenset({Kind.ROUTE, Kind.LINK, Kind.LOCAL})  # failures that are no destination's doing


class Gate(Enum):
    """Whether a site takes one more delivery."""

    OPEN = "open"
    BUSY = "busy"  # as many as it may have are under way
    DEAD = "dead"  # none before its time


@value
class SiteStatus:
    """One destination as the status shows it. `since` and `next_probe` are wall clock, 0.0 for none."""

    name: str
    transport: str
    configured: bool
    state: str  # new, up, failing, dead; "paused" is a configured one that is dead
    reason: str
    status: str
    kind: Kind | None
    since: float
    next_probe: float
    window: int
    running: int
    waiting: int

    @property
    def word(self) -> str:
        """Its state as everybody is shown it: one of which nothing is known yet counts as up."""
        return "up" if self.state == "new" else self.state

    @property
    def well(self) -> bool:
        """Whether nothing is wrong: it works, or its mail waits as it was told to."""
        return self.word in ("up", "on-demand", "closed")


@dataclass(slots=True, eq=False)
class Lines:
    """The ids of mail of one rank that waits for its turn."""

    hand: Line = field(default_factory=Line)  # messages in hand that have more for this site
    fresh: Line = field(default_factory=Line)  # new mail
    old: Line = field(default_factory=Line)  # the backlog

    def __len__(self) -> int:
        return len(self.hand) + len(self.fresh) + len(self.old)


@dataclass(slots=True, eq=False)
class Site:
    """One destination. `lines` are what waits for its turn here, by rank."""

    name: str
    transport: str
    configured: bool
    window: int
    messages: int = 1  # that may be on their way over one connection: the window counts connections
    running: int = 0
    waits_since: int = (
        0  # for a slot: as how many deliveries, to any destination, had begun; 0 for one that has its own
    )
    cohorts: float = 0.0  # failed ones: each failure counts as one part of the window
    answered_at: float | None = None  # monotonic
    failed_at: float | None = None  # monotonic; the first of the failures since it last answered
    failed_wall: float = 0.0
    retry_at: float | None = None  # monotonic; dead until then, and by one delivery alone until it answers
    retry_wait: float = 0.0
    flushes: int = 0  # how often somebody had asked to try everything when it died
    told: bool = False  # somebody was told of this failure
    paused_since: float = 0.0  # wall clock: it paused so before the restart already; 0.0 for one that did not
    kind: Kind | None = None
    reason: str = ""
    status: str = ""
    lines: dict[int, Lines] = field(default_factory=dict)
    turn: int = 0

    @property
    def waiting(self) -> int:
        return sum(map(len, self.lines.values()))

    @property
    def fresh(self) -> bool:
        """Whether new mail is among what waits."""
        return any(lines.fresh for lines in self.lines.values())

    @property
    def rank(self) -> int:
        """The lowest of what waits, 0 where nothing does."""
        return min((rank for rank, lines in self.lines.items() if len(lines)), default=0)

    @property
    def own_side(self) -> bool:
        """Whether it fails for a reason that is this box's, its link's or its route's."""
        return self.kind in OWN_SIDE

    @property
    def state(self) -> str:
        if self.retry_at is not None:
            return "paused" if self.configured else "dead"
        if self.failed_at is not None:
            return "failing"
        return "new" if self.answered_at is None else "up"

    def proven(self, now: float) -> bool:
        """Whether it answered lately and has not failed since."""
        return self.failed_at is None and self.answered_at is not None and now - self.answered_at < PROVEN_SECONDS

    def gate(self, now: float) -> Gate:
        if self.retry_at is not None and now < self.retry_at:
            return Gate.DEAD
        allowed = self.window * self.messages if self.retry_at is None else 1  # a probe
        return Gate.OPEN if self.running < allowed else Gate.BUSY

    def _of(self, rank: int) -> Lines:
        lines = self.lines.get(rank)
        if lines is None:
            lines = self.lines[rank] = Lines()
        return lines

    def park(self, id: int, *, fresh: bool, rank: int = 0) -> None:
        """Let a message wait for its turn here."""
        lines = self._of(rank)
        (lines.fresh if fresh else lines.old).append(id)

    def take_in_hand(self, id: int, rank: int = 0) -> None:
        """A message in hand has more for this site."""
        self._of(rank).hand.append(id)

    def next_id(self, *, room: bool) -> int | None:
        """The next that waits: the lowest rank, within it by turns. Without `room`, only what is in hand already."""
        for rank in sorted(self.lines):
            found = self.lines[rank]
            lines = (found.hand, found.fresh, found.old) if room else (found.hand,)
            for _ in lines:
                self.turn += 1
                line = lines[self.turn % len(lines)]
                if line:
                    return line.pop()
        return None

    def clear(self) -> list[int]:
        """Everything that waits here; it waits here no more."""
        ranks = [self.lines[rank] for rank in sorted(self.lines)]
        self.lines = {}
        return [mail for found in ranks for line in (found.hand, found.fresh, found.old) for mail in line]


class Sites:
    """All destinations, least recently used first."""

    def __init__(
        self,
        clock: Clock,
        configuration: Configuration,
        random: random.Random,
        since: Callable[[str], float] = lambda _: 0.0,
    ) -> None:
        """`since`: the date since when a route pauses of which somebody was told before the start; 0.0 for others."""
        self._since = since
        self._clock = clock
        self._configuration = configuration
        self._random = random
        self._sites: dict[str, Site] = {}

    def __len__(self) -> int:
        return len(self._sites)

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites.values())

    def reload(self, configuration: Configuration) -> None:
        """Take new limits. What is known of the destinations stays, but a paused one may be tried at once."""
        self._configuration = configuration
        for site in self._sites.values():
            if site.retry_at is not None and site.configured:
                site.retry_at = min(site.retry_at, self._clock.monotonic())

    def of(self, route: Route) -> Site:
        """The site of a route."""
        name = route.site
        site = self._sites.pop(name, None)
        if site is None:
            settings = self._configuration.transport(route.transport)
            site = Site(name, route.transport, route.configured, _initial(settings))
            site.paused_since = self._since(name)
            site.told = site.paused_since > 0
            self._forget()
        self._sites[name] = site
        site.configured = route.configured
        return site

    def find(self, name: str) -> Site | None:
        """A site by its name."""
        return self._sites.get(name)

    def forget(self, name: str) -> None:
        """It will not be seen again; unless something is under way there, or waits."""
        site = self._sites.get(name)
        if site is not None and not site.running and not site.waiting:
            del self._sites[name]

    def revive(self, site: Site) -> None:
        """Try it again as if it had never failed: somebody asked for it."""
        site.retry_at = None
        site.cohorts = 0.0
        site.window = _initial(self._settings(site))

    def answered(self, site: Site) -> bool:
        """A delivery found it at work. Whether it was dead until now."""
        settings = self._settings(site)
        was_dead = site.retry_at is not None
        if was_dead:
            site.window = _initial(settings)
        elif site.window < _limit(settings) and site.window < site.running + _initial(settings):
            site.window += 1
        site.answered_at = self._clock.monotonic()
        site.failed_at = site.retry_at = None
        site.retry_wait = site.cohorts = 0.0
        site.told, site.paused_since = False, 0.0
        site.kind, site.reason, site.status = None, "", ""
        return was_dead

    def failed(self, site: Site, outcome: Outcome, reason: str) -> bool:
        """A delivery found that it does not work. Whether it is dead from now on."""
        now = self._clock.monotonic()
        if site.failed_at is None:
            site.failed_at, site.failed_wall = now, site.paused_since or self._clock.wall()
        site.kind, site.reason, site.status = outcome.kind, reason, outcome.reply.status
        if site.gate(now) is Gate.DEAD:  # one that was under way when it died
            return False
        site.cohorts += 1 / max(1, site.window)
        site.window = max(1, site.window - 1)
        # A login that is refused is refused every time, and locks the account when it is tried often enough.
        refused = outcome.kind is Kind.ROUTE and outcome.remote and outcome.reply.permanent
        if site.retry_at is None and site.cohorts < 0.999 and not refused:
            return False
        self._bury(site, now)
        return True

    def probe_time(self, site: Site) -> float:
        """The wall clock's time of the next probe of a dead site; 0.0 for one that is not dead."""
        if site.retry_at is None:
            return 0.0
        return self._clock.wall() + max(0.0, site.retry_at - self._clock.monotonic())

    def snapshot(self) -> tuple[SiteStatus, ...]:
        """Every destination as it stands."""
        return tuple(
            SiteStatus(
                site.name,
                site.transport,
                site.configured,
                site.state,
                site.reason,
                site.status,
                site.kind,
                site.failed_wall if site.failed_at is not None else 0.0,
                self.probe_time(site),
                site.window,
                site.running,
                site.waiting,
            )
            for site in self._sites.values()
        )

    def _settings(self, site: Site) -> Settings:
        return self._configuration.transport(site.transport)

    def _bury(self, site: Site, now: float) -> None:
        settings = self._configuration.settings
        most = max(settings.minimal_backoff_time, settings.maximal_backoff_time)
        site.retry_wait = min(max(site.retry_wait * 2, settings.minimal_backoff_time), most)
        site.retry_at = now + site.retry_wait * (1 + JITTER * self._random.random())
        site.cohorts = 0.0

    def _forget(self) -> None:
        if len(self._sites) < MAX_SITES:
            return
        for name, site in zip(list(self._sites)[:FORGETTING], list(self._sites.values())[:FORGETTING], strict=True):
            if not site.running and not site.waiting and not (site.configured and site.retry_at is not None):
                del self._sites[name]
                return


def _initial(settings: Settings) -> int:
    return min(settings.initial_destination_concurrency, _limit(settings))


def _limit(settings: Settings) -> int:
    return settings.default_destination_concurrency_limit or 1_000_000
