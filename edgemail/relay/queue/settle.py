"""What a round of attempts means for a message: who is finished, who has failed, who waits and until when.

Owns invariant two: only a permanent failure of the message itself, or the end of its lifetime while the box's own side
worked, takes a recipient out of the envelope undelivered. Pure: values in, a value out.
"""

from __future__ import annotations

import logging
import random
from typing import Final

from edgemail.clock import Clock
from edgemail.envelope import Envelope, Notify, Outcome, Recipient
from edgemail.errors import Kind
from edgemail.relay.queue.active import Active
from edgemail.relay.queue.lifetime import Lifetime, Timeline, backoff, jittered, stopped, used
from edgemail.relay.queue.sites import OWN_SIDE
from edgemail.reply import Reply
from edgemail.settings import Settings
from edgemail.value import changed, value

log = logging.getLogger("edgemail.qmgr")

MAX_REASON: Final = 1000  # limit: characters of the reason that is kept with a recipient


@value
class Reported:
    """One recipient of which a notice speaks. `reply` None: nobody said anything, the time was over."""

    recipient: Recipient
    status: str  # RFC 3463
    text: str  # as mailq shows it
    reply: Reply | None = None
    relay: str = "none"
    remote: bool = False


@value
class Settlement:
    """The result. `envelope` is what stays, without recipients when nothing does."""

    envelope: Envelope
    wait: float  # seconds until the next attempt
    again: bool  # nobody was deferred, and somebody has not had a turn
    relayed: tuple[Reported, ...] = ()  # delivered, and their senders want to hear it from us
    failed: tuple[Reported, ...] = ()
    expired: bool = False  # some of the failed ones, for want of time
    delayed: tuple[Reported, ...] = ()  # those of whose delay a sender wants to hear
    late: bool = False  # it is time to say so
    until: float = 0.0  # the date until which it is tried

    @property
    def finished(self) -> bool:
        return not self.envelope.recipients


def reason(outcome: Outcome) -> str:
    """Why a recipient still waits or has failed, in one line, as mailq and notices show it."""
    text = outcome.text
    if not text:
        host = outcome.relay.rpartition(":")[0] or outcome.relay
        text = f"host {host} said: {outcome.reply}" if outcome.remote else outcome.reply.text
    return text.replace("\r", " ").replace("\n", " ")[:MAX_REASON]


def wants(recipient: Recipient, what: Notify) -> bool:
    """Whether the sender of a message wants to hear of it. RFC 3461 4.1: without NOTIFY, of failure and delay."""
    if recipient.notify is None:
        return what is not Notify.SUCCESS
    return bool(recipient.notify & what)


def reported(recipient: Recipient, outcome: Outcome, status: str = "") -> Reported:
    """A recipient as a notice speaks of it."""
    return Reported(
        recipient,
        status or outcome.reply.status,
        reason(outcome),
        outcome.reply,
        outcome.relay,
        outcome.remote,
    )


class Settling:
    """The rules of one configuration and one clock."""

    def __init__(self, settings: Settings, clock: Clock, timeline: Timeline, random: random.Random) -> None:
        self._settings = settings
        self._clock = clock
        self._timeline = timeline
        self._random = random
        self.lifetime = Lifetime(settings, clock, timeline)

    def expires(self, envelope: Envelope) -> bool:
        """Whether a message would be given up if it failed once more, now, by its destination's doing."""
        if self._settings.soft_bounce:
            return False
        return self.lifetime.over(envelope, used(envelope, self._timeline))

    def late(self, envelope: Envelope) -> bool:
        """Whether its sender should be told now that a message is delayed."""
        return self.lifetime.late(envelope, used(envelope, self._timeline))

    def settle(self, active: Active) -> Settlement:
        """What the outcomes so far mean."""
        envelope = active.envelope
        spent = used(envelope, self._timeline)
        gives_up = self.expires(envelope)
        stay: list[tuple[int, Recipient]] = []
        relayed, failed, delayed = [], [], []
        expired = deferred = False
        for index, recipient in enumerate(envelope.recipients):
            outcome = active.outcomes.get(index)
            if outcome is None:
                stay.append((index, recipient))
            elif outcome.delivered:
                if index not in active.recorded and self.reports(recipient, outcome):
                    relayed.append(reported(recipient, outcome))
            elif outcome.kind is Kind.MESSAGE_PERMANENT:
                failed.append(reported(recipient, outcome))
            elif gives_up and outcome.kind not in OWN_SIDE:
                failed.append(reported(recipient, outcome, _temporary(outcome)))
                expired = True
            else:
                status = _temporary(outcome)
                kept = changed(recipient, reason=reason(outcome), status=status, kind=outcome.kind, relay=outcome.relay)
                stay.append((index, kept))
                deferred = deferred or index not in active.held
                if wants(recipient, Notify.DELAY):
                    delayed.append(reported(kept, outcome, status))
        rest, wait = self._rest(active, stay, spent, expired=expired, deferred=deferred)
        late = bool(stay) and self.lifetime.late(envelope, spent)
        return Settlement(
            envelope=changed(rest, delay_warned=envelope.delay_warned or late),
            wait=wait,
            again=bool(stay) and not deferred,
            relayed=tuple(relayed),
            failed=tuple(failed),
            expired=expired,
            delayed=tuple(delayed),
            late=late,
            until=self.lifetime.until(envelope, spent) if late else 0.0,
        )

    def reports(self, recipient: Recipient, outcome: Outcome) -> bool:
        """Whether a delivery is to be reported by us: somebody wants it, and the next hop will not. RFC 3461 5.2.2."""
        return wants(recipient, Notify.SUCCESS) and not outcome.relayed_dsn

    def _rest(
        self, active: Active, stay: list[tuple[int, Recipient]], spent: float, *, expired: bool, deferred: bool
    ) -> tuple[Envelope, float]:
        """The envelope as it stays, and the seconds until it is due."""
        before, now = active.envelope, self._clock.wall()
        rest = changed(before, recipients=tuple(recipient for _, recipient in stay))
        if not stay:
            return rest, 0.0
        wait = 0.0
        if set(active.outcomes) - set(active.suspended) - active.held:
            step = backoff(before, self._settings)
            rest = changed(rest, attempts=before.attempts + 1, last_attempt=now, waited=spent, backoff=step)
            wait = jittered(step, self._random)
        elif active.suspended:
            wait = max(0.0, min(active.suspended.values()) - self._clock.monotonic())
            rest = self._suspended(before, rest, spent)
        if not deferred:
            wait = 0.0
        if expired:  # of those that stay none could have been delivered: their time has not begun
            rest = changed(rest, waited=0.0)
        if all(index in active.held for index, _ in stay):
            rest = changed(rest, hold=True, hold_reason=stay[0][1].reason)
        return changed(rest, next_attempt=now + wait), wait

    def _suspended(self, before: Envelope, rest: Envelope, spent: float) -> Envelope:
        """Without an attempt, its clock stops or starts where the reason has changed sides."""
        was, stands = stopped(before.recipients), stopped(rest.recipients)
        if was and not stands:
            return changed(rest, last_attempt=self._clock.wall())
        if stands and not was:
            return changed(rest, waited=spent)
        return rest


def _temporary(outcome: Outcome) -> str:
    """The status of a failure that is not final, whatever the peer's reply was. RFC 3463 2."""
    return "4" + outcome.reply.status[1:]


def log_decided(envelope: Envelope, recipient: Recipient, outcome: Outcome, now: float) -> None:
    """The line about a recipient for whom no delivery was tried."""
    delay = max(0.0, now - envelope.received_at) if envelope.received_at else 0.0
    seconds = f"{delay:.0f}" if delay >= 10 else f"{delay:.2g}"
    log.info(
        "%s: to=<%s>, relay=none, delay=%s, delays=%s/0/0/0, dsn=%s, status=%s (%s)",
        envelope.queue_id,
        recipient.address,
        seconds,
        seconds,
        outcome.reply.status,
        {None: "sent", Kind.MESSAGE_PERMANENT: "bounced"}.get(outcome.kind, "deferred"),
        reason(outcome),
    )
