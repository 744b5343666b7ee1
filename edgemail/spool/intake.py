"""One message on its way into the spool, and the memory that all of them share while they are.

Owns buffering, checksum and back-pressure. A message of one chunk or less is kept here until it is committed; of a
longer one full chunks go to the back end as they fill, and are removed again if it is never committed.

A chunk waits for company, the message's end best of all: a commit costs two barriers, and a message of some chunks
should need one. Half of what a session may have on its way is sent off in any case, so that the disk works while the
client sends.

Memory: what has been written and is not in the spool yet, all messages together, and what the journal keeps in memory,
is POOL_BYTES at most (and what one read of each session brings on top), with SMALL_ROOM above it for small ones, which
big ones must not keep waiting.
Where the bound is reached and nothing is on its way to the disk, the fullest buffers are sent there early, in chunks
that still fill their pages: a sender that fell silent cannot stop the others.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

from edgemail.envelope import Envelope, queue_id
from edgemail.errors import SpoolError
from edgemail.spool import layout
from edgemail.spool.job import Fate
from edgemail.spool.layout import Head
from edgemail.spool.records import Tail
from edgemail.spool.verbs import Change
from edgemail.value import changed

log = logging.getLogger("edgemail.cleanup")

POOL_BYTES: Final = 8 << 20  # limit: bytes of all messages that were received and are not in the spool yet
SMALL_BYTES: Final = 65_536  # limit: of a message that may use SMALL_ROOM
SMALL_ROOM: Final = 2 << 20  # limit: bytes kept for small messages when big ones have taken POOL_BYTES
MESSAGE_CHUNKS: Final = 16  # limit: chunks of one message on their way to the disk before its session waits
LEAST_PAGES: Final = 1  # a chunk sent early is at least this many pages


class Sink(Protocol):
    """What an intake asks of the back end. The futures resolve after the barrier; jobs are done in order.

    `fate`: where the failure of a chunk is noted, by whoever does the jobs; then `finish` fails with it.
    """

    def ship(self, id: int, part: int, chunk: bytes, fate: Fate) -> asyncio.Future[None]:
        """Store a chunk of a message that does not exist yet; it may wait a second for company."""

    def finish(self, tail: Tail, envelope: Envelope, also: Change, fate: Fate) -> asyncio.Future[None]:
        """Store the last chunks, `also`, and the envelope."""

    def hurry(self) -> None:
        """What waits for company has it."""

    def drop(self, id: int) -> asyncio.Future[None]:
        """Remove whatever is stored of a message."""


class State(Enum):
    OPEN = auto()
    COMMITTING = auto()  # the envelope may be stored already, though nobody was told
    COMMITTED = auto()
    FAILED = auto()
    ABORTED = auto()


class Pool:
    """The messages on their way in and their memory."""

    def __init__(self, sink: Sink, page: int, chunk: int) -> None:
        self.sink = sink
        self.page = page
        self.chunk = chunk
        self.bound = POOL_BYTES
        self.extra = SMALL_ROOM
        self.held = 0  # bytes in buffers
        self.flying = 0  # bytes handed to the back end
        self.kept: Callable[[], int] = lambda: 0  # bytes that the back end keeps in memory of its own
        self.intakes: set[SpoolIntake] = set()
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def within_extra(self) -> bool:
        return self.held + self.flying <= self._limit + self.extra

    @property
    def within(self) -> bool:
        return self.held + self.flying <= self._limit

    @property
    def _limit(self) -> int:
        """What is left of the bound; half of it is never taken away."""
        return self.bound - min(self.kept(), self.bound // 2)

    def relieve(self) -> None:
        """Past the bound: send the fullest buffers to the disk until what stays is within it."""
        excess = self.held - self._limit
        if self.flying == 0:
            excess = max(excess, self._limit // 8)
        for intake in sorted(self.intakes, key=lambda intake: intake.buffered, reverse=True):
            if excess <= 0:
                return
            excess -= intake.ship_early()

    async def change(self) -> None:
        """Wait until something that was flying has landed."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def landed(self, count: int) -> None:
        self.flying -= count
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class SpoolIntake:
    """The `Intake` of both back ends."""

    __slots__ = ("_buffer", "_crc", "_error", "_fate", "_flying", "_id", "_parts", "_pool", "_size", "_state")

    def __init__(self, pool: Pool, id: int) -> None:
        self._pool = pool
        self._id = id
        self._size = 0
        self._crc = 0
        self._buffer = bytearray()
        self._parts = 0  # chunks handed to the back end
        self._flying = 0  # bytes of them that have not landed
        self._state = State.OPEN
        self._error: SpoolError | None = None
        self._fate: Fate = []
        pool.intakes.add(self)

    @property
    def id(self) -> int:
        return self._id

    @property
    def size(self) -> int:
        return self._size

    @property
    def buffered(self) -> int:
        return len(self._buffer)

    @property
    def committing(self) -> bool:
        """Whether its fate is the next transaction's to decide."""
        return self._state is State.COMMITTING

    def write(self, data: bytes) -> None:
        """Append content; ships what is more than a chunk. What comes after a failure is counted and dropped."""
        if self._state is not State.OPEN:
            raise SpoolError(f"{queue_id(self._id)}: written to after its end")
        self._size += len(data)
        if self._error is not None:
            return
        self._crc = zlib.crc32(data, self._crc)
        self._buffer += data
        self._pool.held += len(data)
        while len(self._buffer) > self._pool.chunk:
            self._ship(self._pool.chunk)

    def ship_early(self) -> int:
        """Ship what fills whole pages of a buffer that is not full; the bytes."""
        pages = min((len(self._buffer) + layout.PAGE_OVERHEAD) // self._pool.page, layout.PAGES_PER_CHUNK)
        if self._state is not State.OPEN or pages < LEAST_PAGES:
            return 0
        count = pages * self._pool.page - layout.PAGE_OVERHEAD
        self._ship(count)
        return count

    def _ship(self, count: int) -> None:
        chunk = bytes(memoryview(self._buffer)[:count])
        del self._buffer[:count]
        self._parts += 1
        self._fly(self._pool.sink.ship(self._id, self._parts, chunk, self._fate), count)

    def _fly(self, future: asyncio.Future[None], count: int) -> None:
        self._pool.held -= count
        self._pool.flying += count
        self._flying += count
        future.add_done_callback(self._landing(count))

    def _landing(self, count: int) -> Callable[[asyncio.Future[None]], None]:
        def landed(future: asyncio.Future[None]) -> None:
            self._flying -= count
            if not future.cancelled() and (error := future.exception()) is not None:
                self._fail(error if isinstance(error, SpoolError) else SpoolError(repr(error)))
            self._pool.landed(count)

        return landed

    def _fail(self, error: SpoolError) -> None:
        self._error = self._error or error
        self._empty()

    def _empty(self) -> None:
        self._pool.held -= len(self._buffer)
        self._buffer = bytearray()

    async def drain(self) -> None:
        while self._error is None:
            if not self._pool.within:
                self._pool.relieve()
                self._pool.sink.hurry()
                if self._size <= SMALL_BYTES and self._pool.within_extra:
                    return
            bound = MESSAGE_CHUNKS * self._pool.chunk
            if self._flying > bound // 2:
                self._pool.sink.hurry()
            if self._flying <= bound and (self._pool.within or not self._pool.flying):
                return
            await self._pool.change()
        raise type(self._error)(*self._error.args)

    async def commit(self, envelope: Envelope, also: Change | None = None) -> Envelope:
        """See `Intake.commit`. A cancelled commit may or may not have been done: `abort` then makes it undone."""
        if self._state is not State.OPEN:
            raise SpoolError(f"{queue_id(self._id)}: committed after its end")
        if self._error is not None:
            raise type(self._error)(*self._error.args)
        kept = envelope
        if (envelope.id, envelope.size) != (self._id, self._size):
            kept = changed(envelope, id=self._id, size=self._size)
        last = (bytes(self._buffer),) if self._buffer else ()
        head = Head(self._size, self._parts + len(last), self._crc)
        future = self._pool.sink.finish(Tail(self._id, self._parts + 1, last, head), kept, also or Change(), self._fate)
        self._state = State.COMMITTING
        self._fly(future, len(self._buffer))
        self._buffer = bytearray()
        try:
            await future
        except SpoolError:
            if self._state is State.COMMITTING:
                self._state = State.FAILED
            raise
        if self._state is not State.COMMITTING:  # aborted meanwhile: it is being removed again
            raise SpoolError(f"{queue_id(self._id)}: aborted while it was committed")
        self._state = State.COMMITTED
        self._pool.intakes.discard(self)
        return kept

    async def abort(self) -> None:
        if self._state in (State.COMMITTED, State.ABORTED):
            return
        begun = self._parts > 0 or self._state is State.COMMITTING
        self._state = State.ABORTED
        self._pool.intakes.discard(self)
        self._empty()
        if begun:
            try:
                await self._pool.sink.drop(self._id)
            except SpoolError as error:
                log.warning("warning: %s: its chunks stay until the next recovery: %s", queue_id(self._id), error)
