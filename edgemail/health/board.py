"""What the box says of itself: one condition for each component, and since when. Owns the status JSON.

Components are pushed in as callables by boot.serve; nothing here knows where a number comes from.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import field
from enum import IntEnum
from typing import Any

from edgemail.clock import Clock
from edgemail.value import value

log = logging.getLogger("edgemail.health")

Number = str | int | float | bool | None


class State(IntEnum):
    """How well a component is; the worse is the greater."""

    OK = 0
    DEGRADED = 1
    FAILED = 2


@value
class Condition:
    """One component now. `reason` is a word for programs, `message` a sentence for people; both "" when all is well.

    `counts` False: the component informs and does not make the box itself unwell (a dead upstream is not the box's).
    `told`: its owner logs its changes.
    """

    state: State = State.OK
    reason: str = ""
    message: str = ""
    numbers: Mapping[str, Number] = field(default_factory=dict)
    counts: bool = True
    told: bool = False


Probe = Callable[[], Mapping[str, Condition]]  # component name ("spool", "route.smtp:[isp]:587") -> its condition


def rfc3339(seconds: float) -> str:
    """A wall-clock time as RFC 3339 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class Board:
    """All components. Asking it is cheap: the probes are synchronous and return what they have at hand."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._probes: list[Probe] = []
        self._known: dict[str, tuple[State, str, float]] = {}
        self._since = (State.OK, clock.wall())

    def add(self, probe: Probe) -> None:
        """Have `probe` asked each time."""
        self._probes.append(probe)

    def conditions(self) -> dict[str, Condition]:
        """Every component's condition; a change of state or reason is logged once."""
        found: dict[str, Condition] = {}
        for probe in self._probes:
            try:
                found.update(probe())
            except Exception:
                log.exception("a health probe failed: %s", probe)
                found["health"] = Condition(State.DEGRADED, "probe-failed", "a health probe failed; see the log")
        for name, condition in found.items():
            before = self._known.get(name)
            if before is None or before[:2] != (condition.state, condition.reason):
                self._known[name] = (condition.state, condition.reason, self._clock.wall())
                if not condition.told and (before is not None or condition.state is not State.OK):
                    level = logging.WARNING if condition.state is not State.OK else logging.INFO
                    log.log(level, "%s: state=%s, reason=%s (%s)", name, condition.state.name.lower(),
                            condition.reason or "none", condition.message or "well")  # fmt: skip
        for name in self._known.keys() - found.keys():
            del self._known[name]
        return found

    def status(self) -> dict[str, Any]:
        """The status JSON: the box as a whole is as unwell as the worst component that counts."""
        found = self.conditions()
        worst = max((c for c in found.values() if c.counts), key=lambda c: c.state, default=Condition())
        if worst.state is not self._since[0]:
            self._since = (worst.state, self._clock.wall())
        return {
            "state": worst.state.name.lower(),
            "reason": worst.reason,
            "message": worst.message,
            "since": rfc3339(self._since[1]),
            "components": {
                name: {
                    "state": c.state.name.lower(),
                    "reason": c.reason,
                    "message": c.message,
                    "since": rfc3339(self._known[name][2]),
                    **c.numbers,
                }
                for name, c in sorted(found.items())
            },
        }
