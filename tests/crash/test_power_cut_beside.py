"""A power cut at any instant, beside the spool: what was told last is there, or what is newer.

Passwords, the accounts of links, a box's record of its slots. And whole: a reader finds one version and nothing of
another. The clock's floor stands in the spool's own transactions.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemail.relay.receive.auth import parse_users
from tests.crash import record
from tests.crash.beside import VERSIONS
from tests.crash.record import MARK, Op
from tests.crash.replay import State, states

WANTED = int(os.environ.get("EDGEMAIL_CRASH_STATES", "400")) // 4
NAMES = {
    "users": ("place/.users.7", "place/users"),
    "links": ("place/links.new", "place/links.json"),
    "record": ("place/record.json.new", "place/record.json"),
}


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(f"/dev/shm/edgemail-beside-{os.getpid()}") / "place"
    path.mkdir(parents=True)
    yield path
    shutil.rmtree(path.parent)


def recorded(place: Path, what: str, skip: str = "") -> tuple[list[Op], tuple[str, ...]]:
    names = (*NAMES[what], "marks.ledger", "/place")
    command = [sys.executable, "-m", "tests.crash.beside", str(place), what]
    return record.run(command, place, names, skip=skip), names


def version(path: Path, what: str) -> int:
    """Which version a reader finds; -1: none yet."""
    if not path.exists():
        return -1
    if what == "links":
        return int(json.loads(path.read_text())["lte"]["day"])
    if what == "record":
        return int(json.loads(path.read_text())["A"]["version"])
    found = parse_users(path, path.read_text())["lamp"]
    return next(number for number in range(VERSIONS) if found.fits(f"secret {number}".encode()))


def faults(place: Path, what: str, ops: list[Op], names: tuple[str, ...], seed: int) -> tuple[int, list[str]]:
    found: list[str] = []
    judged = 0
    rng = random.Random(seed)
    told = [number for number, op in enumerate(ops) if op.kind == MARK]
    for state in states(ops, names, rng, 3, 1.0):
        judged += 1
        least = sum(mark < state.cut for mark in told) - 1
        found += judge(place, what, state, least)
    return judged, found


def judge(place: Path, what: str, state: State, least: int) -> list[str]:
    path = place.parent / "state"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, content in state.files.items():
        (path / Path(name).name).write_bytes(content)
    try:
        got = version(path / Path(NAMES[what][1]).name, what)
    except Exception as error:
        return [f"cut {state.cut} ({state.how}): {error!r}"]
    if not least <= got < VERSIONS:
        return [f"cut {state.cut} ({state.how}): version {got}, and {least} was told"]
    return []


@pytest.mark.parametrize("what", NAMES)
def test_no_cut_takes_back_what_was_told(place: Path, what: str) -> None:
    ops, names = recorded(place, what)
    judged = 0
    for seed in range(1, 500):  # most of what they can leave is seen again and again
        count, wrong = faults(place, what, ops, names, seed)
        assert not wrong, "\n".join(wrong[:10])
        judged += count
        if judged >= WANTED:
            break
    print(f"{what}: {judged} states, {len(ops)} operations")
    assert judged >= WANTED


@pytest.mark.parametrize("what", NAMES)
def test_the_check_sees_a_flush_that_does_nothing(place: Path, what: str) -> None:
    ops, names = recorded(place, what, skip="fsync")
    assert faults(place, what, ops, names, 1)[1]
