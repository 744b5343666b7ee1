"""Builds the states that a power cut can leave behind, from a record of what was asked of the medium.

What a barrier covered is there. What was written since may be there, may be missing, in any combination (a medium
reorders), and the last bits of it may be torn at 512 octets. Owns no knowledge of what the files mean.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.crash.record import ALLOCATE, MARK, MMAP_SHARED, SYNC, TRUNCATE, WRITE, Op

SECTOR = 512
CREATION = 16  # operations in which a spool comes to be; each of them is cut

Files = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class State:
    """The files after a cut, and how many operations had been asked for when it came."""

    cut: int
    files: Files
    how: str


@dataclass
class Medium:
    """One file: what is surely there, and what was written since the last barrier."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Op] = field(default_factory=list)

    def take(self, op: Op) -> None:
        if op.kind == SYNC:
            for waiting in self.pending:
                apply(self.durable, waiting)
            self.pending.clear()
        elif op.kind == WRITE and op.dsync:
            # It is on the medium when the call returns; it says nothing of other writes that wait. It stays among
            # them too, so that an older one to the same bytes is not put over it at the next barrier.
            apply(self.durable, op)
            self.pending.append(op)
        else:
            self.pending.append(op)

    def variants(self, flying: Op | None, rng: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
        """Contents that a cut can leave, `flying` being the call that had not returned."""
        waiting = [*self.pending, *([flying] if flying is not None and flying.kind != SYNC else [])]
        yield "none", build(self.durable, [])
        if not waiting:
            return
        yield "all", build(self.durable, waiting)
        yield "torn last", build(self.durable, [*waiting[:-1], *torn(waiting[-1], rng)])
        yield "only last", build(self.durable, waiting[-1:])
        yield "all but last", build(self.durable, waiting[:-1])
        for number in range(count):
            share = rng.random()
            some = [op for op in waiting if rng.random() < share]
            if rng.random() < 0.5:
                rng.shuffle(some)
            if some and rng.random() < 0.5:
                at = rng.randrange(len(some))
                some[at : at + 1] = torn(some[at], rng)
            yield f"subset {number}", build(self.durable, some, rng.random() < 0.3, waiting)


def apply(content: bytearray, op: Op) -> None:
    if op.kind == TRUNCATE:
        if op.size < len(content):
            del content[op.size :]
        else:
            content.extend(bytes(op.size - len(content)))
    elif op.kind == ALLOCATE:
        if op.size > len(content):
            content.extend(bytes(op.size - len(content)))
    elif op.kind == WRITE:
        if op.offset > len(content):
            content.extend(bytes(op.offset - len(content)))
        content[op.offset : op.offset + len(op.data)] = op.data


def torn(op: Op, rng: random.Random) -> list[Op]:
    """The sectors of a write that made it: a random choice of them."""
    if op.kind != WRITE or len(op.data) <= SECTOR:
        return [op] if rng.random() < 0.5 else []
    share = rng.random()
    return [
        Op(WRITE, op.file, op.dsync, op.offset + at, 0, op.data[at : at + SECTOR])
        for at in range(0, len(op.data), SECTOR)
        if rng.random() < share
    ]


def build(durable: bytearray, ops: Sequence[Op], extended: bool = False, all_ops: Sequence[Op] = ()) -> bytes:
    """`durable` with `ops`; `extended`: the file's length is what all of them would have made it, holes zero."""
    content = bytearray(durable)
    for op in ops:
        apply(content, op)
    if extended:
        longest = max((op.offset + len(op.data) if op.kind == WRITE else op.size for op in all_ops), default=0)
        if longest > len(content):
            content.extend(bytes(longest - len(content)))
    return bytes(content)


def states(ops: Sequence[Op], files: int, rng: random.Random, count: int, share: float = 1.0) -> Iterator[State]:
    """Distinct states after each prefix of `ops`, or a random `share` of them; `count` random subsets for each."""
    media = [Medium() for _ in range(files)]
    seen: set[tuple[int, ...]] = set()
    marks = 0
    for number, op in enumerate([*ops, None]):
        if op is not None and op.kind == MMAP_SHARED:
            raise AssertionError("a writable shared mapping: the record does not see what goes to the medium")
        if op is not None and op.kind == MARK:
            marks += 1
            continue
        if number < CREATION or rng.random() < share or op is None:
            flying = op
            at = flying.file if flying is not None else 0
            for how, content in media[at].variants(flying, rng, count):
                # The other files are taken as whole as they were asked for, or as bare as the barriers left them.
                rest = rng.random() < 0.5
                whole = tuple(
                    content if i == at else build(m.durable, m.pending if rest else []) for i, m in enumerate(media)
                )
                key = (marks, *(zlib.crc32(c) for c in whole))
                if key not in seen:
                    seen.add(key)
                    yield State(number, whole, how)
        if op is not None:
            media[op.file].take(op)
