"""Telling a server elsewhere how this box is, for sites that cannot be asked: a heartbeat, and an alarm on changes.

Owns a few lines of HTTP/1.1 as a client, with verified TLS, and when what is sent. Never in the way of mail: one task,
one connection at a time, bounded in time and size; what fails is tried again, always with the latest state.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from edgemail.clock import Clock
from edgemail.settings import Push

log = logging.getLogger("edgemail.push")

REQUEST_SECONDS: Final = 20.0  # limit: for one request to a push server, connection and answer included
STATUS_LINE: Final = 4096  # limit: bytes of an answer that are read
QUIET_SECONDS: Final = 10.0  # limit: between two alarms; what changes meanwhile goes with the next
FIRST_RETRY: Final = 5.0  # seconds until an alarm or a heartbeat that failed is sent again; doubles
LAST_RETRY: Final = 300.0  # limit: of that
TURN: Final = 1.0  # seconds between two looks at the state

Status = Mapping[str, Any]


class PushFailed(Exception):
    """The server did not take it; says why, without the URL, which may hold a secret."""


class Pusher:
    """Sends heartbeats and alarms until its task is cancelled. `status` gives the status JSON, and is cheap."""

    def __init__(self, push: Push, clock: Clock, host: str, status: Callable[[], Status]) -> None:
        self._push = push
        self._clock = clock
        self._host = host
        self._status = status
        self._beat_at = clock.monotonic()
        self._alarm_at = clock.monotonic()
        self._retry = 0.0
        self._missed = 0.0  # wait after a heartbeat that nobody took
        self._told: tuple[str, str] | None = None  # state and reason that the server knows
        self._failing: set[str] = set()  # what was logged as failing

    async def run(self) -> None:
        while True:
            try:
                await self.turn()
            except Exception:
                log.exception("push")
            await asyncio.sleep(TURN)

    async def turn(self) -> None:
        """Send what is due."""
        now, status = self._clock.monotonic(), self._status()
        if self._push.alarm_url and now >= self._alarm_at:
            await self._alarm(status, now)
        if self._push.heartbeat_url and now >= self._beat_at and status["state"] != "failed":
            self._beat_at = now + self._push.heartbeat_interval
            if await self._send("heartbeat", self._push.heartbeat_url, None):
                self._missed = 0.0
            else:  # the next is not due before its time: this one is tried again, if there is time for it
                self._missed = min(max(FIRST_RETRY, 2 * self._missed), LAST_RETRY)
                self._beat_at = now + min(self._missed, self._push.heartbeat_interval)

    async def _alarm(self, status: Status, now: float) -> None:
        state = status["state"], status["reason"]
        if state == (self._told or ("ok", "")):
            self._told = state  # nobody needs to hear that a start went well
            return
        if await self._send("alarm", self._push.alarm_url, {"host": self._host, **status}):
            self._told, self._retry = state, 0.0
            self._alarm_at = now + QUIET_SECONDS
        else:
            self._retry = min(max(FIRST_RETRY, 2 * self._retry), LAST_RETRY)
            self._alarm_at = now + self._retry

    async def _send(self, what: str, url: str, value: Any) -> bool:
        try:
            await request(url, value, self._push.ca_file)
        except PushFailed as failed:
            if what not in self._failing:  # once, until it works again
                self._failing.add(what)
                log.warning("warning: %s to %s: %s", what, urlsplit(url).hostname, failed)
            return False
        if what in self._failing:
            self._failing.discard(what)
            log.info("%s to %s: taken again", what, urlsplit(url).hostname)
        return True


async def request(url: str, value: Any = None, ca_file: str = "") -> None:
    """GET, or POST of `value` as JSON. Returns on a 2xx; raises PushFailed otherwise."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    content = b"" if value is None else json.dumps(value).encode()
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    head = [
        f"{'GET' if value is None else 'POST'} {target} HTTP/1.1",
        f"Host: {parts.netloc.rpartition('@')[2]}",
        "User-Agent: edgemail",
        "Connection: close",
    ]
    if value is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            context = ssl.create_default_context(cafile=ca_file or None) if secure else None
            reader, writer = await asyncio.open_connection(host, port, ssl=context, limit=STATUS_LINE)
            writer.write("\r\n".join(head).encode("ascii") + b"\r\n\r\n" + content)
            await writer.drain()
            line = await reader.readline()
    except TimeoutError:
        raise PushFailed(f"no answer in {REQUEST_SECONDS:.0f} s") from None
    except ssl.SSLCertVerificationError as error:
        raise PushFailed(f"its certificate is not trusted: {error.verify_message}") from error
    except (OSError, ValueError) as error:
        raise PushFailed(getattr(error, "strerror", None) or str(error)) from error
    finally:
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.transport.abort()
    words = line.decode("latin-1").split(" ")
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].startswith("2"):
        raise PushFailed(f"it answers {line[:80].decode('latin-1').strip()!r}")
