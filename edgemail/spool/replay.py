"""What stands in the journal when a spool is opened that was not closed: moved into LMDB, or shown to a tool.

Owns the judgement of a journal that is found: whose it is, whether it is whole. `replay` may be cut anywhere and run
any number of times with the same result; `peek` changes nothing.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from edgemail.errors import SpoolDamaged, SpoolError
from edgemail.spool import journal_file, journal_layout, layout, records
from edgemail.spool.environment import Environment, Transaction
from edgemail.spool.journal_layout import Leaf, Scan
from edgemail.spool.layout import JournalMark, Meta
from edgemail.value import value

log = logging.getLogger("edgemail.spool")

MOVE_BYTES: Final = 1 << 20  # limit: bytes that one transaction moves from the journal into LMDB
PEEKS: Final = 5  # limit: times that a journal is read anew because the relay moved mail meanwhile


@value
class Replayed:
    """What the start found in the journal: messages that were moved, and what is lost, in words."""

    messages: int = 0
    lost: str = ""


def move_leaf(transaction: Transaction, id: int, leaf: Leaf, body: bytes) -> None:
    """Store a message that stood in the journal."""
    if body:
        records.put(transaction, layout.key(id, 1), body)
    records.put(transaction, layout.key(id, 0), leaf.record)


def replay(environment: Environment, meta: Meta) -> tuple[Meta, Replayed]:
    """Move what is there; the meta record as it then stands. Raises SpoolError where the medium takes nothing."""
    mark = meta.journal
    assert mark is not None
    directory = environment.directory
    scan = Scan()
    try:
        with journal_file.Found(directory) as found:
            _whose(found, mark)
            leaves, date = journal_layout.gather(scan.records(found.read, mark))
            lost = _words(scan)
            if lost:
                _keep(directory, lost)
            meta = replace(meta, wall=max(meta.wall, date))
            meta = _move(environment, meta, mark, leaves, found.read)
    except (OSError, _Foreign) as error:
        lost = f"the journal is lost: {error if isinstance(error, _Foreign) else error.strerror}"
        _keep(directory, lost)
        leaves = {}
        meta = _move(environment, meta, mark, leaves, lambda at, count: b"")
    if lost:
        journal_file.remove(directory)  # it has a second name, or none
    log.info("%s: the journal was not closed in order: messages=%d", directory, len(leaves))
    return meta, Replayed(len(leaves), lost)


class _Foreign(Exception):
    """The journal that is there is not the one that LMDB speaks of."""


def _whose(found: journal_file.Found, mark: JournalMark) -> None:
    whose = found.whose()
    if whose is None:
        raise _Foreign("what is there is not a journal, or not all of it")
    if whose != (mark.size, mark.identity):
        raise _Foreign("what is there is the journal of another spool, or of another time")


def _words(scan: Scan) -> str:
    count = sum(last - first + 1 for first, last in scan.lost)
    if count == 1:
        return "1 record of the journal does not read"
    return f"{count} records of the journal do not read" if count else ""


def _keep(directory: Path, lost: str) -> None:
    """Say it, and keep what there is to look at."""
    kept = journal_file.set_aside(directory)
    log.error("error: %s: %s; mail may be lost%s", directory, lost, f"; kept as {kept}" if kept else "")


def _move(
    environment: Environment, meta: Meta, mark: JournalMark, leaves: dict[int, Leaf], read: Callable[[int, int], bytes]
) -> Meta:
    """The oldest first, in transactions of MOVE_BYTES each; the last one says that the journal is empty."""
    waiting = list(leaves.items())
    while True:
        size = taken = 0
        while taken < len(waiting) and (taken == 0 or size + waiting[taken][1].size <= MOVE_BYTES):
            size += waiting[taken][1].size + len(waiting[taken][1].record)
            taken += 1
        part, waiting = waiting[:taken], waiting[taken:]
        journal = replace(mark, number=part[-1][1].number) if waiting else None
        meta = replace(meta, journal=journal)
        with environment.write() as transaction:
            for mail, leaf in part:
                move_leaf(transaction, mail, leaf, read(leaf.at, leaf.size))
            records.put(transaction, layout.meta_key(), layout.write_meta(meta))
        if not waiting:
            return meta


class Peek:
    """The journal as a tool sees it, read alone: the messages that are not in LMDB yet."""

    def __init__(self, leaves: dict[int, Leaf], found: journal_file.Found | None, lost: str) -> None:
        self._lost = lost
        self._leaves = leaves
        self._found = found

    @property
    def lost(self) -> str:
        return self._lost

    def ids(self) -> list[int]:
        return list(self._leaves)

    def record(self, id: int) -> bytes | None:
        leaf = self._leaves.get(id)
        return None if leaf is None else leaf.record

    def leaf(self, id: int) -> tuple[bytes, bytes] | None:
        """The envelope record and the body; None where it is not here, or no longer: then it is in LMDB, or gone."""
        leaf = self._leaves.get(id)
        if leaf is None or self._found is None:
            return None
        body = self._found.read(leaf.at, leaf.size)
        try:
            head = layout.head_of(id, leaf.record)
        except SpoolDamaged:
            return leaf.record, body
        return (leaf.record, body) if zlib.crc32(body) == head.crc else None

    def close(self) -> None:
        if self._found is not None:
            self._found.close()
            self._found = None


def peek(environment: Environment, read_meta: Callable[[Environment], Meta | None]) -> Peek:
    """What stands in the journal now. Raises SpoolError where it may not be read.

    Beside a running relay the mark may move while the journal is read; then it is read anew.
    """
    meta = read_meta(environment)
    for _ in range(PEEKS):
        mark = meta.journal if meta is not None else None
        if mark is None:
            return Peek({}, None, "")
        found = _peek(environment.directory, mark)
        meta = read_meta(environment)
        if meta is not None and meta.journal == mark:
            return found
        found.close()
    raise SpoolError(f"{environment.directory}: mail moves too fast to be looked at from outside; ask the relay")


def _peek(directory: Path, mark: JournalMark) -> Peek:
    try:
        found = journal_file.Found(directory)
    except PermissionError as error:
        raise SpoolError(f"{directory / journal_file.NAME}: {error.strerror}: ask as root or as the owner") from error
    except OSError as error:
        return Peek({}, None, f"the journal is lost: {error.strerror}")
    try:
        _whose(found, mark)
        scan = Scan()
        leaves, _ = journal_layout.gather(scan.records(found.read, mark))
    except _Foreign as error:
        found.close()
        return Peek({}, None, f"the journal is lost: {error}")
    except BaseException:
        found.close()
        raise
    return Peek(leaves, found, _words(scan))
