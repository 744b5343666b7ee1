"""A connection in memory for servers that speak by asyncio's streams: what comes in is known, what goes out is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

Serve = Callable[[asyncio.StreamReader, Any], Awaitable[None]]


class Writer:
    """What a server needs of a StreamWriter, over nothing."""

    def __init__(self, **extra: Any) -> None:
        self.out = bytearray()
        self.closed = False
        self.transport = self
        self._extra = extra

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after the end"
        self.out += data

    async def drain(self) -> None:
        """Taken already."""

    async def wait_closed(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        self.closed = True

    abort = close

    def write_eof(self) -> None:
        """The reader hears no more."""

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._extra.get(name, default)


async def exchange(serve: Serve, data: bytes, limit: int, **extra: Any) -> tuple[bytes, int]:
    """All of `data` and the end of input to a server; what it answered, and what it left unread."""
    reader = asyncio.StreamReader(limit=limit)
    reader.feed_data(data)
    reader.feed_eof()
    writer = Writer(**extra)
    async with asyncio.timeout(20):
        await serve(reader, writer)
    return bytes(writer.out), len(reader._buffer)  # type: ignore[attr-defined]
