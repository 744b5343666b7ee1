"""Rigs for tests of the spool: both back ends behind one set of handles, failures included."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb

from edgemail.clock import ManualClock
from edgemail.envelope import Address, Envelope, Recipient
from edgemail.errors import SpoolError
from edgemail.spool import layout
from edgemail.spool.environment import Transaction
from edgemail.spool.memory import MemorySpool
from edgemail.spool.store import Store, open_store
from edgemail.spool.verbs import Change, Spool

MAP = 32 << 20
MAIL = Envelope(0, Address("a", "example.com"), (Recipient(Address("b", "example.net")),), received_at=1.0)
CHUNK = layout.chunk_size(4096)


def body_of(spool: Spool, id: int) -> bytes:
    return b"".join(spool.body(id))


async def keep(spool: Spool, data: bytes = b"Subject: x\r\n\r\nhello\r\n", also: Change | None = None) -> Envelope:
    """Take a message the way a session does."""
    intake = spool.intake()
    try:
        for at in range(0, len(data), 16384):
            intake.write(data[at : at + 16384])
            await intake.drain()
        return await intake.commit(MAIL, also)
    finally:
        await intake.abort()


class MemoryRig:
    """The spool in memory."""

    def __init__(self, _: Path) -> None:
        self.spool: Any = MemorySpool(ManualClock())

    def full(self, full: bool) -> None:
        self.spool.full = full

    def failing(self, failing: bool) -> None:
        self.spool.failing = failing

    def damage_envelope(self, id: int) -> None:
        self.spool.damage_envelope(id)

    def damage_body(self, id: int) -> None:
        self.spool.damage_body(id)

    def lose_chunk(self, id: int, part: int) -> None:
        self.spool.lose_chunk(id, part)


class StoreRig:
    """The spool on LMDB. `commits` counts transactions; `on_commit` is called on the writer's thread before each."""

    def __init__(self, directory: Path, size: int = MAP, journal: int | None = None) -> None:
        self.clock = ManualClock()
        self.store = open_store(directory, size, self.clock, 0, journal)
        self.spool: Any = self.store
        self.commits = 0
        self.on_commit: Callable[[Transaction], None] = lambda _: None
        self._fails = False
        self._real = self.store._environment.commit
        self.store._environment.commit = self._commit  # type: ignore[method-assign]

    def _commit(self, transaction: Transaction) -> None:
        if self._fails:
            transaction.abort()
            raise lmdb.Error("mdb_txn_commit: Input/output error")
        self.on_commit(transaction)
        self._real(transaction)
        self.commits += 1

    def full(self, full: bool) -> None:
        space = self.store._space
        space.__dict__.pop("figures", None)
        if full:
            found = replace(space.measure(), available=space.reserve, allocated=0)  # the reserve is left, no more
            space.figures = lambda: found  # type: ignore[method-assign]

    def failing(self, failing: bool) -> None:
        self._fails = failing

    def _edit(self, key: bytes, change: Callable[[bytes], bytes | None]) -> None:
        edit_record(self.store, key, change)

    def damage_envelope(self, id: int) -> None:
        self._edit(layout.key(id, 0), turn_bit)

    def damage_body(self, id: int) -> None:
        self._edit(layout.key(id, 1), turn_bit)

    def lose_chunk(self, id: int, part: int) -> None:
        self._edit(layout.key(id, part), lambda _: None)


class JournalRig(StoreRig):
    """The spool on LMDB with a journal in front of it."""

    def __init__(self, directory: Path, size: int = MAP, journal: int = 1 << 20) -> None:
        super().__init__(directory, size, journal)
        self.journal = self.store.journal
        assert self.journal is not None
        self.groups = 0
        self.on_group: Callable[[], None] = lambda: None
        self._write = self.journal._file.write
        self.journal._file.write = self._group  # type: ignore[method-assign]

    def _group(self, at: int, data: bytes) -> None:
        self.on_group()
        if self._fails:
            raise SpoolError("the journal's barrier failed")
        self._write(at, data)
        self.groups += 1

    def settle(self) -> None:
        """Have everything moved into LMDB."""
        done = threading.Event()
        assert self.store.journal is not None
        self.store._writer.submit(lambda _: done.set(), touches=tuple(self.store.journal.ids()))
        assert done.wait(10)

    def _edit(self, key: bytes, change: Callable[[bytes], bytes | None]) -> None:
        self.settle()
        super()._edit(key, change)


def turn_bit(record: bytes) -> bytes:
    return record[:-1] + bytes((record[-1] ^ 1,))


def edit_record(store: Store, key: bytes, change: Callable[[bytes], bytes | None]) -> None:
    """Do to a record what a worn-out card does."""
    with store._environment._env.begin(write=True) as transaction:
        record = change(transaction.get(key))
        if record is None:
            transaction.delete(key)
        else:
            transaction.put(key, record)


def run(scenario: Awaitable[None]) -> None:
    """Run it; nothing that it left on the loop goes unnoticed."""

    async def whole() -> None:
        loud: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: loud.append(context))
        await scenario
        await asyncio.sleep(0)
        assert not loud

    asyncio.run(whole())
