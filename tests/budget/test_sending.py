"""What a delivery costs in turns of the loop, writes, timers and tasks: counts, which do not depend on the machine."""

from __future__ import annotations

import asyncio
import dataclasses
import selectors
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from edgemail.relay.send.connect import Line
from tests.scenarios.sink import Sink, sink
from tests.servers import FULL, PLAIN
from tests.unit.test_deliver import Rig, at, rig

PIPELINED = (*PLAIN, "PIPELINING")
MESSAGES = 100


class Counts:
    """What has been counted since it was made."""

    def __init__(self) -> None:
        self.turns = self.callbacks = self.timers = self.tasks = self.writes = self.reads = 0

    def per_message(self, number: int = MESSAGES) -> dict[str, float]:
        return {name: count / number for name, count in vars(self).items()}


class CountingSelector(selectors.DefaultSelector):
    counts = Counts()

    def select(self, timeout: float | None = None) -> Any:
        self.counts.turns += 1
        return super().select(timeout)


class CountingLoop(asyncio.SelectorEventLoop):
    """The loop of a delivery and of nothing else: the server has its own thread."""

    def __init__(self) -> None:
        self.chosen = CountingSelector()
        super().__init__(self.chosen)

    def call_soon(self, *args: Any, **words: Any) -> asyncio.Handle:  # type: ignore[override]
        self.chosen.counts.callbacks += 1
        return super().call_soon(*args, **words)

    def call_at(self, *args: Any, **words: Any) -> asyncio.TimerHandle:  # type: ignore[override]
        self.chosen.counts.timers += 1
        return super().call_at(*args, **words)

    def create_task(self, *args: Any, **words: Any) -> asyncio.Task[Any]:
        self.chosen.counts.tasks += 1
        return super().create_task(*args, **words)


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counts]:
    """Count from here on."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, CountingLoop)
    counts = loop.chosen.counts = Counts()
    write, received = Line.write, Line.data_received

    def counted_write(line: Line, data: bytes) -> None:
        counts.writes += 1
        write(line, data)

    def counted_received(line: Line, data: bytes) -> None:
        counts.reads += 1
        received(line, data)

    monkeypatch.setattr(Line, "write", counted_write)
    monkeypatch.setattr(Line, "data_received", counted_received)
    yield counts
    monkeypatch.undo()


def play(scenario: Callable[[Rig, Sink], Awaitable[None]], keywords: tuple[str, ...]) -> None:
    async def whole(isp: Sink) -> None:
        async with rig(at(isp.port)) as box:
            await scenario(box, isp)

    with sink(keywords=keywords) as isp, asyncio.Runner(loop_factory=CountingLoop) as runner:
        runner.run(whole(isp))


@pytest.mark.parametrize(("keywords", "writes"), [(FULL, 1), (PIPELINED, 2)], ids=["bdat", "data"])
def test_one_message_after_another_over_a_kept_connection(
    keywords: tuple[str, ...], writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(box: Rig, isp: Sink) -> None:
        deliveries = [await box.mail() for _ in range(MESSAGES)]
        await box.courier.deliver(await box.mail())
        with counting(monkeypatch) as counts:
            for delivery in deliveries:
                assert (await box.courier.deliver(delivery))[0].delivered
        found = counts.per_message()
        print(found)
        assert isp.server.connections == 1
        assert found["writes"] == writes
        assert found["tasks"] == 0
        assert found["timers"] <= 0.05, "one for all answers, looked at when it fires"
        assert found["callbacks"] <= 2
        # The scripted server writes each reply by itself: four of them to a message, and each may be a turn.
        assert found["reads"] <= 4
        assert found["turns"] <= found["reads"] + 1.5

    play(scenario, keywords)


def test_many_messages_over_one_connection_share_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(box: Rig, isp: Sink) -> None:
        deliveries = [dataclasses.replace(await box.mail(), link="far", connections=1) for _ in range(MESSAGES)]
        await box.courier.deliver(dataclasses.replace(await box.mail(), link="far", connections=1))
        with counting(monkeypatch) as counts:
            done = await asyncio.gather(*map(box.courier.deliver, deliveries))
        assert all(outcome.delivered for (outcome,) in done)
        found = counts.per_message()
        print(found)
        assert isp.server.connections == 1
        assert found["writes"] <= 0.5
        assert found["timers"] <= 0.1
        assert found["tasks"] <= 1, "those of this test"

    play(scenario, FULL)
