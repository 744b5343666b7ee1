"""The Nth write, flush or reservation of the real process fails: it says so to its clients or dies, and loses nothing.

A recorder below libc (recorder.c) makes one operation on the spool's files fail, or that one and all that follow. The
ordinary run takes a few of them; EDGEMAIL_FAIL_ALL=1 (make crash) takes every one that a short run has.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemail.spool.recover import verify
from edgemail.spool.store import open_reader
from tests.crash import record
from tests.crash.traffic import Told, check, deliveries
from tests.scenarios.client import Client
from tests.scenarios.relay import Relay
from tests.scenarios.sink import Sink, sink

FILES = ("new/data.mdb", "spool/data.mdb", "spool/journal", "/spool")
SIZES = (300, 90_000, 4_000)  # of the messages; the second one takes several transactions
ALL = bool(os.environ.get("EDGEMAIL_FAIL_ALL"))
SAMPLE = (
    "write:3:EIO",
    "write:14:ENOSPC",
    "write:12+:EIO",
    "fdatasync:2:EIO",
    "fdatasync:4+:ENOSPC",
    "write:15+:EDQUOT",
)
SECONDS = 3.0  # until what cannot happen any more is not waited for


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record.build(tmp_path_factory.mktemp("recorder"))


class Run:
    """One spool over two lives: the first with a failing medium, the second without."""

    def __init__(self, directory: Path, library: Path, smarthost: Sink) -> None:
        self.directory = directory
        self.smarthost = smarthost
        self.told = Told()
        self.chance = random.Random(7)
        settings = f'relayhost = "[127.0.0.1]:{smarthost.port}"\nin_flow_delay = 0\nnotify_classes = []\n'
        settings += 'minimal_backoff_time = "1s"\nmaximal_backoff_time = "1s"\nqueue_run_delay = "1s"\n'
        self.server = Relay(directory, settings)
        self.log = directory / "record.bin"
        self.library = library

    def begin(self, failure: str) -> bool:
        """Start with a medium that will fail; whether it came up."""
        try:
            self.server.start(
                LD_PRELOAD=str(self.library),
                EDGEMAIL_RECORD=str(self.log),
                EDGEMAIL_RECORD_FILES=":".join(FILES),
                EDGEMAIL_FAIL=failure,
            )
        except AssertionError as error:
            assert "ended before" in str(error), error
            return False
        return True

    def serve(self, *sizes: int) -> list[str]:
        """Send some messages, one connection each; the replies, "" for none."""
        replies = []
        for size in sizes:
            try:
                with Client(self.server.port) as client:
                    client.say("EHLO me")
                    replies.append(self.told.send(client, self.chance, size))
            except OSError:
                replies.append("")
        return replies

    def failed(self) -> bool:
        """Whether the operation that was to fail was ever asked for."""
        return any(op.kind == record.FAILED for op in record.read(self.log))

    def arrived(self) -> bool:
        """Whether the smarthost has all that was acknowledged."""
        return set(self.told.acknowledged.values()) <= {number for number, _ in deliveries(self.smarthost)}

    def settle(self) -> None:
        """Give the deliveries the time that they may need."""
        try:
            self.server.wait_until(self.arrived, "mail", SECONDS)
        except AssertionError:
            pass

    def end(self) -> None:
        """However it ends, it ends; then what it told the world holds."""
        if self.server.process is not None and self.server.process.poll() is None:
            self.server.stop()
        self.server._end()
        spool = self.directory / "spool"
        if (spool / "data.mdb").exists():
            check(spool, self.smarthost, self.told)
        else:
            assert not self.told.acknowledged


@pytest.fixture
def run(tmp_path: Path, library: Path) -> Iterator[Run]:
    with sink() as smarthost:
        found = Run(tmp_path, library, smarthost)
        try:
            yield found
        finally:
            found.server._end()


def survive(run: Run, failure: str) -> None:
    """One failure, and the life after it."""
    if run.begin(failure):
        replies = run.serve(*SIZES)
        run.settle()
        replies += run.serve(200)
        assert not [reply for reply in replies if reply[:1] == "5"], f"{failure}: {replies}"
        if "+" not in failure:
            assert sum(reply.startswith("250") for reply in replies) >= len(replies) - 1, f"{failure}: {replies}"
        print(failure, [reply[:3] for reply in replies], "error:" in run.server.log())
    run.end()
    run.server.start()
    assert run.serve(500)[0].startswith("250"), failure
    run.server.wait_until(run.arrived, f"mail after {failure}")
    run.server.wait_empty()
    assert run.server.stop() == 0
    run.end()
    with open_reader(run.directory / "spool") as reader:
        report = verify(reader)
        assert report.sound, failure
        assert not report.set_aside, failure
    assert "Traceback" not in run.server.log()
    times = Counter(number for number, name in deliveries(run.smarthost) if name.startswith("bob"))
    assert max(times.values()) <= 2, f"{failure}: a message came {max(times.values())} times"


@pytest.mark.parametrize("failure", SAMPLE)
def test_one_failure_of_the_medium(run: Run, failure: str) -> None:
    survive(run, failure)
    assert run.failed(), "the sample asks for an operation that this run does not have"


if ALL:  # by make crash

    @pytest.mark.parametrize("kind", ["write", "fdatasync", "fsync", "allocate"])
    @pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EDQUOT"])
    def test_every_failure_of_a_run(tmp_path: Path, library: Path, kind: str, error: str) -> None:
        """One after the other, until a run no longer has so many of them."""
        for number in range(1, 400):
            with sink() as smarthost:
                directory = tmp_path / str(number)
                directory.mkdir()
                run = Run(directory, library, smarthost)
                try:
                    survive(run, f"{kind}:{number}:{error}")
                finally:
                    run.server._end()
            if not run.failed():
                print(f"{kind} {error}: {number} runs")
                return
