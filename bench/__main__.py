"""`python -m bench`: run the cases, print medians and ratios, write them as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from bench import backlog, resident, thin_link, traffic
from bench.cases import Case, Figures, Row
from bench.systems import SYSTEMS

CASES: tuple[Case, ...] = (*traffic.CASES, *resident.CASES, *thin_link.CASES, *backlog.CASES)
HEAD = "| case | Postfix | edgemail | ratio | target | met |\n|---|---|---|---|---|---|"

Found = dict[str, list[Figures]]  # by system, a run each


def measure(case: Case, rounds: int) -> Found:
    """By turns, and each first in turn."""
    found: Found = defaultdict(list)
    for number in range(1 if case.once else rounds):
        names = ["edgemail"] if case.alone else list(SYSTEMS)[:: 1 if number % 2 else -1]
        for name in names:
            found[name].append(case.run(name))
    return found


def line(row: Row, found: Found) -> str:
    """One row of the table: medians, the median of the pairs' ratios, and whether the target is met."""
    ours = [one[row.figure] for one in found["edgemail"]]
    theirs = [one[row.figure] for one in found.get("postfix", [])]
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True)) if theirs and all(theirs) else None
    value, bound, target = ratio, row.ratio, "-"
    if row.limit is not None:
        value, bound, target = (
            statistics.median(ours),
            row.limit,
            f"{'>=' if row.rate else '<='} {row.limit:g} {row.unit}",
        )
    elif row.ratio is not None:
        target = f"{'>=' if row.rate else '<='} {row.ratio:g}x"
    met = "-"
    if value is not None and bound is not None:
        met = "yes" if (value >= bound if row.rate else value <= bound) else "no"
    shown = [f"{statistics.median(each):.4g} {row.unit}" if each else "-" for each in (theirs, ours)]
    return f"| {row.label} | {' | '.join(shown)} | {f'{ratio:.2f}' if ratio else '-'} | {target} | {met} |"


def machine() -> str:
    """What it ran on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    return f"{os.cpu_count()} x {model}, Linux {platform.release()}, Python {platform.python_version()}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case on each system (default: 3)")
    parser.add_argument("--only", action="append", help="cases whose name holds this; may be given again")
    parser.add_argument("--list", action="store_true", help="name the cases, run none")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where the figures go")
    arguments = parser.parse_args()
    chosen = [case for case in CASES if any(word in case.name for word in arguments.only or [""])]
    if arguments.list:
        print("\n".join(case.name for case in chosen))
        return 0
    print(machine(), file=sys.stderr)
    print(HEAD, flush=True)
    results: dict[str, Found] = {}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    for case in chosen:
        found = results[case.name] = measure(case, arguments.rounds)
        for row in case.rows:
            print(line(row, found), flush=True)
        arguments.json.write_text(json.dumps({"machine": machine(), "cases": results}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
