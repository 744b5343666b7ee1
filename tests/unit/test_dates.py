"""The days of the Gregorian calendar, counted without datetime."""

from __future__ import annotations

import datetime

import pytest

from edgemail.dates import midnight

EPOCH = datetime.date(1970, 1, 1)


def test_every_day_of_two_centuries() -> None:
    day = datetime.date(1900, 1, 1)
    while day.year < 2110:
        assert midnight(day.year, day.month, day.day) == (day - EPOCH).days * 86_400, day
        day += datetime.timedelta(days=1)


@pytest.mark.parametrize("month", [0, 13])
def test_no_such_month(month: int) -> None:
    with pytest.raises(ValueError, match="no month"):
        midnight(2026, month, 1)
