"""The queue and its links: what is kept, what wakes it, what it costs, how old it gets. A clock turned by hand."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from edgemail.envelope import Address, Envelope, Recipient, Route
from edgemail.errors import Kind
from edgemail.relay.queue.link import Links
from edgemail.relay.queue.schedule import Scheduler
from edgemail.relay.queue.slots import TURN_MESSAGES
from edgemail.settings import Configuration, Link, Priority, Settings
from edgemail.spool.verbs import Change
from tests.queue import Rig, later, silent

DAY = 86_400.0
FIBRE = Link("fibre", interface="eth0")
VSAT = Link("vsat", "satellite", interface="sat0", size_limit=1000)


class Box(Rig):
    """A rig with links. Recipients in free.example go by a transport without any; on demand those in asks.example."""

    def __init__(self, links: tuple[Link, ...] = (FIBRE,), **settings: Any) -> None:
        self.uplinks = links
        self.priorities: tuple[Priority, ...] = settings.pop("priorities", ())
        self.links: Links | None = None
        given = {"smtp_links": tuple(link.name for link in links), "defer_transports": ("ondemand",), **settings}
        super().__init__(**given)
        self.net.route = self._route  # type: ignore[method-assign]
        self.scheduler = self._scheduler()
        for name in ("free", "ondemand"):
            self.transports[name] = Settings()

    @property
    def configuration(self) -> Configuration:
        settings = Settings(**self.settings)
        return Configuration("", settings, (), self.transports, links=self.uplinks, priorities=self.priorities)

    def _route(self, envelope: Envelope, recipient: Recipient) -> tuple[Route, Address]:
        domain = recipient.address.domain
        transport = {"free.example": "free", "asks.example": "ondemand"}.get(domain, "smtp")
        return Route(transport, (domain,)), recipient.address

    def _scheduler(self) -> Scheduler:
        if self.links is None:
            self.links = Links(self.clock, self.configuration, lambda _: self.scheduler.links_changed())
        return Scheduler(
            self.spool,
            self.clock,
            self.configuration,
            self.net.route,
            self.deliver,
            random=random.Random(7),
            links=self.links,
        )

    async def link(self, name: str, up: bool) -> None:
        assert self.links is not None
        self.links.observe(name, up, "" if up else "no carrier")
        await self.settle()

    def reasons(self, id: int) -> list[str]:
        envelope = self.spool.envelope(id)
        return [recipient.reason for recipient in envelope.recipients] if envelope else []


def play(scenario: Callable[[Box], Awaitable[None]], *links: Link, **settings: Any) -> None:
    async def whole() -> None:
        box = Box(links or (FIBRE,), **settings)
        await box.scheduler.load()
        try:
            await scenario(box)
        finally:
            await box.scheduler.stop(0)

    asyncio.run(whole())


def test_a_month_without_a_link_bounces_nothing_and_everything_leaves_when_it_comes_up() -> None:
    async def scenario(box: Box) -> None:
        await box.link("fibre", False)
        sent = [await box.accept(f"b{n}@example.net") for n in range(50)]
        await box.settle()
        assert all("link fibre is down: no carrier" in box.reasons(one.id)[0] for one in sent)
        for _ in range(6):
            await box.advance(5 * DAY, step=4000.0)
            await box.crash()
            await box.settle()
        assert box.net.tried == []
        assert not box.notices(), "no bounce, no warning of a delay, no notice for every message"
        assert {one.waited for one in box.mail().values()} <= {0.0}, "its clock stood still"
        await box.link("fibre", True)
        await box.advance(2.0)
        assert not box.mail()
        assert len(box.net.tried) == 50

    play(scenario, delay_warning_time=3600.0)


def test_a_look_at_what_waits_writes_nothing() -> None:
    async def scenario(box: Box) -> None:
        await box.link("fibre", False)
        for number in range(20):
            await box.accept(f"b{number}@example.net")
        await box.settle()
        commits = box.spool.commits
        await box.advance(3 * DAY, step=2000.0)
        assert box.spool.commits == commits

    play(scenario)


def test_time_counts_while_the_link_is_up_and_only_then() -> None:
    async def scenario(box: Box) -> None:
        box.net.answers["*"] = later
        await box.link("fibre", True)
        one = await box.accept("b@example.net")
        await box.advance(2 * DAY, step=1000.0)
        await box.link("fibre", False)
        await box.advance(7200.0, step=400.0)
        await box.advance(30 * DAY, step=4000.0)
        assert not box.notices()
        used = box.mail()[one.id].waited
        assert 2 * DAY - 4000 <= used <= 2 * DAY + 5000, "noticed when it was next due"
        await box.crash()
        await box.link("fibre", True)
        await box.advance(2 * DAY, step=1000.0)
        assert one.id in box.mail()
        await box.advance(1.5 * DAY, step=1000.0)
        assert one.id not in box.mail(), "five days of link, then back to its sender"
        assert len(box.notices()) == 1

    play(scenario)


def test_mail_of_other_transports_goes_on() -> None:
    async def scenario(box: Box) -> None:
        await box.link("fibre", False)
        kept = await box.accept("b@example.net", "c@free.example")
        await box.settle()
        assert [address for _, _, address in box.net.tried] == ["c@free.example"]
        assert box.waiting(kept.id) == ["b@example.net"]
        states = {site.name: (site.state, site.kind) for site in box.scheduler.sites()}
        assert states == {"smtp:example.net": ("paused", Kind.LINK), "free:free.example": ("up", None)}

    play(scenario)


def test_a_flush_reaches_what_is_being_put_off_just_then() -> None:
    async def scenario(box: Box) -> None:
        apply, gate = box.spool.apply, asyncio.Event()

        async def slow(change: Change, *, lazy: bool = False) -> None:
            await gate.wait()
            await apply(change, lazy=lazy)

        box.spool.apply = slow
        await box.accept("b@asks.example")
        other = await box.accept("c@asks.example")
        await box.settle()
        assert box.scheduler.active(other.id), "the spool has not said yet that it knows"
        await box.scheduler.flush(domain="elsewhere.example")
        await box.scheduler.flush(ids=[other.id])
        gate.set()
        await box.settle()
        await box.settle()
        assert [box.reasons(id) for id in box.mail()] == [["deferred transport"]], "one was asked for, and went"

    play(scenario)


def test_on_demand_waits_for_a_flush_alone() -> None:
    async def scenario(box: Box) -> None:
        await box.link("fibre", True)
        one = await box.accept("b@asks.example")
        other = await box.accept("c@asks.example")
        await box.advance(20 * DAY, step=4000.0)
        await box.crash()
        await box.advance(1 * DAY, step=4000.0)
        await box.link("fibre", False)
        await box.link("fibre", True)
        assert box.net.tried == [], "that its link came up is no flush; what is done then is on_up"
        assert box.reasons(one.id) == ["deferred transport"]
        assert await box.scheduler.flush(ids=[one.id]) == 1
        await box.settle()
        assert list(box.mail()) == [other.id]
        box.net.answers["*"] = silent
        assert await box.scheduler.flush(domain="asks.example") == 1
        await box.advance(20 * DAY, step=4000.0)
        assert len(box.net.tried) == 2, "one attempt for one flush"
        box.net.answers.clear()
        assert await box.scheduler.flush() == 1
        await box.settle()
        assert not box.mail()

    play(scenario)


def test_on_demand_expires_by_the_wall_clock() -> None:
    async def scenario(box: Box) -> None:
        await box.accept("b@asks.example")
        await box.advance(4.9 * DAY, step=4000.0)
        assert not box.notices()
        await box.advance(0.3 * DAY, step=2000.0)
        (notice,) = box.notices()
        assert "deferred transport" in box.text(notice)

    play(scenario, lifetime_counts="wall")


def test_what_is_not_on_demand_any_more_leaves_after_a_reload() -> None:
    async def scenario(box: Box) -> None:
        await box.accept("b@asks.example")
        await box.settle()
        assert not box.net.tried
        box.configure(defer_transports=())
        await box.advance(2.0)
        assert len(box.net.tried) == 1

    play(scenario)


def test_a_large_message_waits_and_small_ones_pass_it() -> None:
    async def scenario(box: Box) -> None:
        await box.link("vsat", True)
        large = await box.accept("b@example.net", content=b"Subject: x\r\n\r\n" + b"y" * 2000 + b"\r\n")
        small = await box.accept("c@example.net")
        await box.advance(2 * DAY, step=4000.0)
        assert small.id not in box.mail()
        assert "waits for a better link" in box.reasons(large.id)[0]
        await box.scheduler.flush()
        await box.settle()
        assert large.id in box.mail(), "nobody can flush through a ceiling"
        await box.link("fibre", True)
        await box.advance(2.0)
        assert not box.mail()

    play(scenario, FIBRE, VSAT)


@pytest.mark.parametrize(("kind", "most"), [("satellite", 1), ("lte", 4)])
def test_deliveries_to_no_more_destinations_at_once_than_the_link_takes_connections(kind: str, most: int) -> None:
    async def scenario(box: Box) -> None:
        gate = box.net.hold("*")
        await box.link("up", True)
        for number in range(30):
            await box.accept(f"b@example{number % 6}.net")
        await box.settle()
        assert sum(running > 0 for running in box.net.running.values()) == most
        gate.set()
        await box.advance(3.0)
        assert not box.mail()
        assert box.links is not None
        (status,) = box.links.snapshot()
        assert status.running == 0
        assert status.day_bytes > 30 * 1024

    play(scenario, Link("up", kind, interface="x"))


def test_orders_of_a_person_find_what_is_kept() -> None:
    async def scenario(box: Box) -> None:
        await box.link("fibre", False)
        one, two = await box.accept("b@example.net"), await box.accept("c@example.net")
        await box.settle()
        assert await box.scheduler.hold([one.id], "moved") == [one.id]
        assert await box.scheduler.remove([two.id]) == [two.id]
        await box.link("fibre", True)
        await box.advance(2.0)
        assert list(box.mail()) == [one.id]
        await box.link("fibre", False)
        assert await box.scheduler.release([one.id]) == [one.id]
        await box.settle()
        assert "link fibre is down" in box.reasons(one.id)[0]
        await box.link("fibre", True)
        await box.advance(2.0)
        assert not box.mail()

    play(scenario)


@pytest.mark.parametrize("classes", [(), (Priority("alarm", ("recipient:@other.example",)),)])
def test_a_destination_with_a_long_backlog_does_not_keep_the_only_connection(classes: tuple[Priority, ...]) -> None:
    """After so many of its messages another has its turn, and at once if what waits there is of a lower rank."""

    async def scenario(box: Box) -> None:
        gate = box.net.hold("*")
        await box.link("vsat", True)
        for number in range(400):
            await box.accept(f"b{number}@example.net")
        for number in range(5):
            await box.accept(f"b{number}@other.example")
        await box.settle()
        gate.set()
        await box.advance(3.0)
        assert not box.mail()
        first = next(at for at, (_, _, address) in enumerate(box.net.tried) if address.endswith("other.example"))
        assert first <= (40 if classes else TURN_MESSAGES + 40), "what was under way is finished before"

    play(scenario, VSAT, priorities=classes)


def test_flapping_sends_each_message_once() -> None:
    async def scenario(box: Box) -> None:
        for number in range(60):
            await box.accept(f"b{number}@example.net")
            await box.link("fibre", number % 3 == 0)
            await box.advance(3.0)
        await box.link("fibre", True)
        await box.advance(3.0)
        assert not box.mail()
        assert len(box.net.tried) == 60

    play(scenario)
