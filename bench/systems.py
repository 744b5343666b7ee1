"""The systems that are measured: edgemail from this tree, and Postfix from Debian's packages, each with its own spool.

Both run as they come: their own defaults, apart from addresses, directories and what a case needs.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.peers.postfix import postfix
from tests.scenarios.relay import relay

TICKS = os.sysconf("SC_CLK_TCK")
SENT = b"status=sent"


@dataclass
class System:
    """One that runs: where it takes mail, where it logs, which processes are its own."""

    name: str
    port: int
    log: Path
    process: int
    _at: int = 0
    _sent: int = 0

    def sent(self) -> int:
        """Deliveries that its log knows of."""
        with self.log.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        end = new.rfind(b"\n") + 1
        self._at += end
        self._sent += new[:end].count(SENT)
        return self._sent

    def cpu(self) -> float:
        """Seconds of CPU of its processes so far, those that have ended among them."""
        parents: dict[int, int] = {}
        times: dict[int, int] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                words = path.read_text().rpartition(")")[2].split()
                parents[int(path.parent.name)] = int(words[1])
                times[int(path.parent.name)] = sum(map(int, words[11:15]))
        own = {self.process}
        while more := {pid for pid, parent in parents.items() if parent in own} - own:
            own |= more
        return sum(times.get(pid, 0) for pid in own) / TICKS


@contextlib.contextmanager
def edgemail(hop: int, *, held: bool) -> Iterator[System]:
    """`held`: it delivers nothing."""
    settings = f'relayhost = "[127.0.0.1]:{hop}"\nspool_size = "2GiB"\nsmtpd_tls_security_level = "none"\n'
    settings += 'defer_transports = ["smtp"]\n' if held else ""
    with tempfile.TemporaryDirectory(prefix="edgemail-") as directory, relay(Path(directory), settings) as found:
        assert found.process is not None
        yield System("edgemail", found.port, found.log_path, found.process.pid)


@contextlib.contextmanager
def reference(hop: int, *, held: bool) -> Iterator[System]:
    """Postfix."""
    settings = {"relayhost": f"[127.0.0.1]:{hop}", **({"defer_transports": "smtp"} if held else {})}
    with postfix(settings) as found:
        pid = int((found.directory / "queue/pid/master.pid").read_text())
        yield System("postfix", found.port, found.directory / "log", pid)


SYSTEMS = {"edgemail": edgemail, "postfix": reference}
