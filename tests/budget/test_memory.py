"""What the real process takes: idle, with sessions open, and what it has imported by then. Figures are printed (-rP).

Anonymous memory is what counts: the spool's map is the page cache's, which the kernel takes back when it likes. It is
measured with compiled modules, as an installed package has them.
"""

from __future__ import annotations

import re
import smtplib
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.scenarios.relay import Relay
from tests.scenarios.sink import Sink, sink

SESSIONS = 64
UNDER_TLS = 16
# MiB. The goals are 16, and 30 resident; 15.9 and 27.6 were measured. A little more is allowed to another machine.
IDLE = 16.7
RESIDENT = 30.0
OPEN_SESSIONS = 24.0
PLAIN_KIB, TLS_KIB = 24.0, 64.0  # for each session, the last dozen of them

NEVER = {
    "argparse",
    "cryptography",
    "dns",
    "difflib",
    "email.message",
    "email.parser",
    "lzma",
    "multiprocessing",
    "psutil",
}


def megabytes(process: Relay, field: str) -> float:
    """A field of /proc/PID/status, MiB."""
    assert process.process is not None
    text = Path(f"/proc/{process.process.pid}/status").read_text()
    found = re.search(rf"(?m)^{field}:\s+(\d+) kB$", text)
    assert found, text
    return int(found[1]) / 1024


def imported(process: Relay) -> set[str]:
    """Every module that the process has imported, by its own account (-X importtime)."""
    return set(re.findall(r"(?m)^import time: +\d+ \| +\d+ \| +(\S+)$", process.log()))


@pytest.fixture(scope="module")
def smarthost() -> Iterator[Sink]:
    with sink() as found:
        yield found


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory, smarthost: Sink) -> Iterator[Relay]:
    """A relay that has its certificate and its compiled modules from an earlier start."""
    directory = tmp_path_factory.mktemp("memory")
    found = Relay(directory, f'relayhost = "[127.0.0.1]:{smarthost.port}"\n')
    environment = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(directory / "compiled")}
    try:
        found.start(**environment)
        assert found.stop() == 0
        found.start(**environment, PYTHONPROFILEIMPORTTIME="1")
        yield found
    finally:
        found._end()


def test_idle(process: Relay) -> None:
    process.wait_for("queue: 0 messages")
    anonymous, resident = megabytes(process, "RssAnon"), megabytes(process, "VmRSS")
    print(f"idle: {anonymous:.1f} MiB anonymous, {resident:.1f} MiB resident")
    assert anonymous < IDLE
    assert resident < RESIDENT


def test_sessions_that_are_open(process: Relay) -> None:
    """In the midst of a message each, 16 of them under TLS."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    before = megabytes(process, "RssAnon")
    levels = [before]
    with ExitStack() as stack:
        for number in range(SESSIONS):
            client = smtplib.SMTP("127.0.0.1", process.port, "client.example.com", timeout=30)
            stack.callback(client.close)
            if number < UNDER_TLS:
                client.starttls(context=context)
            client.ehlo()
            assert client.mail("alice@example.com")[0] == 250
            assert client.rcpt("bob@example.org")[0] == 250
            assert client.docmd("DATA")[0] == 354
            client.send(b"Subject: unfinished\r\n\r\n" + b"text of a message\r\n" * 20)
            levels.append(megabytes(process, "RssAnon"))
        full = megabytes(process, "RssAnon")
    tls = 1024 * (levels[UNDER_TLS] - levels[4]) / (UNDER_TLS - 4)
    plain = 1024 * (levels[SESSIONS] - levels[UNDER_TLS]) / (SESSIONS - UNDER_TLS)
    print(f"{SESSIONS} sessions, {UNDER_TLS} under TLS: {full:.1f} MiB anonymous, {full - before:.1f} more than idle")
    print(f"each: {plain:.0f} KiB in clear, {tls:.0f} KiB under TLS")
    assert full < OPEN_SESSIONS
    assert plain < PLAIN_KIB
    assert tls < TLS_KIB


def test_a_message_through_a_smarthost_imports_nothing_large(process: Relay, smarthost: Sink) -> None:
    process.send()
    smarthost.wait_for(1)
    process.wait_empty()
    names = imported(process)
    assert {"edgemail.boot.serve", "asyncio", "lmdb"} <= names  # it does say what it imports
    assert not {name for name in names if name in NEVER or name.partition(".")[0] in NEVER}


def test_mail_that_is_gone_leaves_no_memory_behind(process: Relay) -> None:
    """The second thousand of messages takes nothing that the first has not taken."""

    def some(count: int) -> float:
        with smtplib.SMTP("127.0.0.1", process.port, "client.example.com", timeout=30) as client:
            for number in range(count):
                client.sendmail(
                    "alice@example.com", f"bob{number % 7}@example.org", b"Subject: x\r\n\r\n" + b"y" * 3000
                )
        process.wait_empty(60)
        return megabytes(process, "RssAnon")

    first, second = some(700), some(700)
    print(f"after 700 messages: {first:.1f} MiB anonymous; after 1400: {second:.1f}")
    assert second - first < 1.0
