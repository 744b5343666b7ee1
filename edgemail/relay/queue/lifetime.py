"""How long a message has been tried, when it is tried next, when it is given up.

Owns the clock of a message: by default it runs only while the box could have delivered it as far as the box's own
side goes. Dates are kept in the spool, intervals are measured on the monotonic clock: a wall clock that jumps ages no
message. With a clock that is not trusted nothing expires. Pure and synchronous.
"""

from __future__ import annotations

import random
from typing import Final

from edgemail.clock import RELEASE_DATE, Clock
from edgemail.envelope import Envelope, Recipient
from edgemail.relay.queue.sites import JITTER, OWN_SIDE
from edgemail.settings import Settings
from edgemail.value import value

JUMP: Final = 30.0  # limit: seconds by which wall and monotonic clock may part before it counts as a jump
JUMPS: Final = 32  # limit: jumps of the wall clock that are remembered; the oldest are forgotten


@value
class _Span:
    """A time without a jump: from `start` (monotonic), while wall - monotonic was `offset`."""

    start: float
    offset: float


class Timeline:
    """Which moment of this process a date in the spool was, whatever the wall clock did since."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start = clock.monotonic()
        self._spans = [_Span(self._start, clock.wall() - self._start)]

    def watch(self) -> None:
        """Look whether the wall clock has jumped. To be called often."""
        now = self._clock.monotonic()
        offset = self._clock.wall() - now
        last = self._spans[-1]
        if abs(offset - last.offset) > JUMP:
            self._spans.append(_Span(now, offset))
            del self._spans[:-JUMPS]
        elif offset != last.offset:  # it is being slewed
            self._spans[-1] = _Span(last.start, offset)

    def since(self, date: float) -> float:
        """Seconds since a date of the spool in which this process ran."""
        self.watch()
        now = self._clock.monotonic()
        end = now
        for span in reversed(self._spans):
            moment = date - span.offset
            if span.start - JUMP <= moment <= end + JUMP:
                return max(0.0, now - max(moment, self._start))
            end = span.start
        return now - self._start  # from before the start


def stopped(recipients: tuple[Recipient, ...]) -> bool:
    """Whether the clock of a message stands still: all that is left of it waits for the box's own side."""
    return bool(recipients) and all(recipient.kind in OWN_SIDE for recipient in recipients)


def used(envelope: Envelope, timeline: Timeline) -> float:
    """Seconds of its lifetime that a message has used up."""
    if stopped(envelope.recipients):
        return envelope.waited
    return envelope.waited + timeline.since(envelope.last_attempt or envelope.received_at)


class Lifetime:
    """The rules of one configuration."""

    def __init__(self, settings: Settings, clock: Clock, timeline: Timeline) -> None:
        self._settings = settings
        self._clock = clock
        self._timeline = timeline

    def of(self, envelope: Envelope) -> float:
        """How long this message is tried, seconds."""
        notice = envelope.bounce or not envelope.sender
        return self._settings.bounce_queue_lifetime if notice else self._settings.maximal_queue_lifetime

    def over(self, envelope: Envelope, spent: float) -> bool:
        """Whether a message that has just failed again is to be given up; `spent`: what `used` says."""
        allowed = self.of(envelope)
        if allowed <= 0:
            return True
        if not self._clock.trusted():
            return False
        return self._age(envelope, spent) >= allowed

    def until(self, envelope: Envelope, spent: float) -> float:
        """The date until which a message is tried if nothing stops its clock."""
        return self._clock.wall() + max(0.0, self.of(envelope) - self._age(envelope, spent))

    def late(self, envelope: Envelope, spent: float) -> bool:
        """Whether its sender should be told now that a message is delayed: by the same clock as its lifetime."""
        settings = self._settings
        if not settings.delay_warning_time or envelope.delay_warned or envelope.bounce or not envelope.sender:
            return False
        if not self._clock.trusted() or envelope.received_at < RELEASE_DATE:
            return False
        return self._age(envelope, spent) >= settings.delay_warning_time

    def _age(self, envelope: Envelope, spent: float) -> float:
        if self._settings.lifetime_counts == "link-up" or envelope.received_at < RELEASE_DATE:
            return spent  # a date before the release was never right
        return self._clock.wall() - envelope.received_at


def backoff(envelope: Envelope, settings: Settings) -> float:
    """Seconds until the next attempt, without jitter: doubles from the minimum to the maximum."""
    least = settings.minimal_backoff_time
    return min(max(envelope.backoff * 2, least), max(least, settings.maximal_backoff_time))


def jittered(wait: float, random: random.Random) -> float:
    """A wait, and a little more: never earlier, and not all at once."""
    return wait * (1 + JITTER * random.random())


def still_to_wait(envelope: Envelope, settings: Settings, clock: Clock) -> float:
    """Seconds from now until a message from the spool is due. No date, however wrong, makes it wait long."""
    if not envelope.next_attempt:
        return 0.0
    most = max(envelope.backoff, settings.minimal_backoff_time) * (1 + JITTER)
    most = min(most, max(settings.minimal_backoff_time, settings.maximal_backoff_time) * (1 + JITTER))
    if not clock.trusted():  # nobody knows how long it was off
        most = min(most, settings.minimal_backoff_time)
    return min(max(0.0, envelope.next_attempt - clock.wall()), most)
