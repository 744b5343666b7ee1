"""What is measured: each case is a piece of work for one system, and the rows of the table that come out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Figures = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure of the case, and where it must stand.

    `ratio` bounds edgemail's figure divided by Postfix's, `limit` edgemail's own. Rates are to be at least that, all
    else at most.
    """

    label: str
    figure: str
    unit: str
    ratio: float | None = None
    limit: float | None = None
    rate: bool = False


@dataclass(frozen=True)
class Case:
    """`run` does the work on the system of that name, from scratch. `alone`: edgemail only."""

    name: str
    run: Callable[[str], Figures]
    rows: tuple[Row, ...]
    alone: bool = False
    once: bool = False  # it takes minutes: one round is enough
