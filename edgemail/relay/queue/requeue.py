"""Take a queued message in again (`postsuper -r`): a new id, one more Received line, no memory of earlier attempts.

The copy and the removal of the old message are one transaction: after a power cut there is either the one or the other.
"""

from __future__ import annotations

import os

from edgemail.clock import Clock
from edgemail.dates import date
from edgemail.envelope import Envelope, queue_id
from edgemail.errors import SpoolError
from edgemail.settings import Settings
from edgemail.spool.verbs import Change, Spool
from edgemail.value import changed


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
    except BaseException:
        await intake.abort()
        raise
    fresh = changed(
        envelope,
        id=intake.id,
        recipients=tuple(changed(r, reason="", status="", kind=None, relay="") for r in envelope.recipients),
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
    try:
        return await intake.commit(fresh, also=Change(remove=(envelope.id,)))
    except SpoolError:
        await intake.abort()  # nothing was kept; whoever is cancelled leaves the commit to its fate, both halves of it
        raise
