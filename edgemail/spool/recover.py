"""What is put in order when a spool is opened that was not closed; and the full check, beside a running relay or not.

`recover` reads keys and envelopes, never bodies: every power cut is an unclean stop, and start-up must not read a
gigabyte. Bodies are checked when they are read, and all at once by `verify`, which changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from edgemail.errors import SpoolDamaged, SpoolError
from edgemail.spool import layout, records
from edgemail.spool.environment import Environment, Transaction
from edgemail.spool.view import View

log = logging.getLogger("edgemail.spool")

IDS_PER_READ: Final = 256  # limit: messages looked at in one read transaction
DROPS_PER_COMMIT: Final = 16  # limit: messages changed in one transaction of the recovery
KEYS_PER_READ: Final = 1024  # limit: keys looked at in one read transaction of the check


@dataclass(slots=True)
class Recovered:
    """What the recovery found: whole messages, unfinished ones that were dropped, damaged ones that were set aside."""

    messages: int = 0
    dropped: int = 0
    set_aside: int = 0
    replayed: int = 0  # of `messages`: they stood in the journal
    lost: str = ""  # what of the journal does not read; "": nothing


def recover(environment: Environment, now: float) -> Recovered:
    """Put the records in order. `now`: wall clock, for the notes. Raises SpoolError where the medium takes nothing."""
    found = Recovered()
    for dropped, damaged in _surveys(environment, found):
        jobs: list[int | SpoolDamaged] = [*dropped, *damaged]
        for first in range(0, len(jobs), DROPS_PER_COMMIT):
            with environment.write() as transaction:
                for job in jobs[first : first + DROPS_PER_COMMIT]:
                    if isinstance(job, SpoolDamaged):
                        records.set_aside(transaction, job.id, job.why, now)
                    else:
                        records.drop(transaction, job)
        found.dropped += len(dropped)
        found.set_aside += len(damaged)
        for error in damaged:
            log.warning("warning: %s; set aside", error)
    return found


def _surveys(environment: Environment, found: Recovered) -> Iterator[tuple[list[int], list[SpoolDamaged]]]:
    """For each stretch of ids: those that never became a message, and those that are damaged."""
    at: int | None = 0
    while at is not None:
        dropped, verdicts, at = _survey(environment, at)
        damaged = [verdict for verdict in verdicts if verdict is not None]
        found.messages += len(verdicts) - len(damaged)
        yield dropped, damaged


def _survey(environment: Environment, start: int) -> tuple[list[int], list[SpoolDamaged | None], int | None]:
    with environment.read() as transaction:
        stretch = list(records.walk(transaction, start, IDS_PER_READ))
        dropped = [f.id for f in stretch if not f.envelope and not records.is_aside(transaction, f.id)]
        verdicts = [_judge(transaction, f) for f in stretch if f.envelope]
    return dropped, verdicts, _behind(stretch)


def _behind(stretch: list[records.Found]) -> int | None:
    """Where to go on after a stretch; None at the end."""
    return stretch[-1].id + 1 if len(stretch) == IDS_PER_READ and stretch[-1].id < layout.MAX_ID else None


def _judge(transaction: Transaction, found: records.Found) -> SpoolDamaged | None:
    try:
        head, _ = layout.parse(found.id, transaction.get(layout.key(found.id, 0)))
    except SpoolDamaged as error:
        return error
    if found.parts < head.parts:
        return SpoolDamaged(found.id, f"chunk {found.parts + 1} of {head.parts} is missing")
    return None


@dataclass(slots=True)
class Report:
    """The full check. `unfinished`: messages on their way in, or left by a crash and cleared away at the next start."""

    messages: int = 0
    bytes: int = 0
    unfinished: int = 0
    set_aside: int = 0
    strays: int = 0  # records under keys that no release wrote
    lost: str = ""  # what of the journal does not read; "": nothing
    nameless: bool = False  # there is mail, and no meta record that reads
    damaged: list[tuple[int, str]] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not (self.damaged or self.strays or self.lost or self.nameless)


def verify(reader: View) -> Report:
    """Read every record and compare every checksum. With the relay up, what moves meanwhile is passed over."""
    environment = reader.environment
    report = Report()
    _verify_keys(environment, report)
    view = View(environment, lambda error: report.damaged.append((error.id, error.why)), reader.front)
    report.lost = reader.front.lost if reader.front is not None else ""
    for envelope in view.envelopes():
        try:
            report.bytes += sum(len(chunk) for chunk in view.body(envelope.id))
            report.messages += 1
        except KeyError:
            continue
        except SpoolDamaged as error:
            report.damaged.append((error.id, error.why))
        except SpoolError as error:
            report.damaged.append((envelope.id, str(error)))
    report.set_aside = sum(1 for _ in view.damaged())
    report.nameless = bool(report.messages or report.set_aside or report.damaged) and not _knows_itself(environment)
    report.damaged.sort()
    return report


def _knows_itself(environment: Environment) -> bool:
    with environment.read() as transaction:
        record = transaction.get(layout.meta_key())
    try:
        return record is not None and layout.read_meta(record) is not None
    except SpoolDamaged:
        return False


def _verify_keys(environment: Environment, report: Report) -> None:
    """Keys that are none of ours, and messages without an envelope that were not set aside."""
    at: int | None = 0
    while at is not None:
        dropped, _, at = _survey(environment, at)
        report.unfinished += len(dropped)
    last: bytes | None = None
    while keys := _keys(environment, last):
        report.strays += sum(not _ours(raw) for raw in keys)
        last = keys[-1]


def _keys(environment: Environment, last: bytes | None) -> list[bytes]:
    """The keys behind `last`, as many as one read may look at."""
    keys: list[bytes] = []
    with environment.read() as transaction, transaction.cursor() as cursor:
        there = cursor.first() if last is None else cursor.set_range(last)
        if there and cursor.key() == last:
            there = cursor.next()
        while there and len(keys) < KEYS_PER_READ:
            keys.append(cursor.key())
            there = cursor.next()
    return keys


def _ours(raw: bytes) -> bool:
    if raw[0] == layout.MAIL:
        return layout.place(raw) is not None
    if raw[0] in (layout.ASIDE, layout.NOTE):
        return layout.note_id(raw) is not None
    return raw == layout.meta_key()
