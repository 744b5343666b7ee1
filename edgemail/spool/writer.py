"""The writer: one thread, the only one that writes. What collects while one commit is in the disk goes into the next.

Owns the order of jobs, the size of a batch and what becomes of a batch that fails. Knows nothing of messages: a job is
a function of a transaction, and perhaps also a record for the journal; where the journal takes it, that comes instead.
There are no timers but two: a lazy job waits LAZY_SECONDS at most for company, or until LAZY_JOBS are together; and
when nothing was asked for during IDLE_SECONDS, the journal is emptied.

Every job submitted resolves its future, on the loop that submitted it, after the commit that made it durable or with
SpoolFull or SpoolError; also when the spool is closed or the thread meets something it does not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from edgemail.clock import Clock
from edgemail.counters import Counter, Histogram
from edgemail.errors import SpoolError, SpoolFull
from edgemail.spool.environment import Environment, Transaction
from edgemail.spool.groups import Groups
from edgemail.spool.job import Fate, Job, Need
from edgemail.spool.journal import Journal
from edgemail.spool.journal_layout import Entry
from edgemail.spool.register import Register
from edgemail.spool.space import Space
from edgemail.value import value

log = logging.getLogger("edgemail.spool")

BATCH_BYTES: Final = 2 << 20  # limit: dirty bytes of one transaction: heap until it commits; small mail waits for it
BATCH_JOBS: Final = 1024  # limit: jobs of one transaction
LAZY_SECONDS: Final = 1.0  # limit: how long a lazy change may wait for another barrier to ride with
LAZY_JOBS: Final = 100  # limit: lazy changes that wait together: a power cut repeats so many deliveries at most
IDLE_SECONDS: Final = 10.0  # without anything to write, before what waits in the journal moves into LMDB
READER_CHECK_SECONDS: Final = 60.0  # how often the slots of dead readers are freed, while mail moves
STRIKES: Final = 3  # limit: single jobs that fail in a row, not for want of room, before their batch is given up

# Written by the writer's thread alone.
COMMITS: Final = Histogram(
    "edgemail_spool_commit_seconds",
    "Time of a transaction of the spool, its barrier included",
    (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
)
BATCHES: Final = Histogram(
    "edgemail_spool_batch_jobs", "Jobs that shared one transaction of the spool", (1, 2, 4, 8, 16, 32, 64, 128, 256)
)
FAILURES: Final = Counter("edgemail_spool_failures", "Transactions of the spool that failed", ("reason",))

T = TypeVar("T")


@dataclass(slots=True)
class Tally:
    """What the writer has done since the start."""

    transactions: int = 0
    jobs: int = 0
    failures: int = 0
    largest: int = field(default=0)  # jobs in one transaction


@value
class Vitals:
    """How the writer does, for those who watch it. Seconds; 0.0 where nothing is under way."""

    alive: bool  # its thread runs
    waiting: float  # since the oldest job was submitted that no transaction has taken up
    inside: float  # since the transaction under way began: the medium may take its time
    trouble: str  # why the last transaction failed, unless for want of room; "" since one succeeded


class Writer:
    """`submit` and `stop` are for the loop's thread."""

    def __init__(
        self,
        environment: Environment,
        space: Space,
        register: Register,
        clock: Clock,
        journal: Journal | None = None,
    ) -> None:
        self._journal = journal
        self._groups = None
        if journal is not None:
            self._groups = Groups(journal, space, self._answer, self._say, self._inside)
        self.tally = Tally()
        self._environment = environment
        self._space = space
        self._register = register
        self._clock = clock
        self._checked = clock.monotonic()
        self._bound = min(BATCH_BYTES, space.reserve // 2)  # or a full spool could not even be rewritten
        self._jobs: deque[Job] = deque()
        self._urgent = 0  # of `_jobs`
        self._hurried = False  # the others are to go now too
        self._stopping = False
        self._full = False
        self._began = 0.0  # time.monotonic(), of the transaction under way; 0.0: none
        self._trouble = ""
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="spool-writer", daemon=True)
        self._thread.start()

    def submit(
        self,
        steps: Callable[[Transaction], T],
        *,
        cost: int = 0,
        need: Need = Need.NOTHING,
        lazy: bool = False,
        first: bool = False,
        entry: Entry | None = None,
        touches: tuple[int, ...] = (),
        last: bool = False,
        fate: Fate | None = None,
    ) -> asyncio.Future[T]:
        """Have `steps` done in one of the next transactions. The future gives what it returned, after the barrier.

        `first`: before all that waits; for a job that no other one prepares. `entry`: what the journal may do instead
        (the future then gives None); `touches`: the messages other than new ones that `steps` changes;
        `last`: nothing stands in the journal when `steps` are done, and nothing will; `fate`: once a job with the
        same list has failed, this one fails too.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        now = time.monotonic()
        job = Job(steps, cost, need, loop, future, now, now + LAZY_SECONDS if lazy else 0.0, entry, touches, last, fate)
        with self._wake:
            if self._stopping:
                future.set_exception(SpoolError("the spool is closed"))
                return future
            if first:
                self._jobs.appendleft(job)
            else:
                self._jobs.append(job)
            if not lazy:
                self._urgent += 1
            if self._urgent or len(self._jobs) == 1 or len(self._jobs) >= LAZY_JOBS:
                self._wake.notify()
        return future

    def hurry(self) -> None:
        """What waits for company is due."""
        with self._wake:
            if self._jobs and not self._urgent:
                self._hurried = True
                self._wake.notify()

    def vitals(self) -> Vitals:
        """How it does now. Takes no lock: the writer may hold it no longer than it takes to pick up its jobs."""
        now = time.monotonic()
        began = self._began
        try:
            oldest = self._jobs[0].at
        except IndexError:
            oldest = now
        return Vitals(
            alive=self._thread.is_alive(),
            waiting=now - max(oldest, began) if not began else 0.0,
            inside=now - began if began else 0.0,
            trouble=self._trouble,
        )

    def stop(self) -> None:
        """Do what is waiting, then end the thread. Nothing is taken any more. Blocks until it has ended."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    # From here on: the writer's thread.

    def _work(self) -> None:
        while (batch := self._collect()) is not None:
            try:
                if not batch:
                    self._tend(idle=True)
                    continue
                self._execute(batch if self._groups is None else self._groups.take(batch))
                self._tend()
            except BaseException as error:  # a mistake of ours must not leave anyone waiting
                log.exception("panic: the spool's writer failed")
                self._deliver(batch, SpoolError(f"the spool's writer failed: {error!r}"))

    def _collect(self) -> list[Job] | None:
        """Wait until there is something to do; all of it, within the bounds of a batch.

        Empty: nothing was to be done for some time, and the journal holds mail. None: it is time to end.
        """
        idle = time.monotonic() + IDLE_SECONDS
        with self._wake:
            while not (
                self._urgent or len(self._jobs) >= LAZY_JOBS or (self._jobs and (self._stopping or self._hurried))
            ):
                if self._stopping:
                    return None
                now = time.monotonic()
                waits = [self._jobs[0].due - now] if self._jobs else []
                if waits and waits[0] <= 0:
                    break
                if self._journal is not None and not self._journal.empty:
                    if idle <= now:
                        return []
                    waits.append(idle - now)
                self._wake.wait(min(waits, default=None))
            self._hurried = False
            batch: list[Job] = []
            cost = 0
            while self._jobs and len(batch) < BATCH_JOBS and (not batch or cost + self._jobs[0].cost <= self._bound):
                job = self._jobs.popleft()
                self._urgent -= job.due == 0.0
                cost += job.cost
                batch.append(job)
            return batch

    def _tend(self, *, idle: bool = False) -> None:
        if self._groups is not None and self._groups.tend(idle=idle):
            self._look_after()

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """Around whatever waits for the medium."""
        self._began = began = time.monotonic()
        try:
            yield
        except SpoolError as error:
            FAILURES.add("full" if isinstance(error, SpoolFull) else "medium")
            self.tally.failures += 1
            if not isinstance(error, SpoolFull):
                self._trouble = str(error)
            raise
        else:
            self._trouble = ""
            COMMITS.observe(time.monotonic() - began)
        finally:
            self._began = 0.0

    def _answer(self, part: list[Job], error: SpoolError | None) -> None:
        """What the journal did, or nothing could do."""
        if error is None and any(job.error is None for job in part):
            self._done(part)
        self._deliver(part, error)

    def _done(self, part: list[Job]) -> None:
        if self._full and any(job.need is Need.ROOM and job.error is None for job in part):
            self._full = False
            log.info("mail is taken again")
        BATCHES.observe(len(part))
        self.tally.transactions += 1
        self.tally.jobs += len(part)
        self.tally.largest = max(self.tally.largest, len(part))

    def _execute(self, batch: list[Job]) -> None:
        """Commit the batch. If it fails, its halves, and so on: one bad job does not fail its neighbours."""
        waiting = [batch] if batch else []
        strikes = 0
        while waiting:
            part = waiting.pop()
            try:
                self._transact(part)
            except SpoolError as error:
                if len(part) > 1 and strikes < STRIKES:
                    middle = len(part) // 2
                    waiting += (part[middle:], part[:middle])
                    continue
                self._say(error)
                if not isinstance(error, SpoolFull):
                    strikes += 1
                self._deliver(part, error)
            else:
                strikes = 0
                self._deliver(part)

    def _transact(self, part: list[Job]) -> None:
        """One transaction. Raises SpoolError and leaves nothing done; a job without room fails by itself."""
        with self._inside():
            self._write(part)

    def _write(self, part: list[Job]) -> None:
        figures = self._space.figures()
        owed = self._journal.cost if self._journal is not None else 0  # what stands there has its room here
        left = {Need.ROOM: figures.free - owed, Need.REWRITE: figures.rewritable}
        spent = 0
        try:
            with self._environment.write() as transaction:
                for job in part:
                    job.result, job.error = None, None
                    if job.fate:
                        job.error = type(job.fate[0])(*job.fate[0].args)
                        continue
                    if job.need in left and spent + job.cost > left[job.need]:
                        job.error = figures.short()
                        self._say(job.error)
                        job.doom(job.error)
                        continue
                    spent += job.cost
                    job.result = job.steps(transaction)
                self._register.ride(transaction)
            self._register.landed()
        except SpoolError:
            self._register.aborted()
            raise
        except Exception as error:
            self._register.aborted()
            log.exception("panic: a job of the spool's writer failed")
            raise SpoolError(f"the job failed: {error!r}") from error
        finally:
            self._look_after()
        self._done(part)

    def _say(self, error: SpoolError) -> None:
        """Log a failure; that the spool is full once, until it takes mail again."""
        if not isinstance(error, SpoolFull):
            log.error("error: %s", error)
        elif not self._full:
            self._full = True
            log.warning("warning: no mail is taken: %s", error)

    def _look_after(self) -> None:
        """What is due behind every transaction, and must not fail it: it is decided already."""
        try:
            self._space.keep_reserve()
            self._space.measure()
            if self._clock.monotonic() - self._checked >= READER_CHECK_SECONDS:
                self._checked = self._clock.monotonic()
                self._environment.reader_check()
        except (SpoolError, OSError) as error:
            log.warning("warning: after a commit: %s", error)

    def _deliver(self, part: list[Job], error: SpoolError | None = None) -> None:
        """Hand the results back, with one wake-up for each loop."""
        loops: dict[asyncio.AbstractEventLoop, list[Job]] = {}
        for job in part:
            # Raised in one task each: they must not share its traceback.
            job.error = type(error)(*error.args) if error is not None else job.error
            if job.error is not None:
                job.doom(job.error)
            loops.setdefault(job.loop, []).append(job)
        for loop, jobs in loops.items():
            try:
                loop.call_soon_threadsafe(_resolve, jobs)
            except RuntimeError:  # that loop is closed: nobody waits any more
                pass


def _resolve(jobs: list[Job]) -> None:
    for job in jobs:
        if job.future.done():  # its task was cancelled
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)
