"""The spool on LMDB: opening it, and its verbs.

Owns the composition of the package; the work is done by `view` (reading), `intake` (a message on its way in), `writer`
(every transaction) and `recover` (the start after an unclean stop).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from edgemail.clock import Clock
from edgemail.envelope import Envelope, queue_id
from edgemail.errors import SpoolDamaged, SpoolError
from edgemail.reply import Reply
from edgemail.spool import layout, records
from edgemail.spool.environment import DATA, MIN_MAP, Environment, Holder, Transaction, holder_of
from edgemail.spool.intake import Pool, SpoolIntake
from edgemail.spool.job import Fate, Need
from edgemail.spool.journal import Journal
from edgemail.spool.journal_file import JournalFile
from edgemail.spool.journal_layout import LARGEST_BODY, Entry
from edgemail.spool.pages import refuse_damage
from edgemail.spool.records import Edit, Tail
from edgemail.spool.recover import Recovered
from edgemail.spool.register import Register
from edgemail.spool.replay import Peek, peek
from edgemail.spool.space import Figures, Space, admission
from edgemail.spool.takeup import lost, read_meta, take_up
from edgemail.spool.verbs import Change, Damaged, Room
from edgemail.spool.view import View
from edgemail.spool.writer import Vitals, Writer
from edgemail.value import changed

log = logging.getLogger("edgemail.spool")

REMOVALS_PER_COMMIT: Final = 256  # limit: messages removed in one transaction when nothing but removals is asked for


def open_store(directory: Path, size: int, clock: Clock, minfree: int = 0, journal: int | None = None) -> Store:
    """Open the spool in `directory`, or make one of `size` bytes; recover it if it was not closed.

    `journal`: the size of the journal in front of it; 0: none, and none stays; None: none now, for a tool.

    Raises SpoolBusy where another process has it, SpoolError where it cannot be opened (the sentence says what to do).
    """
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        holder = Holder(directory)
    except OSError as error:
        raise SpoolError(f"{directory}: {error.strerror}: it must be a directory that this user may write") from error
    with contextlib.ExitStack() as undo:
        undo.callback(holder.release)
        try:
            refuse_damage(directory)
            environment = Environment(directory, max(size, MIN_MAP))
            undo.callback(environment.close)
            register, recovered, file = take_up(environment, clock, journal)
            if file is not None:
                undo.callback(file.close)
            store = Store(environment, holder, register, clock, minfree, file=file)
        except OSError as error:
            raise SpoolError(f"{directory}: {error}") from error
        store.recovered = recovered
        store.lost = lost(directory, recovered)
        undo.pop_all()
    return store


class Store:
    """The `Spool` on LMDB. Made by `open_store`."""

    def __init__(
        self,
        environment: Environment,
        holder: Holder,
        register: Register,
        clock: Clock,
        minfree: int,
        *,
        file: JournalFile | None = None,
    ) -> None:
        self.recovered: Recovered | None = None  # what the start found, after an unclean stop
        self.lost = ""  # what of a journal does not read, in words, until somebody has seen to what was set aside
        self.minfree = minfree
        self._environment = environment
        self._holder = holder
        self._register = register
        self._clock = clock
        self._space = Space(environment, clock)
        self._space.keep_reserve()
        mark = register.written.journal
        self.journal: Journal | None = None
        if file is not None and mark is not None:
            # what stands there can always move: into half of the reserve, however full the spool is
            self.journal = Journal(file, mark, environment, register, clock=clock, bound=self._space.reserve // 2)
        self._writer = Writer(environment, self._space, register, clock, self.journal)
        self._pool = Pool(self, environment.page, register.chunk)
        if self.journal is not None:
            self._pool.kept = self._kept
        self._view = View(environment, self._found_damaged, self.journal)
        self.damage_found: Callable[[SpoolDamaged], None] | None = None  # told of what a reader met
        self._reserving = False
        self._closed = False
        self._background: set[asyncio.Future[Any]] = set()

    @property
    def floor(self) -> float:
        """The latest trusted date that the spool knows to have passed; 0.0 when it knows none."""
        return self._register.wall

    def _kept(self) -> int:
        return self.journal.held if self.journal is not None else 0

    # Writing.

    def intake(self) -> SpoolIntake:
        """Begin a message. Raises SpoolFull where no more ids can be reserved on the medium."""
        if self._closed:
            raise SpoolError("the spool is closed")
        if self._register.low and not self._reserving:
            self._reserving = True
            self._behind(self._writer.submit(lambda _: None), self._reserved)
        return SpoolIntake(self._pool, self._register.give())

    def _reserved(self) -> None:
        self._reserving = False

    async def apply(self, change: Change, *, lazy: bool = False) -> None:
        if change.update or len(change.remove) <= REMOVALS_PER_COMMIT:
            await self._edit(change, lazy)
            return
        for first in range(0, len(change.remove), REMOVALS_PER_COMMIT):
            await self._edit(Change(remove=change.remove[first : first + REMOVALS_PER_COMMIT]), lazy)

    def _edit(self, change: Change, lazy: bool) -> asyncio.Future[None]:
        edit = Edit.of(change, self._clock.wall())
        return self._writer.submit(
            lambda transaction: records.apply(transaction, edit),
            cost=self._cost_of(edit),
            need=Need.REWRITE if change.update else Need.NOTHING,
            lazy=lazy,
            entry=Entry(update=edit.update, remove=edit.remove) if edit.touches else None,
            touches=edit.touches,
        )

    async def quarantine(self, id: int, why: str) -> None:
        log.warning("warning: %s: set aside: %s", queue_id(id), why)
        await self._set_aside(id, why)

    async def discard(self, id: int) -> bool:
        """Delete what was set aside under this id, for good; False when there is no such thing."""
        return await self._writer.submit(lambda transaction: records.discard(transaction, id))

    def _set_aside(self, id: int, why: str) -> asyncio.Future[None]:
        at = self._clock.wall()
        return self._writer.submit(lambda transaction: records.set_aside(transaction, id, why, at), touches=(id,))

    def _found_damaged(self, error: SpoolDamaged) -> None:
        """A reader met an envelope that does not parse: take it out of the queue, behind the reader's back."""
        log.warning("warning: %s; set aside", error)
        if self.damage_found is not None:
            self.damage_found(error)
        try:
            self._behind(self._set_aside(error.id, error.why))
        except RuntimeError:  # read outside of a loop: it stays, and is passed over, until the next time
            pass

    def _behind(self, future: asyncio.Future[Any], then: Callable[[], None] | None = None) -> None:
        """Let a job be done for which nobody waits; its failure is logged by the writer already."""

        def done(future: asyncio.Future[Any]) -> None:
            self._background.discard(future)
            if not future.cancelled():
                future.exception()
            if then is not None:
                then()

        self._background.add(future)
        future.add_done_callback(done)

    # What the intakes ask for.

    def ship(self, id: int, part: int, chunk: bytes, fate: Fate) -> asyncio.Future[None]:
        return self._writer.submit(
            lambda transaction: records.put_chunks(transaction, id, part, (chunk,)),
            cost=self._pages(len(chunk)),
            need=Need.ROOM,
            lazy=True,
            fate=fate,
        )

    def hurry(self) -> None:
        self._writer.hurry()

    def finish(self, tail: Tail, envelope: Envelope, also: Change, fate: Fate) -> asyncio.Future[None]:
        fields = layout.fields_of(envelope)
        edit = Edit.of(also, self._clock.wall())
        # A message in one piece has nothing before it in the line, and should not wait for the pieces of big ones.
        head_of_line = tail.first == 1 and not (also.update or also.remove)
        cost = sum(self._pages(len(chunk)) for chunk in tail.chunks) + self._pages(len(fields)) + self._cost_of(edit)
        return self._writer.submit(
            lambda transaction: records.finish(transaction, tail, fields, edit),
            cost=cost,
            need=Need.REWRITE if also.remove else Need.ROOM,
            first=head_of_line,
            entry=self._entry(tail, fields, edit),
            touches=edit.touches,
            fate=fate,
        )

    def _entry(self, tail: Tail, fields: bytes, edit: Edit) -> Entry | None:
        """What the journal does of it: a small message goes there wholly, a large one wholly into LMDB."""
        if self.journal is None or tail.first != 1 or tail.head.size > LARGEST_BODY:
            return None
        record = layout.seal(tail.id, tail.head, fields)
        return Entry((tail.id, record, b"".join(tail.chunks)), edit.update, edit.remove)

    def drop(self, id: int) -> asyncio.Future[None]:
        future = self._writer.submit(
            lambda transaction: records.drop(transaction, id), entry=Entry(remove=(id,)), touches=(id,)
        )
        future.add_done_callback(self._dropped)
        return future

    def _dropped(self, future: asyncio.Future[None]) -> None:
        if future.cancelled() or future.exception() is not None:
            self._register.sound = False  # chunks without an envelope stay: the next start must look for them

    def _pages(self, count: int) -> int:
        page = self._environment.page
        return -(-(count + layout.PAGE_OVERHEAD) // page) * page

    def _cost_of(self, edit: Edit) -> int:
        """A leaf page for each message that is touched, and what is written."""
        touched = len(edit.update) + len(edit.remove)
        return touched * self._environment.page + sum(len(fields) for _, fields in edit.update)

    # Reading.

    def envelope(self, id: int) -> Envelope | None:
        return self._view.envelope(id)

    def envelopes(self) -> Iterator[Envelope]:
        return self._view.envelopes()

    def body(self, id: int) -> Iterator[bytes]:
        return self._view.body(id)

    def damaged(self) -> Iterator[Damaged]:
        return self._view.damaged()

    def room(self) -> Room:
        found = self._space.room()
        if self.journal is None:
            return found
        return changed(found, bytes=max(0, found.bytes - self.journal.cost))  # what waits there has its room here

    def figures(self) -> Figures:
        """The numbers behind `room`, for gauges."""
        return self._space.figures()

    def vitals(self) -> Vitals:
        """How the writer does."""
        return self._writer.vitals()

    def admission(self, size: int, message_size_limit: int) -> Reply | None:
        """The refusal of a message of this size, None to let it come; by `minfree`, which may be set anew."""
        return admission(self.room(), size, message_size_limit, self.minfree)

    # The end.

    async def close(self) -> None:
        """Safe to call twice. What could not be written is logged: the next start recovers."""
        if self._closed:
            return
        self._closed = True
        for intake in tuple(self._pool.intakes):
            if not intake.committing:  # that one is decided by what waits already
                await intake.abort()
        try:
            await self._writer.submit(self._sign_off, last=True)
            if self.journal is not None:
                with contextlib.suppress(SpoolError):
                    self.journal.retire()
        except SpoolError as error:
            log.warning("warning: %s: not marked clean: %s", self._environment.directory, error)
        finally:
            self._writer.stop()
            if self.journal is not None:
                self.journal.close()
            self._environment.close()
            self._holder.release()

    def _sign_off(self, transaction: Transaction) -> None:
        if self.journal is not None:
            self.journal.shut = True
        self._register.sign_off(transaction)


class Reader(View):
    """A spool opened for reading alone, by a tool, with the relay up or down. Use as a context manager."""

    def __init__(self, environment: Environment, journal: Peek) -> None:
        self.skipped: list[SpoolDamaged] = []  # envelopes that do not parse, met by `envelopes`
        self.journal = journal
        super().__init__(environment, self.skipped.append, journal)

    def close(self) -> None:
        self.journal.close()
        self.environment.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ensure_free(directory: Path) -> None:
    """Raises SpoolBusy where a process holds the spool: a first look, for who must not get as far as opening it."""
    busy = holder_of(directory)
    if busy is not None:
        raise busy


def open_reader(directory: Path) -> Reader:
    """Open for reading. Raises SpoolError where there is no spool or it may not be read.

    LMDB's readers take a slot in lock.mdb, so they need to write to it. Without that right a spool can still be read
    while no relay has it open; while one has, a reader without a slot could be shown pages that are being reused.
    """
    try:
        (directory / DATA).stat()
    except FileNotFoundError:
        raise SpoolError(f"{directory}: there is no spool here") from None
    except OSError as error:
        raise SpoolError(f"{directory}: {error.strerror}: ask as root or as the owner of the spool") from error
    if holder_of(directory) is None:  # beside a relay that writes, pages are never all of one moment
        refuse_damage(directory)
    try:
        environment = Environment(directory, readonly=True)
    except SpoolError as error:
        if holder_of(directory):
            raise SpoolError(
                f"{directory}: in use, and this user may not write its lock.mdb: ask as root or as the owner ({error})"
            ) from error
        environment = Environment(directory, readonly=True, lock=False)
    try:
        return Reader(environment, peek(environment, read_meta))
    except SpoolError:
        environment.close()
        raise
