"""The power goes while mail flows: whatever a cut leaves on the card, every acknowledged message is on it.

The card is QEMU's, each of its writes and flushes is logged, and this machine builds the cards that cuts can leave,
mounts their data partition and opens the spool as the relay does. A thousand cuts; `make image-crash` takes 100,000.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgemail.boot import card as cards
from edgemail.clock import SystemClock
from edgemail.spool.store import open_store
from image.card import CARD_SIZE
from tests.image.conftest import configuration
from tests.image.cuts import Entry, Medium, count, cuts, entries
from tests.image.machine import Card, Machine
from tests.scenarios.client import Client

WANTED = int(os.environ.get("EDGEMAIL_IMAGE_CUTS", "1000"))
SEED = int(os.environ.get("EDGEMAIL_CRASH_SEED", "7"))
DATA = 80 << 20  # bytes of the data partition: copied for every cut
MESSAGES = 40
SPOOL = 64 << 20  # the map of the spool, when it is opened here

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting what a cut left needs root")


@dataclass
class Run:
    """What was asked of the card, and after how many requests each message had its 250."""

    log: list[Entry]
    before: bytes
    start: int
    told: list[tuple[int, bytes]]  # requests, a line that is in the message and in no other


@pytest.fixture(scope="module")
def run(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Mail that cannot leave, sent to a board whose card is watched; then the power goes."""
    directory = tmp_path_factory.mktemp("power")
    card = Card.flashed(image, directory / "card.img", CARD_SIZE + DATA)
    card.put("edgemail.toml", configuration(9, more='message_size_limit = "1MiB"'))
    with Machine(card) as machine:
        machine.wait_ready(240)
    partition = cards.partitions(card.read(0, 512))[4]
    start = partition.start * 512
    before = card.read(start, partition.sectors * 512)
    log = directory / "log"
    log.touch()
    told = []
    with Machine(card, log=log) as machine:
        machine.wait_ready(240)
        for number in range(MESSAGES):
            with Client(machine.port(25)) as client:
                client.say("EHLO scanner.example")
                for turn in range(2):
                    mark = f"message {number}.{turn} of {SEED}".encode()
                    size = 300 if (number + turn) % 7 else 90_000
                    body = (mark + b"\r\n") * (size // (len(mark) + 2))
                    client.message(b"Subject: cut\r\n\r\n" + body, sender="scan@example.com")
                    told.append((count(log), mark))
    requests = entries(log)
    whole = Medium(before, start)
    for entry in requests:
        whole.take(entry)
    whole.settle()
    assert bytes(whole.sure) == card.read(start, len(before)), "the log is not what was written"
    return Run(requests, before, start, told)


@pytest.fixture
def place() -> Iterator[Path]:
    """Where a data partition is mounted: in memory, for thousands of them."""
    path = Path(f"/dev/shm/edgemail-cut-{os.getpid()}")
    (path / "data").mkdir(parents=True)
    (path / "medium").touch()
    os.truncate(path / "medium", DATA)
    yield path
    subprocess.run(["umount", "-q", path / "data"], check=False)
    for each in (path / "medium", path / "data"):
        each.unlink() if each.is_file() else each.rmdir()
    path.rmdir()


async def contents(directory: Path) -> list[bytes]:
    store = open_store(directory, SPOOL, SystemClock(), 0)
    try:
        damaged = [str(each) for each in store.damaged()]
        assert not damaged, damaged
        return [b"".join(store.body(envelope.id)) for envelope in store.envelopes()]
    finally:
        await store.close()


def judge(place: Path, image: bytearray, told: list[bytes]) -> str:
    """What is wrong with a card that a cut left, or ""."""
    with (place / "medium").open("r+b") as file:
        file.write(image)
    mounted = subprocess.run(
        ["mount", "-t", "ext4", "-o", "loop,noatime", place / "medium", place / "data"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        return f"the data partition cannot be mounted: {mounted.stderr.strip()}"
    try:
        found = asyncio.run(contents(place / "data/spool"))
    except Exception as error:
        return f"the spool does not open: {error!r}"
    finally:
        subprocess.run(["umount", place / "data"], check=True)
    lost = [mark.decode() for mark in told if not any(mark in body for body in found)]
    return f"lost: {', '.join(lost)}" if lost else ""


@needs_root
def test_no_cut_loses_what_was_acknowledged(run: Run, place: Path) -> None:
    print(f"seed {SEED}; {len(run.log)} requests, {len(run.told)} messages")
    chance = random.Random(SEED)
    tried, faults = 0, []
    for cut in cuts(run.log, Medium(run.before, run.start), chance, WANTED, run.told[0][0]):
        told = [mark for after, mark in run.told if after <= cut.after]
        if wrong := judge(place, cut.image, told):
            faults.append(f"after {cut.after} ({cut.how}): {wrong}")
        tried += 1
    print(f"{tried} cuts")
    assert tried >= min(WANTED * 0.7, len(run.log))  # what was written bounds in how many ways it can be cut
    assert not faults, "\n".join(faults[:20])


@needs_root
def test_a_card_that_does_not_flush_is_caught(run: Run, place: Path) -> None:
    """The negative control: on a card that lies about flushes the same check finds lost mail."""
    chance = random.Random(SEED)
    for cut in cuts(run.log, Medium(run.before, run.start, lies=True), chance, 60, run.told[-1][0]):
        if cut.how == "torn" and judge(place, cut.image, [mark for after, mark in run.told if after <= cut.after]):
            return
    pytest.fail("lost mail was not noticed")
