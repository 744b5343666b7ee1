"""What waits, in memory: for each message an id, when it is due, a mark of its domains, where it stands. No envelopes.

Owns the index of waiting mail, 22 bytes a row in arrays sorted by id; a message has a row for each of its recipients'
domains. The domains that wait are known by name too, each with its messages (8 bytes a row), as long as they are no
more than NAMES. Pure and synchronous; times are those of the monotonic clock. Never reads the spool.
"""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

DOMAINS: Final = 8  # limit: domains of one message that the index knows; with more, a flush of any domain looks at it
SLICE: Final = 4096  # limit: rows of the index that a queue run looks at in one piece
NAMES: Final = 4096  # limit: domains that the index knows by name; of more, a flush of "@domain" reads what waits

EVERY_DOMAIN: Final = 0  # the mark of a message with more domains than that
MANY_NAMES: Final = ""  # for two domains that have one mark
NEVER: Final = float("inf")
_KIND: Final = 3


class Stand(IntEnum):
    """Where a waiting message stands."""

    LATER = 0  # not before its time
    LANE = 1  # due, in a lane of the scheduler
    PARKED = 2  # due, in the line of a site that takes no more now
    EXTRA = 3  # a further row of a message, for another domain


class Flag:
    """What else is known of a message that is due: bits of plain numbers, for they are asked for all the time."""

    NONE: Final = 0
    FLUSHED: Final = 4  # somebody asked for it: the dead-site list does not count
    FRESH: Final = 8  # it came in since the start and has not been tried
    OWN_SIDE: Final = 16  # it goes to one site, and its envelope says that this site waits for this box's own side
    PEER_SIDE: Final = 32  # the same, and the envelope says that it is the site's doing
    KEPT: Final = 64  # it is on demand, or waits for a link
    RANK: Final = 896  # three bits: how soon it goes, see `rank`
    QUIET: Final = 48  # either of the two: it may wait on without its envelope being read or written


RANK_SHIFT: Final = 7


def rank(flags: int) -> int:
    """How soon a message goes, by its flags: 0 first, 7 last."""
    return (flags & Flag.RANK) >> RANK_SHIFT


def ranked(flags: int, rank: int) -> int:
    """Flags with another rank."""
    return flags & ~Flag.RANK | rank << RANK_SHIFT


def mark(domain: str) -> int:
    """A domain as the index keeps it."""
    return zlib.crc32(domain.lower().encode("utf-8", "surrogateescape")) or 1


class Line:
    """Ids in order of arrival: 8 bytes each, and nothing to pay for one that is taken from the front."""

    __slots__ = ("_first", "_ids")

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self._ids = array("Q", ids)
        self._first = 0

    def __len__(self) -> int:
        return len(self._ids) - self._first

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids[self._first :])

    def append(self, id: int) -> None:
        self._ids.append(id)

    def extend(self, ids: array[int]) -> None:
        self._ids.extend(ids)

    def pop(self) -> int:
        """The first one. IndexError when there is none."""
        first = self._ids[self._first]
        self._first += 1
        if self._first > 64 and self._first * 2 > len(self._ids):
            del self._ids[: self._first]
            self._first = 0
        return first

    def clear(self) -> None:
        self._ids = array("Q")
        self._first = 0


@dataclass(slots=True, eq=False)
class Known:
    """A domain for which mail waits, and that mail in order of id."""

    name: str
    ids: array[int]


class Waiting:
    """The index. `fresh` and `parked` are counts: of messages never tried, and of parked ones that are not fresh."""

    __slots__ = ("_due", "_extras", "_ids", "_marks", "_names", "_ranked", "_states", "_unnamed", "fresh", "parked")

    def __init__(self) -> None:
        self._ids = array("Q")
        self._due = array("d")
        self._marks = array("I")
        self._states = array("H")
        self._extras = 0
        self._names: dict[int, Known] = {}  # by mark
        self._unnamed = 0  # rows of domains that are not among those
        self._ranked = False  # whether there was ever a message of another rank than 0
        self.fresh = 0
        self.parked = 0

    def __len__(self) -> int:
        return len(self._ids) - self._extras

    def __contains__(self, id: int) -> bool:
        return self._row(id) >= 0

    def ids(self) -> array[int]:
        """Every message, in order of id; a copy."""
        if not self._extras:
            return self._ids[:]
        rows = zip(self._ids, self._states, strict=True)
        return array("Q", (mail for mail, state in rows if state & _KIND != Stand.EXTRA))

    def add(
        self, id: int, domains: Iterable[str], *, due: float = NEVER, stand: Stand = Stand.LATER, flags: int = 0
    ) -> None:
        """Put a message in, in the place of what was known of it."""
        self.drop(id)
        marks = {mark(domain): domain for domain in domains}
        if len(marks) > DOMAINS or not marks:
            marks = {EVERY_DOMAIN: MANY_NAMES}
        row = len(self._ids)
        if row and id < self._ids[-1]:
            row = bisect_left(self._ids, id)
        for place, (each, domain) in enumerate(marks.items()):
            self._name(each, domain, id)
            self._ids.insert(row + place, id)
            self._due.insert(row + place, NEVER)
            self._marks.insert(row + place, each)
            self._states.insert(row + place, Stand.EXTRA)
        self._extras += len(marks) - 1
        self._states[row] = Stand.LATER
        self._set(row, stand, flags, due)

    def drop(self, id: int) -> bool:
        """Take a message out; whether it was there."""
        row = self._row(id)
        if row < 0:
            return False
        self._set(row, Stand.LATER, 0, NEVER)
        end = row + 1
        while end < len(self._ids) and self._ids[end] == id:
            end += 1
        self._extras -= end - row - 1
        for each in self._marks[row:end]:
            self._unname(each, id)
        for column in (self._ids, self._due, self._marks, self._states):
            del column[row:end]
        return True

    def stand(self, id: int) -> Stand | None:
        """Where a message stands; None when it does not wait."""
        row = self._row(id)
        return None if row < 0 else Stand(self._states[row] & _KIND)

    def flags(self, id: int) -> int:
        """The `Flag`s of a message that waits."""
        row = self._row(id)
        return 0 if row < 0 else self._states[row] & ~_KIND

    def move(self, id: int, stand: Stand, flags: int = 0, *, due: float = NEVER) -> None:
        """Say where a message stands now; its rank stays. Nothing happens when it does not wait."""
        row = self._row(id)
        if row >= 0:
            self._set(row, stand, flags & ~Flag.RANK | self._states[row] & Flag.RANK, due)

    def due(self, now: float, first: int = 0) -> tuple[array[int], int]:
        """What has become due in one slice, from the id `first` on; and where the next begins, 0 behind the last."""
        start = bisect_left(self._ids, first)
        times = self._due[start : start + SLICE]
        found = array("Q", (self._ids[start + place] for place, at in enumerate(times) if at <= now))
        end = start + len(times)
        return found, self._ids[end] if end < len(self._ids) else 0

    def kept(self) -> array[int]:
        """Messages that wait for a link, or for somebody to ask for them; the lower ranks first."""
        found = array("Q")
        for mail, state in zip(self._ids, self._states, strict=True):
            if state & Flag.KEPT and state & _KIND == Stand.LATER:
                found.append(mail)
        return self.by_rank(found)

    def by_rank(self, ids: array[int]) -> array[int]:
        """The same messages, the lower ranks first, each rank in the order in which it came."""
        if not self._ranked:
            return ids
        ranks: dict[int, array[int]] = {}
        for mail in ids:
            ranks.setdefault(rank(self.flags(mail)), array("Q")).append(mail)
        return ids if len(ranks) < 2 else sum((ranks[each] for each in sorted(ranks)), array("Q"))

    def of_domain(self, domain: str) -> array[int]:
        """Messages with a recipient in `domain`, in order of id; seldom another, whose domain has the same mark."""
        return self._marked(mark(domain))

    def of_many(self) -> array[int]:
        """Messages with recipients in more domains than the index knows of each."""
        return self._marked(EVERY_DOMAIN)

    def below(self, domain: str) -> array[int] | None:
        """The same as `of_domain` for a domain and those below it; None when not all that wait are known by name."""
        if self._unnamed:
            return None
        name = domain.lower()
        below = "." + name
        found: set[int] = set()
        for each, known in self._names.items():
            ambiguous = known.name == MANY_NAMES and each != EVERY_DOMAIN
            if ambiguous or known.name == name or known.name.endswith(below):
                found.update(known.ids)
        return array("Q", sorted(found))

    def _marked(self, wanted: int) -> array[int]:
        if self._unnamed:
            return array("Q", (self._ids[row] for row, each in enumerate(self._marks) if each == wanted))
        known = self._names.get(wanted)
        return known.ids[:] if known is not None else array("Q")

    def _name(self, each: int, domain: str, id: int) -> None:
        """One more row has this mark."""
        known = self._names.get(each)
        name = domain.lower()
        if known is not None:
            if known.name != name:
                known.name = MANY_NAMES
            insort(known.ids, id)
        elif len(self._names) < NAMES:
            self._names[each] = Known(name, array("Q", (id,)))
        else:
            self._unnamed += 1

    def _unname(self, each: int, id: int) -> None:
        """One row less."""
        known = self._names.get(each)
        place = bisect_left(known.ids, id) if known is not None else 0
        if known is None or place == len(known.ids) or known.ids[place] != id:
            self._unnamed -= 1
        elif len(known.ids) > 1:
            del known.ids[place]
        else:
            del self._names[each]

    def _row(self, id: int) -> int:
        row = bisect_left(self._ids, id)
        return row if row < len(self._ids) and self._ids[row] == id else -1

    def _set(self, row: int, stand: Stand, flags: int, due: float) -> None:
        self._count(self._states[row], -1)
        self._states[row] = stand | flags
        self._ranked = self._ranked or flags & Flag.RANK > 0
        self._count(stand | flags, 1)
        self._due[row] = due if stand is Stand.LATER else NEVER

    def _count(self, state: int, by: int) -> None:
        if state & Flag.FRESH:
            self.fresh += by
        elif state & _KIND == Stand.PARKED:
            self.parked += by
