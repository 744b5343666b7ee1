"""What is done to the records inside one transaction, and how they are hopped over.

Owns the meaning of put, update, finish, set aside and drop; begins and ends no transaction of its own. Everything here
may be repeated: a batch that failed is tried again in parts, and what was half known is then simply written again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgemail.envelope import Envelope
from edgemail.errors import SpoolDamaged, SpoolError
from edgemail.spool import layout
from edgemail.spool.environment import Transaction
from edgemail.spool.layout import Head
from edgemail.spool.verbs import Change, Damaged
from edgemail.value import value


@value
class Edit:
    """A `Change` made ready on the loop's thread: the writer's handles bytes alone."""

    update: tuple[tuple[int, bytes], ...] = ()
    remove: tuple[int, ...] = ()
    at: float = 0.0  # wall clock, for the note beside a record that turns out to be damaged

    @property
    def touches(self) -> tuple[int, ...]:
        """Every message that is changed."""
        return (*(mail for mail, _ in self.update), *self.remove)

    @classmethod
    def of(cls, change: Change, at: float) -> Edit:
        return cls(tuple((e.id, layout.fields_of(e)) for e in change.update), change.remove, at)


@value
class Found:
    """What a hop over the keys of one id found; `parts` are its chunks from the first on without a gap."""

    id: int
    envelope: bool
    parts: int


@value
class Tail:
    """The end of a message: its chunks from number `first` on, and what the envelope will say of the whole body."""

    id: int
    first: int
    chunks: tuple[bytes, ...]
    head: Head


def put(transaction: Transaction, key: bytes, value: bytes) -> None:
    """Store one record. LMDB says False where it did not store it, and raises nothing."""
    if not transaction.put(key, value):
        raise SpoolError(f"record {key.hex()} was not stored")


def put_chunks(transaction: Transaction, id: int, first: int, chunks: Sequence[bytes]) -> None:
    for part, chunk in enumerate(chunks, first):
        put(transaction, layout.key(id, part), chunk)


def finish(transaction: Transaction, tail: Tail, fields: bytes, also: Edit) -> None:
    """The last chunks, what goes with them, and the envelope: now the message exists."""
    put_chunks(transaction, tail.id, tail.first, tail.chunks)
    apply(transaction, also)
    put(transaction, layout.key(tail.id, 0), layout.seal(tail.id, tail.head, fields))


def apply(transaction: Transaction, edit: Edit) -> None:
    for mail, fields in edit.update:
        _update(transaction, mail, fields, edit.at)
    for mail in edit.remove:
        if transaction.get(layout.key(mail, 0)) is not None:  # gone, or set aside and kept: passed over
            drop(transaction, mail)


def _update(transaction: Transaction, id: int, fields: bytes, at: float) -> None:
    key = layout.key(id, 0)
    record = transaction.get(key)
    if record is None:
        return  # removed meanwhile
    try:
        head = layout.head_of(id, record)
    except SpoolDamaged as error:
        set_aside(transaction, id, error.why, at)
        return
    put(transaction, key, layout.seal(id, head, fields))


def drop(transaction: Transaction, id: int) -> None:
    """Remove every record of one message, or of one that never became any."""
    prefix = layout.run(id)
    keys: list[bytes] = []
    with transaction.cursor() as cursor:
        there = cursor.set_range(prefix)
        while there and cursor.key().startswith(prefix):
            keys.append(cursor.key())
            there = cursor.next()
    for key in keys:
        transaction.delete(key)


def set_aside(transaction: Transaction, id: int, why: str, at: float) -> None:
    """Take a message out of the queue and keep all of it: its envelope moves, its chunks stay where they are.

    So it costs one small record, even where the map is full.
    """
    key = layout.key(id, 0)
    record = transaction.get(key)
    if record is None:
        return
    put(transaction, layout.aside_key(id), record)
    put(transaction, layout.note_key(id), layout.write_note(id, at, why))
    transaction.delete(key)


def is_aside(transaction: Transaction, id: int) -> bool:
    return transaction.get(layout.note_key(id)) is not None


def discard(transaction: Transaction, id: int) -> bool:
    """Delete what was set aside under this id; False when there is no such thing."""
    if not transaction.delete(layout.note_key(id)):
        return False
    transaction.delete(layout.aside_key(id))
    drop(transaction, id)
    return True


def notes(transaction: Transaction) -> list[Damaged]:
    """What was set aside, in order of id."""
    found = []
    with transaction.cursor() as cursor:
        there = cursor.set_range(bytes((layout.NOTE,)))
        while there and cursor.key()[0] == layout.NOTE:
            mail = layout.note_id(cursor.key())
            if mail is not None:
                found.append(layout.read_note(mail, cursor.value()))
            there = cursor.next()
    return found


def next_id(cursor: Transaction, start: int) -> int | None:
    """Move the cursor to the first record of the first message at or after `start`; its id, or None at the end."""
    there = cursor.set_range(layout.run(start))
    while there:
        raw = cursor.key()
        if raw[0] != layout.MAIL:
            return None
        where = layout.place(raw)
        if where is not None:
            return where[0]
        there = cursor.next()  # a key that no release wrote: left alone
    return None


def envelopes(
    transaction: Transaction, start: int, count: int
) -> tuple[list[Envelope], list[SpoolDamaged], int | None]:
    """Up to `count` envelopes from `start` on, what did not parse, and where to go on (None: nowhere)."""
    whole: list[Envelope] = []
    damaged: list[SpoolDamaged] = []
    at: int | None = start
    with transaction.cursor() as cursor:
        for _ in range(count):
            mail = next_id(cursor, at) if at is not None else None
            if mail is None:
                return whole, damaged, None
            where = layout.place(cursor.key())
            if where is not None and where[1] == 0:
                try:
                    whole.append(layout.parse(mail, cursor.value())[1])
                except SpoolDamaged as error:
                    damaged.append(error)
            at = mail + 1 if mail < layout.MAX_ID else None
    return whole, damaged, at


def walk(transaction: Transaction, start: int, count: int) -> Iterator[Found]:
    """What stands under up to `count` ids from `start` on, by their keys alone: no body is read from the medium."""
    with transaction.cursor() as cursor:
        mail = next_id(cursor, start)
        for _ in range(count):
            if mail is None:
                return
            envelope, parts = False, 0
            there = True
            while there:
                raw = cursor.key()
                where = layout.place(raw)
                if raw[0] != layout.MAIL or (where is not None and where[0] != mail):
                    break
                if where is not None:
                    envelope = envelope or where[1] == 0
                    parts += where[1] == parts + 1
                there = cursor.next()
            yield Found(mail, envelope, parts)
            mail = next_id(cursor, mail + 1) if there and mail < layout.MAX_ID else None


def highest(transaction: Transaction) -> int:
    """The highest id that any record stands under; 0 for none."""
    found = 0
    with transaction.cursor() as cursor:
        for kind in (layout.MAIL, layout.ASIDE, layout.NOTE):
            there = cursor.prev() if cursor.set_range(bytes((kind + 1,))) else cursor.last()
            if there and cursor.key()[0] == kind:
                found = max(found, int.from_bytes(cursor.key()[1:9], "big"))
    return found
