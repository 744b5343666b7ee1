"""When a provider is asked for our mail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from edgemail.relay.queue import asks
from edgemail.relay.queue.asks import Asks
from edgemail.settings import Link

WAN = Link("wan", interface="wan0", atrn="hub.example", atrn_domains=("branch.example",))


class Provider:
    """Says of each ask whether it is done, and remembers when they came."""

    def __init__(self, *answers: bool | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.at: list[float] = []
        self.up = True
        self.hang: asyncio.Event | None = None
        self.asks = Asks(self._ask, lambda _: self.up)

    async def _ask(self, link: Link) -> bool:
        self.asked.append(link.name)
        self.at.append(asyncio.get_running_loop().time())
        if self.hang is not None:
            await self.hang.wait()
        answer = self.answers.pop(0) if self.answers else True
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.asked) < count:
                await asyncio.sleep(0.002)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asks, "ASK_PAUSE", 0.01)
    monkeypatch.setattr(asks, "ASK_AGAIN", 0.05)
    monkeypatch.setattr(asks, "ASK_AGAIN_LAST", 0.1)


def play(scenario: Callable[[Provider], Awaitable[None]], *answers: bool | Exception) -> None:
    async def whole() -> None:
        provider = Provider(*answers)
        try:
            await scenario(provider)
        finally:
            await provider.asks.close()

    asyncio.run(whole())


def linked(interval: float = 0.0) -> Link:
    return Link("wan", interface="wan0", etrn="hub.example", etrn_domains=("b.example",), ask_interval=interval)


def test_without_a_schedule_only_when_the_link_comes_up() -> None:
    async def scenario(provider: Provider) -> None:
        provider.asks.reload((WAN, Link("other", interface="x")))
        await asyncio.sleep(0.05)
        assert provider.asked == []
        provider.asks.came_up(Link("other", interface="x"))
        provider.asks.came_up(WAN)
        await provider.until(1)
        await asyncio.sleep(0.1)
        assert provider.asked == ["wan"]

    play(scenario)


def test_by_a_schedule_from_the_start_on_while_it_is_up() -> None:
    async def scenario(provider: Provider) -> None:
        provider.asks.reload((linked(0.02),))
        await provider.until(3)
        provider.up = False
        await asyncio.sleep(0.05)
        count = len(provider.asked)
        await asyncio.sleep(0.1)
        assert len(provider.asked) == count, "nobody is asked over a link that is down"
        provider.up = True
        provider.asks.came_up(linked(0.02))
        await provider.until(count + 2)

    play(scenario)


@pytest.mark.parametrize("trouble", [False, RuntimeError("of ours")])
def test_who_could_not_be_asked_is_asked_again_later_and_later(trouble: bool | Exception) -> None:
    async def scenario(provider: Provider) -> None:
        provider.asks.reload((WAN,))
        provider.asks.came_up(WAN)
        await provider.until(4)
        gaps = [after - before for before, after in zip(provider.at, provider.at[1:], strict=False)]
        assert gaps[0] >= 0.05
        assert gaps[1] >= 0.1
        assert gaps[2] >= 0.1
        await asyncio.sleep(0.2)
        assert len(provider.asked) == 4, "the fourth was done"

    play(scenario, trouble, trouble, trouble, True)


def test_a_link_that_flaps_while_the_provider_is_asked_asks_once_more() -> None:
    async def scenario(provider: Provider) -> None:
        provider.hang = asyncio.Event()
        provider.asks.reload((WAN,))
        for _ in range(20):
            provider.asks.came_up(WAN)
            await asyncio.sleep(0)
        await provider.until(1)
        provider.asks.came_up(WAN)
        provider.hang.set()
        await provider.until(2)
        await asyncio.sleep(0.05)
        assert len(provider.asked) == 2

    play(scenario)


def test_a_link_that_is_configured_otherwise_begins_anew() -> None:
    async def scenario(provider: Provider) -> None:
        provider.hang = asyncio.Event()
        provider.asks.reload((WAN,))
        provider.asks.came_up(WAN)
        await provider.until(1)
        provider.asks.reload((WAN,))
        await asyncio.sleep(0.02)
        assert len(provider.asked) == 1, "the same goes on"
        provider.asks.reload((linked(60.0),))
        await provider.until(2)
        provider.asks.reload(())
        await asyncio.sleep(0.02)
        assert len(provider.asked) == 2

    play(scenario)
