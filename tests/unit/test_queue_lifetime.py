"""The clock of a message: when it runs, when it stands still, and what wrong clocks do to it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.clock import RELEASE_DATE, ManualClock
from edgemail.envelope import Address, Envelope, Recipient
from edgemail.errors import Kind
from edgemail.relay.queue.lifetime import Lifetime, Timeline, backoff, jittered, still_to_wait, stopped, used
from edgemail.settings import Settings

A = Address("a", "example.org")


def mail(*kinds: Kind | None, **more: float | bool) -> Envelope:
    recipients = tuple(Recipient(Address(f"r{i}", "example.net"), kind=kind) for i, kind in enumerate(kinds))
    return Envelope(1, A, recipients, **{"received_at": RELEASE_DATE, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kinds", "stands"),
    [
        ([None], False),
        ([Kind.MESSAGE_TEMPORARY], False),
        ([Kind.ROUTE], True),
        ([Kind.LINK], True),
        ([Kind.LOCAL, Kind.LINK], True),
        ([Kind.ROUTE, Kind.MESSAGE_TEMPORARY], False),
        ([Kind.ROUTE, None], False),
    ],
)
def test_what_stops_the_clock(kinds: list[Kind | None], stands: bool) -> None:
    clock = ManualClock()
    timeline = Timeline(clock)
    envelope = mail(*kinds, waited=10.0)
    clock.advance(100)
    assert stopped(envelope.recipients) is stands
    assert used(envelope, timeline) == (10 if stands else 110)


@given(st.lists(st.tuples(st.floats(0, 10_000), st.floats(-1e9, 1e9)), max_size=20), st.data())
def test_jumps_of_the_wall_clock_age_nothing(steps: list[tuple[float, float]], data: st.DataObject) -> None:
    clock = ManualClock()
    timeline = Timeline(clock)
    at, stamp = 0.0, clock.wall()
    for passes, jumps in steps:
        clock.advance(passes)
        timeline.watch()
        if data.draw(st.booleans()):
            at, stamp = clock.monotonic(), clock.wall()
        clock.started += jumps
        timeline.watch()
    clock.advance(5)
    # Two spans may fit one date; then the shorter time counts. What passed since can never be overstated by a jump.
    assert timeline.since(stamp) <= clock.monotonic() - at + 60 + sum(passes for passes, _ in steps)
    assert timeline.since(stamp) <= clock.monotonic()


def test_a_date_before_a_jump_is_still_understood() -> None:
    clock = ManualClock(started=1000.0)
    timeline = Timeline(clock)
    clock.advance(50)
    stamp = clock.wall()
    clock.advance(50)
    timeline.watch()
    clock.started += 1e9
    clock.advance(100)
    assert timeline.since(stamp) == 150
    assert timeline.since(clock.wall() - 30) == 30
    assert timeline.since(12345678.0) == 200  # of another life: since the start
    assert timeline.since(clock.wall() + 1e6) == 200


def test_a_clock_that_is_slewed_is_followed() -> None:
    clock = ManualClock()
    timeline = Timeline(clock)
    for _ in range(1000):
        clock.advance(10)
        clock.started += 1.0
        timeline.watch()
    assert timeline.since(clock.wall() - 100) == pytest.approx(100)


@pytest.mark.parametrize(
    ("counts", "spent", "off", "over"),
    [
        ("link-up", 99.0, 1e6, False),
        ("link-up", 100.0, 0.0, True),
        ("wall", 0.0, 99.0, False),
        ("wall", 0.0, 100.0, True),
    ],
)
def test_what_counts(counts: str, spent: float, off: float, over: bool) -> None:
    clock = ManualClock()
    settings = Settings(maximal_queue_lifetime=100.0, bounce_queue_lifetime=1e9, lifetime_counts=counts)
    life = Lifetime(settings, clock, Timeline(clock))
    envelope = mail(Kind.MESSAGE_TEMPORARY)
    clock.advance(off)
    assert life.over(envelope, spent) is over
    assert not life.over(Envelope(1, Address("", ""), envelope.recipients, received_at=RELEASE_DATE), spent)
    clock.trust = False
    assert not life.over(envelope, spent)


def test_a_date_of_arrival_that_was_never_right_does_not_count() -> None:
    clock = ManualClock()
    life = Lifetime(Settings(lifetime_counts="wall", delay_warning_time=1.0), clock, Timeline(clock))
    assert not life.over(mail(Kind.MESSAGE_TEMPORARY, received_at=1000.0), 50.0)
    assert not life.late(mail(Kind.MESSAGE_TEMPORARY, received_at=1000.0), 50.0)


def test_lifetime_zero_needs_no_clock() -> None:
    clock = ManualClock()
    clock.trust = False
    life = Lifetime(Settings(maximal_queue_lifetime=0.0), clock, Timeline(clock))
    assert life.over(mail(Kind.MESSAGE_TEMPORARY), 0.0)


def test_waits_double_and_jitter_only_adds() -> None:
    settings = Settings(minimal_backoff_time=300.0, maximal_backoff_time=4000.0)
    waits, envelope = [], mail(None)
    for _ in range(7):
        waits.append(backoff(envelope, settings))
        envelope = mail(None, backoff=waits[-1])
    assert waits == [300, 600, 1200, 2400, 4000, 4000, 4000]
    chance = random.Random(3)
    drawn = [jittered(300.0, chance) for _ in range(1000)]
    assert 300 <= min(drawn) < 301
    assert 329 < max(drawn) <= 330
    assert backoff(mail(None), Settings(minimal_backoff_time=500.0, maximal_backoff_time=100.0)) == 500


@pytest.mark.parametrize(
    ("ahead", "step", "trusted", "wait"),
    [
        (0.0, 300.0, True, 0),
        (-1e9, 300.0, True, 0),
        (250.0, 300.0, True, 250),
        (1e9, 300.0, True, 330),
        (1e9, 1e9, True, 4400),
        (3000.0, 4000.0, False, 300),
        (100.0, 4000.0, False, 100),
        (1e9, 0.0, True, 330),
    ],
)
def test_what_the_spool_says_of_the_next_attempt(ahead: float, step: float, trusted: bool, wait: float) -> None:
    clock = ManualClock()
    clock.trust = trusted
    envelope = mail(None, next_attempt=clock.wall() + ahead, backoff=step)
    assert still_to_wait(envelope, Settings(), clock) == pytest.approx(wait)
    assert still_to_wait(mail(None), Settings(), clock) == 0
