"""The verbs of a spool: what receive, queue, send and boot may ask of it, whichever back end stands behind.

Two back ends answer them, `store` (LMDB) and `memory` (tests), under one contract test. All verbs are called on the
event loop's thread; writes are done by the writer's thread and awaited here. No read transaction outlives a call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from edgemail.envelope import Envelope
from edgemail.value import value


@value
class Change:
    """What one transaction changes: applied whole or not at all.

    `update` replaces envelopes that exist (an id that does not is passed over: it was removed meanwhile);
    `remove` finishes messages, envelope and body. A change of removals alone may be done in several steps, some
    hundreds of messages each: emptying a full spool at once would need the room that it has not got.
    """

    update: tuple[Envelope, ...] = ()
    remove: tuple[int, ...] = ()


@value
class Damaged:
    """A quarantined record: the id it stood under, when (wall clock) and why."""

    id: int
    at: float
    why: str


@value
class Room:
    """Bytes that can still be stored: the smaller of the file system's and the map's; `inodes` free (-1 unknown).

    `disk`: it is the file system's.
    """

    bytes: int
    inodes: int
    disk: bool = False


class Intake(Protocol):
    """One message on its way in. `id` is given at once, so that the trace header can name it."""

    @property
    def id(self) -> int: ...

    @property
    def size(self) -> int:
        """Bytes written so far."""

    def write(self, data: bytes) -> None:
        """Append content. Buffers; never blocks. Call `drain` after it."""

    async def drain(self) -> None:
        """Wait until what is buffered is within its bounds (this message's and all sessions' together).

        Raises SpoolFull or SpoolError once the message can no longer be stored; then only `abort` is left.
        """

    async def commit(self, envelope: Envelope, also: Change | None = None) -> Envelope:
        """Make the message durable, with `also` in the same transaction; returns the envelope as kept.

        `id` and `size` are filled in here. Returns after the barrier that makes it survive a power cut; raises
        SpoolFull or SpoolError when nothing was kept (and nothing of `also` was done).
        """

    async def abort(self) -> None:
        """Forget it. Safe after a failed commit and safe to call twice."""


class Intakes(Protocol):
    """What takes messages in; all that the receiving side asks for."""

    def intake(self) -> Intake:
        """Begin a message."""


class Spool(Intakes, Protocol):
    """The store of messages."""

    async def apply(self, change: Change, *, lazy: bool = False) -> None:
        """Make `change` durable. `lazy`: it may wait for the next barrier, 1 s at most; still returns after it."""

    def envelope(self, id: int) -> Envelope | None:
        """The envelope, or None where there is no such message. Raises SpoolDamaged."""

    def envelopes(self) -> Iterator[Envelope]:
        """Every message in order of id; damaged ones are passed over (and were, or will be, set aside)."""

    def body(self, id: int) -> Iterator[bytes]:
        """The stored message, chunk by chunk, each with a short read of its own.

        Raises SpoolDamaged where a chunk is missing or, at the end, where the checksum does not match; KeyError when
        there is no such message.
        """

    async def quarantine(self, id: int, why: str) -> None:
        """Set a damaged record aside: out of the queue, kept for inspection."""

    def damaged(self) -> Iterator[Damaged]:
        """What was set aside."""

    def room(self) -> Room:
        """How much can still be stored; a cheap, synchronous, recent figure."""

    async def close(self) -> None:
        """Finish what waits, mark the spool clean, give up the lock."""
