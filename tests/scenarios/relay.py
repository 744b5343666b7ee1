"""The real process for scenarios: `edgemail run` on free ports with a spool of its own, and the commands beside it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import smtplib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemail.boot.client import Office

MESSAGE = b"From: alice@example.com\r\nTo: bob@example.org\r\nSubject: a test\r\n\r\nhello\r\n"
START_SECONDS = 30.0
STOP_SECONDS = 25.0

HEAD = """\
myhostname = "gw.example.com"
queue_directory = "{directory}/spool"
spool_size = "64MiB"
mail_owner = "{owner}"
admin_address = "admin@example.com"
smtp_tls_security_level = "none"
"""
LISTENER = """
[[listener]]
name = "lan"
address = "127.0.0.1"
port = 0
"""


_LENT: dict[str, dict[str, bytes]] = {}  # certificates that relays made for themselves, by their names


class Relay:
    """One relay: `start` it, talk to `port`, `stop` it; take it from `relay()`.

    `settings` are lines of TOML for the top of the file; `listeners` replaces the one listener there is.
    """

    def __init__(self, directory: Path, settings: str = "", listeners: str = LISTENER) -> None:
        self.directory = directory
        self.path = directory / "edgemail.toml"
        self.log_path = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.prefix: tuple[str, ...] = ()  # a command that runs the process, and becomes it
        self._log_from = 0  # where the log of this start begins
        self.program = ["-m", "edgemail.boot.cli"]  # what Python is to run at the next start
        self.configure(settings, listeners)

    def configure(self, settings: str = "", listeners: str = LISTENER) -> None:
        """Write the configuration; a running relay reads it at `reload`."""
        owner = "root" if os.geteuid() == 0 else "edgemail"
        head = HEAD.format(directory=self.directory, owner=owner)
        given = {match[1] for match in re.finditer(r"(?m)^(\w+) *=", settings)}
        kept = [line for line in head.splitlines() if line.partition(" ")[0] not in given]
        self.path.write_text("\n".join(kept) + "\n" + settings + "\n" + listeners)

    # the process

    def start(self, **environment: str) -> None:
        """Start it; returns when it listens."""
        self.launch(**environment)
        self.wait_for(r" is ready", START_SECONDS)
        if not environment and "self-signed, for" in self.log():
            _LENT[self._name] = {path.name: path.read_bytes() for path in self._papers.iterdir()}

    def launch(self, **environment: str) -> None:
        """Start it, and do not wait for it."""
        self._log_from = self.log_path.stat().st_size if self.log_path.exists() else 0
        if not environment:
            self._lend()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, *self.program, "run", "--config", str(self.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            )

    @property
    def _name(self) -> str:
        found = re.search(r'(?m)^myhostname = "(.*)"', self.path.read_text())
        return found[1] if found else ""

    @property
    def _papers(self) -> Path:
        return self.directory / "spool" / "tls"

    def _lend(self) -> None:
        """The first relay of a name makes its certificate; the others get that one: each start is faster for it."""
        if self._papers.parent.exists() or self._name not in _LENT:
            return
        self._papers.mkdir(parents=True)
        self._papers.parent.chmod(0o750)
        for name, content in _LENT[self._name].items():
            (self._papers / name).touch(0o600)
            (self._papers / name).write_bytes(content)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        finally:
            self._end()

    def kill(self) -> None:
        """SIGKILL, as a power cut looks to the process."""
        assert self.process is not None
        self.process.kill()
        self._end()

    def _end(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait(10)
            self.process = None

    def restart(self) -> None:
        """Stop in good order, and start."""
        assert self.stop() == 0
        self.start()

    def reload(self, settings: str | None = None, listeners: str = LISTENER) -> None:
        """New settings, if any, and SIGHUP; returns when the log says what became of it."""
        assert self.process is not None
        if settings is not None:
            self.configure(settings, listeners)
        before = len(re.findall("read again|stays in force", self.log()))
        self.process.send_signal(signal.SIGHUP)
        self.wait_until(lambda: len(re.findall("read again|stays in force", self.log())) > before, "a reload")

    # the log

    def log(self) -> str:
        """What it has logged since its last start."""
        with self.log_path.open("rb") as file:
            file.seek(self._log_from)
            return file.read().decode(errors="replace")

    def wait_for(self, pattern: str, seconds: float = 20.0, count: int = 1) -> re.Match[str]:
        """Until `pattern` stands in the log `count` times; the last match."""
        until = time.monotonic() + seconds
        while True:
            ended = self.process is None or self.process.poll() is not None
            found = list(re.finditer(pattern, self.log()))
            if len(found) >= count:
                return found[count - 1]
            assert not ended, f"the relay ended before it logged {pattern!r}:\n{self.log()}"
            assert time.monotonic() < until, f"{pattern!r} is not in the log:\n{self.log()}"
            time.sleep(0.02)

    def wait_until(self, done: Any, what: str, seconds: float = 20.0) -> None:
        """Until `done()` is true."""
        until = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < until, f"no {what}:\n{self.log()}"
            time.sleep(0.05)

    @property
    def ports(self) -> dict[str, int]:
        """Name of a listener to its port."""
        found = re.findall(r"listening on \S+ port (\d+), listener=(\S+)", self.log())
        return {name: int(port) for port, name in found}

    @property
    def port(self) -> int:
        """Of the first listener."""
        return next(iter(self.ports.values()))

    # mail and commands

    def send(
        self,
        sender: str = "alice@example.com",
        recipients: str | Sequence[str] = "bob@example.org",
        message: bytes = MESSAGE,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
    ) -> str:
        """Hand one message over by SMTP; its queue id."""
        with smtplib.SMTP("127.0.0.1", self.port, "client.example.com", timeout=30) as client:
            client.sendmail(sender, recipients, message, mail_options, rcpt_options)
        return self.last_id()

    def last_id(self) -> str:
        """Of the message that came in last, by the log."""
        return str(re.findall(r"([0-9A-F]{8,}): message-id=", self.log())[-1])

    def run(
        self, name: str, *arguments: str, input: bytes | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A command by one of its names: edgemail, sendmail, mailq, postqueue, postsuper, postcat, qshape."""
        where = "edgemail.boot.cli:main" if name == "edgemail" else f"edgemail.boot.names:{name}"
        module, _, function = where.partition(":")
        code = f"import sys; from {module} import {function}; sys.argv[0] = {name!r}; sys.exit({function}())"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "EDGEMAIL_CONFIG": str(self.path), "TZ": "UTC"},
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            timeout=60,
            check=False,
        )
        found = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        assert not check or done.returncode == 0, f"{name} {arguments}: {found.stderr}"
        return found

    def queue(self) -> list[dict[str, Any]]:
        """Every message, as `edgemail queue list --json` has it."""
        out = self.run("edgemail", "queue", "list", "--json").stdout
        return [json.loads(line) for line in out.splitlines()]

    def waiting(self) -> list[dict[str, Any]]:
        """The same, asked of the process itself: no command has to start for it."""
        if self.process is None:
            return self.queue()
        found: list[dict[str, Any]] = []

        def line(data: Mapping[str, Any] | bytes) -> None:
            assert not isinstance(data, bytes)
            found.append(data["entry"])

        Office.of(str(self.path)).ask({"verb": "queue.list"}, line)
        return found

    def wait_deferred(self, count: int = 1) -> list[dict[str, Any]]:
        """The queue, once `count` messages were tried and wait."""
        found: list[dict[str, Any]] = []

        def done() -> bool:
            found[:] = [one for one in self.waiting() if one["queue_name"] == "deferred"]
            return len(found) >= count

        self.wait_until(done, f"{count} deferred messages")
        return found

    def wait_empty(self, seconds: float = 20.0) -> None:
        """Until nothing is queued."""
        self.wait_until(lambda: not self.waiting(), "empty queue", seconds)


@contextlib.contextmanager
def relay(directory: Path, settings: str = "", listeners: str = LISTENER) -> Iterator[Relay]:
    """A running relay for the length of a test."""
    found = Relay(directory, settings, listeners)
    found.start()
    try:
        yield found
    finally:
        found._end()
