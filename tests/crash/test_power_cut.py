"""A power cut at any instant: what was acknowledged is there, whole; what was finished stays finished.

A few hundred states in the ordinary run; EDGEMAIL_CRASH_STATES asks for more (make crash: 10,000). The seed is printed.
For each the recovery runs in this process; for one of fifty the program itself is started and delivers what it finds.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemail.clock import SystemClock
from edgemail.spool.store import open_reader, open_store
from tests.crash import record
from tests.crash.ledger import Ledger, Reading
from tests.crash.replay import CREATION, Files, State, states
from tests.crash.workload import SPOOL_SIZE
from tests.scenarios.relay import Relay
from tests.scenarios.sink import Sink, sink

FILES = ("new/data.mdb", "spool/data.mdb", "spool/journal.new", "spool/journal", "marks.ledger", "/spool")
JOURNAL = 262_144  # small, so that its halves take turns often
GARBLED = ("spool/journal", "spool/journal.new")
WANTED = int(os.environ.get("EDGEMAIL_CRASH_STATES", "400"))
SEED = int(os.environ.get("EDGEMAIL_CRASH_SEED", "20261"))


@pytest.fixture
def shelf() -> Iterator[Path]:
    """A directory in memory: the states are written and opened by the thousand."""
    path = Path(f"/dev/shm/edgemail-crash-{os.getpid()}")
    path.mkdir()
    yield path
    shutil.rmtree(path)


def workload(shelf: Path, seed: int, clients: int, rounds: int, skip: str = "", journal: int = 0) -> list[record.Op]:
    directory = shelf / f"run-{seed}-{journal}-{skip.replace('/', '-')}"
    directory.mkdir()
    command = [
        sys.executable,
        "-m",
        "tests.crash.workload",
        str(directory),
        *map(str, (seed, clients, rounds, journal)),
    ]
    ops = record.run(command, directory, FILES, skip=skip)
    shutil.rmtree(directory)
    return ops


async def contents(directory: Path, journal: int) -> tuple[dict[int, bytes], int]:
    """Open the spool as the daemon does after a cut, and read all of it; also the next id that it would give."""
    store = open_store(directory, SPOOL_SIZE, SystemClock(), 0, journal)
    try:
        assert not list(store.damaged()), [str(d) for d in store.damaged()]
        assert store.recovered is None or not store.recovered.lost, store.recovered
        found = {envelope.id: b"".join(store.body(envelope.id)) for envelope in store.envelopes()}
        return found, store.intake().id
    finally:
        await store.close()


def lay_out(shelf: Path, files: Files) -> Path:
    """The files of a state, as a spool."""
    spool = shelf / "state" / "spool"
    shutil.rmtree(spool, ignore_errors=True)
    spool.mkdir(parents=True)
    for name, content in files.items():
        path = spool / name.removeprefix("spool/")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return spool


def peeked(spool: Path) -> dict[int, bytes]:
    """What a tool shows of it while no relay runs."""
    if not (spool / "data.mdb").exists() or not (spool / "data.mdb").stat().st_size:
        return {}
    with open_reader(spool) as reader:
        assert not reader.journal.lost, reader.journal.lost
        return {envelope.id: b"".join(reader.body(envelope.id)) for envelope in reader.envelopes()}


def judge(shelf: Path, state: State, ledger: Ledger, journal: int, *, tool: bool = True) -> list[str]:
    """What recovery makes of `state`, held against what had been said by then; and what a `tool` shows before it."""
    spool = lay_out(shelf, state.files)
    try:
        shown = peeked(spool) if tool else {}
        found, next_id = asyncio.run(contents(spool, journal))
    except Exception as error:
        return [f"the spool does not open: {error!r}"]
    faults = ledger.faults(found)
    if next_id in ledger.intended:
        faults.append(f"{next_id}: is given twice")
    if tool and shown != found:
        faults.append(f"a tool shows other mail than the relay finds: {sorted(shown)}, {sorted(found)}")
    return faults


def cuts(ops: list[record.Op], seed: int, count: int, most: int, journal: int = 0) -> Iterator[tuple[State, Ledger]]:
    """About `most` states of a run, from random cuts all over it, each with what had been said by then.

    They are made as they are asked for: a thousand spools would not fit into memory.
    """
    rng = random.Random(seed)
    share = min(1.0, most / (len(ops) * (3 + count)) * 1.5)
    told = Reading(ops)
    for state in states(ops, FILES, rng, count, share, garbled=GARBLED, creation=6 if journal else CREATION):
        yield state, told.at(state.cut)


@pytest.mark.parametrize("journal", [0, JOURNAL], ids=["lmdb", "journal"])
@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_no_cut_loses_or_revives_mail(shelf: Path, seed: int, journal: int) -> None:
    """An odd seed is closed at the end, an even one left as it was. Runs until there were enough states."""
    judged = 0
    faults: list[str] = []
    for number in range(seed, seed + 200, 2):
        ops = workload(shelf, number, clients=4, rounds=8, journal=journal)
        states_of_run = 0
        for state, ledger in cuts(ops, number, 3, min(WANTED // 4 - judged, 400), journal):
            states_of_run += 1
            faults += [f"cut {state.cut} ({state.how}): {wrong}" for wrong in judge(shelf, state, ledger, journal)]
        judged += states_of_run
        print(f"seed {number}: {states_of_run} states, {len(ops)} operations")
        assert not faults, "\n".join(faults[:20])
        if judged >= WANTED // 4:
            return
    raise AssertionError(f"only {judged} states")


def test_a_recovery_that_is_cut_loses_nothing_either(shelf: Path) -> None:
    """Some cuts of a run; the recovery of each is recorded, and cut at each of its own writes."""
    seed = SEED
    ops = workload(shelf, seed, clients=3, rounds=8, journal=JOURNAL)
    rng = random.Random(seed)
    chosen = [
        (state, ledger)
        for state, ledger in cuts(ops, seed, 0, max(40, WANTED // 40), JOURNAL)
        if len(state.files.get("spool/journal", b"")) == JOURNAL
    ]
    judged = 0
    for state, ledger in rng.sample(chosen, max(4, WANTED // 400)):
        spool = lay_out(shelf, state.files)
        before = {f"spool/{path.name}": path.read_bytes() for path in spool.iterdir()}
        command = [sys.executable, "-m", "tests.crash.recovery", str(spool), str(JOURNAL)]
        again = record.run(command, spool.parent, FILES)
        assert again
        for second in states(again, FILES, rng, 2, 1.0, garbled=GARBLED, before=before):
            faults = judge(shelf, second, ledger, JOURNAL)
            assert not faults, f"cut {state.cut} ({state.how}), then {second.cut} ({second.how}): {faults}"
            judged += 1
    print(f"{judged} states")
    assert judged > 40


@pytest.mark.parametrize(
    ("barrier", "journal"),
    [("fdatasync", 0), ("dsync", 0), ("fdatasync@spool/journal", JOURNAL), ("fdatasync@spool/data.mdb", JOURNAL)],
)
def test_the_check_sees_a_barrier_that_does_nothing(shelf: Path, barrier: str, journal: int) -> None:
    """The negative control: without its barrier the store must be caught losing mail."""
    ops = workload(shelf, 4, clients=2, rounds=12, skip=barrier, journal=journal)
    assert any(judge(shelf, state, ledger, journal, tool=False) for state, ledger in cuts(ops, 4, 3, 400, journal))


def started(relay: Relay, smarthost: Sink, ledger: Ledger) -> list[str]:
    """What the program made of a state, held against what had been said by then: it delivers all of it, and once."""
    before = len(smarthost.received)
    relay.start()
    try:
        relay.wait_empty(60)
        code = relay.stop()
    finally:
        relay._end()
    ids = {digest: id for id, digest in ledger.intended.items()}
    came = [one.content for one in smarthost.received[before:]]
    found = {ids.get(hashlib.sha256(content).hexdigest(), -number): content for number, content in enumerate(came, 1)}
    faults = ledger.faults(found)
    if len(found) != len(came):
        faults.append(f"{len(came) - len(found)} came twice")
    if code != 0:
        faults.append(f"it ended with {code}")
    if "Traceback" in relay.log() or "error:" in relay.log():
        faults.append(relay.log())
    return faults


def test_the_program_delivers_what_a_cut_has_left(shelf: Path) -> None:
    wanted = max(6, WANTED // 50)
    rng = random.Random(SEED)
    judged = delivered = 0
    with sink() as smarthost:
        (shelf / "state").mkdir()
        settings = f'relayhost = "[127.0.0.1]:{smarthost.port}"\njournal_size = "1MiB"\n'
        relay = Relay(shelf / "state", settings)
        for seed in range(SEED, SEED + 200):
            journal = JOURNAL if seed % 4 else 0
            ops = workload(shelf, seed, clients=3, rounds=8, journal=journal)
            for state, ledger in cuts(ops, seed, 1, 120, journal):
                if rng.random() < 0.2 and judged < wanted:
                    lay_out(shelf, state.files)
                    faults = started(relay, smarthost, ledger)
                    assert not faults, f"seed {seed}, cut {state.cut} ({state.how}): " + "\n".join(faults)
                    judged += 1
            delivered, smarthost.received[:] = delivered + len(smarthost.received), []
            if judged == wanted:
                print(f"{judged} states, {delivered} messages delivered")
                assert delivered > wanted
                return
    raise AssertionError(f"only {judged} states")
