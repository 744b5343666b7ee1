"""Ten thousand messages through the real process, to a smarthost that refuses one attempt in ten: each arrives once."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.scenarios.relay import Relay, relay
from tests.scenarios.sink import Sink
from tests.servers import RESET, Answer

COUNT = 10_000
SESSIONS = 50
MEDIUM, LARGE = 90, 10  # of COUNT: 100 KB to 1 MB, and 5 to 25 MB; all others 1 to 10 KB
REFUSED = 0.1  # of all attempts
SECONDS = 600.0  # until what has not arrived is not waited for
SETTINGS = """\
relayhost = "[127.0.0.1]:{port}"
spool_size = "1GiB"
message_size_limit = "30MiB"
minimal_backoff_time = "1s"
maximal_backoff_time = "3s"
queue_run_delay = "1s"
in_flow_delay = 0
"""
KEYWORDS = ("PIPELINING", "SIZE 50000000", "8BITMIME", "DSN", "ENHANCEDSTATUSCODES")


def size(number: int, chance: random.Random) -> int:
    """Of a message; the large ones stand among the small ones."""
    if number % (COUNT // LARGE) == 17:
        return chance.randint(5_000_000, 25_000_000)
    if number % (COUNT // (MEDIUM + LARGE)) == 17:
        return chance.randint(100_000, 1_000_000)
    return chance.randint(1_000, 10_000)


def message(number: int) -> bytes:
    """The same bytes for the same number: lines of text, some with dots in front, some with octets over 127."""
    chance = random.Random(number)
    text = chance.randbytes(size(number, chance) // 2).hex().encode()
    width = chance.choice((70, 500, 990))
    start = chance.choice((b"", b".", b"..", "ä".encode()))
    lines = [start + text[at : at + width] for at in range(0, len(text), width)]
    head = f"From: alice@example.com\r\nTo: n{number}@example.org\r\nSubject: number {number}\r\n\r\n".encode()
    return head + b"".join(line + b"\r\n" for line in lines)


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


class Capricious:
    """What the smarthost answers: a 4xx now and then at every command, with and without CHUNKING."""

    def __init__(self) -> None:
        self.refusals: Counter[str] = Counter()
        self._chance = random.Random(1)

    def answers(self) -> Mapping[str, Answer]:
        each = REFUSED / 4
        return {
            "EHLO": self._abilities,
            "MAIL": self._sometimes("MAIL", each, b"451 4.3.0 not now\r\n"),
            "RCPT": self._sometimes("RCPT", each, b"450 4.2.1 greylisted\r\n"),
            "DATA": self._sometimes("DATA", each, b"451 4.3.2 later\r\n"),
            ".": self._sometimes(".", each, b"452 4.3.1 no room\r\n"),
            "LAST": self._sometimes("LAST", 2 * each, b"452 4.3.1 no room\r\n"),
            "RSET": self._sometimes("RSET", 0.002, RESET),
        }

    def _sometimes(self, verb: str, share: float, answer: bytes) -> Callable[[str], bytes]:
        def say(line: str) -> bytes:
            if self._chance.random() >= share:
                return b""
            self.refusals[verb] += 1
            return answer

        return say

    def _abilities(self, line: str) -> bytes:
        words = ["fake.example", *KEYWORDS]
        if self._chance.random() < 0.5:
            words.append("CHUNKING")
        return "".join(f"250{' ' if word is words[-1] else '-'}{word}\r\n" for word in words).encode()


class Sender:
    """Fifty clients that send the messages between them; who is refused with 4xx tries again."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.digests: dict[int, bytes] = {}
        self.refusals: Counter[str] = Counter()
        self._numbers = iter(range(COUNT))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(SESSIONS):
                group.create_task(self._session())

    async def _session(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            assert (await _reply(reader)).startswith(b"220")
            writer.write(b"EHLO client.example.com\r\n")
            assert (await _reply(reader)).startswith(b"250")
            for number in self._numbers:
                content = message(number)
                self.digests[number] = digest(content)
                stuffed = (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:]
                while not await self._send(number, len(content), stuffed, reader, writer):
                    await asyncio.sleep(0.2)
            writer.write(b"QUIT\r\n")
            assert (await _reply(reader)).startswith(b"221")
        finally:
            writer.close()

    async def _send(
        self, number: int, length: int, stuffed: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        writer.write(
            f"MAIL FROM:<alice@example.com> SIZE={length} BODY=8BITMIME\r\n"
            f"RCPT TO:<n{number}@example.org>\r\nDATA\r\n".encode()
        )
        replies = [await _reply(reader) for _ in range(3)]
        if replies[2].startswith(b"354"):
            writer.write(stuffed)
            writer.write(b".\r\n")
            await writer.drain()
            replies = [await _reply(reader)]
        if replies[0].startswith(b"250"):
            return True
        assert replies[0].startswith(b"4"), replies
        self.refusals[replies[0].decode().strip()] += 1
        return False


async def _reply(reader: asyncio.StreamReader) -> bytes:
    while (line := await reader.readline())[3:4] == b"-":
        pass
    return line


def arrived(smarthost: Sink) -> tuple[Counter[int], dict[int, bytes]]:
    """How often each number came, and what it was. Notices to the postmaster are not among them."""
    counts: Counter[int] = Counter()
    digests = {}
    for one in list(smarthost.received):
        for line in one.rcpt:
            if found := re.search(r"<n(\d+)@", line):
                counts[int(found[1])] += 1
                digests[int(found[1])] = one.content
    return counts, digests


def wait_for_all(process: Relay, smarthost: Sink, until: float) -> Counter[int]:
    """Until every number is there or the time is over."""
    while len(counts := arrived(smarthost)[0]) < COUNT and time.monotonic() < until:
        assert process.process is not None and process.process.poll() is None, process.log()[-5000:]
        time.sleep(0.5)
    return counts


def test_each_of_ten_thousand_arrives_once_and_whole(tmp_path: Path) -> None:
    moods = Capricious()
    smarthost = Sink(digests=True, answers=moods.answers())
    smarthost.start()
    try:
        with relay(tmp_path, SETTINGS.format(port=smarthost.port)) as found:
            started = time.monotonic()
            sender = Sender(found.port)
            asyncio.run(sender.run())
            taken = time.monotonic()
            counts = wait_for_all(found, smarthost, started + SECONDS)
            done = time.monotonic()
            found.wait_empty()
            assert found.stop() == 0
            log = found.log()
        _, digests = arrived(smarthost)
        tried = log.count("status=deferred")
        print(f"{COUNT} taken in {taken - started:.1f} s, delivered after {done - started:.1f} s")
        print(
            f"{tried} deferrals, refused by the smarthost {dict(moods.refusals)}, by the relay {dict(sender.refusals)}"
        )
        assert len(counts) == COUNT
        assert [number for number, times in counts.items() if times != 1] == []
        assert digests == sender.digests
        assert tried > COUNT * REFUSED / 2
        assert log.count("status=sent") >= COUNT
        assert "status=bounced" not in log
        assert "traceback" not in log.lower() and "error:" not in log
    finally:
        smarthost.end()
