"""A rig for tests of the queue: a scheduler over a spool in memory, a clock turned by hand, a table for a network."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from edgemail.clock import ManualClock
from edgemail.envelope import Address, Delivery, Disposal, Envelope, Outcome, Recipient, Route
from edgemail.errors import Kind
from edgemail.relay.queue.schedule import Scheduler
from edgemail.reply import Reply
from edgemail.settings import Configuration, Settings
from edgemail.spool.memory import MemorySpool

CONTENT = b"From: a@example.org\r\nSubject: x\r\n\r\nhello\r\n"
SENT = Reply(250, "2.0.0", "Ok: queued as 123")
REFUSED = Reply(550, "5.1.1", "no such user")
LATER = Reply(450, "4.2.0", "greylisted")
SILENT = Reply(450, "4.4.1", "connect to mx: Connection timed out")
NO_LOGIN = Reply(535, "5.7.8", "authentication failed")
NO_LINK = Reply(450, "4.4.1", "connect to mx: Network is unreachable")


def sent(index: int, *, dsn: bool = False) -> Outcome:
    return Outcome(index, None, SENT, "mx.example[192.0.2.1]:25", remote=True, relayed_dsn=dsn)


def refused(index: int) -> Outcome:
    return Outcome(index, Kind.MESSAGE_PERMANENT, REFUSED, "mx.example[192.0.2.1]:25", remote=True)


def later(index: int) -> Outcome:
    return Outcome(index, Kind.MESSAGE_TEMPORARY, LATER, "mx.example[192.0.2.1]:25", remote=True)


def silent(index: int) -> Outcome:
    return Outcome(index, Kind.MESSAGE_TEMPORARY, SILENT, site_failed=True)


def unreachable(index: int) -> Outcome:
    """A smarthost that cannot be connected to."""
    return Outcome(index, Kind.ROUTE, SILENT, site_failed=True)


def no_login(index: int) -> Outcome:
    return Outcome(index, Kind.ROUTE, NO_LOGIN, "isp[192.0.2.9]:587", remote=True, site_failed=True)


def no_link(index: int) -> Outcome:
    return Outcome(index, Kind.LINK, NO_LINK, site_failed=True)


def local(index: int) -> Outcome:
    return Outcome(index, Kind.LOCAL, Reply(451, "4.3.0", "local trouble"))


Answer = Callable[[int], Outcome]


@dataclass
class Net:
    """What each address, or each domain, answers; and what was asked of it."""

    answers: dict[str, Answer] = field(default_factory=dict)
    tried: list[tuple[float, int, str]] = field(default_factory=list)  # when, message, address
    gates: dict[str, asyncio.Event] = field(default_factory=dict)  # domain or address -> open when set
    running: Counter[str] = field(default_factory=Counter)  # by site
    most: Counter[str] = field(default_factory=Counter)
    sizes: list[int] = field(default_factory=list)  # recipients of each delivery
    smarthost: str = ""
    disposals: dict[str, Route] = field(default_factory=dict)

    def route(self, envelope: Envelope, recipient: Recipient) -> tuple[Route, Address]:
        address = recipient.address
        for key in (address.key, address.domain.lower()):
            if key in self.disposals:
                return self.disposals[key], address
        if self.smarthost:
            return Route("smtp", (self.smarthost,), configured=True), address
        return Route("smtp", (address.domain.lower() or "local",)), address

    def hold(self, name: str) -> asyncio.Event:
        """Deliveries to an address or domain hang until the event is set."""
        return self.gates.setdefault(name, asyncio.Event())


class Rig:
    """One box. `crash` makes a new scheduler over what the spool holds."""

    def __init__(self, spool: Any = None, clock: ManualClock | None = None, **settings: Any) -> None:
        self.clock = clock or ManualClock()
        self.spool: Any = spool or MemorySpool(self.clock)
        self.net = Net()
        self.transports: dict[str, Settings] = {}
        self.settings = {
            "myhostname": "gw7.example.com",
            "myorigin": "gw7.example.com",
            "mydomain": "example.com",
            "queue_run_delay": 1.0,
            **settings,
        }
        self.scheduler = self._scheduler()
        self.delivered: Counter[tuple[int, str]] = Counter()

    @property
    def configuration(self) -> Configuration:
        return Configuration("edgemail.toml", Settings(**self.settings), (), transports=self.transports)

    def _scheduler(self) -> Scheduler:
        return Scheduler(
            self.spool, self.clock, self.configuration, self.net.route, self.deliver, random=random.Random(7)
        )

    def configure(self, **settings: Any) -> None:
        self.settings |= settings
        self.scheduler.reload(self.configuration)

    async def deliver(self, delivery: Delivery) -> tuple[Outcome, ...]:
        site = delivery.route.site
        net = self.net
        net.running[site] += 1
        net.most[site] = max(net.most[site], net.running[site])
        net.sizes.append(len(delivery.targets))
        try:
            outcomes = []
            for target in delivery.targets:
                net.tried.append((self.clock.monotonic(), delivery.envelope.id, str(target.address)))
                names = (str(target.address), target.address.domain, "*")
                for name in names:
                    if name in net.gates:
                        await net.gates[name].wait()
                answer = next((net.answers[name] for name in names if name in net.answers), sent)
                outcomes.append(answer(target.index))
            for target, outcome in zip(delivery.targets, outcomes, strict=True):
                if outcome.delivered:
                    self.delivered[delivery.envelope.id, str(target.address)] += 1
            return tuple(outcomes)
        finally:
            net.running[site] -= 1

    # ---- what a client does

    async def keep(
        self, *recipients: str | Recipient, sender: str = "a@example.org", content: bytes = CONTENT, **more: Any
    ) -> Envelope:
        """Put a message into the spool; the scheduler is not told."""
        intake = self.spool.intake()
        try:
            intake.write(content)
            await intake.drain()
            found = tuple(Recipient(Address.of(r)) if isinstance(r, str) else r for r in recipients)
            envelope = Envelope(0, Address.of(sender), found, received_at=self.clock.wall(), **more)
            kept: Envelope = await intake.commit(envelope)
            return kept
        finally:
            await intake.abort()

    async def accept(self, *recipients: str | Recipient, **more: Any) -> Envelope:
        envelope = await self.keep(*recipients, **more)
        self.scheduler.accepted(envelope)
        return envelope

    # ---- time

    async def settle(self) -> None:
        """Let everything happen that needs no time."""
        quiet = 0
        while quiet < 4:
            busy = self.scheduler.look() <= 0
            before = self.spool.commits, len(self.net.tried)
            for _ in range(6):
                await asyncio.sleep(0)
            quiet = 0 if busy or before != (self.spool.commits, len(self.net.tried)) else quiet + 1

    async def advance(self, seconds: float, step: float | None = None) -> None:
        """Let time pass, in steps."""
        left = seconds
        while left > 0:
            self.clock.advance(min(step or seconds, left))
            left -= step or seconds
            await self.settle()

    async def crash(self) -> None:
        """Forget everything but the spool, and start again."""
        await self.scheduler.stop(0)
        self.scheduler = self._scheduler()
        await self.scheduler.load()

    # ---- what is left

    def mail(self) -> dict[int, Envelope]:
        return {envelope.id: envelope for envelope in self.spool.envelopes()}

    def waiting(self, id: int) -> list[str]:
        envelope = self.spool.envelope(id)
        return [str(r.address) for r in envelope.recipients] if envelope else []

    def notices(self) -> list[Envelope]:
        return [envelope for envelope in self.spool.envelopes() if envelope.bounce]

    def text(self, envelope: Envelope) -> str:
        return b"".join(self.spool.body(envelope.id)).decode()

    def attempts(self, id: int) -> list[float]:
        return [at for at, mail, _ in self.net.tried if mail == id]


def disposal(kind: Disposal, text: str, status: str = "") -> Route:
    return Route(kind.value, disposal=kind, text=text, status=status)


def play(scenario: Callable[[Rig], Awaitable[None]], **settings: Any) -> None:
    """Run a scenario on a rig; nothing that it leaves on the loop goes unnoticed."""

    async def whole() -> None:
        loud: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: loud.append(context))
        rig = Rig(**settings)
        await rig.scheduler.load()
        try:
            await scenario(rig)
        finally:
            await rig.scheduler.stop(0)
        assert not loud

    asyncio.run(whole())
