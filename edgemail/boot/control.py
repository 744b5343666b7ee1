"""The daemon's unix socket: who may ask, how a request and its answer are framed, and every bound on both.

A connection carries one request, a line of JSON with `verb`; the answer is lines of JSON, the last with `done` (and
`error` and `code`, a sysexits number, when it failed). Content goes both ways in frames: `{"octets": n}` and n octets
after it; that of a request comes after the answer's line `{"go": true}`, and n = 0 ends it. What the verbs do is in
`verbs`; this module never touches a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edgemail.boot.frames import EX_NOPERM, EX_TEMPFAIL, EX_USAGE, MAX_FRAME, MAX_REQUEST, SOCKET_NAME, addressed
from edgemail.errors import EdgemailError
from edgemail.value import value

__all__ = ["SOCKET_NAME", "Channel", "ControlServer", "Gone", "Peer", "Refused", "Verb"]

log = logging.getLogger("edgemail.control")

SOCKET_MODE: Final = 0o660
MAX_CONNECTIONS: Final = 32  # limit: connections to the control socket at once; one more is told to come back
REQUEST_SECONDS: Final = 10.0  # limit: seconds for a request line on the control socket
FRAME_SECONDS: Final = 300.0  # limit: seconds without content from sendmail, as for DATA (RFC 5321 4.5.3.2.5)
WRITE_SECONDS: Final = 30.0  # limit: seconds that a reader of the control socket may stand still


class Refused(EdgemailError):
    """A request that is not carried out: the sentence for the person, and the exit code for their program."""

    def __init__(self, text: str, code: int = EX_USAGE) -> None:
        super().__init__(text)
        self.code = code


class Gone(Exception):
    """The command at the other end went away, or has stood still for too long. Nobody is left to tell."""


@value
class Peer:
    """Who is at the other end, as the kernel says (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int

    @property
    def owner(self) -> bool:
        """Root and the daemon's own user may do all; members of its group may look, flush and submit."""
        return self.uid in (0, os.geteuid())


@dataclass(slots=True)
class Channel:
    """One connection, as a verb sees it."""

    peer: Peer
    reader: asyncio.StreamReader = field(repr=False)
    writer: asyncio.StreamWriter = field(repr=False)

    async def say(self, data: Mapping[str, Any]) -> None:
        """Write one line of the answer and wait until the reader keeps up."""
        import json

        self.writer.write(
            json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
        )
        await self._drain()

    async def send(self, content: bytes) -> None:
        """Write one frame of content."""
        self.writer.write(b'{"octets":%d}\n' % len(content))
        self.writer.write(content)
        await self._drain()

    async def content(self) -> AsyncIterator[bytes]:
        """The frames of a request, until the empty one. Raises Refused when they break off or make no sense."""
        while True:
            try:
                async with asyncio.timeout(FRAME_SECONDS):
                    length = _length(await self.reader.readline())
                    if length == 0:
                        return
                    octets = await self.reader.readexactly(length)
            except TimeoutError:
                raise Refused("no content for too long", EX_TEMPFAIL) from None
            except asyncio.IncompleteReadError:
                raise Refused("the content broke off", EX_TEMPFAIL) from None
            except ValueError:  # a frame's line longer than the reader's limit
                raise Refused("a frame's line is too long") from None
            except OSError as error:
                raise Gone from error
            yield octets

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self.writer.drain()
        except OSError as error:  # TimeoutError is one
            raise Gone from error


def _length(line: bytes) -> int:
    """Octets that follow a frame's line."""
    if not line:
        raise Refused("the content broke off", EX_TEMPFAIL)
    length = parse(line).get("octets")
    if not isinstance(length, int) or isinstance(length, bool) or not 0 <= length <= MAX_FRAME:
        raise Refused(f"octets: a number up to {MAX_FRAME} is wanted", EX_USAGE)
    return length


def parse(line: bytes) -> dict[str, Any]:
    """A JSON object from a line; Refused for anything else."""
    import json

    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        raise Refused("the request is not a line of JSON") from None
    if not isinstance(data, dict):
        raise Refused("the request is not a JSON object")
    return data


Run = Callable[[dict[str, Any], Channel], Awaitable[Mapping[str, Any]]]


@value
class Verb:
    """What a request may ask for: `run` answers with the members of the last line; `owner`: not for everybody."""

    run: Run
    owner: bool = False


class ControlServer:
    """Listens on `path` and lets each connection ask one of `verbs`."""

    def __init__(self, path: Path, verbs: Callable[[], Mapping[str, Verb]], *, group: int = -1) -> None:
        """`verbs` is asked at the first request. `group`: the gid that may connect; -1 keeps the process's own."""
        self.path = path
        self.group = group
        self._verbs = verbs
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bind and listen. Raises OSError. A socket left over by a crash is replaced: the spool's lock is ours."""
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(self.path.lstat().st_mode):
                self.path.unlink()
        listening = socket.socket(socket.AF_UNIX)
        try:
            with addressed(self.path) as address:
                listening.bind(address)
            if self.group >= 0:
                os.chown(self.path, -1, self.group)
            self.path.chmod(SOCKET_MODE)  # before anybody can connect
            self._server = await asyncio.start_unix_server(self._connected, sock=listening, limit=MAX_REQUEST)
        except BaseException:
            listening.close()
            raise

    async def close(self) -> None:
        """Stop listening, end what is going on, remove the socket."""
        if self._server is None:
            return
        self._server.close()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._server = None
        self.path.unlink(missing_ok=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        crowded = len(self._tasks) >= MAX_CONNECTIONS
        self._tasks.add(task)
        try:
            channel = Channel(_peer(writer), reader, writer)
            if crowded:
                await channel.say(
                    {"done": True, "error": "too many commands at once", "code": EX_TEMPFAIL, "busy": True}
                )
            else:
                await self._serve(channel)
        except Gone:
            pass
        except asyncio.CancelledError:
            pass  # the daemon stops; a submission in flight was not answered, so it is not taken
        finally:
            self._tasks.discard(task)
            writer.transport.abort() if writer.transport.get_write_buffer_size() > MAX_REQUEST else writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()

    async def _serve(self, channel: Channel) -> None:
        """One request and its answer; whatever fails becomes a last line with an error."""
        name = "?"
        try:
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    line = await channel.reader.readline()
            except TimeoutError:
                raise Refused("no request for too long") from None
            except OSError as error:
                raise Gone from error
            except ValueError:  # longer than the reader's limit
                raise Refused(f"the request is longer than {MAX_REQUEST} octets") from None
            if not line.endswith(b"\n"):
                return  # went away
            request = parse(line)
            name = str(request.get("verb", ""))[:40]
            verb = self._verbs().get(name)
            if verb is None:
                raise Refused(f"there is no verb {name!r}")
            if verb.owner and not channel.peer.owner:
                raise Refused(f"{name} is for root and the relay's own user", EX_NOPERM)
            answer = await verb.run(request, channel)
            await channel.say({**answer, "done": True})
        except Refused as refused:
            await channel.say({"done": True, "error": str(refused), "code": refused.code})
        except Gone:
            raise
        except Exception:
            log.exception("%s: unexpected failure of a command from userid %d", name, channel.peer.uid)
            await channel.say({"done": True, "error": "internal error; the log says more", "code": EX_TEMPFAIL})


def _peer(writer: asyncio.StreamWriter) -> Peer:
    packed = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return Peer(*struct.unpack("3i", packed))
