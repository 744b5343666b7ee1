"""What stands in the journal when a spool is opened that was not closed: moved into LMDB, or shown to a tool.

Owns the judgement of a journal that is found: whose it is, whether it is whole. `replay` may be cut anywhere and run
any number of times with the same result; `peek` changes nothing.

Where LMDB's mark of the journal is lost with a damaged page, or is an older one that a repair has found, nothing tells
any more what has moved and been delivered since: what stands in the journal alone is then taken up on hold.
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
HELD: Final = "found in a journal of which the spool knew no more; it may have been delivered before"
STRANGE: Final = "what the spool knows of its journal is lost or too old: mail that stands there alone goes on hold"
PEEKS: Final = 5  # limit: times that a journal is read anew because the relay moved mail meanwhile


@value
class Replayed:
    """What the start found in the journal: messages that were moved, and what is lost, in words."""

    messages: int = 0
    lost: str = ""
    date: float = 0.0  # the latest that it holds


def move_leaf(transaction: Transaction, id: int, leaf: Leaf, body: bytes) -> None:
    """Store a message that stood in the journal."""
    if body:
        records.put(transaction, layout.key(id, 1), body)
    records.put(transaction, layout.key(id, 0), leaf.record)


@value
class _Read:
    """What a journal holds. `lost` in words, "" for nothing; `strange`: LMDB does not know how much of it it has."""

    leaves: dict[int, Leaf]
    date: float = 0.0
    lost: str = ""
    strange: bool = False


def replay(environment: Environment, meta: Meta) -> tuple[Meta, Replayed]:
    """Move what is there; the meta record as it then stands. Raises SpoolError where the medium takes nothing."""
    assert meta.journal is not None
    directory = environment.directory
    try:
        with journal_file.Found(directory) as found:
            there = _read(environment, found, meta.journal)
            if there.lost:
                _keep(directory, there.lost)
            meta = replace(meta, wall=max(meta.wall, there.date))
            _move(environment, meta, there, found.read)
    except (OSError, _Foreign) as error:
        lost = f"the journal is lost: {error if isinstance(error, _Foreign) else error.strerror}"
        _keep(directory, lost)
        there = _Read({}, lost=lost)
        _move(environment, meta, there, lambda at, count: b"")
    if there.lost:
        journal_file.remove(directory)  # it has a second name, or none
    log.info("%s: the journal was not closed in order: messages=%d", directory, len(there.leaves))
    return replace(meta, journal=None), Replayed(len(there.leaves), there.lost)


def rescue(environment: Environment) -> Replayed:
    """The same where the meta record is lost, and with it the mark. Raises SpoolError."""
    directory = environment.directory
    try:
        with journal_file.Found(directory) as found:
            there = _read(environment, found, None)
            if there.lost:
                _keep(directory, there.lost)
            _move(environment, None, there, found.read)
    except (OSError, _Foreign):
        return Replayed()
    return Replayed(len(there.leaves), there.lost, there.date)


def _read(environment: Environment, found: journal_file.Found, mark: JournalMark | None) -> _Read:
    """All of it above the mark. Where that is lost, or too old, all that the file holds and LMDB does not, on hold."""
    size, identity = _whose(found, mark)
    shown = journal_layout.newest(found.read, size, identity)
    strange = shown is not None and (mark is None or shown.epoch > mark.epoch + 1)
    mark = shown if strange else mark
    if mark is None:
        return _Read({})
    scan = Scan()
    leaves, date = journal_layout.gather(scan.records(found.read, mark))
    words = [_words(scan)] if scan.lost else []
    if strange:
        leaves = _strangers(environment, leaves)
        if leaves:
            words.append(STRANGE)
    return _Read(leaves, date, "; ".join(words), strange)


def _strangers(environment: Environment, leaves: dict[int, Leaf]) -> dict[int, Leaf]:
    """Those that are not in LMDB, on hold. One may have moved there and been delivered since: nobody can tell."""
    for mail, leaf in list(leaves.items()):
        with environment.read(mail) as transaction:
            known = transaction.get(layout.key(mail, 0)) is not None or records.is_aside(transaction, mail)
        if known:
            del leaves[mail]
            continue
        try:
            head, envelope = layout.parse(mail, leaf.record)
        except SpoolDamaged:
            continue  # whoever reads it sets it aside
        waiting = replace(envelope, hold=True, hold_reason=HELD)
        leaf.record = layout.seal(mail, head, layout.fields_of(waiting))
    return leaves


class _Foreign(Exception):
    """The journal that is there is not the one that LMDB speaks of."""


def _whose(found: journal_file.Found, mark: JournalMark | None) -> tuple[int, bytes]:
    """Size and identity."""
    whose = found.whose()
    if whose is None:
        raise _Foreign("what is there is not a journal, or not all of it")
    if mark is not None and whose != (mark.size, mark.identity):
        raise _Foreign("what is there is the journal of another spool, or of another time")
    return whose


def _words(scan: Scan) -> str:
    count = sum(last - first + 1 for first, last in scan.lost)
    if count == 1:
        return "1 record of the journal does not read"
    return f"{count} records of the journal do not read" if count else ""


def _keep(directory: Path, lost: str) -> None:
    """Say it, and keep what there is to look at."""
    kept = journal_file.set_aside(directory)
    log.error("error: %s: %s; mail may be lost%s", directory, lost, f"; kept as {kept}" if kept else "")


def _move(environment: Environment, meta: Meta | None, there: _Read, read: Callable[[int, int], bytes]) -> None:
    """The oldest first, in transactions of MOVE_BYTES each; the last one says that the journal is empty.

    Without a meta record none says anything: what has moved is known by standing in LMDB, and so where the mark was
    too old, which therefore stays as it is until all has moved.
    """
    waiting = list(there.leaves.items())
    while True:
        size = taken = 0
        while taken < len(waiting) and (taken == 0 or size + waiting[taken][1].size <= MOVE_BYTES):
            size += waiting[taken][1].size + len(waiting[taken][1].record)
            taken += 1
        part, waiting = waiting[:taken], waiting[taken:]
        with environment.write() as transaction:
            for mail, leaf in part:
                move_leaf(transaction, mail, leaf, read(leaf.at, leaf.size))
            if meta is not None:
                mark = meta.journal if waiting else None
                if mark is not None and not there.strange:
                    mark = replace(mark, number=part[-1][1].number)
                records.put(transaction, layout.meta_key(), layout.write_meta(replace(meta, journal=mark)))
        if not waiting:
            return


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
        if meta is not None and meta.journal is None:
            return Peek({}, None, "")
        found = _peek(environment, meta.journal if meta is not None else None)
        before, meta = meta, read_meta(environment)
        if (before and before.journal) == (meta and meta.journal):
            return found
        found.close()
    raise SpoolError(f"{environment.directory}: mail moves too fast to be looked at from outside; ask the relay")


def _peek(environment: Environment, mark: JournalMark | None) -> Peek:
    directory = environment.directory
    try:
        found = journal_file.Found(directory)
    except PermissionError as error:
        raise SpoolError(f"{directory / journal_file.NAME}: {error.strerror}: ask as root or as the owner") from error
    except OSError as error:
        return Peek({}, None, f"the journal is lost: {error.strerror}" if mark is not None else "")
    try:
        there = _read(environment, found, mark)
    except _Foreign as error:
        found.close()
        return Peek({}, None, f"the journal is lost: {error}" if mark is not None else "")
    except BaseException:
        found.close()
        raise
    return Peek(there.leaves, found, there.lost)
