"""The index of waiting mail: small, and right whatever is done to it."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.clock import ManualClock
from edgemail.envelope import Address, Delivery, Envelope, Outcome, Recipient, Route
from edgemail.relay.queue.schedule import Scheduler
from edgemail.relay.queue.waiting import Flag, Line, Stand, Waiting
from edgemail.settings import Configuration, Settings
from edgemail.spool.verbs import Spool

MAILS = 100_000
BYTES = 80


class Sheet:
    """An intake that nothing comes into."""

    id = 1 << 60

    async def abort(self) -> None:
        pass


class Paper:
    """A spool that makes its envelopes up."""

    def intake(self) -> Sheet:
        return Sheet()

    def envelopes(self) -> Iterator[Envelope]:
        to = Address("b", "example.net")
        mail = Envelope(0, to, (Recipient(to, reason="x"),), received_at=1e9, next_attempt=1e12, backoff=4000.0)
        for i in range(MAILS):  # one object for all of them: making more would take most of the time
            object.__setattr__(mail, "id", (1 << 40) + 7 * i)
            object.__setattr__(to, "domain", f"domain{i}.example")
            yield mail


def test_a_hundred_thousand_waiting_messages_are_small() -> None:
    def route(envelope: Envelope, recipient: Recipient) -> tuple[Route, Address]:
        raise AssertionError("nothing is due")

    async def deliver(delivery: Delivery) -> tuple[Outcome, ...]:
        raise AssertionError("nothing is due")

    async def load() -> Scheduler:
        configuration = Configuration("x", Settings(myhostname="gw", myorigin="gw"), ())
        scheduler = Scheduler(
            cast(Spool, Paper()), ManualClock(), configuration, route, deliver, random=random.Random(1)
        )
        await scheduler.load()
        scheduler.look()
        return scheduler

    scheduler = asyncio.run(load())
    assert len(scheduler) == MAILS
    assert MAILS * 20 < reached(scheduler) < MAILS * BYTES


def reached(thing: object) -> int:
    """Bytes of everything that is reached from an object, code left out."""
    seen: dict[int, object] = {}
    todo = [thing]
    while todo:
        one = todo.pop()
        if id(one) not in seen and not isinstance(one, type | ModuleType | FunctionType | asyncio.AbstractEventLoop):
            seen[id(one)] = one
            todo += gc.get_referents(one)
    return sum(map(sys.getsizeof, seen.values()))


def test_all_of_them_due_at_once_are_small_too() -> None:
    waiting = Waiting()
    for i in range(MAILS):
        waiting.add((1 << 40) + i, (f"domain{i}.example",), due=1.0)
    lane, first = Line(), 0
    while True:
        found, first = waiting.due(2.0, first)
        for mail in found:
            waiting.move(mail, Stand.LANE)
        lane.extend(found)
        if not first:
            break
    assert len(lane) == MAILS
    arrays = (waiting._ids, waiting._due, waiting._marks, waiting._states, lane._ids)
    assert sum(map(sys.getsizeof, arrays)) / MAILS < BYTES / 2


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), max_size=200))
def test_a_line_is_first_in_first_out(steps: list[tuple[int, int]]) -> None:
    line, model = Line(), []
    for pops, pushes in steps:
        for i in range(pushes):
            line.append(i)
            model.append(i)
        for _ in range(min(pops, len(model))):
            assert line.pop() == model.pop(0)
        assert list(line) == model
        assert len(line) == len(model)
    with pytest.raises(IndexError):
        line.clear() or line.pop()  # type: ignore[func-returns-value]


DOMAINS = [f"d{i}.example" for i in range(12)]
STEP = st.one_of(
    st.tuples(
        st.just("add"),
        st.integers(1, 30),
        st.lists(st.sampled_from(DOMAINS), max_size=11),
        st.floats(0, 100),
        st.sampled_from([Stand.LATER, Stand.LANE, Stand.PARKED]),
        st.sampled_from([Flag.NONE, Flag.FRESH, Flag.FLUSHED, Flag.OWN_SIDE]),
    ),
    st.tuples(st.just("drop"), st.integers(1, 30)),
    st.tuples(
        st.just("move"),
        st.integers(1, 30),
        st.sampled_from([Stand.LATER, Stand.LANE, Stand.PARKED]),
        st.sampled_from([Flag.NONE, Flag.FRESH, Flag.FLUSHED]),
        st.floats(0, 100),
    ),
)


@given(st.lists(STEP, max_size=60))
def test_the_index_is_what_a_dictionary_would_be(steps: list[tuple[object, ...]]) -> None:
    waiting = Waiting()
    model: dict[int, tuple[frozenset[str], float, Stand, int]] = {}
    for step in steps:
        mail = cast(int, step[1])
        if step[0] == "add":
            _, _, domains, due, stand, flags = cast(tuple[str, int, list[str], float, Stand, int], step)
            waiting.add(mail, domains, due=due, stand=stand, flags=flags)
            model[mail] = (frozenset(domains), due, stand, flags)
        elif step[0] == "drop":
            assert waiting.drop(mail) == (model.pop(mail, None) is not None)
        else:
            _, _, stand, flags, due = cast(tuple[str, int, Stand, int, float], step)
            waiting.move(mail, stand, flags, due=due)
            if mail in model:
                model[mail] = (model[mail][0], due, stand, flags)
        assert len(waiting) == len(model)
        assert list(waiting.ids()) == sorted(model)
        assert waiting.fresh == sum(bool(flags & Flag.FRESH) for *_, flags in model.values())
        parked = [m for m, (_, _, stand, flags) in model.items() if stand is Stand.PARKED and not flags & Flag.FRESH]
        assert waiting.parked == len(parked)
        for each in range(1, 31):
            assert (each in waiting) == (each in model)
            assert waiting.stand(each) == (model[each][2] if each in model else None)
            assert waiting.flags(each) == (model[each][3] if each in model else 0)
        found, following = waiting.due(50.0)
        assert following == 0
        assert list(found) == sorted(m for m, (_, due, stand, _) in model.items() if stand is Stand.LATER and due <= 50)
        many = {m for m, (d, *_) in model.items() if not d or len(d) > 8}
        assert list(waiting.of_many()) == sorted(many)
        for domain in DOMAINS:
            wanted = {m for m, (d, *_) in model.items() if domain in d} - many
            assert list(waiting.of_domain(domain.upper())) == sorted(wanted)
            assert list(waiting.below(domain.upper()) or ()) == sorted(wanted)
        assert list(waiting.below("example") or ()) == sorted(set(model) - many)
        assert list(waiting.below("ample") or ()) == []


def test_a_queue_run_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemail.relay.queue import waiting as module

    monkeypatch.setattr(module, "SLICE", 3)
    waiting = Waiting()
    for i in range(10, 20):
        waiting.add(i, ["x"], due=float(i % 2))
    seen, first = [], 0
    while True:
        found, first = waiting.due(0.5, first)
        seen += list(found)
        for mail in found:
            waiting.drop(mail)  # rows move under it
        if not first:
            break
    assert seen == [10, 12, 14, 16, 18]
