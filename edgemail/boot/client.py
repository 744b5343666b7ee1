"""The commands' side of the control socket, and the way round it when no daemon runs.

Owns the framing as a program sees it, and what becomes of each trouble: a sentence and a sysexits number. Plain
sockets: a command must start quickly. The spool itself is opened only where no daemon holds it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from edgemail.boot import reading
from edgemail.boot.frames import (
    EX_CONFIG,
    EX_NOPERM,
    EX_SOFTWARE,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    MAX_FRAME,
    MAX_REQUEST,
    SOCKET_NAME,
    addressed,
)
from edgemail.errors import ConfigurationError, EdgemailError

ANSWER_SECONDS: Final = 600.0  # limit: seconds that a command waits for the daemon's next line
BUSY_TRIES: Final = 20  # limit: times that a command comes back to a daemon that serves too many at once
BUSY_PAUSE: Final = 0.25  # seconds between them
IDS_AT_ONCE: Final = 1000  # queue ids in one request; they fit into MAX_REQUEST

Sink = Callable[[Mapping[str, Any] | bytes], None]


class Failure(EdgemailError):
    """A command failed: the sentence for the person, and the exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Down(Failure):
    """No daemon answers."""

    def __init__(self, text: str) -> None:
        super().__init__(text, EX_TEMPFAIL)


class Office:
    """Where the commands take their requests: the daemon of one queue directory, or the spool when it is down."""

    def __init__(self, directory: Path, path: str, myhostname: str = "") -> None:
        self.directory = directory
        self.path = path  # of the configuration file
        self.myhostname = myhostname or socket.gethostname()
        self.standing = False  # whether the last answer came from the spool itself

    @classmethod
    def of(cls, path: str | None = None) -> Office:
        """By configuration file: `path`, else $EDGEMAIL_CONFIG, else the image's. Raises Failure.

        A file that is being edited must not hide the queue: of one with mistakes, only `queue_directory` is used.
        """
        path = reading.find(path)
        from edgemail.boot import config

        try:
            settings = config.load(path, files=False).settings
            return cls(Path(settings.queue_directory), path, settings.myhostname)
        except ConfigurationError as error:
            try:
                directory = str(tomllib.loads(Path(path).read_text())["queue_directory"])
            except (OSError, ValueError, KeyError, TypeError):
                directory = ""
            if not directory or "$" in directory:
                raise Failure(reading.report(path, error.problems), EX_CONFIG) from error
        return cls(Path(directory), path)

    def ask(
        self,
        request: Mapping[str, Any],
        sink: Sink | None = None,
        content: Iterable[bytes] | None = None,
        *,
        standing: bool = False,
    ) -> Mapping[str, Any]:
        """Carry out a request; the members of its last line. Each line and frame before goes to `sink`.

        `standing`: with no daemon, do it on the spool itself. Raises Failure, and Down where only a daemon can.
        """
        self.standing = False
        try:
            return self._asked(request, sink, content)
        except Down:
            if not standing:
                raise
        self.standing = True
        from edgemail.boot.standing import carry_out

        return carry_out(self.path, self.directory, request, sink)

    def _asked(
        self, request: Mapping[str, Any], sink: Sink | None, content: Iterable[bytes] | None
    ) -> Mapping[str, Any]:
        line = json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"
        if len(line) > MAX_REQUEST:
            raise Failure("the request is too long", EX_UNAVAILABLE)
        last: Mapping[str, Any] = {}
        for _ in range(BUSY_TRIES):
            with contextlib.closing(self._connected()) as connection, connection.makefile("rb") as answer:
                for found in _exchange(connection, answer, line, content):
                    if isinstance(found, dict) and found.get("done"):
                        last = found
                    elif sink is not None:
                        sink(found)
            if not last.get("busy"):
                break
            time.sleep(BUSY_PAUSE)
        if "error" in last:
            code = last.get("code")
            raise Failure(str(last["error"]), code if isinstance(code, int) else EX_SOFTWARE)
        return last

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(ANSWER_SECONDS)
        path = self.directory / SOCKET_NAME
        try:
            with addressed(path) as address:
                connection.connect(address)
        except PermissionError as error:
            connection.close()
            raise Failure(
                f"no permission for {path}: root, the relay's user and members of its group may use it", EX_NOPERM
            ) from error
        except OSError as error:
            connection.close()
            raise Down(f"the relay is not running ({path}: {error.strerror})") from error
        return connection


def _exchange(
    connection: socket.socket, answer: BinaryIO, line: bytes, content: Iterable[bytes] | None
) -> Iterator[dict[str, Any] | bytes]:
    """The answer to a request, line by line and frame by frame; the content goes out once the daemon says `go`."""
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before it was read: it says why
            connection.sendall(line)
        while line := answer.readline():
            data = json.loads(line)
            if data.get("go"):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    _send(connection, content or ())
                continue
            octets = data.get("octets")
            found = data if octets is None else answer.read(octets)
            if octets is not None and len(found) < octets:
                break
            yield found
            if data.get("done"):
                return
    except TimeoutError:
        raise Failure("the relay does not answer", EX_TEMPFAIL) from None
    except OSError as error:
        raise Failure(f"the relay went away: {error.strerror}", EX_TEMPFAIL) from error
    raise Failure("the relay went away", EX_TEMPFAIL)


def _send(connection: socket.socket, content: Iterable[bytes]) -> None:
    """Content in frames, and the empty one."""
    for piece in content:
        for start in range(0, len(piece), MAX_FRAME):
            frame = piece[start : start + MAX_FRAME]
            connection.sendall(b'{"octets":%d}\n' % len(frame) + frame)
    connection.sendall(b'{"octets":0}\n')


def become_owner(directory: Path) -> None:
    """As root: become the owner of the spool, so that no file in it ends up root's."""
    if os.geteuid() != 0:
        return
    try:
        found = directory.stat()
    except OSError:
        return
    if found.st_uid:
        os.setgroups([])
        os.setgid(found.st_gid)
        os.setuid(found.st_uid)
