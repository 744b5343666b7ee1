"""The pages of the spool's file, read without LMDB: what it would trip over is found before it does.

LMDB trusts its pages: a damaged one is an assertion that ends the process, at every start anew. `inspect` walks the two
trees from the newer meta page, branches and leaves alone, as every start after an unclean stop does; `Pages` gives what
can be read of the rest, for the repair. Owns the layout of LMDB 0.9's pages; never writes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

from edgemail.errors import SpoolDamaged, SpoolError
from edgemail.spool import layout
from edgemail.value import value

DAMAGES_NAMED: Final = 20  # limit: damaged pages of the spool's file that are named one by one
MAX_DEPTH: Final = 32  # limit: levels of a tree in the spool's file, LMDB's CURSOR_STACK

_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
_HEADER: Final = 16
_NONE: Final = 2**64 - 1  # the root of an empty tree
_BRANCH, _LEAF, _OVERFLOW, _META = 0x01, 0x02, 0x04, 0x08
_KINDS: Final = 0x6F  # the others are marks of pages in memory
_BIG: Final = 0x01  # the value stands on overflow pages
_PAGE: Final = struct.Struct("=QHHHH")  # number, pad, flags, lower, upper
_NODE: Final = struct.Struct("=HHHH")  # size or number low and high, flags, size of the key
_NUMBER: Final = struct.Struct("=Q")
_META_PAGE: Final = struct.Struct("=IIQQ")  # magic, version, address, size of the map
_TREE: Final = struct.Struct(
    "=IHHQQQQQ"
)  # pad (of the first: page size), flags, depth, pages of three kinds, entries, root
_LAST: Final = struct.Struct("=QQ")  # last page, transaction


@value
class Meta:
    """A meta page: where the trees begin."""

    page: int  # octets of a page
    free: int
    main: int
    last: int
    transaction: int

    @property
    def whole(self) -> bool:
        """Whether the trees begin within the file."""
        return all(root == _NONE or 1 < root <= self.last for root in (self.free, self.main))


@value
class Node:
    """One entry of a leaf: a value of its own, or the first of its overflow pages."""

    key: bytes
    value: bytes
    size: int
    overflow: int | None


class Pages:
    """A spool's file. `damage` gathers what was found wrong, a sentence each."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._file).st_size
        self.damage: list[str] = []
        metas = {place: found for place in (0, 1) if (found := self._meta(place)) is not None}
        newest = max(metas, key=lambda place: metas[place].transaction, default=0)  # of equals LMDB takes the first
        while newest in metas and not metas[newest].whole:
            self._note(f"meta page {newest} is damaged")
            del metas[newest]
            newest = 1 - newest
        # The older one need not be whole: where writing it failed, LMDB has put back its date, and not its trees.
        self.metas = list(metas.values())
        self.meta = metas.get(newest)
        self.page = self.meta.page if self.meta else os.sysconf("SC_PAGE_SIZE")
        self.claimed = bytearray(
            self.meta.last + 1 if self.meta else self.size // self.page
        )  # pages known to be in use

    def __enter__(self) -> Pages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    # -- pages --------------------------------------------------------------------------------------------------------

    def _meta(self, place: int) -> Meta | None:
        head = os.pread(self._file, 8192, 0)
        sizes = {os.sysconf("SC_PAGE_SIZE")}
        if len(head) >= _HEADER + _META_PAGE.size + _TREE.size:
            sizes.add(_TREE.unpack_from(head, _HEADER + _META_PAGE.size)[0])
        for page in sizes:
            found = self._meta_at(place, page)
            if found is not None:
                return found
        self._note(f"meta page {place} is damaged")
        return None

    def _meta_at(self, place: int, page: int) -> Meta | None:
        if page not in (4096, 8192, 16384, 32768, 65536):
            return None
        raw = os.pread(self._file, page, place * page)
        if len(raw) < page:
            return None
        magic, version, _, _ = _META_PAGE.unpack_from(raw, _HEADER)
        at = _HEADER + _META_PAGE.size
        size, *_, free = _TREE.unpack_from(raw, at)
        *_, main = _TREE.unpack_from(raw, at + _TREE.size)
        last, transaction = _LAST.unpack_from(raw, at + 2 * _TREE.size)
        if magic != _MAGIC or version != _VERSION or size != page or not _PAGE.unpack_from(raw)[2] & _META:
            return None
        return Meta(page, free, main, last, transaction)

    def _note(self, what: str) -> None:
        if len(self.damage) < DAMAGES_NAMED:
            self.damage.append(what)

    def read(self, number: int) -> bytes:
        """One page, short where the file ends before it does."""
        return os.pread(self._file, self.page, number * self.page)

    def entries(self, number: int, raw: bytes) -> list[int] | None:
        """Where the nodes of a branch or leaf begin; None where the page is not one that LMDB could read."""
        if len(raw) < self.page:
            return None
        own, _, flags, lower, upper = _PAGE.unpack_from(raw)
        if (
            own != number
            or flags & _KINDS not in (_BRANCH, _LEAF)
            or not _HEADER < lower <= upper <= self.page
            or lower % 2
        ):
            return None
        starts = list(struct.unpack_from(f"={(lower - _HEADER) // 2}H", raw, _HEADER))
        for start in starts:
            if not upper <= start <= self.page - _NODE.size or start % 2:
                return None
            low, high, kind, key = _NODE.unpack_from(raw, start)
            behind = start + _NODE.size + key
            if flags & _LEAF:
                if kind & ~_BIG:  # no table of ours has more than one value under a key, or tables within it
                    return None
                behind += 8 if kind & _BIG else low | high << 16
            if behind > self.page:
                return None
        return starts

    # -- trees --------------------------------------------------------------------------------------------------------

    def leaves(self, root: int) -> Iterator[tuple[int, bytes, list[int]]]:
        """Every leaf below `root` that can be read: number, octets, nodes. What cannot be is noted."""
        level = [root] if root != _NONE else []
        for _ in range(MAX_DEPTH):
            below: list[int] = []
            for number in sorted(level):
                raw = self.read(number)
                starts = self.entries(number, raw)
                if not self._claim(number, 1):
                    continue
                if starts is None:
                    self._note(f"page {number} is damaged")
                elif _PAGE.unpack_from(raw)[2] & _LEAF:
                    yield number, raw, starts
                else:
                    below += self._children(number, raw, starts)
            level = below
            if not level:
                return
        self._note(f"the tree at page {root} has no end")

    def _claim(self, number: int, count: int) -> bool:
        """Pages that somebody leads to; False, and noted, where somebody else does too, or where there are none."""
        if not 1 < number <= number + count - 1 < len(self.claimed):
            self._note(f"page {number} is led to, and there is not")
            return False
        if any(self.claimed[number : number + count]):
            self._note(f"page {number} is in two places")
            return False
        self.claimed[number : number + count] = b"\1" * count
        return True

    def _children(self, number: int, raw: bytes, starts: list[int]) -> list[int]:
        children = []
        for start in starts:
            low, high, top, _ = _NODE.unpack_from(raw, start)
            child = low | high << 16 | top << 32
            if child < len(self.claimed):
                children.append(child)
            else:
                self._note(f"page {number} leads to page {child}, which there is not")
        return children

    def nodes(self, raw: bytes, starts: list[int]) -> Iterator[Node]:
        """The entries of a leaf."""
        for start in starts:
            low, high, kind, length = _NODE.unpack_from(raw, start)
            at = start + _NODE.size + length
            key = raw[start + _NODE.size : at]
            size = low | high << 16
            if kind & _BIG:
                yield Node(key, b"", size, _NUMBER.unpack_from(raw, at)[0])
            else:
                yield Node(key, raw[at : at + size], size, None)

    def value(self, node: Node) -> bytes | None:
        """A node's value; None where its overflow pages are not what they should be."""
        if node.overflow is None:
            return node.value
        count = self.overflow_pages(node)
        raw = os.pread(self._file, _HEADER, node.overflow * self.page)
        if len(raw) < _HEADER or count * self.page > self.size:
            return None
        own, _, flags, low, high = _PAGE.unpack_from(raw)
        if own != node.overflow or flags != _OVERFLOW or low | high << 16 != count:
            return None
        value = os.pread(self._file, node.size, node.overflow * self.page + _HEADER)
        return value if len(value) == node.size else None

    def overflow_pages(self, node: Node) -> int:
        return (_HEADER + node.size + self.page - 1) // self.page

    def clean(self) -> bool:
        """Whether the meta record, which is the first of all, says that the spool was closed in order."""
        if self.meta is None or len(self.metas) < 2 or self.meta.main == _NONE:
            return False
        number = self.meta.main
        for _ in range(MAX_DEPTH):
            raw = self.read(number)
            starts = self.entries(number, raw)
            if starts is None:
                return False
            if _PAGE.unpack_from(raw)[2] & _LEAF:
                first = next(self.nodes(raw, starts))
                try:
                    return first.key == layout.meta_key() and layout.read_meta(first.value).clean
                except SpoolDamaged:
                    return False
            children = self._children(number, raw, starts[:1])
            if not children:
                return False
            number = children[0]
        return False

    def walk(self) -> Iterator[Node]:
        """Look at every branch and leaf, and give the records; what is wrong stands in `damage` at the end.

        With one meta page left, the list of free pages may be that of the state before the last: it claims nothing.
        """
        if self.meta is None:
            return
        for _, raw, starts in self.leaves(self.meta.main):
            for node in self.nodes(raw, starts):
                if node.overflow is None or self._claim(node.overflow, self.overflow_pages(node)):
                    yield node
        for number, raw, starts in self.leaves(self.meta.free) if len(self.metas) == 2 else ():
            for node in self.nodes(raw, starts):
                if node.overflow is None or self._claim(node.overflow, self.overflow_pages(node)):
                    self._claim_free(number, self.value(node))

    def _claim_free(self, number: int, value: bytes | None) -> None:
        """Pages that a transaction gave back: a count and as many numbers, the highest first."""
        if value is None or len(value) < _NUMBER.size or len(value) % _NUMBER.size:
            self._note(f"page {number} does not say what is free")
            return
        count, *freed = struct.unpack(f"={len(value) // _NUMBER.size}Q", value)
        if count > len(freed):
            self._note(f"page {number} does not say what is free")
            return
        for each in freed[:count]:
            if not self._claim(each, 1):
                return

    def unclaimed(self) -> Iterator[Node]:
        """After `walk`: records of leaves that nobody leads to: behind a damaged branch, or of an older state."""
        for number in range(2, len(self.claimed)):
            if self.claimed[number]:
                continue
            raw = self.read(number)
            starts = self.entries(number, raw)
            if starts is not None and _PAGE.unpack_from(raw)[2] & _LEAF:
                yield from self.nodes(raw, starts)


def refuse_damage(directory: Path) -> None:
    """Raise SpoolError, with what to do, where LMDB would fail or abort on the file; not where there is none."""
    path = directory / "data.mdb"
    try:
        found = inspect(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SpoolError(f"{path}: {error.strerror}") from error
    if found:
        raise SpoolError(
            f"{path} is damaged ({found[0]}{f', and {len(found) - 1} more' if found[1:] else ''}): nothing is lost yet;"
            " `edgemail spool repair` saves what can be read into a new file and keeps this one"
        )


def inspect(path: Path, *, always: bool = False) -> list[str]:
    """What LMDB would trip over, a sentence each. Without `always`, a file that was closed in order is believed.

    Raises OSError.
    """
    if path.stat().st_size == 0:
        return []
    with Pages(path) as pages:
        if always or not pages.clean():
            for _ in pages.walk():
                pass
        return pages.damage
