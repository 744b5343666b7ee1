"""A thin line between a relay and its smarthost: octets arrive late, one after the other, and are counted.

It stands for a TCP connection over such a line: the handshake takes its three ways, each direction passes so many
octets in a second for all connections together, and what does not fit waits in a buffer that fills.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

BUFFER = 65_536  # octets that wait in the line, each way, before the sender is held back
PIECE = 1_460  # octets that go as one


@dataclass
class Way:
    """One direction of the line."""

    delay: float
    rate: float  # octets in a second; 0.0: as fast as can be
    octets: int = 0
    free_at: float = 0.0

    def arrives(self, size: int, now: float) -> float:
        """When so many octets that are sent now are at the other end."""
        self.octets += size
        self.free_at = max(now, self.free_at) + (size / self.rate if self.rate else 0.0)
        return self.free_at + self.delay


@dataclass
class ThinLine:
    """Passes connections on to `target`. `delay`: seconds each way; `rate`: octets in a second each way."""

    target: int
    delay: float = 0.0
    rate: float = 0.0
    connections: int = 0
    open: int = 0
    most_open: int = 0
    turns: int = 0  # how often the direction changed from down to up, over all connections: round trips
    cut_after: int = 0  # octets up after which every connection is cut, once; 0: never
    port: int = 0
    up: Way = field(init=False)
    down: Way = field(init=False)

    def __post_init__(self) -> None:
        self.up, self.down = Way(self.delay, self.rate), Way(self.delay, self.rate)
        self._tasks: set[asyncio.Task[None]] = set()
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []

    async def serve(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=BUFFER)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """End every connection at once, with what is on its way."""
        for near, far in self._pairs:
            near.transport.abort()
            far.transport.abort()
        self._pairs.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(3 * self.delay)  # SYN, SYN-ACK, ACK
            far_reader, far = await asyncio.open_connection("127.0.0.1", self.target, limit=BUFFER)
            self._pairs.append((writer, far))
            talk = Talk(self)
            with contextlib.suppress(OSError):
                await asyncio.gather(
                    self._pass(reader, far, self.up, talk.went_up), self._pass(far_reader, writer, self.down, talk.down)
                )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way, passed: Callable[[], None]
    ) -> None:
        """One direction of one connection, until its end."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(BUFFER // PIECE)

        async def deliver() -> None:
            while True:
                at, data = await waiting.get()
                await asyncio.sleep(max(0.0, at - loop.time()))
                if not data:
                    if writer.can_write_eof():
                        with contextlib.suppress(OSError):
                            writer.write_eof()
                    return
                writer.write(data)

        delivering = asyncio.ensure_future(deliver())
        try:
            while data := await reader.read(PIECE):
                passed()
                at = way.arrives(len(data), loop.time())
                if 0 < self.cut_after <= self.up.octets:
                    self.cut_after = 0
                    self.cut()
                    return
                await waiting.put((at, data))
            await waiting.put((way.arrives(0, loop.time()), b""))
            await delivering
        finally:
            delivering.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await delivering


class Talk:
    """Who spoke last over one connection."""

    def __init__(self, line: ThinLine) -> None:
        self._line = line
        self._heard = True

    def went_up(self) -> None:
        if self._heard:
            self._line.turns += 1
        self._heard = False

    def down(self) -> None:
        self._heard = True


@contextlib.contextmanager
def thin_line(target: int, *, delay: float = 0.0, rate: float = 0.0) -> Iterator[ThinLine]:
    """A line in a thread of its own, for the length of a test."""
    line = ThinLine(target, delay, rate)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="thin line")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(line.serve(), loop).result(10)
        yield line
    finally:
        asyncio.run_coroutine_threadsafe(line.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
