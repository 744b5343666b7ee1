"""What a flush of one domain costs until the first MAIL: turns of the loop and envelopes read, whatever else waits."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from edgemail.clock import ManualClock
from edgemail.envelope import Address, Envelope, Recipient, Route
from edgemail.relay.queue.schedule import Scheduler
from tests.budget.test_sending import CountingLoop, Counts
from tests.scenarios.sink import sink
from tests.servers import FULL
from tests.unit.test_deliver import at, rig

ASKED = "site.example"
# Found: 8 to 12. The start and its task 2, the connection 4, greeting, EHLO and its answer 2 each. The queue lets four
# pass before it looks at more mail; where the server is slow, some of them come to these.
TURNS = 15


def route(envelope: Envelope, recipient: Recipient) -> tuple[Route, Address]:
    return Route("smtp", ("hop",), configured=True), recipient.address


@pytest.mark.parametrize("others", [0, 2000])
def test_from_the_asking_to_the_first_mail(others: int) -> None:
    async def scenario(port: int, seen: list[int], counts: Counts) -> None:
        async with rig(at(port)) as box:
            reads: Counter[int] = Counter()
            real = box.spool.envelope

            def counted(id: int) -> Envelope | None:
                reads[id] += 1
                return real(id)

            scheduler = Scheduler(
                box.spool, ManualClock(), box.configuration, route, box.courier.deliver, random=random.Random(1)
            )
            for number in range(others):
                await box.mail(f"b@{number % 100}.example", next_attempt=1e12)
            wanted = [(await box.mail(f"b@{ASKED}", next_attempt=1e12)).envelope.id for _ in range(1)]
            await scheduler.load()
            box.spool.envelope = counted  # type: ignore[method-assign]
            running = asyncio.create_task(scheduler.run())
            await asyncio.sleep(0.1)
            counts.__init__()  # type: ignore[misc]
            assert scheduler.flush_at_once(ASKED) == 1
            assert scheduler._dispatch._slots.running == 1, "the first delivery has begun"
            while len(seen) < 1:
                await asyncio.sleep(0.05)
            print(seen, dict(vars(counts)))
            assert seen[0] <= TURNS
            assert reads == Counter(wanted)
            await scheduler.stop(5.0)
            await running

    counts = Counts()
    seen: list[int] = []

    def note(line: str) -> bytes:
        seen.append(counts.turns)
        return b""

    with sink(keywords=FULL, answers={"MAIL": note}) as isp:

        def loop() -> CountingLoop:
            made = CountingLoop()
            made.chosen.counts = counts
            return made

        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(scenario(isp.port, seen, counts))
