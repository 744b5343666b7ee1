"""kill -9 in mid-write, again and again: what was acknowledged is there, byte for byte, and nothing comes back.

A child takes, rewrites and finishes mail as fast as it can and tells each step on a pipe: before it, and after it was
acknowledged. It is killed at a step chosen at random. Then the spool is opened and compared with what was told.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from edgemail.clock import SystemClock
from edgemail.spool.store import Store, open_store
from edgemail.spool.verbs import Change
from tests.spools import body_of, run

ROUNDS = 20
SIZE = 256 << 20
CHILD = """
import asyncio, os, random, sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from edgemail.clock import SystemClock
from edgemail.envelope import Address, Envelope, Recipient
from edgemail.spool.store import open_store
from edgemail.spool.verbs import Change

MAIL = Envelope(0, Address("a", "example.com"), (Recipient(Address("b", "example.net")),))
journal = int(sys.argv[3]) % 2 << 20  # every other life has one
store = open_store(Path(sys.argv[1]), int(sys.argv[2]), SystemClock(), 0, journal)
chance = random.Random(int(sys.argv[3]))

def tell(*words):
    os.write(1, " ".join(map(str, words)).encode() + b"\\n")

async def take(also=None):
    intake = store.intake()
    tell("begun", intake.id)
    body = os.urandom(chance.choice((0, 100, 4096, 4096, 4096, 4096, 70_000, 400_000, 1_400_000)))
    for at in range(0, len(body), 16384):
        intake.write(body[at : at + 16384])
        await intake.drain()
    if chance.random() < 0.05:
        await intake.abort()
        tell("aborted", intake.id)
        return None
    kept = await intake.commit(MAIL, also)
    tell("kept", kept.id, sha256(body).hexdigest())
    return kept

async def live():
    while True:
        kept = await take()
        if kept is None:
            continue
        what = chance.random()
        if what < 0.3:
            tell("rewriting", kept.id)
            await store.apply(Change(update=(replace(kept, attempts=1),)), lazy=chance.random() < 0.5)
            tell("rewritten", kept.id)
        elif what < 0.6:
            tell("finishing", kept.id)
            await store.apply(Change(remove=(kept.id,)), lazy=chance.random() < 0.5)
            tell("finished", kept.id)
        elif what < 0.8:
            tell("finishing", kept.id)
            if await take(Change(remove=(kept.id,))) is not None:
                tell("finished", kept.id)

async def main():
    await asyncio.gather(*(live() for _ in range(12)))

asyncio.run(main())
"""


@dataclass
class Ledger:
    """What the children told, over all rounds."""

    begun: list[int] = field(default_factory=list)
    kept: dict[int, str] = field(default_factory=dict)
    rewriting: set[int] = field(default_factory=set)
    rewritten: set[int] = field(default_factory=set)
    finishing: set[int] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)
    aborted: set[int] = field(default_factory=set)
    half_done: int = 0  # messages whose chunks the recovery dropped
    replayed: int = 0  # messages that stood in the journal

    def note(self, line: bytes) -> None:
        match line.decode().split():
            case ["begun", mail]:
                self.begun.append(int(mail))
            case ["kept", mail, digest]:
                self.kept[int(mail)] = digest
            case [what, mail]:
                getattr(self, what).add(int(mail))

    def compare(self, store: Store) -> int:
        found = {envelope.id: envelope for envelope in store.envelopes()}
        assert not list(store.damaged())
        for mail, digest in self.kept.items():
            if mail in found:
                assert hashlib.sha256(body_of(store, mail)).hexdigest() == digest
            else:
                assert mail in self.finishing, f"{mail:08X} was acknowledged and is lost"
        assert not found.keys() & (self.finished | self.aborted)
        assert all(found[mail].attempts == 1 for mail in self.rewritten & found.keys())
        for mail in found.keys() - self.kept.keys():  # on the medium, and the child died before it could say so
            assert mail in self.begun
            assert len(body_of(store, mail)) == found[mail].size
        assert len(set(self.begun)) == len(self.begun), "an id was given twice"
        return len(found)


def one_life(directory: Path, ledger: Ledger, seed: int) -> None:
    steps = random.Random(seed).randrange(50, 1500)
    command = [sys.executable, "-c", CHILD, str(directory), str(SIZE), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(steps):
            ledger.note(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        for line in child.stdout:
            if line.endswith(b"\n"):
                ledger.note(line)
    assert child.returncode == -signal.SIGKILL


async def aftermath(directory: Path, ledger: Ledger) -> None:
    """Compare; then finish two thirds, so that pages are used again."""
    store = open_store(directory, SIZE, SystemClock(), 0)
    assert store.recovered is not None
    assert store.recovered.messages == ledger.compare(store)
    gone = [e.id for e in store.envelopes()][::3] + [e.id for e in store.envelopes()][1::3]
    await store.apply(Change(remove=tuple(gone)))
    ledger.finishing.update(gone)
    ledger.finished.update(gone)
    intake = store.intake()  # this process takes its ids from the same row
    ledger.begun.append(intake.id)
    await intake.abort()
    ledger.half_done += store.recovered.dropped
    ledger.replayed += store.recovered.replayed
    assert not store.recovered.lost
    await store.close()


def test_twenty_lives(tmp_path: Path) -> None:
    ledger = Ledger()
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    for round in range(ROUNDS):
        one_life(tmp_path, ledger, seed + round)
        run(aftermath(tmp_path, ledger))
    assert len(ledger.kept) > 1000
    print(f"{ledger.half_done} half done, {ledger.replayed} replayed")
    assert ledger.half_done > 0 and ledger.replayed > 0  # otherwise the kills were too tame to mean anything
