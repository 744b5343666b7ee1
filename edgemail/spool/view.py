"""Reading: envelopes, bodies, and what was set aside. The relay reads so, and so do tools while it is down.

Owns the short read transactions, and never holds one across a yield; never writes. Where an envelope turns out to be
damaged on the way, `found` is told.

A transaction object keeps its reader slot until it is forgotten, ended or not. So none is ever a local variable of a
generator: eight deliveries, each waiting between two chunks, would use up all the slots there are.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from edgemail.counters import Counter
from edgemail.envelope import Envelope
from edgemail.errors import SpoolDamaged
from edgemail.spool import layout, records
from edgemail.spool.environment import Environment
from edgemail.spool.layout import Head
from edgemail.spool.verbs import Damaged

ENVELOPES_PER_READ: Final = 64  # limit: envelopes decoded in one read transaction
READ: Final = Counter("edgemail_spool_read_bytes", "Bytes read of messages one by one: envelopes and content")


class Front(Protocol):
    """The journal, for who reads. What is not there any more was moved into LMDB before it left, or is finished."""

    @property
    def lost(self) -> str:
        """What of it does not read, in words; "" for nothing."""

    def ids(self) -> list[int]: ...

    def record(self, id: int) -> bytes | None:
        """The envelope record."""

    def leaf(self, id: int) -> tuple[bytes, bytes] | None:
        """The envelope record and the body."""


class View:
    """The reading half of the verbs. `front` stands before LMDB and is asked first."""

    def __init__(
        self, environment: Environment, found: Callable[[SpoolDamaged], None], front: Front | None = None
    ) -> None:
        self.environment = environment
        self.front = front
        self._found = found

    def _record(self, id: int) -> bytes | None:
        if self.front is not None and (there := self.front.record(id)) is not None:
            return there
        with self.environment.read(id) as transaction:
            record: bytes | None = transaction.get(layout.key(id, 0))
        return record

    def envelope(self, id: int) -> Envelope | None:
        record = self._record(id)
        if record is None:
            return None
        READ.add(by=len(record))
        return layout.parse(id, record)[1]

    def envelopes(self) -> Iterator[Envelope]:
        """In order of id. What moves from the journal meanwhile is met in one place or the other, and once."""
        if self.front is None:
            yield from self._stored()
            return
        ahead = deque(sorted(self.front.ids()))  # before LMDB is looked at: what leaves after this is found there
        for envelope in self._stored():
            while ahead and ahead[0] <= envelope.id:
                mail = ahead.popleft()
                if mail < envelope.id:
                    yield from self._ahead(mail)
            yield envelope
        for mail in ahead:
            yield from self._ahead(mail)

    def _ahead(self, id: int) -> Iterator[Envelope]:
        try:
            envelope = self.envelope(id)
        except SpoolDamaged as error:
            self._found(error)
        else:
            if envelope is not None:
                yield envelope

    def _stored(self) -> Iterator[Envelope]:
        at: int | None = 0
        while at is not None:
            whole, damaged, at = self._stretch(at)
            for error in damaged:
                self._found(error)
            yield from whole

    def _stretch(self, start: int) -> tuple[list[Envelope], list[SpoolDamaged], int | None]:
        with self.environment.read() as transaction:
            return records.envelopes(transaction, start, ENVELOPES_PER_READ)

    def body(self, id: int) -> Iterator[bytes]:
        """The chunks. Raises KeyError and SpoolDamaged at once where the envelope says so, otherwise on the way."""
        there = self.front.leaf(id) if self.front is not None else None
        if there is not None:
            return self._whole(id, layout.head_of(id, there[0]), there[1])
        record = self._record(id)
        if record is None:
            raise KeyError(id)
        return self._chunks(id, layout.head_of(id, record))

    def _whole(self, id: int, head: Head, body: bytes) -> Iterator[bytes]:
        READ.add(by=len(body))
        self._compare(id, head, len(body), zlib.crc32(body))
        if body:
            yield body

    def _chunk(self, id: int, part: int) -> bytes | None:
        """Raises KeyError where the message was finished, or set aside, while it was being read."""
        with self.environment.read(id) as transaction:
            chunk: bytes | None = transaction.get(layout.key(id, part))
            if chunk is None and transaction.get(layout.key(id, 0)) is None:
                raise KeyError(id)
        return chunk

    def _chunks(self, id: int, head: Head) -> Iterator[bytes]:
        size = crc = 0
        for part in range(1, head.parts + 1):
            chunk = self._chunk(id, part)
            if chunk is None:
                raise SpoolDamaged(id, f"chunk {part} of {head.parts} is missing")
            READ.add(by=len(chunk))
            size += len(chunk)
            crc = zlib.crc32(chunk, crc)
            if part == head.parts:
                self._compare(id, head, size, crc)
            yield chunk
        if head.parts == 0:
            self._compare(id, head, size, crc)

    @staticmethod
    def _compare(id: int, head: Head, size: int, crc: int) -> None:
        if size != head.size:
            raise SpoolDamaged(id, f"body has {size} bytes, not {head.size}")
        if crc != head.crc:
            raise SpoolDamaged(id, "body does not match its checksum")

    def damaged(self) -> Iterator[Damaged]:
        return iter(self._notes())

    def _notes(self) -> list[Damaged]:
        with self.environment.read() as transaction:
            return records.notes(transaction)
