"""`python -m bench`: run the cases, print medians and ratios, write them as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import thin_link
from bench.systems import SYSTEMS, System
from tests.peers.postfix import smtp_sink, smtp_source

SECONDS = 300.0
WARM_UP = 100  # messages before a case that do not count


@dataclass(frozen=True)
class Case:
    """`kind`: accept (deliveries held; the 250 counts) or relay (the next hop's 250 counts)."""

    kind: str
    size: int
    sessions: int
    messages: int
    target: float  # at least so many times Postfix

    @property
    def name(self) -> str:
        return f"{self.kind} {self.size // 1000} KB, {self.sessions} session{'s' if self.sessions > 1 else ''}"


@dataclass(frozen=True)
class Figure:
    """One run of one case."""

    rate: float  # messages per second
    cpu: float  # seconds per 1,000 messages


CASES = [
    Case("accept", 1000, 1, 1000, 1.6),
    Case("accept", 1000, 4, 2000, 2.5),
    Case("accept", 1000, 16, 3000, 3.5),
    Case("accept", 1000, 50, 3000, 4.0),
    Case("relay", 1000, 1, 1000, 1.8),
    Case("relay", 1000, 4, 2000, 2.5),
    Case("relay", 1000, 16, 2000, 4.0),
    Case("relay", 1000, 50, 2000, 5.0),
]


def work(system: System, case: Case, messages: int) -> None:
    """Send them, and wait until they are where they should be."""
    before = system.sent()
    sessions = min(case.sessions, messages)
    done = smtp_source(system.port, messages=messages, sessions=sessions, length=case.size, seconds=SECONDS)
    assert done.returncode == 0, done.stderr
    until = time.monotonic() + SECONDS
    while case.kind == "relay" and system.sent() - before < messages:
        assert time.monotonic() < until, f"{system.name}: {system.sent() - before} of {messages} delivered"
        time.sleep(0.005)


def measure(name: str, case: Case) -> Figure:
    """One run: a fresh system with an empty spool, warmed up."""
    with smtp_sink("-u", "nobody", backlog=200) as hop, SYSTEMS[name](hop, held=case.kind == "accept") as system:
        work(system, case, WARM_UP)
        cpu, started = system.cpu(), time.monotonic()
        work(system, case, case.messages)
        seconds = time.monotonic() - started
        return Figure(case.messages / seconds, (system.cpu() - cpu) / case.messages * 1000)


def median(found: list[Figure]) -> Figure:
    return Figure(statistics.median(one.rate for one in found), statistics.median(one.cpu for one in found))


def line(case: Case, found: dict[str, list[Figure]]) -> str:
    """One row of the table."""
    ours, theirs = median(found["edgemail"]), median(found["postfix"])
    pairs = zip(found["edgemail"], found["postfix"], strict=True)
    ratio = statistics.median(our.rate / their.rate for our, their in pairs)
    met = "yes" if ratio >= case.target else "no"
    cpu = ours.cpu / theirs.cpu if theirs.cpu else 0.0
    return (
        f"| {case.name} | {theirs.rate:.0f} | {ours.rate:.0f} | {ratio:.2f} | {case.target:.1f} | {met} "
        f"| {theirs.cpu:.2f} | {ours.cpu:.2f} | {cpu:.2f} |"
    )


HEAD = (
    "| case | Postfix /s | edgemail /s | ratio | target | met | CPU s per 1,000: Postfix | edgemail | ratio |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def machine() -> str:
    """What it ran on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    return f"{os.cpu_count()} x {model}, Linux {platform.release()}, Python {platform.python_version()}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case on each system (default: 3)")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where the figures go")
    arguments = parser.parse_args()
    print(machine(), file=sys.stderr)
    print(HEAD, flush=True)
    figures: dict[str, dict[str, list[Figure]]] = {}
    for case in CASES:
        if arguments.only not in case.name:
            continue
        found: dict[str, list[Figure]] = defaultdict(list)
        for number in range(arguments.rounds):
            for name in list(SYSTEMS)[:: 1 if number % 2 else -1]:  # by turns, and each first in turn
                found[name].append(measure(name, case))
        figures[case.name] = found
        print(line(case, found), flush=True)
    thin = thin_link.run(arguments.only)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    results = {case: {name: [asdict(one) for one in each] for name, each in by.items()} for case, by in figures.items()}
    arguments.json.write_text(json.dumps({"machine": machine(), "cases": results, "thin link": thin}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
