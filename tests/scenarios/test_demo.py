"""The demonstration as a newcomer sees it: what it prints, what it says to do next, and that doing it works."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

COMMAND = [sys.executable, "-m", "edgemail.boot.cli", "demo", "var"]
DEADLINE = 30.0


class Demonstration:
    """One run of `edgemail demo` in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.output = directory / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                COMMAND, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    def text(self) -> str:
        return self.output.read_text()

    def wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()
            time.sleep(0.05)

    def mail(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted((self.directory / "var/Maildir/new").iterdir())]

    def interrupt(self) -> int:
        """Ctrl-C; its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(DEADLINE)


@contextmanager
def demonstration(directory: Path) -> Iterator[Demonstration]:
    run = Demonstration(directory)
    try:
        run.wait(lambda: "Stop it with Ctrl-C." in run.text())
        yield run
    finally:
        if run.process.poll() is None:
            run.process.kill()
        run.process.wait(DEADLINE)


def test_a_message_and_its_way(tmp_path: Path) -> None:
    with demonstration(tmp_path) as run:
        said = run.text()
        way = said[said.index("Its way") : said.index("Send another one")]
        steps = re.findall(r"(?m)^ +([\d.]+)  (\w+) ", way)
        assert [step for _, step in steps[:2]] == ["received", "committed"]
        assert {step for _, step in steps} == {"received", "committed", "relayed", "delivered", "removed"}
        assert [float(at) for at, _ in steps] == sorted(float(at) for at, _ in steps)
        assert re.search(r"committed .* message [0-9A-F]{8,} is on the medium", way)
        assert sorted(re.findall(r"(\w+)/cleanup\[", said)) == ["edgemail", "smarthost"]  # each by its own name
        (mail,) = run.mail()
        assert b"Subject: Hello from edgemail\r\n" in mail or b"Subject: Hello from edgemail\n" in mail
        assert run.interrupt() == 0


def test_what_it_says_to_do_next_works(tmp_path: Path) -> None:
    with demonstration(tmp_path) as run:
        said = run.text()
        commands = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

        def do(line: str) -> str:
            line = line.replace(".venv/bin/", "")
            return subprocess.run(
                line,
                shell=True,
                cwd=tmp_path,
                env=commands,
                check=True,
                capture_output=True,
                text=True,
                timeout=DEADLINE,
            ).stdout

        another = re.search(r"(?m)^ +(printf .* you@demo\.example)$", said)
        assert another
        do(another[1])
        run.wait(lambda: len(run.mail()) == 2)
        run.wait(lambda: "delivered: a message for you@demo.example" in run.text())
        queue = re.search(r"(?m)^ +the queue +(.*)$", said)
        settings = re.search(r"(?m)^ +the settings +(.*)$", said)
        page = re.search(r"(?m)^ +the page +http://127\.0\.0\.1:(\d+)/$", said)
        assert queue and settings and page
        run.wait(lambda: do(queue[1]) == "Mail queue is empty\n")  # its end is durable a moment later
        assert 'myhostname = "relay.demo.example"' in do(settings[1])
        with socket.create_connection(("127.0.0.1", int(page[1])), DEADLINE) as browser:
            browser.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{page[1]}\r\nConnection: close\r\n\r\n".encode())
            assert browser.recv(100).startswith(b"HTTP/1.1 200 ")


def test_ports_that_are_taken_are_passed_over(tmp_path: Path) -> None:
    """Both neighbours taken, relay and smarthost still get a port each."""
    busy = []
    try:
        for port in (2525, 2526):
            listener = socket.socket()
            busy.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue  # by somebody else: as good
            listener.listen()
        with demonstration(tmp_path) as run:
            assert len(run.mail()) == 1
    finally:
        for listener in busy:
            listener.close()


def test_a_second_one_leaves_the_first_alone(tmp_path: Path) -> None:
    with demonstration(tmp_path) as run:
        before = (tmp_path / "var/edgemail.toml").read_text()
        second = subprocess.run(COMMAND, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE)
        assert second.returncode == 69
        assert f"in use by process {run.process.pid}" in second.stderr
        assert (tmp_path / "var/edgemail.toml").read_text() == before
