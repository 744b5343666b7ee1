"""How many deliveries run at once, and whose turn it is when no more may.

Owns one rule: destinations that swallow connections never stop mail for one that answers. Destinations that answered
lately share `default_process_limit` slots of their transport. All others, which may hang in a connect for minutes,
share a pool of their own, and its last parts are kept for those that nothing bad is known of. Pure and synchronous.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from edgemail.clock import Clock
from edgemail.relay.queue.sites import Gate, Site
from edgemail.settings import Configuration

TRIALS: Final = 4  # limit: deliveries to unproven destinations for each of default_process_limit; nearly all connect
STALLED: Final = (
    30.0  # limit: seconds until a delivery to a proven destination is counted with those; smtp_connect_timeout
)


TURN_MESSAGES: Final = 100  # limit: deliveries to one destination that keep a link busy while mail for others waits


class Turn(IntEnum):
    """Who waits for a slot, in the order in which they get one."""

    PROVEN = 0
    FRESH = 1  # never seen, wanted by new mail
    BACKLOG = 2  # never seen
    FAILING = 3  # failed since it last answered
    MORE = 4  # one more delivery to a destination that is being tried already


TURNS: Final = tuple(Turn)
SHARE: Final = {Turn.FRESH: 1.0, Turn.BACKLOG: 0.75, Turn.FAILING: 0.5, Turn.MORE: 0.25}  # of the trials, filled so far


@dataclass(slots=True, eq=False)
class Slot:
    """One delivery under way. `transport` is "" for a trial."""

    transport: str
    started: float


class Slots:
    """The slots in use, and the sites that wait for one."""

    def __init__(
        self,
        clock: Clock,
        configuration: Configuration,
        busy: Callable[[Site], bool] = lambda _: False,
        limited: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`busy`: whether the links to a site take no more deliveries there now.

        `limited`: whether those of a transport have so many connections and no more.
        """
        self._busy = busy
        self._limited = limited
        self._takes = 1  # deliveries begun so far
        self._clock = clock
        self._configuration = configuration
        self._proven: dict[str, dict[Slot, None]] = {}  # by transport, oldest first
        self._queues: dict[int, tuple[dict[Site, None], ...]] = {}  # by rank, then by turn
        self.trials = 0
        self.bound: Callable[[int], int] = int  # how many of so many deliveries are good now

    def reload(self, configuration: Configuration) -> None:
        """Take new limits."""
        self._configuration = configuration

    @property
    def running(self) -> int:
        return self.trials + sum(map(len, self._proven.values()))

    def turn(self, site: Site, *, fresh: bool) -> Turn:
        """As what a site would get a slot now."""
        if site.proven(self._clock.monotonic()):
            return Turn.PROVEN
        if site.running:
            return Turn.MORE
        if site.failed_at is not None:
            return Turn.FAILING
        return Turn.FRESH if fresh else Turn.BACKLOG

    def free(self, site: Site, *, fresh: bool, rank: int | None = None) -> bool:
        """Whether there is a slot for a delivery to this site, of mail of a rank: the first that waits there, else."""
        if self._busy(site) or self._yields(site, site.rank if rank is None else rank):
            return False
        turn = self.turn(site, fresh=fresh)
        if turn is not Turn.PROVEN:
            return self.trials < SHARE[turn] * self._most_trials()
        limit = self.bound(self._configuration.transport(site.transport).default_process_limit)
        taken = self._proven.get(site.transport, {})
        if len(taken) >= limit:
            self._set_aside(taken)
        return len(taken) < limit

    def _yields(self, site: Site, rank: int) -> bool:
        """Whether another destination is to have the connections of the same links that this one keeps busy."""
        if not self._limited(site.transport):
            return False
        now = self._clock.monotonic()
        return any(
            other is not site
            and other.transport == site.transport
            and other.waiting
            and (other.rank < rank or self._overdue(other, site))
            and other.gate(now) is Gate.OPEN
            for lower, queues in self._queues.items()
            if lower <= rank
            for queue in queues
            for other in queue
        )

    def _overdue(self, other: Site, site: Site) -> bool:
        """Whether a destination has waited for long, and for longer than another: of two, one never yields."""
        waited = self._takes - other.waits_since
        return waited >= TURN_MESSAGES and (not site.waits_since or other.waits_since < site.waits_since)

    def take(self, site: Site) -> Slot:
        """Take one; asked whether it is free before."""
        self._takes += 1
        site.waits_since = 0
        now = self._clock.monotonic()
        if not site.proven(now):
            self.trials += 1
            return Slot("", now)
        slot = Slot(site.transport, now)
        self._proven.setdefault(site.transport, {})[slot] = None
        return slot

    def give_back(self, slot: Slot) -> None:
        """The delivery has ended."""
        if slot.transport:
            del self._proven[slot.transport][slot]
        else:
            self.trials -= 1

    # ---- sites that wait

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queues in self._queues.values() for queue in queues)

    def wait(self, site: Site) -> None:
        """Remember that a site has mail and no slot."""
        turn = self.turn(site, fresh=site.fresh)
        queues = self._queues.get(site.rank)
        if queues is None:
            queues = self._queues[site.rank] = tuple({} for _ in TURNS)
        if site not in queues[turn]:
            self.forget(site)
            queues[turn][site] = None
        site.waits_since = site.waits_since or self._takes

    def forget(self, site: Site) -> None:
        for queues in self._queues.values():
            for queue in queues:
                queue.pop(site, None)

    def next_site(self) -> Site | None:
        """A site that waits and for which there is a slot now; it waits no more. Those with mail of low rank first."""
        for rank in sorted(self._queues):
            for turn, queue in zip(TURNS, self._queues[rank], strict=True):
                if not queue or (turn is not Turn.PROVEN and self.trials >= SHARE[turn] * self._most_trials()):
                    continue
                for site in self._members(rank, turn):
                    if self.free(site, fresh=site.fresh):
                        del self._queues[rank][turn][site]
                        return site
        return None

    def _members(self, rank: int, turn: Turn) -> Iterator[Site]:
        """The sites that wait in one class; those that belong to another by now go there."""
        for site in tuple(self._queues[rank][turn]):
            if site.rank == rank and self.turn(site, fresh=site.fresh) is turn:
                yield site
            else:
                self.wait(site)

    def next_change(self) -> float | None:
        """When (monotonic) time alone could make room for a proven site that waits."""
        waiting = {site.transport for queues in self._queues.values() for site in queues[Turn.PROVEN]}
        starts = [next(iter(self._proven[name])).started for name in waiting if self._proven.get(name)]
        return min(starts) + STALLED if starts and self.trials < self._most_trials() else None

    def _most_trials(self) -> float:
        settings = self._configuration.settings
        most = self.bound(TRIALS * settings.default_process_limit)
        return max(1, min(most, 0.75 * settings.qmgr_message_active_limit))

    def _set_aside(self, taken: dict[Slot, None]) -> None:
        """Count deliveries that have hung for long with the trials: their destinations answer no more."""
        now = self._clock.monotonic()
        for slot in list(taken):
            if now - slot.started < STALLED or self.trials >= self._most_trials():
                return
            del taken[slot]
            slot.transport = ""
            self.trials += 1
