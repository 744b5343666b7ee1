"""A link that is thin and far: one connection, few round trips, few octets; and what a cut in the middle of it costs.

The real process through a line that delays and counts. Counts are judged, never the time.
"""

from __future__ import annotations

import asyncio
import re
import smtplib
from pathlib import Path

import pytest

from tests.scenarios.relay import LISTENER, Relay, relay
from tests.scenarios.sink import sink
from tests.scenarios.thin import thin_line
from tests.servers import Authority

CHUNKING = ("PIPELINING", "SIZE 50000000", "8BITMIME", "DSN", "ENHANCEDSTATUSCODES", "CHUNKING")
PIPELINING = CHUNKING[:-1]
MESSAGES = 60
WINDOW = 32  # messages on their way over one connection of a satellite link
DELAY = 0.02  # seconds each way


def settings(port: int, *, tls: bool = False) -> str:
    """Mail waits until somebody flushes it, so that all of it goes at once."""
    return (
        f'relayhost = "[127.0.0.1]:{port}"\nsmtp_links = ["far"]\ndefer_transports = ["smtp"]\n'
        f'smtp_tls_security_level = "{"encrypt" if tls else "none"}"\nsmtpd_client_message_rate_limit = 0\n'
        'minimal_backoff_time = "1s"\nmaximal_backoff_time = "1s"\nqueue_run_delay = "1s"\n'
    )


def link(kind: str = "satellite") -> str:
    return f'\n[[link]]\nname = "far"\nclass = "{kind}"\nroute = "127.0.0.1"\n' + LISTENER


def submit(box: Relay, number: int = MESSAGES, size: int = 1000) -> None:
    """So many messages of `size` octets, each with its number."""
    with smtplib.SMTP("127.0.0.1", box.port, timeout=30) as client:
        for place in range(number):
            head = f"From: a@example.com\r\nTo: b@example.org\r\nSubject: number {place:04}\r\n\r\n".encode()
            body = (b"x" * 70 + b"\r\n") * (size // 72)
            client.sendmail("a@example.com", f"b{place}@example.org", head + body[: size - len(head) - 2] + b"\r\n")


def flush(box: Relay) -> None:
    box.run("edgemail", "queue", "flush", "--no-wait")


def flushed(box: Relay) -> bool:
    """Whether nothing waits; what was deferred meanwhile is tried again."""
    waits = bool(box.waiting())
    if waits:
        flush(box)
    return not waits


def numbers(contents: list[bytes]) -> list[int]:
    return [int(found[1]) for content in contents if (found := re.search(rb"Subject: number (\d+)", content))]


def test_one_connection_few_octets(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir()
    context = Authority(tmp_path / "ca").server("fake.example")
    with sink(keywords=CHUNKING, tls=context) as isp, thin_line(isp.port, delay=DELAY) as line:
        with relay(tmp_path, settings(line.port, tls=True), link()) as box:
            submit(box)
            flush(box)
            isp.wait_for(MESSAGES, 60)
            box.wait_until(lambda: not box.waiting(), "empty queue")
        contents = [one.content for one in isp.received]
        assert sorted(numbers(contents)) == list(range(MESSAGES))
        assert line.connections == 1
        assert line.up.octets / MESSAGES <= 1300, "with TLS, its set-up and the trace header"


def test_a_window_of_messages_is_on_its_way_before_the_first_answer(tmp_path: Path) -> None:
    taken: list[int] = []  # how many messages had come when answers were given

    async def in_batches(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Says nothing until a whole window has come: who waits for an answer before would wait for ever."""
        writer.write(b"220 far ESMTP\r\n")
        await reader.readline()
        writer.write("".join(f"250-{word}\r\n" for word in ("far", *CHUNKING)).encode() + b"250 HELP\r\n")
        pending, bodies = 0, 0
        while line := await reader.readline():
            pending += 1
            if line.startswith(b"BDAT"):
                await reader.readexactly(int(line.split()[1]))
                bodies += 1
                if bodies == min(WINDOW, MESSAGES - sum(taken)):
                    writer.write(b"250 2.0.0 ok\r\n" * pending)
                    taken.append(bodies)
                    pending, bodies = 0, 0
            if line.startswith(b"QUIT"):
                return

    with sink(script=in_batches) as isp, thin_line(isp.port, delay=DELAY) as line:
        with relay(tmp_path, settings(line.port), link()) as box:
            submit(box)
            flush(box)
            box.wait_until(lambda: not box.waiting(), "empty queue", 60)
        assert taken == [WINDOW, MESSAGES - WINDOW]
        assert line.connections == 1
        assert line.turns <= 2 + 2 + 2, "the set-up, two windows, and what an answer between two of them takes"


@pytest.mark.parametrize(("kind", "connections"), [("satellite", 1), ("lte", 4)])
def test_without_chunking_one_round_trip_for_a_message(tmp_path: Path, kind: str, connections: int) -> None:
    with sink(keywords=PIPELINING) as isp, thin_line(isp.port, delay=DELAY) as line:
        with relay(tmp_path, settings(line.port), link(kind)) as box:
            submit(box)
            flush(box)
            isp.wait_for(MESSAGES, 60)
            box.wait_until(lambda: not box.waiting(), "empty queue")
        assert sorted(numbers([one.content for one in isp.received])) == list(range(MESSAGES))
        assert line.most_open <= connections
        assert line.connections <= connections
        # Each message one, and the set-up; two where nobody stood in line just when the dot was written.
        assert line.turns <= 1.3 * MESSAGES + 4 * connections


@pytest.mark.parametrize("keywords", [CHUNKING, PIPELINING], ids=["bdat", "data"])
def test_a_cut_in_the_middle_of_a_window_loses_nothing(tmp_path: Path, keywords: tuple[str, ...]) -> None:
    with sink(keywords=keywords) as isp, thin_line(isp.port, delay=DELAY) as line:
        with relay(tmp_path, settings(line.port), link()) as box:
            submit(box)
            line.cut_after = 25_000
            flush(box)
            box.wait_until(lambda: len({*numbers([one.content for one in isp.received])}) >= MESSAGES - WINDOW, "mail")
            box.wait_until(lambda: flushed(box), "empty queue", 60)
        found = numbers([one.content for one in isp.received])
        assert set(found) == set(range(MESSAGES))
        assert line.connections >= 2
        assert len(found) <= MESSAGES + WINDOW, "twice at most what was on its way"
        assert "status=bounced" not in box.log()
