"""The sending side against servers that answer anything, at any time, over real sockets.

Invariants: one outcome for each recipient and no exception; nobody is delivered unless the server said 250 to the end
of the message; nobody bounces unless the server said a well-formed 5yz; what is sent is lines that end in CRLF and
hold no control, and nothing of the message is sent as a command; log and outcomes are one line each.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.envelope import Outcome
from edgemail.errors import Kind
from edgemail.relay.queue.settle import reason
from edgemail.settings import Settings
from tests.fuzz.seeds import bounded, mutations, names, seeds
from tests.fuzz.test_server import harmless
from tests.servers import FakeServer
from tests.unit.test_deliver import at, rig

CORPUS = seeds("client")
MESSAGE = (
    b"Subject: x\r\n\r\n.\r\nMAIL FROM:<evil@example.com>\r\nRCPT TO:<victim@example.com>\r\nDATA\r\nevil\r\n..\r\n"
)
COMMANDS = re.compile(
    r"(?:EHLO|HELO) gw\.example\.com|MAIL FROM:<a@example\.com>.*|RCPT TO:<[bcd]@example\.net>.*"
    r"|DATA|RSET|QUIT|BDAT \d+( LAST)?"
)
PATIENCE = 0.02  # seconds
TIMEOUTS: dict[str, Any] = {
    name: 0.3 for name in Settings.__dataclass_fields__ if re.fullmatch(r"smtp_.*_timeout", name)
}


@dataclass
class Mouth:
    """Says its octets reply by reply, whatever it hears, and keeps what it hears."""

    octets: bytes
    heard: bytes = b""
    said: bytes = field(default=b"")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One reply at once, and one for each read that brought something: often too many, or too few."""
        lines = self.octets.splitlines(keepends=True)
        while lines:
            while lines:
                line = lines.pop(0)
                self.said += line
                writer.write(line)
                if line[3:4] != b"-":
                    break
            await writer.drain()
            try:
                async with asyncio.timeout(PATIENCE):
                    data = await reader.read(65536)
            except TimeoutError:  # both wait: say the next thing unasked
                continue
            self.heard += data
            if not data:
                return
            for _ in range(data.count(b"\r\nRCPT") + data.count(b"\r\nDATA")):  # pipelined: so are the answers
                if lines:
                    self.said += lines[0]
                    writer.write(lines.pop(0))


def deliver(octets: bytes) -> tuple[tuple[Outcome, ...], Mouth]:
    mouth = Mouth(octets)

    async def scenario() -> tuple[Outcome, ...]:
        async with FakeServer(script=mouth.serve) as server, rig(at(server), hops=None, **TIMEOUTS) as box:
            return await box.send("b@example.net", "c@example.net", "d@example.net", content=MESSAGE)

    return asyncio.run(scenario()), mouth


def commands(heard: bytes) -> list[str]:
    """What a server that knows SMTP takes for commands in what it heard."""
    found = []
    while heard:
        line, end, heard = heard.partition(b"\r\n")
        found.append(line.decode())
        chunk = re.fullmatch(rb"BDAT (\d+)(?: LAST)?", line)
        if chunk is not None:
            heard = heard[int(chunk[1]) :]
        elif line == b"DATA" and end and not re.match(rb"(?:QUIT|RSET|MAIL)\b", heard):
            heard = heard.removeprefix(b".\r\n") if heard.startswith(b".\r\n") else heard.partition(b"\r\n.\r\n")[2]
    return found


def judge(octets: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    outcomes, mouth = deliver(octets)
    assert [one.index for one in outcomes] == [0, 1, 2]
    assert not [record for record in caplog.records if record.exc_info]
    whole = [line for line in mouth.said.splitlines() if re.match(rb"[2-5]\d\d", line)]
    for one in outcomes:
        if one.delivered:
            assert one.remote
            assert sum(line.startswith(b"2") for line in whole) >= 4
        if one.kind is Kind.MESSAGE_PERMANENT and one.remote:
            assert any(line.startswith(b"%d" % one.reply.code) for line in whole)
            assert one.reply.code // 100 == 5
        assert harmless(reason(one))
        assert one.kind is not Kind.LOCAL
    sent = mouth.heard
    assert sent.count(b"\r\n") == sent.count(b"\n") == sent.count(b"\r")
    for line in commands(sent):
        assert COMMANDS.fullmatch(line) or line == "", line
    for record in caplog.records:
        assert harmless(record.getMessage()), record.getMessage()


@pytest.mark.parametrize("seed", CORPUS, ids=names("client"))
def test_corpus(seed: bytes, caplog: pytest.LogCaptureFixture) -> None:
    judge(seed, caplog)


@bounded()
@given(data=mutations(CORPUS) | st.binary(max_size=100))
def test_mutations(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    judge(data, caplog)
