"""A smarthost for scenarios: the scripted server of tests.servers in a thread of its own.

`answers` by verb decide what it says (see FakeServer); by default it takes everything and remembers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.servers import FakeServer, Received


class Digests(list[Received]):
    """Remembers a digest for each content, for tests that pass gigabytes."""

    def append(self, one: Received) -> None:
        one.content = hashlib.sha256(after_trace(one.content)).digest()
        super().append(one)


class Sink:
    """One smarthost. `port` stays the same over `stop` and `start`."""

    def __init__(self, *, digests: bool = False, **options: Any) -> None:
        """`options`: fields of FakeServer. `digests`: keep contents as SHA-256, without their first trace header."""
        self._options = options
        self.server = FakeServer(**options)
        if digests:
            self.server.received = Digests()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sink")
        self._running = False

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def received(self) -> list[Received]:
        return self.server.received

    def start(self) -> None:
        """Listen, on the port it had before if there was one."""
        if not self._thread.is_alive():
            self._thread.start()
        asyncio.run_coroutine_threadsafe(self.server.__aenter__(), self._loop).result(10)
        self._running = True

    def stop(self) -> None:
        """Refuse connections; what was received is kept."""
        if self._running:
            self._running = False
            asyncio.run_coroutine_threadsafe(self.server.__aexit__(), self._loop).result(10)

    def end(self) -> None:
        """Stop for good."""
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def wait_for(self, count: int, seconds: float = 30.0) -> list[Received]:
        """The messages, once there are `count`."""
        until = time.monotonic() + seconds
        while len(self.received) < count:
            assert time.monotonic() < until, f"{len(self.received)} of {count} messages arrived"
            time.sleep(0.02)
        return list(self.received)

    def bodies(self) -> list[bytes]:
        """Contents without the trace header that the relay has added."""
        return [after_trace(one.content) for one in self.received]


def after_trace(content: bytes) -> bytes:
    """A message without its first field, which must be a trace header."""
    found = re.match(rb"Received: [^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*", content)
    assert found, content[:200]
    return content[found.end() :]


def one_in(count: int, answer: bytes) -> Callable[[str], bytes]:
    """An answer for every `count`th time; the default otherwise."""
    asked = 0

    def say(line: str) -> bytes:
        nonlocal asked
        asked += 1
        return answer if asked % count == 0 else b""

    return say


def first(count: int, answer: bytes) -> list[bytes]:
    """An answer for the first `count` times."""
    return [answer] * count


@contextlib.contextmanager
def sink(**options: Any) -> Iterator[Sink]:
    """A smarthost for the length of a test."""
    found = Sink(**options)
    found.start()
    try:
        yield found
    finally:
        found.end()
