"""Builds the states that a power cut can leave behind, from a record of what was asked of the medium.

What a barrier covered is there. What was written since may be there, may be missing, in any combination (a medium
reorders), and the last bits of it may be torn at 512 octets. Of a file that is written over in whole blocks, a block
that was in flight may read back as garbage. Owns no knowledge of what the files mean.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.crash.record import ALLOCATE, MARK, MMAP_SHARED, RENAME, SYNC, TRUNCATE, WRITE, Op

SECTOR = 512
BLOCK = 4096
CREATION = 16  # operations in which a spool comes to be; each of them is cut

Files = Mapping[str, bytes]  # by the recorded name


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
    garbled: bool = False  # what is in flight may read back as garbage, not only as old or new
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
        if self.garbled:
            for at in dict.fromkeys((0, rng.randrange(1 << 16), -1)):
                some = [*waiting[:-1], *garbled(waiting[-1], at, rng)]
                yield f"garbage at block {at}", build(self.durable, some)
            yield "garbage all over", build(self.durable, [one for op in waiting for one in garbled(op, None, rng)])
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


def garbled(op: Op, at: int | None, rng: random.Random) -> list[Op]:
    """A write of which one block (None: any of them) is neither what was there nor what was to come."""
    if op.kind != WRITE:
        return [op]
    count = -(-len(op.data) // BLOCK)
    data = bytearray(op.data)
    for block in range(count):
        if block == at or (at is not None and block == at % count) or (at is None and rng.random() < 0.5):
            data[block * BLOCK : (block + 1) * BLOCK] = rng.randbytes(len(data[block * BLOCK : (block + 1) * BLOCK]))
    return [Op(WRITE, op.file, op.dsync, op.offset, 0, bytes(data))]


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


@dataclass
class Shelf:
    """The recorded names and what stands under them. A rename is sure once its directory was flushed."""

    names: Sequence[str]
    garbled: Sequence[str] = ()  # names of files whose blocks in flight may read back as garbage
    media: dict[str, Medium] = field(default_factory=dict)
    # Renames that a cut may undo, with what stood under the new name before.
    unsure: list[tuple[str, str, bytes | None]] = field(default_factory=list)

    def take(self, op: Op) -> None:
        if op.kind == RENAME:
            old, new = self.names[op.file], self.names[op.offset - 1]
            before = self.media.get(new)
            self.media[new] = self.media.pop(old)
            self.media[new].garbled = new in self.garbled
            self.unsure.append((old, new, None if before is None else bytes(before.durable)))
        elif op.kind == SYNC and self.names[op.file] not in self.media:  # a directory
            self.unsure.clear()
        else:
            self.of(self.names[op.file]).take(op)

    def of(self, name: str) -> Medium:
        return self.media.setdefault(name, Medium(garbled=name in self.garbled))

    def variants(self, flying: Op | None, rng: random.Random, count: int) -> Iterator[tuple[str, Files]]:
        """What a cut can leave; the files that `flying` does not touch are as whole as asked for, or bare."""
        touched = self.names[flying.file] if flying is not None and flying.kind in WRITING else ""
        name = touched or next(iter(self.media), "")
        if not name:
            return
        for how, content in self.media.get(name, Medium(garbled=name in self.garbled)).variants(
            flying if touched else None, rng, count
        ):
            whole = rng.random() < 0.5
            files = {n: build(m.durable, m.pending if whole else []) for n, m in self.media.items()} | {name: content}
            if self.unsure and rng.random() < 0.5:
                for old, new, before in reversed(self.unsure):
                    files[old] = files.pop(new)
                    if before is not None:
                        files[new] = before
            yield how, files


WRITING = (WRITE, TRUNCATE, ALLOCATE)


def states(
    ops: Sequence[Op],
    names: Sequence[str],
    rng: random.Random,
    count: int,
    share: float,
    *,
    garbled: Sequence[str] = (),
    before: Files | None = None,
    creation: int = CREATION,
) -> Iterator[State]:
    """Distinct states after each prefix of `ops`, or a random `share` of them; `count` random subsets for each.

    `garbled`: see Medium. `before`: what the files held before the first of `ops`. The first `creation` are all cut.
    """
    shelf = Shelf(names, garbled)
    for name, content in (before or {}).items():
        shelf.of(name).durable[:] = content
    seen: set[tuple[object, ...]] = set()
    marks = 0
    for number, op in enumerate([*ops, None]):
        if op is not None and op.kind == MMAP_SHARED:
            raise AssertionError("a writable shared mapping: the record does not see what goes to the medium")
        if op is not None and op.kind == MARK:
            marks += 1
            continue
        if number < creation or rng.random() < share or op is None:
            for how, files in shelf.variants(op, rng, count):
                key = (marks, *((name, zlib.crc32(content)) for name, content in sorted(files.items())))
                if key not in seen:
                    seen.add(key)
                    yield State(number, files, how)
        if op is not None:
            shelf.take(op)
