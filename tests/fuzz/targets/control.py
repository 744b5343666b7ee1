"""The control socket's verbs over a spool in memory, asked for by any octets, content included.

Invariants: what is answered are lines of JSON, the last one done; no verb fails by an exception of its own; what is
submitted is whole, has CRLF for line ends and one trace header, or is not there; a stranger changes nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
from pathlib import Path
from typing import Any, Final

from edgemail.boot.control import ControlServer
from edgemail.boot.frames import MAX_REQUEST
from edgemail.boot.standing import StandingQueue
from edgemail.boot.verbs import Desk
from edgemail.clock import ManualClock
from edgemail.envelope import Address, Envelope, Recipient
from edgemail.settings import Configuration, Settings
from edgemail.spool.memory import MemorySpool
from tests.fuzz.targets.streams import exchange

WORDS: Final = (
    *(
        b'{"verb":"status"}\n',
        b'{"verb":"queue.list"',
        b'{"verb":"submit","sender":"a@b.example","recipients":["c@d.example"]',
    ),
    *(
        b'"verb":"queue.why"',
        b'"verb":"queue.hold"',
        b'"verb":"queue.cat"',
        b'"verb":"shape"',
        b'"verb":"queue.requeue"',
    ),
    *(
        b'"all":true',
        b'"ids":["',
        b'"domain":"',
        b'"reason":"',
        b'"octets":',
        b'{"octets":5}\nabcde',
        b'{"octets":0}\n',
    ),
    *(
        b"}\n",
        b'","',
        b"null",
        b"[]",
        b"{}",
        b"1e400",
        b"NaN",
        b'"\\ud800"',
        b"-1",
        b"true",
        b"\xff",
        b"[" * 500,
        b"\r",
        b"\n",
    ),
)
SETTINGS: Final = Settings(myhostname="gw.example.com", myorigin="gw.example.com")
CONFIGURATION: Final = Configuration("/nowhere/edgemail.toml", SETTINGS, ())
LOOP: Final = asyncio.new_event_loop()


class Credentials:
    """A socket that says who is at its other end."""

    def __init__(self, uid: int) -> None:
        self._uid = uid

    def getsockopt(self, level: int, name: int, size: int) -> bytes:
        assert (level, name) == (socket.SOL_SOCKET, socket.SO_PEERCRED)
        return struct.pack("3i", 1, self._uid, self._uid)


class Ear(logging.Handler):
    """Whether a verb failed by an exception of its own."""

    failed = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            Ear.failed = record.getMessage()


logging.getLogger("edgemail.control").addHandler(Ear())


async def _reload() -> None:
    """Nothing to read."""


def lines(answer: bytes) -> list[Any]:
    """The answer's JSON lines; frames of content are passed over."""
    found: list[Any] = []
    while answer:
        line, end, answer = answer.partition(b"\n")
        assert end, line
        said = json.loads(line)
        found.append(said)
        if isinstance(said, dict) and "octets" in said:
            answer = answer[said["octets"] :]
    return found


async def _scenario(data: bytes, uid: int) -> None:
    clock = ManualClock()
    spool = MemorySpool(clock)
    desk = Desk(
        spool,
        StandingQueue(spool, clock, CONFIGURATION),
        clock,
        lambda: CONFIGURATION,
        reload=_reload,
        refusal=lambda size: None,
    )
    intake = spool.intake()
    intake.write(b"Received: x\r\n\r\n")
    recipients = (Recipient(Address("b", "example.org")),)
    kept = await intake.commit(Envelope(intake.id, Address("a", "example.com"), recipients, received_at=clock.wall()))
    server = ControlServer(Path("/nowhere/control"), desk.verbs)
    answer, _ = await exchange(server._connected, data, MAX_REQUEST, socket=Credentials(uid))
    said = lines(answer)
    assert not said or (isinstance(said[-1], dict) and said[-1].get("done")), said
    there = list(spool.envelopes())
    for envelope in there:
        body = b"".join(spool.body(envelope.id))
        assert body.startswith(b"Received: ")
        assert body.endswith(b"\r\n")
        assert body.count(b"\r\n") == body.count(b"\r") == body.count(b"\n")
        assert len(body) == envelope.size
        assert envelope.recipients
    if uid != os.geteuid():
        assert kept in there
    await spool.close()


def judge(data: bytes) -> None:
    for uid in (os.geteuid(), 65_534):
        Ear.failed = ""
        LOOP.run_until_complete(_scenario(data, uid))
        assert not Ear.failed, Ear.failed
