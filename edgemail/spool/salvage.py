"""A spool whose pages are damaged, made anew from what can be read of it; the damaged file is kept beside it.

What the trees still lead to is taken as it is. What stands on pages that nobody leads to any more is taken too: where
the list of free pages is whole, it was behind a damaged branch; where it is not, it may be mail that is long delivered,
so that it is put on hold. Bodies whose envelope was not found are set aside. Deletes nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from edgemail.errors import SpoolDamaged, SpoolError
from edgemail.spool import layout, records
from edgemail.spool.environment import DATA, MIN_MAP, Environment, Holder, Transaction, flush
from edgemail.spool.pages import Node, Pages, inspect

DRAFT: Final = "salvage"  # a directory in which the new file comes to be
KEPT: Final = "data.mdb.damaged"
RECORDS_PER_COMMIT: Final = 256  # limit: records written in one transaction when a damaged spool is made anew
HELD: Final = "found by edgemail spool repair in a damaged spool; it may have been delivered before"
LOST: Final = "its envelope was lost with a damaged page, or it was never finished"


@dataclass(slots=True)
class Salvaged:
    """What a salvage did. `kept`: the damaged file's new name."""

    damage: list[str]
    kept: Path
    records: int = 0
    held: int = 0
    unread: int = 0  # values on damaged pages


def salvage(directory: Path, size: int, now: float) -> Salvaged | None:
    """Make the file anew if its pages are damaged; None where they are not. `now`: wall clock, for the notes.

    Raises SpoolBusy, SpoolFull and SpoolError; the old file then stands where it stood.
    """
    holder = Holder(directory)
    try:
        if not inspect(directory / DATA, always=True):
            return None
        draft = directory / DRAFT
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o750)
        with Pages(directory / DATA) as pages:
            done = _copy(pages, draft, max(size, MIN_MAP), now, _name(directory))
        flush(draft / DATA)
        os.link(directory / DATA, done.kept)
        (draft / DATA).replace(directory / DATA)
        flush(directory)
        shutil.rmtree(draft, ignore_errors=True)
        return done
    except OSError as error:
        raise SpoolError(f"{directory}: {error}") from error
    finally:
        holder.release()


def _name(directory: Path) -> Path:
    """A name for the damaged file that is not taken."""
    names = (directory / (KEPT if number == 0 else f"{KEPT}.{number}") for number in range(1000))
    return next(name for name in names if not name.exists())


def _copy(pages: Pages, draft: Path, size: int, now: float, kept: Path) -> Salvaged:
    done = Salvaged(pages.damage, kept)
    environment = Environment(draft, size, lock=False)
    try:
        seen: set[bytes] = set()
        _store(environment, pages, _fresh(pages.walk(), seen), done, held=False)
        # Every page is somebody's as long as both trees and the list of free pages are whole.
        doubtful = len(pages.metas) < 2 or any("free" in each for each in pages.damage)
        _store(environment, pages, _fresh(pages.unclaimed(), seen), done, held=doubtful)
        _set_aside(environment, seen, now)
    finally:
        environment.close()
    return done


def _fresh(nodes: Iterable[Node], seen: set[bytes]) -> Iterator[Node]:
    """Those under keys that are ours and not known yet."""
    for node in nodes:
        ours = node.key[:1] in (b"\0", bytes((layout.MAIL,)), bytes((layout.ASIDE,)), bytes((layout.NOTE,)))
        if ours and 0 < len(node.key) <= 16 and node.key not in seen:
            seen.add(node.key)
            yield node


def _store(environment: Environment, pages: Pages, nodes: Iterator[Node], done: Salvaged, *, held: bool) -> None:
    there = True
    while there:
        with environment.write() as transaction:
            there = False
            for _ in range(RECORDS_PER_COMMIT):
                node = next(nodes, None)
                if node is None:
                    break
                there = True
                _put(transaction, pages, node, done, held=held)


def _put(transaction: Transaction, pages: Pages, node: Node, done: Salvaged, *, held: bool) -> None:
    value = pages.value(node)
    if value is None:
        done.unread += 1
        return
    where = layout.place(node.key)
    if held and where is not None and where[1] == 0:
        try:
            head, envelope = layout.parse(where[0], value)
        except SpoolDamaged:
            pass  # the recovery sets it aside
        else:
            waiting = replace(envelope, hold=True, hold_reason=HELD)
            value = layout.seal(where[0], head, layout.fields_of(waiting))
            done.held += 1
    records.put(transaction, node.key, value)
    done.records += 1


def _set_aside(environment: Environment, seen: set[bytes], now: float) -> None:
    """A note for each body without an envelope: the recovery would take it for one that was never finished."""
    places = [where for raw in seen if (where := layout.place(raw)) is not None]
    whole = {mail for mail, part in places if part == 0}
    for mail in sorted({mail for mail, _ in places} - whole):
        with environment.write() as transaction:
            if not records.is_aside(transaction, mail):
                records.put(transaction, layout.note_key(mail), layout.write_note(mail, now, LOST))
