"""The table of the bench: what counts as met."""

from __future__ import annotations

import pytest

from bench.__main__ import CASES, line
from bench.cases import Row


@pytest.mark.parametrize(
    ("row", "ours", "theirs", "met"),
    [
        (Row("r", "x", "/s", 2.0, rate=True), [300.0, 100.0, 500.0], [100.0, 100.0, 200.0], "yes"),
        (Row("r", "x", "/s", 2.6, rate=True), [300.0, 100.0, 500.0], [100.0, 100.0, 200.0], "no"),
        (Row("r", "x", "s", 0.5), [1.0], [2.0], "yes"),
        (Row("r", "x", "s", 0.4), [1.0], [2.0], "no"),
        (Row("r", "x", "MiB", limit=16.0), [15.0], [1.0], "yes"),
        (Row("r", "x", "MiB", limit=16.0), [17.0], [], "no"),
    ],
)
def test_met(row: Row, ours: list[float], theirs: list[float], met: str) -> None:
    found = {"edgemail": [{"x": one} for one in ours], "postfix": [{"x": one} for one in theirs]}
    assert line(row, found).split(" | ")[-1] == f"{met} |"


def test_every_row_has_a_target_and_every_case_a_name_of_its_own() -> None:
    assert all(row.ratio is not None or row.limit is not None for case in CASES for row in case.rows)
    assert len({case.name for case in CASES}) == len(CASES)
