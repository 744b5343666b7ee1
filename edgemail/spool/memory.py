"""The spool in memory: the same verbs, for tests. Nothing survives the process.

Owns no thread and no timer: a job is done on the next turn of the loop. `full` and `failing` switch failures on and
off; `damage` and its kin do what a worn-out card does.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from edgemail.clock import Clock, ManualClock
from edgemail.envelope import Envelope
from edgemail.errors import SpoolDamaged, SpoolError, SpoolFull
from edgemail.spool import layout
from edgemail.spool.intake import Pool, SpoolIntake
from edgemail.spool.job import Fate
from edgemail.spool.layout import Head
from edgemail.spool.records import Tail
from edgemail.spool.register import first_id
from edgemail.spool.verbs import Change, Damaged, Room
from edgemail.value import changed

PAGE: Final = 4096
SIZE: Final = 256 << 20  # limit: bytes that a spool in memory takes, unless the test says otherwise

T = TypeVar("T")


class MemorySpool:
    """The `Spool` without a disk."""

    def __init__(self, clock: Clock | None = None, size: int = SIZE) -> None:
        self.full = False  # what brings mail raises SpoolFull
        self.failing = False  # whatever writes raises SpoolError
        self.commits = 0  # jobs that were done
        self.size = size
        self._clock: Clock = clock or ManualClock()
        self._next = first_id(self._clock.wall())
        self._kept: dict[int, tuple[Head, Envelope]] = {}
        self._chunks: dict[int, dict[int, bytes]] = {}
        self._used = 0  # bytes of `_chunks`
        self._broken: dict[int, str] = {}  # ids whose envelope does not parse, and why
        self._aside: dict[int, Damaged] = {}
        self._pool = Pool(self, PAGE, layout.chunk_size(PAGE))
        self._closed = False

    # Writing.

    def intake(self) -> SpoolIntake:
        if self._closed:
            raise SpoolError("the spool is closed")
        self._next += 1
        return SpoolIntake(self._pool, self._next - 1)

    async def apply(self, change: Change, *, lazy: bool = False) -> None:
        await self._do(lambda: self._apply(change))

    async def quarantine(self, id: int, why: str) -> None:
        await self._do(lambda: self._set_aside(id, why))

    async def discard(self, id: int) -> bool:
        """Delete what was set aside under this id, for good; False when there is no such thing."""

        def steps() -> bool:
            if self._aside.pop(id, None) is None:
                return False
            self._drop(id)
            return True

        return await self._do(steps)

    def ship(self, id: int, part: int, chunk: bytes, fate: Fate) -> asyncio.Future[None]:
        return self._do(lambda: self._put(id, part, chunk), brings=len(chunk), fate=fate)

    def hurry(self) -> None:
        """Nothing waits here."""

    def finish(self, tail: Tail, envelope: Envelope, also: Change, fate: Fate) -> asyncio.Future[None]:
        layout.fields_of(envelope)  # what cannot be stored is refused here too

        def steps() -> None:
            for part, chunk in enumerate(tail.chunks, tail.first):
                self._put(tail.id, part, chunk)
            self._apply(also)
            self._kept[tail.id] = (tail.head, envelope)

        return self._do(steps, brings=1 + sum(map(len, tail.chunks)), fate=fate)

    def drop(self, id: int) -> asyncio.Future[None]:
        return self._do(lambda: self._drop(id))

    def _do(self, steps: Callable[[], T], brings: int = 0, fate: Fate | None = None) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def turn() -> None:
            error: SpoolError | None = None
            if self._closed:
                error = SpoolError("the spool is closed")
            elif self.failing:
                error = SpoolError("the spool fails")
            elif brings and (self.full or brings > self.room().bytes):
                error = SpoolFull("the spool is full")
            elif fate:
                error = fate[0]
            if error is not None and fate is not None:
                fate.append(error)
            result = steps() if error is None else None
            self.commits += error is None
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        loop.call_soon(turn)
        return future

    def _apply(self, change: Change) -> None:
        for envelope in change.update:
            kept = self._kept.get(envelope.id)
            if kept is None:
                continue
            if envelope.id in self._broken:
                self._set_aside(envelope.id, self._broken[envelope.id])
                continue
            self._kept[envelope.id] = (kept[0], changed(envelope, size=kept[0].size))
        for mail in change.remove:
            if mail in self._kept:
                self._drop(mail)

    def _put(self, id: int, part: int, chunk: bytes) -> None:
        self._chunks.setdefault(id, {})[part] = chunk
        self._used += len(chunk)

    def _drop(self, id: int) -> None:
        self._kept.pop(id, None)
        self._used -= sum(map(len, self._chunks.pop(id, {}).values()))
        self._broken.pop(id, None)

    def _set_aside(self, id: int, why: str) -> None:
        if self._kept.pop(id, None) is not None:
            self._broken.pop(id, None)
            self._aside[id] = Damaged(id, self._clock.wall(), why[: layout.MAX_WHY])

    # Reading.

    def envelope(self, id: int) -> Envelope | None:
        return self._head(id)[1] if id in self._kept else None

    def _head(self, id: int) -> tuple[Head, Envelope]:
        if id in self._broken:
            raise SpoolDamaged(id, self._broken[id])
        return self._kept[id]

    def envelopes(self) -> Iterator[Envelope]:
        for mail in sorted(self._kept):
            if mail in self._broken:
                self._set_aside(mail, self._broken[mail])
            elif mail in self._kept:
                yield self._kept[mail][1]

    def body(self, id: int) -> Iterator[bytes]:
        if id not in self._kept:
            raise KeyError(id)
        return self._read(id, self._head(id)[0])

    def _read(self, id: int, head: Head) -> Iterator[bytes]:
        size = crc = 0
        for part in range(1, head.parts + 1):
            if id not in self._kept:
                raise KeyError(id)
            chunk = self._chunks.get(id, {}).get(part)
            if chunk is None:
                raise SpoolDamaged(id, f"chunk {part} of {head.parts} is missing")
            size += len(chunk)
            crc = zlib.crc32(chunk, crc)
            if part == head.parts and (size, crc) != (head.size, head.crc):
                raise SpoolDamaged(id, "body does not match its checksum")
            yield chunk

    def damaged(self) -> Iterator[Damaged]:
        yield from [self._aside[mail] for mail in sorted(self._aside)]

    def room(self) -> Room:
        return Room(0 if self.full else max(0, self.size - self._used), -1)

    async def close(self) -> None:
        if not self._closed:
            for intake in tuple(self._pool.intakes):
                if not intake.committing:
                    await intake.abort()
            await asyncio.sleep(0)
            self._closed = True

    # What a worn-out card does.

    def damage_envelope(self, id: int) -> None:
        """The envelope record no longer matches its checksum."""
        self._broken[id] = "envelope does not match its checksum"

    def damage_body(self, id: int) -> None:
        """One bit of the first chunk turned."""
        chunk = self._chunks[id][1]
        self._chunks[id][1] = bytes((chunk[0] ^ 1,)) + chunk[1:]

    def lose_chunk(self, id: int, part: int) -> None:
        """A chunk is gone."""
        self._used -= len(self._chunks[id].pop(part))
