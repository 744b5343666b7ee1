"""Memory: idle, with sessions open, at the peak of many large messages. And the time from the start to accepting."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time

from bench.cases import Case, Figures, Row
from bench.medium import medium
from bench.systems import SECONDS, SENT, SYSTEMS, System
from tests.peers.postfix import smtp_sink, smtp_source

SESSIONS = 100
LARGE, AT_ONCE = 10_000_000, 50
SETTLE = 3.0  # seconds until a system that has started is idle


def idle(name: str) -> Figures:
    with medium() as place, SYSTEMS[name](place, {"relayhost": "[127.0.0.1]:9"}) as system:
        time.sleep(SETTLE)
        return system.memory()


def sessions(name: str) -> Figures:
    """As many clients that have said EHLO and wait."""
    settings = {"relayhost": "[127.0.0.1]:9", "smtpd_client_connection_count_limit": "0"}
    with medium() as place, SYSTEMS[name](place, settings) as system, contextlib.ExitStack() as stack:
        for _ in range(SESSIONS):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", system.port)))
            client.recv(1000)
            client.sendall(b"EHLO client.example.com\r\n")
            client.recv(1000)
        time.sleep(1)
        return system.memory()


def peak(name: str) -> Figures:
    """The most it takes while large messages come in over many sessions and go on."""
    with contextlib.ExitStack() as stack:
        hop = stack.enter_context(smtp_sink("-u", "nobody", backlog=200))
        system = stack.enter_context(SYSTEMS[name](stack.enter_context(medium()), {"relayhost": f"[127.0.0.1]:{hop}"}))
        most, ended = system.memory(), threading.Event()
        sampler = threading.Thread(target=_sample, args=(system, most, ended))
        sampler.start()
        try:
            done = smtp_source(system.port, messages=AT_ONCE, sessions=AT_ONCE, length=LARGE, seconds=SECONDS)
            assert done.returncode == 0, done.stderr
            system.wait_for(SENT, AT_ONCE)
        finally:
            ended.set()
            sampler.join()
        return most


def _sample(system: System, most: Figures, ended: threading.Event) -> None:
    while not ended.wait(0.1):
        for name, value in system.memory().items():
            most[name] = max(most[name], value)


def start(name: str) -> Figures:
    """An empty spool that is there, files cached: until it greets, and how much of that Python's imports take."""
    with medium() as place, SYSTEMS[name](place, {"relayhost": "[127.0.0.1]:9"}) as system:
        seconds = statistics.median(_again(system) for _ in range(3))
    return {"start": seconds, "imports": imports()}


def _again(system: System) -> float:
    system.stop()
    return system.start()


def imports() -> float:
    """Seconds for all that serving imports, by -X importtime."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-X", "importtime", "-c", "import edgemail.boot.serve"]
    for _ in range(2):  # compiled by the first
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    own = re.findall(r"(?m)^import time: +(\d+) \|", done.stderr)
    return sum(map(int, own)) / 1e6


def _memory(label: str, limit: float, pss: float | None = None) -> tuple[Row, ...]:
    rows = (Row(f"anonymous memory, {label}", "anonymous", "MiB", limit=limit),)
    return (*rows, Row(f"memory (PSS), {label}", "pss", "MiB", pss)) if pss else rows


CASES = (
    Case("memory idle", idle, _memory("idle", 16.0)),
    Case("memory sessions", sessions, _memory(f"{SESSIONS} sessions", 22.0)),
    Case("memory peak", peak, _memory("50 x 10 MB", 28.0, 0.25)),
    Case(
        "start",
        start,
        (
            Row("start to accepting", "start", "s", limit=0.35),
            Row("of which imports", "imports", "s", limit=0.2),
        ),
        alone=True,
    ),
)
