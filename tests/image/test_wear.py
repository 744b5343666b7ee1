"""What wears the card: the requests that a board makes of it, under load, with mail that waits, and while none comes.

All that the card is asked to write counts, in whole sectors: mail, the file system's own journal, stamps, boot state.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.image.conftest import configuration
from tests.image.cuts import count, entries
from tests.image.machine import Card, Machine
from tests.scenarios.client import Client
from tests.scenarios.sink import Sink, sink

KIB = 1024
MESSAGE_KIB = 8.0  # of one message of 1.5 KB under load: the budget of docs/appliance.md
IDLE_SECONDS = 60.0  # in which nothing comes, and nothing may be written
SESSIONS = 8
EACH = 25  # messages of each session


@dataclass
class Watched:
    """A board whose card is watched."""

    machine: Machine
    log: Path
    smarthost: Sink

    def mark(self) -> int:
        return count(self.log)

    def quiet(self, seconds: float = 15.0, patience: float = 300.0) -> None:
        """Until nothing was written for some time: what waited has moved, the file system has written its own."""
        until = time.monotonic() + patience
        last, since = self.mark(), time.monotonic()
        while time.monotonic() - since < seconds:
            assert time.monotonic() < until, "the card is written to without an end"
            time.sleep(0.5)
            if self.mark() != last:
                last, since = self.mark(), time.monotonic()

    def written(self, first: int) -> float:
        """KiB since a mark."""
        return sum(len(entry.data) for entry in entries(self.log)[first:]) / KIB


def printers(machine: Machine, sessions: int, each: int) -> int:
    """So many sessions at once, each with so many messages of 1.5 KB; how many messages were acknowledged."""
    content = b"Subject: wear\r\n\r\n" + (b"x" * 70 + b"\r\n") * 21
    done: list[int] = []

    def one(client: Client) -> None:
        client.say("EHLO printer.example")
        for number in range(each):
            client.message(content, "user@example.net", sender="scan@example.com")
            done.append(number)

    with contextlib.ExitStack() as stack:
        # One after the other: the emulator's port lets two connections wait, and the kernel here drops the others' SYN.
        clients = [stack.enter_context(Client(machine.port(25))) for _ in range(sessions)]
        threads = [threading.Thread(target=one, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return len(done)


@pytest.fixture(scope="module")
def watched(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One board for the tests of load, on its second start: the first one made its files."""
    directory = tmp_path_factory.mktemp("wear")
    card = Card.flashed(image, directory / "card.img")
    log = directory / "log"
    log.touch()
    with sink() as smarthost:
        card.put("edgemail.toml", configuration(smarthost.port))
        with Machine(card) as machine:
            machine.wait_for("edgemail: ready", 300)
        with Machine(card, log=log) as machine:
            machine.wait_for("edgemail: ready", 300)
            found = Watched(machine, log, smarthost)
            found.quiet()
            yield found


@pytest.mark.parametrize("sessions", [1, SESSIONS])
def test_what_a_message_writes_under_load(watched: Watched, sessions: int) -> None:
    """Acknowledged, passed on, its completion written, and all that follows from it until the card is quiet again."""
    first, before = watched.mark(), len(watched.smarthost.received)
    taken = printers(watched.machine, sessions, EACH * SESSIONS // sessions)
    watched.smarthost.wait_for(before + taken, 120)
    watched.quiet()
    each = watched.written(first) / taken
    print(f"{each:.1f} KiB a message of 1.5 KB, {sessions} sessions, {taken} messages")
    assert taken == EACH * SESSIONS
    assert each <= MESSAGE_KIB


def test_an_idle_minute_writes_nothing(watched: Watched) -> None:
    """The probe of each half hour and the stamp of each hour apart: no log, no status, no access time."""
    watched.quiet(20.0)
    first = watched.mark()
    time.sleep(IDLE_SECONDS)
    assert watched.machine.get("/readyz")[0] == 200
    assert watched.mark() == first


def test_what_a_message_that_waits_writes(watched: Watched) -> None:
    """The same while the smarthost is away: the message moves into the store of record, with why it waits."""
    watched.smarthost.stop()
    try:
        first = watched.mark()
        taken = printers(watched.machine, SESSIONS, EACH)
        watched.quiet()
        each = watched.written(first) / taken
    finally:
        watched.smarthost.start()
    print(f"{each:.1f} KiB a message of 1.5 KB that waits, {SESSIONS} sessions, {taken} messages")
    assert taken == EACH * SESSIONS
    assert each <= MESSAGE_KIB
