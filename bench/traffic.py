"""Accepting and relaying: rates, CPU and what the medium takes, on a fast and on a slow one; latency when idle."""

from __future__ import annotations

import smtplib
import statistics
import time
from functools import partial

from bench.cases import Case, Figures, Row
from bench.medium import medium
from bench.systems import SECONDS, SENT, SYSTEMS, System
from tests.peers.postfix import smtp_sink, smtp_source
from tests.scenarios.sink import Sink

WARM_UP = 100  # messages before a case that do not count
LATENCIES = 40  # messages, one at a time, of which the median counts
PAUSE = 0.05  # seconds of idleness before each


def traffic(name: str, *, kind: str, size: int, sessions: int, messages: int, slow: bool) -> Figures:
    """`kind`: accept (deliveries held; the 250 counts) or relay (the next hop's 250 counts)."""
    with smtp_sink("-u", "nobody", backlog=200) as hop, medium(slow=slow) as place:
        settings = {"relayhost": f"[127.0.0.1]:{hop}", **({"defer_transports": '["smtp"]'} if kind == "accept" else {})}
        with SYSTEMS[name](place, settings) as system:
            work(system, kind, size, sessions, min(WARM_UP, messages // 2))
            place.settle()
            cpu, written, started = system.cpu(), place.written(), time.monotonic()
            work(system, kind, size, sessions, messages)
            seconds = time.monotonic() - started
            cpu = system.cpu() - cpu
            place.settle()
            written = place.written() - written
            return {
                "rate": messages / seconds,
                "cpu": 1000 * cpu / messages,
                "written": written.bytes / messages / 1024,
                "flushes": written.flushes / messages,
            }


def work(system: System, kind: str, size: int, sessions: int, messages: int) -> None:
    """Send them, and wait until they are where they should be."""
    before = system.logged(SENT)
    sessions = min(sessions, messages)
    done = smtp_source(system.port, messages=messages, sessions=sessions, length=size, seconds=SECONDS)
    assert done.returncode == 0, done.stderr
    if kind == "relay":
        system.wait_for(SENT, before + messages)


def latency(name: str, *, size: int) -> Figures:
    """From the client's connection to the next hop's last octet, one message at a time."""
    content = b"Subject: latency\r\n\r\n" + (b"x" * 998 + b"\r\n") * (size // 1000)
    hop = Sink()
    hop.start()
    try:
        with medium() as place, SYSTEMS[name](place, {"relayhost": f"[127.0.0.1]:{hop.port}"}) as system:
            times = []
            for number in range(1, LATENCIES + 1):
                time.sleep(PAUSE)
                started = time.monotonic()
                with smtplib.SMTP("127.0.0.1", system.port, "client.example.com") as client:
                    client.sendmail("a@example.com", ["b@example.org"], content)
                    while len(hop.received) < number:
                        time.sleep(0.0002)
                    times.append(1000 * (time.monotonic() - started))
            return {"latency": statistics.median(times)}
    finally:
        hop.end()


def _sizes(size: int) -> str:
    return f"{size // 1_000_000} MB" if size >= 1_000_000 else f"{size // 1000} KB"


def _case(
    kind: str, size: int, sessions: int, messages: int, rate: float | None, *more: Row, slow: bool = False
) -> Case:
    name = f"{kind} {_sizes(size)}, {sessions} session{'s' if sessions > 1 else ''}{', slow medium' if slow else ''}"
    rows = (Row(name, "rate", "/s", rate, rate=True),) if rate else ()
    run = partial(traffic, kind=kind, size=size, sessions=sessions, messages=messages, slow=slow)
    return Case(name, run, (*rows, *more))


def _cpu(sessions: int, ratio: float) -> Row:
    return Row(f"CPU of 1,000 relayed, {sessions} session{'s' if sessions > 1 else ''}", "cpu", "s", ratio)


CASES = (
    _case("accept", 1000, 1, 1000, 1.6),
    _case("accept", 1000, 4, 2000, 2.5),
    _case("accept", 1000, 16, 3000, 3.5),
    _case("accept", 1000, 50, 3000, 4.0),
    _case("accept", 10_000, 1, 1000, 1.5),
    _case("accept", 10_000, 50, 3000, 3.0),
    _case("accept", 100_000, 1, 500, 1.5),
    _case("accept", 100_000, 50, 1000, 3.0),
    _case("accept", 1_000_000, 1, 100, 1.5),
    _case("accept", 1_000_000, 50, 200, 2.0),
    _case("accept", 10_000_000, 1, 10, 1.5),
    _case("accept", 10_000_000, 50, 50, 3.0),
    _case("relay", 1000, 1, 1000, 1.8, _cpu(1, 0.45)),
    _case("relay", 1000, 4, 2000, 2.5),
    _case("relay", 1000, 16, 2000, 4.0, _cpu(16, 0.2)),
    _case("relay", 1000, 50, 2000, 5.0, _cpu(50, 0.15)),
    _case("relay", 10_000, 1, 1000, 1.5),
    _case("relay", 10_000, 16, 2000, 2.5),
    _case("relay", 100_000, 1, 300, 1.5),
    _case("relay", 100_000, 16, 500, 2.5),
    _case("relay", 1_000_000, 1, 60, 1.2),
    _case("relay", 10_000_000, 1, 8, 1.2),
    _case("accept", 1000, 1, 200, 2.0, slow=True),
    _case("accept", 1000, 16, 1000, 3.0, slow=True),
    _case("accept", 10_000, 1, 200, 2.0, slow=True),
    _case("accept", 10_000, 16, 800, 3.0, slow=True),
    _case("relay", 1000, 1, 200, 2.0, slow=True),
    _case("relay", 1000, 16, 1000, 3.0, slow=True),
    _case("relay", 10_000, 1, 200, 2.0, slow=True),
    _case("relay", 10_000, 16, 800, 3.0, slow=True),
    *(
        _case(
            "relay",
            4000,
            sessions,
            1000,
            None,
            Row(f"KiB written for a 4 KB message, {word}", "written", "KiB", limit=written),
            Row(f"flushes for a 4 KB message, {word}", "flushes", "", limit=flushes),
        )
        for sessions, word, written, flushes in ((1, "1 session", 9.0, 1.1), (16, "16 sessions", 6.0, 0.25))
    ),
    *(
        Case(
            f"latency {_sizes(size)}",
            partial(latency, size=size),
            (Row(f"latency, {_sizes(size)}", "latency", "ms", 0.65),),
        )
        for size in (1000, 1_000_000)
    ),
)
