"""What a workload told the world, at its place among its writes, and what therefore must hold after a cut.

Lines: `I id sha` the message is begun and will have this content; `A id` its 250 left; `G id` the next hop has it;
`F id` its completion is on the medium.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.crash.record import MARK, Op


@dataclass
class Ledger:
    """The marks up to a cut."""

    intended: dict[int, str] = field(default_factory=dict)
    accepted: set[int] = field(default_factory=set)
    given: set[int] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)

    def take(self, line: bytes) -> None:
        kind, number, *rest = line.decode().split()
        id = int(number)
        if kind == "I":
            self.intended[id] = rest[0]
        else:
            {"A": self.accepted, "G": self.given, "F": self.finished}[kind].add(id)

    def faults(self, found: Mapping[int, bytes]) -> list[str]:
        """What is wrong with a spool that holds `found` after the cut; empty when all is well."""
        lost = self.accepted - self.given - found.keys()
        wrong = [f"{id}: acknowledged, not handed on, and gone" for id in lost]
        wrong += [f"{id}: its completion was on the medium, and it is back" for id in self.finished & found.keys()]
        for id, content in found.items():
            if id not in self.intended:
                wrong.append(f"{id}: nobody ever sent it")
            elif hashlib.sha256(content).hexdigest() != self.intended[id]:
                wrong.append(f"{id}: not what was sent ({len(content)} octets)")
        return wrong


class Reading:
    """The ledger as it stood at each of some cuts, asked for in order."""

    def __init__(self, ops: Sequence[Op]) -> None:
        self._ops = ops
        self._at = 0
        self._now = Ledger()

    def at(self, cut: int) -> Ledger:
        for op in self._ops[self._at : cut]:
            if op.kind == MARK:
                for line in op.data.splitlines():
                    self._now.take(line)
        self._at = cut
        now = self._now
        return Ledger(dict(now.intended), set(now.accepted), set(now.given), set(now.finished))
