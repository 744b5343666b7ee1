"""Dates as a message writes them: RFC 5322 3.3, in English whatever the locale. Standard library only."""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import Final

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
LAST_DATE: Final = 253_402_214_400.0  # the last day of the year 9999


def local_time(at: float) -> time.struct_time:
    """A date, which may be anything that a spool or a clock says, as one that can be written."""
    return time.localtime(min(max(at, 0.0), LAST_DATE))


def midnight(year: int, month: int, day: int) -> int:
    """The seconds from 1970 to the beginning of a day of the Gregorian calendar, UTC. ValueError for no such month.

    The standard library's ways to it bring datetime with them, which an idle relay does without.
    """
    if not 1 <= month <= 12:
        raise ValueError(f"there is no month {month}")
    year, month = (year, month) if month > 2 else (year - 1, month + 12)  # so that a leap day ends the year
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month - 457) // 5 + day - 719_469
    return 86_400 * days


def date(at: float) -> str:
    """`at`, wall clock, in the box's time zone, whose name stands behind it as a comment."""
    return _date(int(min(max(at, 0.0), LAST_DATE)))


@lru_cache(maxsize=4)  # a busy second has a thousand messages
def _date(at: int) -> str:
    when = time.localtime(at)
    offset = when.tm_gmtoff // 60
    sign, offset = ("-", -offset) if offset < 0 else ("+", offset)
    zone = re.sub(r"[^A-Za-z0-9+-]", "", when.tm_zone)
    return (
        f"{_DAYS[when.tm_wday]}, {when.tm_mday} {_MONTHS[when.tm_mon - 1]} {when.tm_year:04} "
        f"{when.tm_hour:02}:{when.tm_min:02}:{when.tm_sec:02} {sign}{offset // 60:02}{offset % 60:02}"
        + (f" ({zone})" if zone else "")
    )
