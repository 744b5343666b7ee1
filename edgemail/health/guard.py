"""Guards: a measured value, thresholds with hysteresis, and what is held back at each level.

Owns levels, their history and the reading of memory and file descriptors from /proc and the cgroup. Never measures
resident size: a process that maps its spool has pages in RSS that the kernel can take back at any time. psutil is not
used here: it knows neither RssAnon nor pressure (PSI), and its own import costs more than these reads.
"""

from __future__ import annotations

import logging
import resource
from enum import IntEnum
from pathlib import Path
from typing import Final

from edgemail.clock import Clock
from edgemail.health.board import Condition, State
from edgemail.reply import Reply
from edgemail.value import value

log = logging.getLogger("edgemail.health")

BIG_MESSAGE: Final = 131_072  # limit: bytes of a message that is still taken when memory is short
RESERVED_SESSIONS: Final = 8  # limit: sessions kept for clients that hold none, whatever goes on
KEPT_INODES: Final = 16  # limit: inodes of the spool's file system that are left to others
HYSTERESIS: Final = 0.05  # a level is left when the value has fallen this far below its threshold
PSI_STALL: Final = 40.0  # limit: percent of the last 10 s in which tasks waited for memory, taken as full


class Level(IntEnum):
    """What is held back, each level with all before it."""

    CALM = 0
    FEWER_DELIVERIES = 1
    NO_SESSIONS = 2
    NO_BIG_MESSAGES = 3


MEMORY_THRESHOLDS: Final = (0.75, 0.85, 0.92)  # limit: share of usable memory at which each level begins
DESCRIPTOR_THRESHOLDS: Final = (0.75, 0.85, 0.92)  # limit: share of RLIMIT_NOFILE at which each level begins


class Guard:
    """One measured share (0.0 to 1.0 and above) with its level. `measure` is called once a second and at need."""

    def __init__(self, name: str, thresholds: tuple[float, ...], clock: Clock) -> None:
        self.name = name
        self.thresholds = thresholds
        self.level = Level.CALM
        self.value = 0.0
        self.since = clock.wall()
        self.trips = 0
        self._clock = clock

    def measure(self, value: float) -> Level:
        """Take a new value; the level rises at once and falls with hysteresis. A change is logged once."""
        self.value = value
        level = Level(sum(1 for threshold in self.thresholds if value >= threshold))
        if level < self.level:
            level = min(self.level, Level(sum(1 for t in self.thresholds if value >= t - HYSTERESIS)))
        if level is not self.level:
            rising = level > self.level
            self.trips += rising and self.level is Level.CALM
            self.level, self.since = level, self._clock.wall()
            log.log(
                logging.WARNING if rising else logging.INFO,
                "guard %s: level=%s, measured=%.0f%%", self.name, level.name.lower(), value * 100,
            )  # fmt: skip
        return self.level

    def condition(self) -> Condition:
        state = State.OK if self.level is Level.CALM else State.DEGRADED
        numbers: dict[str, str | int | float | bool | None] = {
            "level": self.level.name.lower(),
            "measured": round(self.value, 3),
            "threshold": self.thresholds[min(self.level, len(self.thresholds) - 1)],
            "tripped": self.trips,
        }
        if state is State.OK:
            return Condition(numbers=numbers, told=True)
        sentence = SENTENCES[self.level].format(name=self.name)
        return Condition(state, f"{self.name}-short", sentence, numbers, told=True)


class RoomGuard:
    """One kind of room: full when no more than `needed` is free, well again when that and a little more is.

    The refusals themselves are exact, and made where the room is known; this says that they happen, since when, and
    how often it has come to that.
    """

    def __init__(self, name: str, sentence: str, clock: Clock) -> None:
        self.name = name
        self.sentence = sentence
        self.full = False
        self.value = 0.0  # the share that is used
        self.threshold = 1.0
        self.free = 0
        self.since = clock.wall()
        self.trips = 0
        self._clock = clock

    def measure(self, free: int, needed: int, total: int) -> bool:
        """Take new numbers, all of one unit; `total` 0: unknown, never full. A change is logged once."""
        self.free = free
        self.value = 1 - free / total if total else 0.0
        self.threshold = max(0.0, 1 - needed / total) if total else 1.0
        full = bool(total) and free <= (needed * (1 + HYSTERESIS) if self.full else needed)
        if full is not self.full:
            self.full, self.since = full, self._clock.wall()
            self.trips += full
            level = logging.WARNING if full else logging.INFO
            log.log(level, "guard %s: level=%s, free=%d, needed=%d", self.name, self.word, free, needed)
        return self.full

    @property
    def word(self) -> str:
        return "full" if self.full else "calm"

    def condition(self) -> Condition:
        numbers: dict[str, str | int | float | bool | None] = {
            "level": self.word,
            "measured": round(self.value, 3),
            "threshold": round(self.threshold, 3),
            "free": self.free,
            "tripped": self.trips,
        }
        if not self.full:
            return Condition(numbers=numbers, told=True)
        return Condition(State.FAILED, f"{self.name}-full", self.sentence, numbers, told=True)


SENTENCES: Final = {
    Level.FEWER_DELIVERIES: "{name} runs short: fewer deliveries at once",
    Level.NO_SESSIONS: "{name} is short: new sessions are put off",
    Level.NO_BIG_MESSAGES: "{name} is nearly used up: new sessions and big messages are put off",
}


@value
class Memory:
    """One reading, in bytes. `limit`: what the process may use at most (cgroup or machine); `stall`: PSI some avg10."""

    anonymous: int
    working_set: int
    limit: int
    available: int
    total: int
    stall: float

    @property
    def share(self) -> float:
        """How full: the worst of working set against its limit, the machine's use, and stalls."""
        own = max(self.anonymous, self.working_set) / self.limit if self.limit else 0.0
        machine = 1 - self.available / self.total if self.total else 0.0
        # Another program's appetite alone must not stop the mail: the machine counts from where it nears its end.
        return max(own, machine if machine > 0.9 else 0.0, min(self.stall / PSI_STALL, 1.0) * 0.9)


def read_number(path: Path) -> int | None:
    """A file that holds one number; None for "max" or no such file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def read_field(path: Path, name: str) -> int:
    """The number behind `name` in a file of "name number" or "Name: number kB" lines, in bytes; 0 where it is not."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0].removesuffix(":") == name:
            return int(words[1]) * (1024 if words[-1] == "kB" else 1)
    return 0


def read_stall(path: Path) -> float:
    """`some avg10` of a /proc/pressure file, percent; 0.0 where the kernel has no PSI."""
    try:
        first = path.read_text().split("\n", 1)[0]
    except OSError:
        return 0.0
    for word in first.split():
        if word.startswith("avg10="):
            return float(word[6:])
    return 0.0


class MemoryReader:
    """Reads /proc and the cgroup of this process, v2 or v1. `root` is / (a test's own tree otherwise)."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._proc = root / "proc"
        self._current, self._max, self._stat, self._inactive = self._cgroup(root)

    def _cgroup(self, root: Path) -> tuple[Path, Path, Path, str]:
        """Where usage, limit and statistics stand, and the name of the inactive file pages in the statistics."""
        base = root / "sys/fs/cgroup"
        unified = base
        try:
            lines = (self._proc / "self/cgroup").read_text().splitlines()
        except OSError:
            lines = []
        for line in lines:
            _, controllers, path = line.split(":", 2)
            own = path.lstrip("/")  # not there when a container sees its own group as the root
            if "memory" in controllers.split(","):  # v1
                group = base / "memory" / own if (base / "memory" / own).is_dir() else base / "memory"
                usage, limit = group / "memory.usage_in_bytes", group / "memory.limit_in_bytes"
                return usage, limit, group / "memory.stat", "total_inactive_file"
            if not controllers and (base / own / "memory.current").exists():
                unified = base / own
        return unified / "memory.current", unified / "memory.max", unified / "memory.stat", "inactive_file"

    def read(self) -> Memory:
        """The figures now; a file that is missing counts as nothing used and no limit."""
        total = read_field(self._proc / "meminfo", "MemTotal")
        anonymous = read_field(self._proc / "self/status", "RssAnon")
        usage = read_number(self._current) or 0
        limit = read_number(self._max)
        bounded = limit is not None and (not total or limit < total)
        working = max(0, usage - read_field(self._stat, self._inactive)) if bounded else 0
        return Memory(
            anonymous=anonymous,
            working_set=working,
            limit=limit if bounded and limit is not None else total,
            available=read_field(self._proc / "meminfo", "MemAvailable"),
            total=total,
            stall=read_stall(self._proc / "pressure/memory"),
        )


def descriptor_share(proc: Path = Path("/proc")) -> float:
    """Open file descriptors as a share of the soft limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft <= 0:
        return 0.0
    return sum(1 for _ in (proc / "self/fd").iterdir()) / soft


class Guards:
    """The guards of the process, asked by boot.serve once a second and by receive and queue at each decision."""

    def __init__(self, clock: Clock, reader: MemoryReader | None = None) -> None:
        self._reader = reader or MemoryReader()
        self._admitted = 0  # sessions at once that are borne since sessions are put off
        self.reading = Memory(0, 0, 0, 0, 0, 0.0)  # the last one
        self.memory = Guard("memory", MEMORY_THRESHOLDS, clock)
        self.descriptors = Guard("descriptors", DESCRIPTOR_THRESHOLDS, clock)
        self.disk = RoomGuard("disk", "The disk is full: no mail is taken until there is room again", clock)
        self.inodes = RoomGuard("inodes", "The disk has no inodes left: no mail is taken until there are some", clock)
        self.spool = RoomGuard("spool", "The spool is as large as spool_size allows: no mail is taken", clock)

    @property
    def all(self) -> tuple[Guard | RoomGuard, ...]:
        return (self.memory, self.descriptors, self.disk, self.inodes, self.spool)

    def measure(self) -> None:
        """Read memory and descriptors. The room of the spool is measured by whoever knows it."""
        self.reading = self._reader.read()
        self.memory.measure(self.reading.share)
        self.descriptors.measure(descriptor_share())

    @property
    def level(self) -> Level:
        return max(self.memory.level, self.descriptors.level)

    def session_refusal(self, host: str, held: int, total: int) -> Reply | None:
        """At a new connection: 421 when short, for a client that holds `held` sessions already, of `total`.

        A client that holds none is let in as long as no more than RESERVED_SESSIONS are open above what there was:
        what leaves makes room for such clients only.
        """
        if self.level < Level.NO_SESSIONS:
            self._admitted = 0
            return None
        if not self._admitted:
            self._admitted = total + RESERVED_SESSIONS
        self._admitted = min(self._admitted, total + RESERVED_SESSIONS)
        if held == 0 and total < self._admitted:
            return None
        short = self.memory if self.memory.level >= self.descriptors.level else self.descriptors
        return Reply(421, "4.3.2", f"{host} Error: out of {short.name}, try again later")

    def message_refusal(self, size: int) -> Reply | None:
        """At MAIL: 452 for a big message (`size` -1: not announced, let in; it is bounded by the buffers)."""
        if self.level < Level.NO_BIG_MESSAGES or size <= BIG_MESSAGE:
            return None
        return Reply(452, "4.3.1", "Insufficient memory for a message of this size, try again later")

    def deliveries(self, limit: int) -> int:
        """How many deliveries at once are good now, of `limit`."""
        if self.level is Level.CALM:
            return limit
        return max(1, limit // (4 if self.level is Level.FEWER_DELIVERIES else 16))

    def conditions(self) -> dict[str, Condition]:
        return {f"guard.{guard.name}": guard.condition() for guard in self.all}
