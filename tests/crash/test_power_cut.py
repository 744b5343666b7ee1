"""A power cut at any instant: what was acknowledged is there, whole; what was finished stays finished.

A few hundred states in the ordinary run; EDGEMAIL_CRASH_STATES asks for more (make crash: 10,000). The seed is printed.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemail.clock import SystemClock
from edgemail.spool.store import open_store
from tests.crash import record
from tests.crash.ledger import Ledger, ledgers
from tests.crash.replay import State, states
from tests.crash.workload import SPOOL_SIZE

FILES = ("new/data.mdb", "spool/data.mdb", "marks.ledger", "/spool")
WANTED = int(os.environ.get("EDGEMAIL_CRASH_STATES", "400"))
SEED = int(os.environ.get("EDGEMAIL_CRASH_SEED", "20261"))


@pytest.fixture
def shelf() -> Iterator[Path]:
    """A directory in memory: the states are written and opened by the thousand."""
    path = Path(f"/dev/shm/edgemail-crash-{os.getpid()}")
    path.mkdir()
    yield path
    shutil.rmtree(path)


def workload(shelf: Path, seed: int, clients: int, rounds: int, skip: str = "") -> list[record.Op]:
    directory = shelf / f"run-{seed}-{skip}"
    directory.mkdir()
    command = [sys.executable, "-m", "tests.crash.workload", str(directory), str(seed), str(clients), str(rounds)]
    return record.run(command, directory, FILES, skip=skip)


async def contents(directory: Path) -> dict[int, bytes]:
    """Open the spool as the daemon does after a cut, and read all of it; then let it be cut again."""
    store = open_store(directory, SPOOL_SIZE, SystemClock(), 0)
    try:
        assert not list(store.damaged()), [str(d) for d in store.damaged()]
        return {envelope.id: b"".join(store.body(envelope.id)) for envelope in store.envelopes()}
    finally:
        await store.close()


def judge(shelf: Path, state: State, ledger: Ledger) -> list[str]:
    """What recovery makes of `state`, held against what had been said by then."""
    spool = shelf / "state"
    shutil.rmtree(spool, ignore_errors=True)
    spool.mkdir()
    for name, content in state.files.items():
        path = spool / name.removeprefix("spool/")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    try:
        found = asyncio.run(contents(spool))
    except Exception as error:
        return [f"the spool does not open: {error!r}"]
    return ledger.faults(found)


def cuts(ops: list[record.Op], seed: int, count: int, most: int) -> tuple[list[State], dict[int, Ledger]]:
    """About `most` states of a run, from random cuts all over it."""
    rng = random.Random(seed)
    share = min(1.0, most / (len(ops) * (4 + count)))
    chosen = list(states(ops, FILES, rng, count, share))
    return chosen, ledgers(ops, [s.cut for s in chosen])


@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_no_cut_loses_or_revives_mail(shelf: Path, seed: int) -> None:
    """`seed` odd: closed at the end; even: left as it was."""
    print(f"seed {seed}")
    ops = workload(shelf, seed, clients=4, rounds=max(8, WANTED // 100))
    chosen, told = cuts(ops, seed, max(3, WANTED // 500), WANTED // 2)
    assert len(chosen) >= WANTED // 8
    faults = [f"cut {s.cut} ({s.how}): {wrong}" for s in chosen for wrong in judge(shelf, s, told[s.cut])]
    print(f"{len(chosen)} states, {len(ops)} operations")
    assert not faults, "\n".join(faults[:20])


@pytest.mark.parametrize("barrier", ["fdatasync", "dsync"])
def test_the_check_sees_a_barrier_that_does_nothing(shelf: Path, barrier: str) -> None:
    """The negative control: without its barrier the store must be caught losing mail."""
    ops = workload(shelf, 4, clients=2, rounds=12, skip=barrier)
    chosen, told = cuts(ops, 4, 3, 400)
    assert any(judge(shelf, state, told[state.cut]) for state in chosen)
