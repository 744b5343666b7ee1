"""What crosses what at the worst moment: orders, deliveries, a spool that cannot be read. No message is forgotten."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edgemail.envelope import Envelope, Notify, Recipient
from edgemail.errors import SpoolError
from edgemail.relay.queue.bounce import Bounces
from edgemail.spool.verbs import Change
from tests.queue import Rig, later, play, sent


def between(rig: Rig, meanwhile: Any) -> None:
    """The next change of the spool waits until `meanwhile` has happened."""
    apply = rig.spool.apply

    async def slow(change: Change, *, lazy: bool = False) -> None:
        rig.spool.apply = apply
        await meanwhile()
        await apply(change, lazy=lazy)

    rig.spool.apply = slow


@pytest.mark.parametrize("order", ["hold", "remove"])
def test_an_order_for_many_does_not_undo_what_was_delivered_meanwhile(order: str) -> None:
    """While the spool is told of a message in hand, one that waited is tried and half of it delivered."""

    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        waiting = await rig.accept("b@one.example", "c@two.example")
        await rig.settle()
        rig.net.answers = {"two.example": later}
        gate = rig.net.hold("slow.example")
        busy = await rig.accept("x@slow.example")
        await rig.settle()

        async def meanwhile() -> None:
            await rig.scheduler.flush([waiting.id])
            await rig.settle()

        between(rig, meanwhile)
        assert sorted(await getattr(rig.scheduler, order)([waiting.id, busy.id])) == [waiting.id, busy.id]
        await rig.settle()
        if order == "hold":
            assert rig.mail()[waiting.id].hold
            await rig.scheduler.release([waiting.id])
        rig.net.answers = {}
        gate.set()
        await rig.advance(4000, 100)
        assert rig.delivered[waiting.id, "b@one.example"] <= 1
        assert waiting.id not in rig.mail()

    play(scenario)


def test_a_message_is_not_delivered_while_it_gets_a_new_id() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        mail = await rig.accept("b@one.example")
        await rig.settle()
        rig.net.answers = {}
        await rig.scheduler.flush([mail.id])
        order = asyncio.create_task(rig.scheduler.requeue([mail.id]))
        asyncio.get_running_loop().call_soon(rig.scheduler.look)
        ((_, new),) = await order
        await rig.settle()
        assert rig.delivered == {(new, "b@one.example"): 1}

    play(scenario)


def test_a_hold_that_fails_at_the_end_of_a_round_leaves_the_message_in_the_queue() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        gate = rig.net.hold("*")
        mail = await rig.accept("b@one.example")
        await rig.settle()

        async def meanwhile() -> None:  # the round is being written down: now somebody asks for a hold
            orders.append(asyncio.create_task(rig.scheduler.hold([mail.id], "a look")))
            await asyncio.sleep(0)
            between(rig, fail)

        async def fail() -> None:
            for _ in range(5):
                await asyncio.sleep(0)
            raise SpoolError("the medium is gone")

        orders: list[asyncio.Task[list[int]]] = []
        between(rig, meanwhile)
        gate.set()
        await rig.settle()
        with pytest.raises(SpoolError):
            await orders[0]
        rig.net.answers = {}
        await rig.advance(4000, 100)
        assert not rig.mail()

    play(scenario)


@pytest.mark.parametrize("error", [SpoolError("the spool is closed"), RuntimeError("nobody expected it")])
def test_a_spool_that_cannot_be_read_when_a_message_is_due(error: Exception) -> None:
    """Its turn comes again."""

    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        await rig.accept("b@one.example")
        await rig.settle()
        rig.net.answers = {}
        read = rig.spool.envelope

        def envelope(id: int) -> Envelope | None:
            raise error

        rig.spool.envelope = envelope
        try:
            await rig.advance(1000, 100)
        except Exception:  # what the scheduler's loop logs
            pass
        rig.spool.envelope = read
        await rig.advance(4000, 100)
        assert not rig.mail()

    play(scenario)


def test_a_spool_that_cannot_be_read_when_a_site_has_its_next_turn() -> None:
    """What was delivered just then is written down, and those that waited behind it go out later."""

    async def scenario(rig: Rig) -> None:
        gate = rig.net.hold("one.example")
        for _ in range(3):
            await rig.accept("b@one.example")
        await rig.settle()
        assert len(rig.net.tried) == 1
        read = rig.spool.envelope

        def envelope(id: int) -> Envelope | None:
            raise SpoolError("the spool is closed")

        rig.spool.envelope = envelope
        gate.set()
        await rig.settle()
        rig.spool.envelope = read
        assert len(rig.mail()) == 2
        await rig.advance(4000, 100)
        assert not rig.mail()
        assert set(rig.delivered.values()) == {1}

    play(scenario, default_destination_concurrency_limit=1, initial_destination_concurrency=1)


def test_a_report_that_cannot_be_written_repeats_no_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stops the report of a success: that it went out is kept, and the rest of the message waits."""

    async def report(*_: object, **more: object) -> Envelope:
        raise RuntimeError("nobody expected it")

    async def scenario(rig: Rig) -> None:
        rig.net.answers["two.example"] = later
        monkeypatch.setattr(Bounces, "report", report)
        wanting = [Recipient(one.address, Notify.SUCCESS) for one in (await rig.keep("b@one.example")).recipients]
        await rig.scheduler.remove(list(rig.mail()))
        mail = await rig.accept(*wanting, "c@two.example")
        await rig.settle()
        assert rig.waiting(mail.id) == ["c@two.example"]
        rig.net.answers = {"*": sent}
        await rig.advance(4000, 100)
        assert not rig.mail()
        assert rig.delivered == {(mail.id, "b@one.example"): 1, (mail.id, "c@two.example"): 1}

    play(scenario)


def test_mail_comes_and_goes_while_the_queue_is_still_taken_up() -> None:
    """A start with a long queue: what comes meanwhile is delivered once, what is asked meanwhile waits for the rest."""

    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        old = [await rig.accept(f"b{number}@one.example") for number in range(150)]
        await rig.settle()
        await rig.scheduler.stop(0)
        rig.net.answers = {}
        rig.scheduler = rig._scheduler()
        await rig.scheduler.open()
        loading = asyncio.create_task(rig.scheduler.load())
        await asyncio.sleep(0)
        assert not loading.done()
        asked = asyncio.create_task(rig.scheduler.flush([old[-1].id]))
        held = asyncio.create_task(rig.scheduler.hold([old[-2].id], "wait"))
        new = await rig.accept("c@two.example")
        await rig.settle()
        assert (await asked, await held) == (1, [old[-2].id])
        await rig.advance(8000, 100)
        assert rig.delivered[new.id, "c@two.example"] == 1
        assert {rig.delivered[one.id, f"b{number}@one.example"] for number, one in enumerate(old) if number != 148} == {
            1
        }
        assert list(rig.mail()) == [old[-2].id]

    play(scenario)


def test_what_was_there_at_the_start_is_tried_at_once() -> None:
    """Taken up behind the first look at the queue, it does not wait for the next run."""

    async def scenario(rig: Rig) -> None:
        old = await rig.accept("b@one.example")
        await rig.scheduler.stop(0)
        rig.scheduler = rig._scheduler()
        await rig.scheduler.open()
        running = asyncio.create_task(rig.scheduler.run())
        await rig.settle()
        await rig.scheduler.load()
        await rig.settle()
        assert rig.delivered == {(old.id, "b@one.example"): 1}
        await rig.scheduler.stop(0)
        await running

    play(scenario, queue_run_delay=300.0)
