"""The Nth call of a kind that the real process makes is refused: of sockets, of memory maps, of memory itself.

A library below libc (refuser.c) refuses it, once or from then on. For want of memory the process may die; of a refused
socket it may not. Nothing that was acknowledged is lost, and the next life finds all of it. The ordinary run takes a
few; EDGEMAIL_FAIL_ALL=1 (make crash) takes every call of the sockets, maps and LMDB's memory, and 500 others of memory.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemail.spool.recover import verify
from edgemail.spool.store import open_reader
from tests.crash.test_failing_medium import ALL, SIZES, Run
from tests.crash.traffic import deliveries
from tests.scenarios.sink import sink

SAMPLE = (
    *(
        "accept:1:EMFILE",
        "accept:3:ECONNABORTED",
        "connect:1:ENETUNREACH",
    ),
    *("send:4:ECONNRESET", "recv:5:ETIMEDOUT", "socket:3:EMFILE", "mmap:5:ENOMEM", "lmdb:1:ENOMEM", "lmdb:25:ENOMEM"),
)
DEADLY = ("mmap", "munmap", "lmdb", "alloc")
NETWORK = ("accept", "connect", "send", "recv", "socket")
SEED = int(os.environ.get("EDGEMAIL_CRASH_SEED", "0")) or random.SystemRandom().randrange(1 << 30)


def build(directory: Path) -> Path:
    library = directory / "refuser.so"
    source = Path(__file__).with_name("refuser.c")
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("refuser"))


class Refused(Run):
    """Two lives: in the first, calls are refused."""

    def begin(self, failure: str) -> bool:
        environment = {
            "LD_PRELOAD": str(self.library),
            "EDGEMAIL_REFUSE": failure,
            "EDGEMAIL_REFUSE_COUNT": str(self.log),
        }
        if failure.startswith("alloc"):
            environment["PYTHONMALLOC"] = "malloc"  # every object of Python's, then
        try:
            self.server.start(**environment)
        except AssertionError as error:
            # Where a new thread dies before it says that it lives, CPython waits for it: its supervisor ends that.
            hangs = failure.partition(":")[0] in DEADLY and "ignored in thread started by" in str(error)
            assert hangs or "ended before" in str(error), error
            self.server._end()
            return False
        return True

    def counted(self) -> tuple[int, int]:
        """Calls of the kind, and how many of them were refused."""
        found: tuple[int, int] = struct.unpack("=QQ", self.log.read_bytes())
        return found


@pytest.fixture
def run(tmp_path: Path, library: Path) -> Iterator[Refused]:
    with sink() as smarthost:
        found = Refused(tmp_path, library, smarthost)
        try:
            yield found
        finally:
            found.server._end()


def survive(run: Refused, failure: str) -> None:
    """One refusal, and the life after it."""
    kind = failure.partition(":")[0]
    came = run.begin(failure)
    replies: list[str] = []
    if came:
        replies = run.serve(*SIZES)
        run.settle()
        replies += run.serve(200)
        process = run.server.process
        assert process is not None
        alive = process.poll() is None
        assert alive or kind in DEADLY, f"{failure}: died with {process.returncode}"
        assert not [reply for reply in replies if reply[:1] == "5"], f"{failure}: {replies}"
        if kind in NETWORK and "+" not in failure:
            assert sum(reply.startswith("250") for reply in replies) >= len(replies) - 1, f"{failure}: {replies}"
    print(failure, [reply[:3] for reply in replies], "came up" if came else "did not come up", run.counted())
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
    times = Counter(number for number, name in deliveries(run.smarthost) if name.startswith("bob"))
    assert max(times.values()) <= 2, f"{failure}: a message came {max(times.values())} times"


@pytest.mark.parametrize("failure", SAMPLE)
def test_one_refused_call(run: Refused, failure: str) -> None:
    survive(run, failure)
    assert run.counted()[1], "the sample asks for a call that this run does not make"


if ALL:  # by make crash

    def lived(tmp_path: Path, library: Path, failure: str) -> tuple[int, int]:
        with sink() as smarthost:
            directory = tmp_path / failure.replace(":", "-")
            directory.mkdir()
            run = Refused(directory, library, smarthost)
            try:
                survive(run, failure)
            finally:
                run.server._end()
        return run.counted()

    @pytest.mark.parametrize(
        ("kind", "error"),
        [
            *(("accept", "EMFILE"), ("connect", "ENETUNREACH"), ("send", "EPIPE"), ("recv", "ECONNRESET")),
            *(("socket", "EMFILE"), ("mmap", "ENOMEM"), ("lmdb", "ENOMEM")),
        ],
    )
    def test_every_call_of_a_run(tmp_path: Path, library: Path, kind: str, error: str) -> None:
        """One after the other, until a run no longer makes so many of them."""
        for number in range(1, 400):
            if not lived(tmp_path, library, f"{kind}:{number}:{error}")[1]:
                print(f"{kind} {error}: {number} runs")
                return

    def test_five_hundred_refusals_of_memory(tmp_path: Path, library: Path) -> None:
        """Of all that a run asks for, wherever: in Python, in OpenSSL, in LMDB."""
        print(f"seed {SEED}")
        chance = random.Random(SEED)
        total, _ = lived(tmp_path, library, "alloc:1000000000:ENOMEM")
        for place in sorted(chance.sample(range(1, total), 500)):
            lived(tmp_path, library, f"alloc:{place}:ENOMEM")
