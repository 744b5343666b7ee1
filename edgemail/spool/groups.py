"""What of a batch of jobs the journal does, in groups that share one write and one barrier; the rest is LMDB's.

Owns the order between the two: a job is the journal's when all that it touches stands there, or comes with the same
batch; one that touches what an earlier job of LMDB touches follows it there. Before LMDB does anything to a message
that stands in the journal, the journal is emptied. Runs on the writer's thread.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from edgemail.errors import SpoolError
from edgemail.spool.job import Job, Need
from edgemail.spool.journal import Journal
from edgemail.spool.space import Space

log = logging.getLogger("edgemail.spool")

GROUP_BYTES: Final = 512 << 10  # limit: bytes of one write to the journal

Answer = Callable[[list[Job], SpoolError | None], None]


class Groups:
    """`answer` hands results back; `say` logs a failure; `inside` is held around whatever waits for the medium."""

    def __init__(
        self,
        journal: Journal,
        space: Space,
        answer: Answer,
        say: Callable[[SpoolError], None],
        inside: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._journal = journal
        self._space = space
        self._answer = answer
        self._say = say
        self._inside = inside

    def take(self, batch: list[Job]) -> list[Job]:
        """Do what is the journal's; what is left for LMDB, in order, with nothing that it touches in the journal."""
        left, failed = self._write(batch)

        def stuck(job: Job) -> bool:
            return job in failed or (job.last and not self._journal.empty) or self._journal.holds(job.touches)

        if any(map(stuck, left)):
            try:
                with self._inside():
                    self._journal.move_all()
            except SpoolError as error:
                self._say(error)
                self._answer([job for job in left if stuck(job)], error)
                left = [job for job in left if not stuck(job)]
        return left

    def tend(self, *, idle: bool) -> bool:
        """What is due between two batches; whether LMDB was written."""
        if not self._journal.due(idle=idle):
            return False
        try:
            with self._inside():
                self._journal.tend(idle=idle)
        except SpoolError as error:
            log.warning("warning: mail stays in the journal: %s", error)
        return True

    def _write(self, batch: list[Job]) -> tuple[list[Job], list[Job]]:
        """Group by group; the rest, and what of it may be on the medium all the same, for the write failed."""
        ours = self._sort(batch)
        mine = set(map(id, ours))
        left = [job for job in batch if id(job) not in mine]
        group: list[Job] = []
        while ours:
            group = self._group(ours)
            if group:
                try:
                    with self._inside():
                        self._journal.write([job.entry for job in group if job.entry is not None])
                except SpoolError as error:
                    log.error("error: %s; what was to go there goes into LMDB", error)
                    left += [*group, *ours]
                    break
                self._answer(group, None)
                group = []
            elif ours and not self._turn():
                ends = deque(job for job in ours if self._only_ends(job))
                left += [job for job in ours if job not in ends]
                if not ends or not self._fits(ends[0], 0):
                    left += ends
                    break
                ours = ends
        place = {id(job): number for number, job in enumerate(batch)}
        return sorted(left, key=lambda job: place[id(job)]), group

    def _sort(self, batch: list[Job]) -> deque[Job]:
        """The jobs that are the journal's."""
        claimed: set[int] = set()  # touched by jobs of LMDB that come first
        coming: set[int] = set()
        ours: deque[Job] = deque()
        for job in batch:
            if job.entry is None or claimed.intersection(job.touches) or not self._journal.takes(job.entry, coming):
                claimed.update(job.touches)
            else:
                ours.append(job)
                coming.update((job.entry.put[0],) if job.entry.put is not None else ())
        return ours

    def _group(self, ours: deque[Job]) -> list[Job]:
        """What goes into one write to this half of the journal; a job for which there is no room fails by itself."""
        figures = self._space.figures()
        free = figures.free - self._journal.cost
        group: list[Job] = []
        size = 0
        while ours:
            job = ours[0]
            assert job.entry is not None
            if job.need is Need.ROOM and job.cost > free:
                job.error = figures.short()
                self._say(job.error)
                self._answer([ours.popleft()], None)
                continue
            if (group and size + job.entry.size > GROUP_BYTES) or not self._fits(job, size):
                break
            free -= job.cost
            size += job.entry.size
            group.append(ours.popleft())
        return group

    def _fits(self, job: Job, size: int) -> bool:
        """Whether it fits into this half of the journal behind so many bytes of the same group."""
        return job.entry is not None and self._journal.fits(size + job.entry.size, job.entry.put is not None)

    def _only_ends(self, job: Job) -> bool:
        """Whether it but rewrites or ends what stands in the journal: for that there is room in any case."""
        return job.entry is not None and job.entry.put is None and self._journal.takes(job.entry, set())

    def _turn(self) -> bool:
        """Go on in the other half; whether that could be done."""
        try:
            with self._inside():
                self._journal.turn()
        except SpoolError as error:
            self._say(error)
            return False
        return True
