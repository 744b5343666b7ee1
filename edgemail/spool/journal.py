"""The journal in front of LMDB: small mail is durable after one write and one barrier, where LMDB needs two.

Owns the messages that stand in the journal, their order, and their move into LMDB; the bytes are journal_layout's, the
file is journal_file's. Everything that changes it runs on the writer's thread, between two groups: so what it knows is
always what is on the medium, and no outcome that still awaits its barrier is ever left out of a move.

A message has one home. It comes into the journal with all of itself, is rewritten and finished there, and moves into
LMDB when its half of the file is needed again, when the box is idle, when too much memory waits, and at the end. What
was finished by then never touches LMDB. Its record and body are kept in memory while it is here: deliveries read them
there, whatever becomes of the file.

After a write or a barrier that failed (or a move of which nobody knows whether LMDB has it) nothing more is taken here
until all that is left has moved and a new epoch has begun in the other half.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Final

from edgemail.clock import Clock
from edgemail.errors import SpoolError
from edgemail.spool import journal_layout
from edgemail.spool.environment import Environment
from edgemail.spool.journal_file import JournalFile
from edgemail.spool.journal_layout import Entry, Leaf
from edgemail.spool.layout import PAGE_OVERHEAD, JournalMark
from edgemail.spool.register import Register
from edgemail.spool.replay import MOVE_BYTES, move_leaf

WAITING_BYTES: Final = 4 << 20  # limit: bytes of the messages in the journal, which are in memory too
OUTCOME_SHARE: Final = 16  # limit: this part (1/16) of each half takes no new mail: a full journal still drains


class Journal:
    """The open journal. `leaf`, `record`, `ids` and `held` are for any thread, the rest for the writer's."""

    def __init__(
        self,
        file: JournalFile,
        mark: JournalMark,
        environment: Environment,
        register: Register,
        *,
        clock: Clock,
        bound: int,
    ) -> None:
        """`mark` is on the medium; `bound` limits WAITING_BYTES further."""
        self.held = 0  # bytes of the messages here
        self.cost = 0  # bytes of pages that LMDB will need for them
        self.broken = False
        self.shut = False  # LMDB knows no journal any more
        self.groups = 0  # written since the start
        self.moved = 0  # messages moved since the start
        self.waiting_bytes = min(WAITING_BYTES, bound)
        self.turn_bytes = journal_layout.half(mark.size)
        self._file = file
        self._mark = mark  # as on the medium
        self._environment = environment
        self._register = register
        self._clock = clock
        self._lock = threading.Lock()  # over _leaves
        self._leaves: dict[int, Leaf] = {}  # in order of their numbers
        self._epoch = mark.epoch
        self._at = journal_layout.start(mark.size, mark.epoch)
        self._number = mark.number
        self._before = mark.number  # the last number of the epoch before this one

    # What stands here.

    @property
    def lost(self) -> str:
        """Nothing: it is in memory."""
        return ""

    def ids(self) -> list[int]:
        with self._lock:
            return list(self._leaves)

    def record(self, id: int) -> bytes | None:
        leaf = self._leaves.get(id)
        return None if leaf is None else leaf.record

    def leaf(self, id: int) -> tuple[bytes, bytes] | None:
        """The envelope record and the body; None where it is not here."""
        leaf = self._leaves.get(id)
        return None if leaf is None or leaf.body is None else (leaf.record, leaf.body)

    def holds(self, ids: Iterable[int]) -> bool:
        """Whether any of them stands here."""
        return any(mail in self._leaves for mail in ids)

    @property
    def empty(self) -> bool:
        return not self._leaves

    # Taking.

    def takes(self, entry: Entry, coming: set[int]) -> bool:
        """Whether this record is the journal's: it fits, and all that it touches stands here or is `coming`."""
        if self.broken or self.shut or entry.size > min(journal_layout.LARGEST, self.turn_bytes // 2):
            return False
        return all(mail in self._leaves or mail in coming for mail in entry.touches)

    def fits(self, size: int, brings: bool) -> bool:
        """Whether a group with so many bytes still fits into this half; `brings` new mail."""
        room = self.turn_bytes // OUTCOME_SHARE if brings else 0
        end = journal_layout.start(self._mark.size, self._epoch) + self.turn_bytes
        return self._at + journal_layout.blocks(size) + room <= end

    def write(self, entries: list[Entry]) -> None:
        """One group, durable when it returns. Raises SpoolError: then nobody knows, and the journal is broken."""
        salt = self._mark.salts[self._epoch - self._mark.epoch]
        date = self._clock.wall() if self._clock.trusted() else 0.0
        group = journal_layout.write_group(entries, salt, self._number + 1, date)
        number, self._number = self._number, self._number + len(entries)
        try:
            self._file.write(self._at, group)
        except SpoolError:
            self.broken = True
            raise
        self._at += len(group)
        self.groups += 1
        with self._lock:
            for count, entry in enumerate(entries, 1):
                self._apply(number + count, entry)

    def _apply(self, number: int, entry: Entry) -> None:
        if entry.put is not None:
            mail, record, body = entry.put
            self._leaves[mail] = Leaf(number, record, body, 0, len(body))
            self._count(self._leaves[mail], 1)
        touched = {mail: self._leaves[mail] for mail in entry.touches if mail in self._leaves}
        for leaf in touched.values():
            self._count(leaf, -1)
        journal_layout.rewrite(self._leaves, entry)
        for mail, leaf in touched.items():
            if mail in self._leaves:
                self._count(leaf, 1)

    def _count(self, leaf: Leaf, sign: int) -> None:
        page = self._environment.page
        self.held += sign * (leaf.size + len(leaf.record))
        self.cost += sign * sum(-(-(n + PAGE_OVERHEAD) // page) * page for n in (leaf.size, len(leaf.record)) if n)

    # Moving.

    def due(self, *, idle: bool) -> bool:
        """Whether something is to be moved between two groups."""
        if self.shut:
            return False
        return self.broken or (idle and not self.empty) or self.held > self.waiting_bytes or self._half_behind

    @property
    def _half_behind(self) -> bool:
        """Whether this half is half full, and the other one not free yet."""
        return self._mark.epoch < self._epoch and not self.fits(self.turn_bytes // 2, brings=False)

    def tend(self, *, idle: bool) -> None:
        """Do what is due. Raises SpoolError: what could not be moved stays, and is tried again."""
        if self.broken or idle:
            self.move_all()
        elif self.held > self.waiting_bytes:
            self._move(self._up_to(self.waiting_bytes // 2))
        elif self._half_behind:
            self._move(self._before, steps=1)

    def turn(self) -> None:
        """Go on in the other half, once all that stands there has moved. Raises SpoolError."""
        if self._mark.epoch < self._epoch:
            self._move(self._before)
        self._begin(self._epoch + 1)

    def move_all(self) -> None:
        """Nothing is left here when it returns. Raises SpoolError."""
        if self.broken or self._leaves:
            self._move(self._number)

    def _begin(self, epoch: int) -> None:
        self._epoch = epoch
        self._at = journal_layout.start(self._mark.size, epoch)
        self._before = self._number

    def _up_to(self, left: int) -> int:
        """The number up to which messages have to move, so that no more than so many bytes are left."""
        excess = self.held - left
        for leaf in self._leaves.values():
            excess -= leaf.size + len(leaf.record)
            if excess <= 0:
                return leaf.number
        return self._number

    def _move(self, number: int, steps: int = 0) -> None:
        """Move the messages up to `number`, the oldest first; `steps`: transactions at most, 0: until it is done."""
        while True:
            part: list[tuple[int, Leaf]] = []
            size = 0
            upto = number
            for mail, leaf in self._leaves.items():
                if leaf.number > number:
                    break
                if part and size + leaf.size > MOVE_BYTES:
                    upto = part[-1][1].number
                    break
                part.append((mail, leaf))
                size += leaf.size + len(leaf.record)
            self._transact(part, self._next_mark(upto))
            steps -= 1
            if upto == number or steps == 0:
                return

    def _next_mark(self, number: int) -> JournalMark:
        """What LMDB is to know when everything up to `number` has moved."""
        old = self._mark
        epoch = old.epoch
        if self.broken and number == self._number:
            epoch = self._epoch + 1  # what was written last is not to be read again
        elif number >= self._before:
            epoch = self._epoch
        salts = (journal_layout.salt_of(old.identity, epoch), journal_layout.salt_of(old.identity, epoch + 1))
        return JournalMark(old.identity, old.size, epoch, max(number, old.number), salts)

    def _transact(self, part: list[tuple[int, Leaf]], mark: JournalMark) -> None:
        """Move some messages, and say so, in one transaction."""
        unsure = False  # whether LMDB has it, though it may say that it has not
        try:
            with self._environment.write() as transaction:
                for mail, leaf in part:
                    move_leaf(transaction, mail, leaf, leaf.body or b"")
                self._register.ride(transaction, mark)
                unsure = True
        except BaseException:
            self._register.aborted()
            self.broken = self.broken or unsure
            raise
        self._register.landed()
        self._mark = mark
        with self._lock:
            for mail, leaf in part:
                del self._leaves[mail]
                self._count(leaf, -1)
        self.moved += len(part)
        if mark.epoch > self._epoch:
            self._begin(mark.epoch)
            self.broken = False

    def retire(self) -> None:
        """LMDB has all that stands here, and says so on the medium: nobody is to look here for mail again."""
        self._file.forget()

    def close(self) -> None:
        self._file.close()


def begin(file: JournalFile) -> JournalMark:
    """Make the file this start's, and the mark under which LMDB is to know it. LMDB says meanwhile: no journal."""
    identity = os.urandom(16)
    file.begin(identity)
    salts = (journal_layout.salt_of(identity, 1), journal_layout.salt_of(identity, 2))
    return JournalMark(identity, file.size, 1, 0, salts)
