r"""Dialog scripts: what a client says and what the server must answer, as data; run in process or against host:port.

A script is a text file, a step a line:

    # a remark
    @ message_size_limit = 2000     a setting of the server, in TOML; `users = {name = "password"}` is one too
    C: EHLO client.example          the client says this line; CRLF is added. C: alone is an empty line
    C~ a\nb\r\n                     the same with escapes and without CRLF
    S: 250 2.1.0 Ok                 the server answers this line; * stands for any text, $host for its name
    T: LOGIN PLAIN                  TLS starts here; from now on these mechanisms are on offer
    X: closed                       the server closes the connection

Lines of the client that stand together are sent in one piece. The settings are the caller's business when the server is
a real one: `Script.settings` holds them. Against a running server: python -m tests.dialogs.runner HOST PORT FILE...
"""

from __future__ import annotations

import dataclasses
import re
import socket
import ssl
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgemail.relay.wire.dialog import Dialog
from edgemail.settings import Settings
from tests.dialogs.driver import Driver

FOLDER = Path(__file__).parent
REMOTE_TIMEOUT = 30.0  # seconds for any one line of a real server


@dataclass(frozen=True)
class Step:
    kind: str  # C: C~ S: T: X:
    text: str
    line: int


@dataclass(frozen=True)
class Script:
    path: Path
    settings: dict[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()


class Peer(Protocol):
    """A server to talk to."""

    def send(self, data: bytes) -> None: ...

    def receive(self) -> bytes:
        """A line with its end; what is left when the connection closes; b"" then."""

    def start_tls(self, mechanisms: list[str]) -> None: ...

    def close(self) -> None: ...


def scripts() -> list[Path]:
    return sorted(FOLDER.glob("*.smtp"))


def read(path: Path) -> Script:
    settings: dict[str, Any] = {}
    steps = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        kind, text = line[:2], line[2:].removeprefix(" ")
        if line.startswith("@"):
            settings.update(tomllib.loads(line[1:]))
        elif kind in ("C:", "C~", "S:", "T:", "X:"):
            steps.append(Step(kind, text, number))
        else:
            raise ValueError(f"{path.name}:{number}: not a step: {line}")
    return Script(path, settings, tuple(steps))


def settings_of(script: Script) -> Settings:
    """The script's settings on top of the defaults, as boot.config would make them."""
    values = {name: _frozen(value) for name, value in script.settings.items() if name != "users"}
    return dataclasses.replace(Settings(myhostname="gw7.example.com"), **values)


def play(script: Script, peer: Peer) -> None:
    """Run a script; AssertionError names the step that went wrong."""
    host = "$host"
    unsent = b""
    for step in script.steps:
        where = f"{script.path.name}:{step.line}"
        if step.kind in ("C:", "C~"):
            unsent += octets(step)
            continue
        if unsent:
            peer.send(unsent)
            unsent = b""
        if step.kind == "T:":
            peer.start_tls(step.text.split())
            continue
        line = peer.receive()
        if step.kind == "X:":
            assert line == b"", f"{where}: still open, and says {line!r}"
            continue
        assert line.endswith(b"\r\n"), f"{where}: expected {step.text!r}, got {line!r}"
        said = line[:-2].decode("utf-8")
        if host == "$host":
            host = said[4:].partition(" ")[0]  # of the greeting: RFC 5321 4.2
        expected = re.escape(step.text.replace("$host", host)).replace(r"\*", ".*")
        assert re.fullmatch(expected, said), f"{where}: expected {step.text!r}, got {said!r}"
    assert not unsent, f"{script.path.name}: the last lines are never sent"


def octets(step: Step) -> bytes:
    if step.kind == "C~":
        return step.text.encode("latin-1").decode("unicode_escape").encode("latin-1")
    return step.text.encode() + b"\r\n"


class InProcess:
    """A dialog with a driver that knows the settings' recipients. `piece`: octets that arrive at once; 0 = all."""

    def __init__(self, script: Script, piece: int = 0) -> None:
        settings = settings_of(script)
        self.dialog = Dialog(settings, mechanisms=tuple(script.settings.get("mechanisms", ("PLAIN", "LOGIN"))))
        self.driver = Driver(self.dialog, users=script.settings.get("users", {}))
        self._piece = piece
        self._said = self.driver.greet()

    def send(self, data: bytes) -> None:
        step = self._piece or len(data)
        for start in range(0, len(data), step):
            self._said += self.driver.receive(data[start : start + step])

    def receive(self) -> bytes:
        line, end, self._said = self._said.partition(b"\n")
        assert line or end or self.dialog.closed, "the server waits for more"
        return line + end

    def start_tls(self, mechanisms: list[str]) -> None:
        assert self.driver.tls_wanted, "the server does not want TLS now"
        self.driver.tls_wanted = False
        self.dialog.tls_started(mechanisms)

    def close(self) -> None:
        self._said += self.driver.receive(b"")
        assert self.dialog.closed


class Remote:
    """A server behind a socket. Any certificate will do."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), REMOTE_TIMEOUT)
        self._said = b""

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> bytes:
        while b"\n" not in self._said:
            try:
                data = self._socket.recv(65536)
            except ConnectionError:  # a reset closes too
                data = b""
            if not data:
                rest, self._said = self._said, b""
                return rest
            self._said += data
        line, end, self._said = self._said.partition(b"\n")
        return line + end

    def start_tls(self, mechanisms: list[str]) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._socket = context.wrap_socket(self._socket)

    def close(self) -> None:
        self._socket.close()


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return tuple(value.items()) if isinstance(value, dict) else value


def main(arguments: list[str]) -> int:
    host, port, *files = arguments
    failures = 0
    for name in files or map(str, scripts()):
        peer = Remote(host, int(port))
        try:
            play(read(Path(name)), peer)
        except AssertionError as error:
            failures += 1
            print(error)
        finally:
            peer.close()
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
