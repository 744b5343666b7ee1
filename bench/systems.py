"""The systems that are measured: edgemail from this tree, and Postfix from Debian's packages, each with its own spool.

Both run as they come: their own defaults, apart from addresses, directories and what a case needs.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.medium import Medium
from tests.peers.ports import free_port
from tests.peers.postfix import Postfix
from tests.scenarios.relay import Relay

TICKS = os.sysconf("SC_CLK_TCK")
SENT = b"status=sent"
SECONDS = 900.0  # limit: for anything that is waited for


@dataclass
class System:
    """One that runs. `command` runs one of its queue commands by Postfix's name; its output."""

    name: str
    port: int
    log: Path
    process: int
    command: Callable[..., bytes]
    stop: Callable[[], None]
    launch: Callable[[], int]  # after `stop`; the new process
    spool_reads: Callable[[], float] = float  # bytes so far, where the system was started with `counting`
    _at: int = 0
    _counts: dict[bytes, int] = field(default_factory=dict)

    def logged(self, word: bytes) -> int:
        """How often `word` stands in its log; always ask for the same few."""
        with self.log.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        end = new.rfind(b"\n") + 1
        self._at += end
        for each in (SENT, b"status=deferred", word):
            self._counts.setdefault(each, 0)
        for each in self._counts:
            self._counts[each] += new[:end].count(each)
        return self._counts[word]

    def wait_for(self, word: bytes, count: int) -> None:
        """Until `word` stands in the log `count` times."""
        until = time.monotonic() + SECONDS
        while (found := self.logged(word)) < count:
            assert time.monotonic() < until, f"{self.name}: {word.decode()} {found} times, not {count}"
            time.sleep(0.005)

    def start(self) -> float:
        """Start it again after `stop`; seconds until it greets."""
        started = time.monotonic()
        self.process = self.launch()
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)) as client:
                if client.recv(100):
                    return time.monotonic() - started
            assert time.monotonic() - started < SECONDS
            time.sleep(0.002)

    def processes(self) -> set[int]:
        """Its own and all that these have begun."""
        parents: dict[int, int] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        own = {self.process}
        while more := {pid for pid, parent in parents.items() if parent in own} - own:
            own |= more
        return own

    def cpu(self) -> float:
        """Seconds of CPU of its processes so far, those that have ended among them."""
        ticks = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
        return ticks / TICKS

    def memory(self) -> dict[str, float]:
        """MiB of all its processes: anonymous, and the proportional set size."""
        found = {"Anonymous": 0, "Pss": 0}
        for pid in self.processes():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                for name in found:
                    match = re.search(rf"(?m)^{name}: +(\d+) kB$", text)
                    found[name] += int(match[1]) if match else 0
        return {"anonymous": found["Anonymous"] / 1024, "pss": found["Pss"] / 1024}


@contextlib.contextmanager
def edgemail(medium: Medium, settings: Mapping[str, str], *, counting: bool = False) -> Iterator[System]:
    """`settings` are Postfix's; values that are numbers or lists of TOML stay what they are.

    `counting`: bytes of messages that are read from the spool are known, by its metrics.
    """
    queue = medium.place / "edgemail"
    text = f'queue_directory = "{queue}"\nspool_size = "8GiB"\nsmtpd_tls_security_level = "none"\n'
    text += "".join(f"{name} = {toml(value)}\n" for name, value in settings.items())
    port = free_port()
    listener = f'[[listener]]\nname = "lan"\naddress = "127.0.0.1"\nport = {port}\n'
    if counting:
        listener += "[health]\nport = 0\n"
    with tempfile.TemporaryDirectory(prefix="edgemail-") as directory:
        relay = Relay(Path(directory), text, listener)

        def launch() -> int:
            relay.launch(PYTHONDONTWRITEBYTECODE="")  # compiled modules, as an installed package has them
            assert relay.process is not None
            return relay.process.pid

        def stop() -> None:
            assert relay.stop() == 0

        def command(program: str, *arguments: str) -> bytes:
            return relay.run(program, *arguments).stdout.encode()

        def spool_reads() -> float:
            where = relay.wait_for(r"listening on \S+ port (\d+), health")[1]
            with urllib.request.urlopen(f"http://127.0.0.1:{where}/metrics", timeout=10) as page:
                return float(re.findall(r"(?m)^edgemail_spool_read_bytes(?:_total)? (\S+)$", page.read().decode())[0])

        try:
            system = System("edgemail", port, relay.log_path, 0, command, stop, launch, spool_reads)
            system.start()
            yield system
        finally:
            relay._end()


def toml(value: str) -> str:
    return value if re.fullmatch(r"\d+|\[.*\]|true|false", value) else f'"{value}"'


@contextlib.contextmanager
def reference(medium: Medium, settings: Mapping[str, str], *, counting: bool = False) -> Iterator[System]:
    """Postfix. What it reads is counted for all its processes, by read(2): sockets and configuration are in it."""
    plain = {
        name: re.sub(r"^\[(.*)\]$", r"\1", value).replace('"', "") if value.startswith('["') else value
        for name, value in settings.items()
    }
    queue = medium.place / "postfix"
    queue.mkdir(exist_ok=True)
    found = Postfix({**plain, "queue_directory": str(queue)})
    try:
        found.start()

        def command(program: str, *arguments: str) -> bytes:
            return found.run(program, *arguments).stdout

        def pid() -> int:
            return int((queue / "pid/master.pid").read_text())

        def stop() -> None:
            found.run("postfix", "stop")

        def launch() -> int:
            found.run("postfix", "start")
            return pid()

        def spool_reads() -> float:
            total = 0
            for process in system.processes():
                with contextlib.suppress(OSError):
                    total += int(Path(f"/proc/{process}/io").read_text().split()[1])
            return total

        system = System("postfix", found.port, found.directory / "log", pid(), command, stop, launch, spool_reads)
        yield system
    finally:
        found.stop()


SYSTEMS = {"edgemail": edgemail, "postfix": reference}
