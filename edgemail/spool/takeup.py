"""The start of a spool: its meta record, what an unclean stop left behind, and the journal it begins with.

Owns the order of these: what stands in the journal comes first, then the recovery, then a journal that is empty.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Final

from edgemail.clock import Clock
from edgemail.errors import SpoolDamaged, SpoolError, SpoolFull
from edgemail.spool import journal_file, layout, records
from edgemail.spool.environment import Environment
from edgemail.spool.journal import begin
from edgemail.spool.journal_file import JournalFile
from edgemail.spool.journal_layout import BLOCK, MIN_SIZE
from edgemail.spool.layout import Meta
from edgemail.spool.recover import Recovered, recover
from edgemail.spool.register import ID_BLOCK, Register, first_id
from edgemail.spool.replay import Replayed, replay, rescue

log = logging.getLogger("edgemail.spool")

KNOWN_FORMATS: Final = frozenset((layout.FORMAT, layout.FORMAT_WITH_JOURNAL))


def take_up(
    environment: Environment, clock: Clock, size: int | None
) -> tuple[Register, Recovered | None, JournalFile | None]:
    """The meta record as it now stands on the medium, what a recovery found, and the journal, empty."""
    environment.reader_check()
    meta = read_meta(environment)
    replayed = Replayed()
    if meta is not None and meta.journal is not None:
        meta, replayed = replay(environment, meta)
    elif meta is None:
        replayed = rescue(environment)
    # Before anything is dated: a wrong clock must not raise the floor.
    clock.passed(meta.wall if meta else replayed.date)
    empty = _empty(environment)
    recovered = None if empty or (meta is not None and meta.clean) else _recover(environment, clock)
    if recovered is not None:
        recovered.replayed, recovered.lost = replayed.messages, replayed.lost
    with environment.read() as transaction:
        highest = records.highest(transaction)
    if meta is None:
        meta = Meta(environment.page, layout.chunk_size(environment.page), first_id(clock.wall()), replayed.date)
        if not empty:
            log.warning("warning: %s: the spool's meta record is damaged and is made anew", environment.directory)
            highest += ID_BLOCK  # given, perhaps, and never committed
            journal_file.set_aside(environment.directory)
            journal_file.remove(environment.directory)
    file = _open_journal(environment, size)
    register = Register(replace(meta, ceiling=max(meta.ceiling, highest + 1)), clock)
    try:
        with environment.write() as transaction:
            register.ride(transaction, begin(file) if file is not None else None)
        register.landed()
    except SpoolFull as error:
        if file is not None:
            file.close()
            file = None
        if empty:
            raise
        # Full to the last page: mail can leave, none is taken until the reservation of ids rides with a removal.
        log.warning("warning: %s", error)
        register.aborted()
    except BaseException:
        if file is not None:
            file.close()
        raise
    return register, recovered, file


def lost(directory: Path, recovered: Recovered | None) -> str:
    """What of a journal does not read, in words, until somebody has seen to what was set aside; "" for nothing."""
    kept = journal_file.aside(directory)
    if kept:
        return f"damaged journals were set aside as {', '.join(path.name for path in kept)}"
    return recovered.lost if recovered is not None else ""


def _open_journal(environment: Environment, size: int | None) -> JournalFile | None:
    """The file of the journal, not in use yet; None where there shall be none, or cannot be."""
    if size is None:
        return None
    if size == 0:
        journal_file.remove(environment.directory)
        return None
    try:
        return JournalFile(environment.directory, max(size, MIN_SIZE) // (2 * BLOCK) * (2 * BLOCK))
    except SpoolError as error:
        log.warning("warning: %s; the spool works without a journal", error)
        return None


def read_meta(environment: Environment) -> Meta | None:
    """The meta record; None where there is none or it is damaged. Raises SpoolError for a format we do not know."""
    with environment.read() as transaction:
        record = transaction.get(layout.meta_key())
    if record is None:
        return None
    try:
        meta = layout.read_meta(record)
    except SpoolDamaged:
        return None
    if meta.format not in KNOWN_FORMATS:
        raise SpoolError(
            f"{environment.directory}: this spool has format {meta.format}, which this release of edgemail does not "
            f"know (it knows {layout.FORMAT_WITH_JOURNAL}): start the release that wrote it, or move the directory away"
        )
    return meta


def _empty(environment: Environment) -> bool:
    with environment.read() as transaction, transaction.cursor() as cursor:
        return not cursor.first()


def _recover(environment: Environment, clock: Clock) -> Recovered | None:
    try:
        found = recover(environment, clock.wall())
    except SpoolError as error:  # what could not be cleared away is passed over until the next start
        log.warning("warning: %s: the spool was not recovered: %s", environment.directory, error)
        return None
    log.info(
        "%s: not closed in order: messages=%d unfinished-dropped=%d damaged-set-aside=%d",
        environment.directory,
        found.messages,
        found.dropped,
        found.set_aside,
    )
    return found
