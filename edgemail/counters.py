"""Numbers about the running process, declared where they are counted and read by the health endpoint.

Standard library only; one process, no locks: a metric is written by one thread alone, nearly always the loop's. Label
values are bounded: past MAX_SERIES of one metric, further ones are counted together under "other".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

MAX_SERIES: Final = 100  # limit: label combinations of one metric, the rest is "other"

Series = tuple[str, ...]
Sample = tuple[str, Series, float]  # suffix ("_total", "_bucket", ""), label values, value


class Metric:
    """One metric family. `name` in Prometheus form without suffix, unit at its end; `labels` are the label names."""

    kind = "unknown"

    def __init__(self, name: str, help: str, labels: tuple[str, ...] = ()) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self.values: dict[Series, float] = {} if labels else {(): 0.0}
        METRICS[name] = self

    def _series(self, values: Series) -> Series:
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {values}")
        if values in self.values or len(self.values) < MAX_SERIES:
            return values
        return ("other",) * len(values)

    def samples(self) -> Iterator[Sample]:
        """Every series as it stands."""
        for series, value in self.values.items():
            yield "", series, value


METRICS: Final[dict[str, Metric]] = {}  # every metric of the process, in order of declaration


class Counter(Metric):
    """A number that only grows."""

    kind = "counter"

    def add(self, *values: str, by: float = 1.0) -> None:
        try:
            self.values[values] += by
        except KeyError:  # the first of its kind
            series = self._series(values)
            self.values[series] = self.values.get(series, 0.0) + by

    def samples(self) -> Iterator[Sample]:
        for series, value in self.values.items():
            yield "_total", series, value


class Gauge(Metric):
    """A number as it is now."""

    kind = "gauge"

    def set(self, value: float, *values: str) -> None:
        self.values[self._series(values)] = value


class Histogram(Metric):
    """How a number is spread; `bounds` are the upper edges, in rising order, +Inf is added."""

    kind = "histogram"

    def __init__(self, name: str, help: str, bounds: tuple[float, ...]) -> None:
        super().__init__(name, help)
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def samples(self) -> Iterator[Sample]:
        total = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            yield "_bucket", (repr(float(bound)) if bound != float("inf") else "+Inf",), float(total)
        yield "_count", (), float(total)
        yield "_sum", (), self.sum
