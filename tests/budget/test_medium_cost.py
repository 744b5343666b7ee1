"""What a message of 4 KB costs the medium, in and out of the real process: bytes written and barriers, counted.

Counts and not times: they hold on any machine. Below libc (tests/crash/recorder.c), so what a file system adds of its
own is not in them. Figures are printed (-rP).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash import record
from tests.scenarios.client import Client
from tests.scenarios.relay import Relay
from tests.scenarios.sink import sink

FILES = ("spool/data.mdb", "spool/journal")
BODY = b"Subject: a reading\r\n\r\n" + (b"0123456789" * 7 + b"\r\n") * 56  # 4 KB
MESSAGES = 192


@dataclass(frozen=True)
class Cost:
    """Per message."""

    kib: float
    barriers: float

    @classmethod
    def of(cls, ops: Sequence[record.Op], messages: int) -> Cost:
        size = sum(len(op.data) for op in ops if op.kind == record.WRITE)
        barriers = sum(op.kind == record.SYNC or (op.kind == record.WRITE and op.dsync) for op in ops)
        return cls(size / 1024 / messages, barriers / messages)


def send(port: int, count: int, together: threading.Barrier) -> None:
    """So many messages over one connection. Each ends when those of the other sessions do, however slow the machine."""
    with Client(port) as client:
        client.say("EHLO me")
        for _ in range(count):
            client.say("MAIL FROM:<a@example.com>")
            client.say("RCPT TO:<b@example.org>")
            client.say("DATA")
            client.send(BODY)
            together.wait(30)
            client.send(b".\r\n")
            assert client.reply().startswith("250")


def cost(directory: Path, sessions: int, journal: str) -> Cost:
    with sink() as smarthost:
        settings = f'relayhost = "[127.0.0.1]:{smarthost.port}"\nin_flow_delay = 0\njournal_size = {journal}\n'
        server = Relay(directory, settings)
        log = directory / "record.bin"
        library = record.build(directory)
        try:
            server.start(LD_PRELOAD=str(library), EDGEMAIL_RECORD=str(log), EDGEMAIL_RECORD_FILES=":".join(FILES))
            send(server.port, 1, threading.Barrier(1))
            server.wait_empty()
            before = sum(1 for _ in record.read(log))
            share = MESSAGES // sessions
            together = threading.Barrier(sessions)
            senders = [threading.Thread(target=send, args=(server.port, share, together)) for _ in range(sessions)]
            for sender in senders:
                sender.start()
            for sender in senders:
                sender.join(60)
            server.wait_until(lambda: len(smarthost.received) == share * sessions + 1, "mail")
            server.wait_empty()
            return Cost.of(list(record.read(log))[before:], share * sessions)
        finally:
            server.stop()


@pytest.mark.parametrize(("sessions", "kib", "barriers"), [(1, 9.0, 1.1), (16, 8.5, 1.0)])
def test_a_message_in_and_out(tmp_path: Path, sessions: int, kib: float, barriers: float) -> None:
    """How many of sixteen sessions share a barrier is the machine's to say: one that has nothing else to do needs 4.8
    KiB and 0.12 to 0.26 barriers, a busy one wakes them one by one.
    """
    found = cost(tmp_path, sessions, '"16MiB"')
    print(f"{sessions} sessions: {found.kib:.1f} KiB and {found.barriers:.2f} barriers per message")
    assert found.kib <= kib
    assert found.barriers <= barriers


def test_what_it_costs_without_the_journal(tmp_path: Path) -> None:
    """The control: LMDB alone needs more of both, or nothing is counted here."""
    found = cost(tmp_path, 1, "0")
    print(f"1 session, no journal: {found.kib:.1f} KiB and {found.barriers:.2f} barriers per message")
    assert found.kib > 15
    assert found.barriers >= 2
