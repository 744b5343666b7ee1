"""Destinations: windows, the dead-site list, and whose turn it is for a slot."""

from __future__ import annotations

import random
from typing import Any

import pytest

from edgemail.clock import ManualClock
from edgemail.envelope import Outcome, Route
from edgemail.errors import Kind
from edgemail.relay.queue import sites as module
from edgemail.relay.queue.sites import Gate, Site, Sites
from edgemail.relay.queue.slots import STALLED, Slots, Turn
from edgemail.reply import Reply
from edgemail.settings import Configuration, Settings

DOWN = Outcome(0, Kind.MESSAGE_TEMPORARY, Reply(450, "4.4.1", "timed out"), site_failed=True)
LOGIN = Outcome(0, Kind.ROUTE, Reply(535, "5.7.8", "no"), remote=True, site_failed=True)


class Box:
    def __init__(self, **more: Any) -> None:
        self.clock = ManualClock()
        self.configuration = Configuration("x", Settings(**more), ())
        self.sites = Sites(self.clock, self.configuration, random.Random(1))
        self.slots = Slots(self.clock, self.configuration)

    def site(self, name: str = "example.net", *, configured: bool = False) -> Site:
        return self.sites.of(Route("smtp", (name,), configured=configured))

    def fail(self, site: Site, outcome: Outcome = DOWN) -> bool:
        return self.sites.failed(site, outcome, outcome.reply.text)

    def proven(self, name: str) -> Site:
        site = self.site(name)
        self.sites.answered(site)
        return site


def begin(site: Site, gate: Gate, now: float) -> None:
    assert site.gate(now) is gate


@pytest.mark.parametrize(("initial", "limit", "most"), [(5, 20, 20), (5, 3, 3), (1, 1, 1), (30, 20, 20), (2, 0, 40)])
def test_the_window_starts_small_and_grows_with_use(initial: int, limit: int, most: int) -> None:
    box = Box(initial_destination_concurrency=initial, default_destination_concurrency_limit=limit)
    site = box.site()
    assert site.window == min(initial, limit or initial)
    for _ in range(38):
        site.running = site.window  # as many as it may
        box.sites.answered(site)
    assert site.window == most
    site = box.site("idle.example")
    for _ in range(100):
        site.running = 1
        box.sites.answered(site)
    assert site.window <= initial + 1  # what is not used does not grow


def test_it_shrinks_on_trouble_and_dies_when_a_cohort_fails() -> None:
    box = Box()
    site = box.site()
    windows = []
    while not box.fail(site):
        windows.append(site.window)
    assert windows == [4, 3, 2]
    assert site.state == "dead"
    assert site.gate(box.clock.monotonic()) is Gate.DEAD


def test_one_answer_between_failures_keeps_it_alive() -> None:
    box = Box()
    site = box.site()
    for _ in range(50):
        assert not box.fail(site)
        box.sites.answered(site)
    assert site.state == "up"


def test_a_dead_site_is_tried_by_one_and_then_left_alone_for_longer() -> None:
    box = Box(minimal_backoff_time=100.0, maximal_backoff_time=400.0)
    site = box.site()
    while not box.fail(site):
        pass
    waits = []
    for _ in range(5):
        assert site.retry_at is not None
        waits.append(site.retry_at - box.clock.monotonic())
        box.clock.advance(waits[-1] - 0.01)
        begin(site, Gate.DEAD, box.clock.monotonic())
        box.clock.advance(0.02)
        begin(site, Gate.OPEN, box.clock.monotonic())
        site.running = 1
        begin(site, Gate.BUSY, box.clock.monotonic())
        assert box.fail(site)
        site.running = 0
    for wait, least in zip(waits, [100, 200, 400, 400, 400], strict=True):
        assert least <= wait <= least * 1.1
    assert site.retry_at is not None
    box.clock.advance(500)
    assert box.sites.answered(site)
    assert (site.state, site.window) == ("up", 5)
    assert site.gate(box.clock.monotonic()) is Gate.OPEN
    assert not box.sites.answered(site)


def test_failures_that_were_under_way_when_it_died_change_nothing() -> None:
    box = Box()
    site = box.site()
    while not box.fail(site):
        pass
    before = site.retry_at
    for _ in range(20):
        assert not box.fail(site)
    assert site.retry_at == before


def test_a_login_that_is_refused_needs_no_second_opinion() -> None:
    box = Box()
    site = box.site(configured=True)
    assert box.fail(site, LOGIN)
    assert site.state == "paused"
    assert site.own_side


def test_revived_it_is_as_new() -> None:
    box = Box()
    site = box.site()
    while not box.fail(site):
        pass
    box.sites.revive(site)
    begin(site, Gate.OPEN, box.clock.monotonic())
    assert site.window == 5
    assert site.state == "failing"


def test_the_snapshot_says_what_and_since_when() -> None:
    box = Box()
    site = box.site("[isp.example]:587", configured=True)
    box.site("new.example")
    box.clock.advance(50)
    box.fail(site, LOGIN)
    box.clock.advance(10)
    paused, new = box.sites.snapshot()
    assert (paused.name, paused.state, paused.reason, paused.kind) == (
        "smtp:[isp.example]:587",
        "paused",
        "no",
        Kind.ROUTE,
    )
    assert paused.since == box.clock.started + 50
    assert 290 <= paused.next_probe - box.clock.wall() <= 320
    assert (new.state, new.since, new.next_probe) == ("new", 0.0, 0.0)


def test_those_that_were_idle_longest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SITES", 10)
    box = Box()
    paused = box.site("paused.example", configured=True)
    box.fail(paused, LOGIN)
    busy = box.site("busy.example")
    busy.running = 1
    waiting = box.site("waiting.example")
    waiting.park(1, fresh=True)
    for i in range(100):
        box.site(f"d{i}.example")
    names = {site.name for site in box.sites}
    assert len(names) == 10
    assert {"smtp:paused.example", "smtp:busy.example", "smtp:waiting.example", "smtp:d99.example"} <= names


def test_three_lines_take_turns() -> None:
    site = Box().site()
    for i in range(3):
        site.take_in_hand(i)
        site.park(10 + i, fresh=True)
        site.park(20 + i, fresh=False)
    order = [site.next_id(room=True) for _ in range(9)]
    assert {(each or 0) // 10 for each in order[:3]} == {0, 1, 2}
    assert sorted(each or 0 for each in order) == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert site.next_id(room=True) is None
    site.park(5, fresh=True)
    assert site.next_id(room=False) is None
    site.take_in_hand(6)
    assert site.next_id(room=False) == 6


# ---- slots


def test_proven_destinations_share_the_slots_of_their_transport() -> None:
    box = Box(default_process_limit=3)
    sites = [box.proven(f"d{i}.example") for i in range(4)]
    for site in sites[:3]:
        assert box.slots.free(site, fresh=True)
        box.slots.take(site)
    assert not box.slots.free(sites[3], fresh=True)
    other = box.sites.of(Route("relay", ("e.example",)))
    box.sites.answered(other)
    assert box.slots.free(other, fresh=True)


def test_trials_leave_room_for_those_of_whom_nothing_bad_is_known() -> None:
    box = Box(default_process_limit=10)  # 40 trials
    failing = box.site("failing.example")
    box.fail(failing)
    tried = box.site("tried.example")
    tried.running = 1
    new = box.site("new.example")
    limits: dict[str, int] = {}
    for count in range(41):
        for name, site, fresh in (
            ("more", tried, True),
            ("failing", failing, True),
            ("backlog", new, False),
            ("fresh", new, True),
        ):
            if not box.slots.free(site, fresh=fresh):
                limits.setdefault(name, count)
        box.slots.trials += 1
    assert limits == {"more": 10, "failing": 20, "backlog": 30, "fresh": 40}


def test_a_small_limit_of_messages_in_hand_holds_for_trials_too() -> None:
    box = Box(qmgr_message_active_limit=8)
    for i in range(6):
        site = box.site(f"d{i}.example")
        assert box.slots.free(site, fresh=True)
        box.slots.take(site)
    assert not box.slots.free(box.site("e.example"), fresh=True)


def test_proven_deliveries_that_hang_stop_counting_as_proven() -> None:
    box = Box(default_process_limit=2)
    site = box.proven("a.example")
    slots = [box.slots.take(site), box.slots.take(site)]
    late = box.proven("b.example")
    late.park(1, fresh=True)
    box.slots.wait(late)
    assert box.slots.next_site() is None
    assert box.slots.next_change() == STALLED
    box.clock.advance(STALLED)
    assert box.slots.next_site() is late
    assert box.slots.trials == 2
    for slot in slots:
        box.slots.give_back(slot)
    assert box.slots.running == 0


def test_who_waits_gets_a_slot_in_order_of_class_and_then_of_arrival() -> None:
    box = Box(default_process_limit=100)
    failing, new = box.site("failing.example"), [box.site(f"new{i}.example") for i in range(3)]
    box.fail(failing)
    proven = box.proven("proven.example")
    for site in (failing, *new, proven):
        site.park(1, fresh=True)
        box.slots.wait(site)
        box.slots.wait(site)
    assert box.slots.waiting == 5
    assert [box.slots.next_site() for _ in range(6)] == [proven, *new, failing, None]


def test_a_site_that_has_changed_its_class_waits_in_its_new_one() -> None:
    box = Box()
    one, two = box.site("one.example"), box.site("two.example")
    for site in (one, two):
        site.park(1, fresh=True)
        box.slots.wait(site)
    box.fail(one)
    assert box.slots.next_site() is two
    assert box.slots.turn(one, fresh=True) is Turn.FAILING
    assert box.slots.next_site() is one
    assert box.slots.waiting == 0
