"""Take a queued message in again (`postsuper -r`): a new id, one more Received line, no memory of earlier attempts.

The copy and the removal of the old message are one transaction: after a power cut there is either the one or the other.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Final

from edgemail.clock import Clock
from edgemail.envelope import Envelope, queue_id
from edgemail.settings import Settings
from edgemail.spool.verbs import Change, Spool

DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def date(at: float) -> str:
    """RFC 5322 3.3, local time, with the zone's name as a comment."""
    when = time.localtime(at)
    day, month = DAYS[when.tm_wday], MONTHS[when.tm_mon - 1]
    clock = f"{when.tm_hour:02d}:{when.tm_min:02d}:{when.tm_sec:02d}"
    return f"{day}, {when.tm_mday:2d} {month} {when.tm_year} {clock} {time.strftime('%z (%Z)', when)}"


def stamp(settings: Settings, uid: int, id: int, at: float) -> bytes:
    """The trace header of mail that came over no network, as Postfix's pickup writes it. RFC 5321 4.4."""
    return (
        f"Received: by {settings.myhostname} ({settings.mail_name}, from userid {uid})\r\n"
        f"\tid {queue_id(id)}; {date(at)}\r\n"
    ).encode()


async def requeue(spool: Spool, clock: Clock, settings: Settings, envelope: Envelope) -> Envelope:
    """The message under its new id, durable. Raises SpoolError, SpoolDamaged, KeyError; then the old one is as it was.

    Its lifetime begins anew, as with Postfix: this is how mail gets out that was long on hold.
    """
    intake = spool.intake()
    try:
        intake.write(stamp(settings, os.geteuid(), intake.id, clock.wall()))
        for chunk in spool.body(envelope.id):
            intake.write(chunk)
            await intake.drain()
        fresh = replace(
            envelope,
            id=intake.id,
            recipients=tuple(replace(r, reason="", status="", kind=None, relay="") for r in envelope.recipients),
            hold=False,
            hold_reason="",
            attempts=0,
            last_attempt=0.0,
            next_attempt=0.0,
            backoff=0.0,
            received_at=clock.wall(),
            waited=0.0,
            delay_warned=False,
        )
        return await intake.commit(fresh, also=Change(remove=(envelope.id,)))
    except BaseException:
        await intake.abort()
        raise
