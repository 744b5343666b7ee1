"""What a message costs on its way in, in counts that no machine changes: callbacks, writes, tasks, timers, calls.

The client is a thread with a blocking socket, so that all that the loop does is the server's. The bounds leave a tenth
or so to what was found when they were written.
"""

from __future__ import annotations

import asyncio
import io
import logging
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import edgemail
from edgemail.boot import log
from tests.receiving import Box, serving

OURS = str(Path(edgemail.__file__).parent)
CONTENT = b"From: <me@example.org>\r\nSubject: x\r\n\r\n" + b"hello, and more of it\r\n" * 40
TRANSACTION = (b"MAIL FROM:<me@example.org>\r\n", b"RCPT TO:<you@example.net>\r\n", b"DATA\r\n", CONTENT + b".\r\n")
MESSAGES = 50

# A message on a connection that is there: four commands or contents, each with one answer. Callbacks: four reads, the
# steps of the task and of the spool in memory, and what the client's thread takes to be waited for.
CALLBACKS = 13
CALLS = 350
# A connection with one message on it, EHLO and QUIT.
CONNECTION_CALLBACKS = 22
CONNECTION_CALLS = 540


class Counts:
    """What the loop's thread did, while `counting`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: Counter[str] = Counter()
        self.counting = False
        for owner, name, what in (
            (asyncio.Handle, "_run", "callbacks"),
            (asyncio.base_events.BaseEventLoop, "create_task", "tasks"),
            (asyncio.base_events.BaseEventLoop, "call_at", "timers"),
            (asyncio.selector_events._SelectorSocketTransport, "write", "writes"),  # type: ignore[attr-defined]
        ):
            self._count(monkeypatch, owner, name, what)

    def _count(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, what: str) -> None:
        real = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            self.found[what] += self.counting
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)

    def call(self, frame: FrameType, event: str, argument: object) -> None:
        """For sys.setprofile: calls of functions of ours."""
        if event == "call" and self.counting and frame.f_code.co_filename.startswith(OURS):
            self.found["calls"] += 1


def said(client: socket.socket, *pieces: bytes) -> None:
    """Say each piece and wait for its answer."""
    for piece in pieces:
        client.sendall(piece)
        assert client.recv(4096)[:1] in (b"2", b"3")


def measured(monkeypatch: pytest.MonkeyPatch, *, apart: bool, pieces: tuple[bytes, ...] = TRANSACTION) -> Counter[str]:
    """The counts for MESSAGES messages: on one connection, or each on its own (`apart`)."""
    counts = Counts(monkeypatch)

    def connected(port: int) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", port), timeout=20)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert client.recv(4096).startswith(b"220 ")
        said(client, b"EHLO client.example.org\r\n")
        return client

    def whole(port: int) -> None:
        with connected(port) as client:
            said(client, *pieces, b"QUIT\r\n")
            assert client.recv(1) == b""

    async def scenario(box: Box) -> None:
        loop = asyncio.get_running_loop()
        if apart:
            await loop.run_in_executor(None, whole, box.port)  # what is made once is made
            await box.until(lambda: box.server.sessions == 0)
            counts.counting = True
            for _ in range(MESSAGES):
                await loop.run_in_executor(None, whole, box.port)
        else:
            client = await loop.run_in_executor(None, connected, box.port)
            with client:
                await loop.run_in_executor(None, said, client, *pieces)
                counts.counting = True
                for _ in range(MESSAGES):
                    await loop.run_in_executor(None, said, client, *pieces)
                counts.counting = False
        counts.counting = False
        assert len(box.accepted) == MESSAGES + 1

    async def served() -> None:
        async with serving(reception=lambda given: replace(given, flush=None)) as box:
            sys.setprofile(counts.call)
            try:
                await scenario(box)
            finally:
                sys.setprofile(None)

    asyncio.run(served())
    return counts.found


@pytest.fixture(autouse=True)
def lines() -> Iterator[io.StringIO]:
    """The log as the daemon writes it."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()
    log.start(stream=stream)
    root.handlers[:] = [each for each in root.handlers if isinstance(each, log.Handler)]
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


def test_a_message_on_a_connection_that_is_there(monkeypatch: pytest.MonkeyPatch, lines: io.StringIO) -> None:
    found = measured(monkeypatch, apart=False)
    print(dict(found))
    assert found["callbacks"] / MESSAGES <= CALLBACKS
    assert found["calls"] / MESSAGES <= CALLS
    assert found["writes"] == 4 * MESSAGES
    assert found["tasks"] == 0
    assert found["timers"] <= 2  # it is the session's
    assert lines.getvalue().count("client=") == MESSAGES + 1


def test_a_connection_for_each_message(monkeypatch: pytest.MonkeyPatch, lines: io.StringIO) -> None:
    found = measured(monkeypatch, apart=True)
    print(dict(found))
    assert found["callbacks"] / MESSAGES <= CONNECTION_CALLBACKS
    assert found["calls"] / MESSAGES <= CONNECTION_CALLS
    assert found["writes"] == 7 * MESSAGES
    assert found["tasks"] == MESSAGES
    assert found["timers"] <= MESSAGES
    assert len(lines.getvalue().splitlines()) == 4 * (MESSAGES + 1)


def test_what_is_pipelined_is_answered_by_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, apart=False, pieces=(b"".join(TRANSACTION[:3]), TRANSACTION[3]))
    assert found["writes"] == 2 * MESSAGES
