"""Hours of the week in which something may be done: "Mon-Fri 02:00-04:00". Pure; local time, as people mean it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Final

from edgemail.value import value

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES: Final = 24 * 60
LOOK_AHEAD: Final = 9 * MINUTES  # a week, a day more for a clock that changes, and one for the remains of today

_WINDOW: Final = re.compile(r"(?:(?P<days>[A-Za-z,\s-]+?)\s+)?(?P<hours>\d{1,2}:\d{2}\s*-\s*\d{1,2}:\d{2})")
_HOURS: Final = re.compile(r"(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})")


@value
class Window:
    """Open from `begins` up to `ends`, minutes of the day, on `days` (0 = Monday). Past midnight if it ends first."""

    days: frozenset[int]
    begins: int
    ends: int

    def holds(self, day: int, minute: int) -> bool:
        """Whether it is open in a minute of a day of the week."""
        if self.begins < self.ends:
            return day in self.days and self.begins <= minute < self.ends
        # it began on one day and ends on the next
        return (day in self.days and minute >= self.begins) or ((day - 1) % 7 in self.days and minute < self.ends)


def parse_window(text: str) -> Window:
    """ "Mon-Fri 02:00-04:00", "Sat,Sun 00:00-24:00", "22:00-06:00". ValueError with a hint."""
    match = _WINDOW.fullmatch(text.strip())
    hours = _HOURS.fullmatch(match["hours"]) if match else None
    if match is None or hours is None:
        raise ValueError(f"'{text}' is no window; expected days and hours: Mon-Fri 02:00-04:00")
    begins, ends = (int(hours[at]) * 60 + int(hours[at + 1]) for at in (1, 3))
    if int(hours[2]) > 59 or int(hours[4]) > 59 or begins >= MINUTES or ends > MINUTES:
        raise ValueError(f"'{text}': a time is from 00:00 to 23:59, and 24:00 at the end")
    if begins == ends:
        raise ValueError(f"'{text}' is never open; for a whole day write 00:00-24:00")
    return Window(_days(text, match["days"] or "Mon-Sun"), begins, ends)


def _days(text: str, words: str) -> frozenset[int]:
    found: set[int] = set()
    for part in words.split(","):
        first, dash, last = (word.strip().lower()[:3] for word in part.partition("-"))
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"'{text}': '{part.strip()}' is no day; expected Mon, Mon-Fri or Sat,Sun")
        at, end = DAYS.index(first), DAYS.index(last if dash else first)
        while True:
            found.add(at)
            if at == end:
                break
            at = (at + 1) % 7
    return frozenset(found)


def is_open(windows: Iterable[Window], at: float) -> bool:
    """Whether one of them is open at a wall-clock time."""
    when = time.localtime(at)
    return any(window.holds(when.tm_wday, when.tm_hour * 60 + when.tm_min) for window in windows)


def next_change(windows: Iterable[Window], at: float) -> float | None:
    """When that will be otherwise, to the minute; None when it never is, as for windows that cover the whole week."""
    every = tuple(windows)
    now = is_open(every, at)
    edges = {edge % MINUTES for window in every for edge in (window.begins, window.ends)}
    start = at - at % 60
    for minute in range(1, LOOK_AHEAD):
        then = start + minute * 60
        when = time.localtime(then)
        # the half hours too: the law may skip the hour in which an edge lies
        edge = when.tm_hour * 60 + when.tm_min in edges or when.tm_min % 30 == 0
        if edge and is_open(every, then) is not now:
            return then
    return None
