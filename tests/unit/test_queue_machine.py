"""Anything may happen to the queue, in any order: no mail is lost, none bounced twice, none sent again once the spool
knows that it was."""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from edgemail.clock import ManualClock
from edgemail.envelope import Address, Delivery, Disposal, Envelope, Notify, Outcome, Recipient
from edgemail.errors import SpoolError
from edgemail.settings import Settings
from edgemail.spool.job import Fate
from edgemail.spool.memory import MemorySpool
from edgemail.spool.records import Tail
from edgemail.spool.verbs import Change
from tests.queue import (
    Answer,
    Rig,
    disposal,
    later,
    local,
    no_link,
    no_login,
    refused,
    sent,
    silent,
    unreachable,
)

T = TypeVar("T")

EXAMPLES = int(os.environ.get("EDGEMAIL_EXAMPLES", "80"))  # more for a long look
STEPS = 40

ANSWERS: dict[str, Answer] = {
    "sent": sent,
    "refused": refused,
    "later": later,
    "silent": silent,
    "unreachable": unreachable,
    "no_login": no_login,
    "no_link": no_link,
    "local": local,
}
OWN_SIDE = {"unreachable", "no_login", "no_link", "local"}
DOMAINS = ["one.example", "two.example", "three.example"]
USERS = ["a", "b", "c"]
ADDRESSES = [f"{user}@{domain}" for domain in DOMAINS for user in USERS]
NOTIFY = [None, Notify.NEVER, Notify.FAILURE, Notify.SUCCESS, Notify.FAILURE | Notify.SUCCESS | Notify.DELAY]


class Watched(MemorySpool):
    """Notes which recipients each bounce speaks of, at the moment it becomes true."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.failed: Counter[tuple[str, str]] = Counter()

    def finish(self, tail: Tail, envelope: Envelope, also: Change, fate: Fate) -> asyncio.Future[None]:
        def steps() -> None:
            if tail.id not in self._kept:
                return
            text = b"".join(self._chunks[tail.id].values()).decode("utf-8", "replace")
            about = re.search(r"X-Edgemail-Queue-ID: (\w+)", text)
            again = "from userid" in text.partition("\r\n")[0]  # one that was requeued is no new one
            if about and not envelope.sender and not again:
                for final, action in re.findall(r"Final-Recipient: rfc822; (\S+)\r\n(?:.*\r\n)?Action: (\w+)", text):
                    if action == "failed":
                        self.failed[about[1], final] += 1
                        kept = self._kept.get(int(about[1], 16))
                        left = [str(r.address) for r in kept[1].recipients] if kept else []
                        assert final not in left, "the bounce is there, and what it is about as well"

        future = super().finish(tail, envelope, also, fate)
        if not self.full:
            noted = self._do(steps)
            noted.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        return future


class Box(Rig):
    """A rig that watches what is tried."""

    def __init__(self, spool: Watched, clock: ManualClock) -> None:
        super().__init__(
            spool,
            clock,
            minimal_backoff_time=10.0,
            maximal_backoff_time=40.0,
            maximal_queue_lifetime=300.0,
            bounce_queue_lifetime=100.0,
            delay_warning_time=60.0,
            notify_classes=("bounce", "2bounce", "delay", "resource", "software"),
            qmgr_message_active_limit=4,
            qmgr_message_recipient_limit=12,
            default_process_limit=2,
        )
        self.transports["smtp"] = Settings(
            **{
                **self.settings,
                "initial_destination_concurrency": 1,
                "default_destination_concurrency_limit": 2,
                "default_destination_recipient_limit": 2,
            }
        )
        self.scheduler = self._scheduler()
        self.last: dict[tuple[int, str], float] = {}

    async def deliver(self, delivery: Delivery) -> tuple[Outcome, ...]:
        mail = delivery.envelope.id
        for target in delivery.targets:
            assert str(target.address) in self.waiting(mail), f"{target.address} was finished"
        return await super().deliver(delivery)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda _, context: self.loud.append(context))
        self.loud: list[dict[str, Any]] = []
        self.accepted: dict[int, Envelope] = {}
        self.removed: set[int] = set()
        self.blameless: set[str] = set()  # domains whose mail has only met our own trouble

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize(smarthost=st.booleans())
    def begin(self, smarthost: bool) -> None:
        clock = ManualClock()
        self.spool = Watched(clock)
        self.box = Box(self.spool, clock)
        if smarthost:
            self.box.net.smarthost = "[isp.example]:587"
        self.box.net.disposals["hold@one.example"] = disposal(Disposal.HOLD, "a person decides")
        self.box.net.disposals["error@one.example"] = disposal(Disposal.ERROR, "no such thing", "5.7.1")
        self.box.net.disposals["gone@one.example"] = disposal(Disposal.DISCARD, "gone")
        self.prepare()
        self.do(self.box.scheduler.load())

    def prepare(self) -> None:
        """What a kind of machine adds."""

    @rule(
        recipients=st.lists(
            st.sampled_from([*ADDRESSES, "hold@one.example", "error@one.example", "gone@one.example"]),
            min_size=1,
            max_size=7,
            unique=True,
        ),
        notify=st.sampled_from(NOTIFY),
        sender=st.sampled_from(["s@sender.example", ""]),
        told=st.booleans(),
    )
    def accept(self, recipients: list[str], notify: Notify | None, sender: str, told: bool) -> None:
        found = [Recipient(Address.of(each), notify=notify) for each in recipients]

        async def come() -> None:
            try:
                mail = await self.box.keep(*found, sender=sender)
            except SpoolError:
                return
            self.accepted[mail.id] = mail
            if told:
                self.box.scheduler.accepted(mail)
                await asyncio.sleep(0)
            else:
                self.box.scheduler.accepted(mail)
                await self.box.settle()

        self.do(come())

    @rule(where=st.sampled_from([*ADDRESSES, *DOMAINS, "*"]), what=st.sampled_from(sorted(ANSWERS)))
    def answer(self, where: str, what: str) -> None:
        self.box.net.answers[where] = ANSWERS[what]

    @rule(where=st.sampled_from([*ADDRESSES[:3], *DOMAINS, "*"]))
    def hang(self, where: str) -> None:
        self.box.net.hold(where)

    @rule()
    def go_on(self) -> None:
        for gate in self.box.net.gates.values():
            gate.set()
        self.do(self.box.settle())
        self.box.net.gates.clear()
        self.nothing_is_forgotten()

    @rule(seconds=st.sampled_from([1, 12, 45, 130]), settled=st.booleans())
    def wait(self, seconds: int, settled: bool) -> None:
        self.box.clock.advance(seconds)

        async def look() -> None:
            self.box.scheduler.look()
            if settled:
                await self.box.settle()
                self.nothing_is_forgotten()

        self.do(look())

    @rule(turns=st.integers(0, 5))
    def breathe(self, turns: int) -> None:
        async def turn() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.do(turn())

    @rule(seconds=st.sampled_from([-1e9, -100.0, 100.0, 1e9]))
    def jump(self, seconds: float) -> None:
        self.box.clock.started += seconds

    @rule(trusted=st.booleans())
    def trust(self, trusted: bool) -> None:
        self.box.clock.trust = trusted

    @rule(failing=st.booleans(), full=st.booleans())
    def trouble(self, failing: bool, full: bool) -> None:
        self.spool.failing, self.spool.full = failing, full

    @rule(pick=st.data(), what=st.sampled_from(["hold", "release", "remove", "requeue"]), wait=st.booleans())
    def order(self, pick: st.DataObject, what: str, wait: bool) -> None:
        mails = sorted(self.spool._kept)
        if not mails:
            return
        chosen = pick.draw(st.lists(st.sampled_from(mails), min_size=1, max_size=3, unique=True))

        async def ask() -> None:
            try:
                acted = await getattr(self.box.scheduler, what)(chosen)
            except SpoolError:
                return
            if what == "remove":
                self.removed.update(acted)
            if what == "requeue":
                for old, new in acted:
                    kept = self.spool.envelope(new)
                    assert kept is not None
                    if old in self.accepted:
                        self.accepted[new] = kept
                    self.removed.add(old)
            if wait:
                await self.box.settle()

        self.do(ask())

    @rule(
        domain=st.sampled_from([None, *DOMAINS, "@example"]),
        site=st.sampled_from([None, "smtp:one.example", "[isp.example]:587"]),
    )
    def flush(self, domain: str | None, site: str | None) -> None:
        self.do(self.box.scheduler.flush(domain=domain, site=None if domain else site))

    @rule()
    def reload(self) -> None:
        async def read_again() -> None:
            self.box.configure()

        self.do(read_again())

    @rule()
    def crash(self) -> None:
        self.do(self.box.crash())

    @invariant()
    def nothing_is_loud(self) -> None:
        assert not self.loud, self.loud

    def nothing_is_forgotten(self) -> None:
        """What is in the spool and not on hold is known to the scheduler, once everything has come to rest."""
        scheduler = self.box.scheduler
        known = {*scheduler._waiting.ids(), *scheduler._dispatch.active, *(each.id for each in scheduler._arrivals)}
        for envelope in self.spool.envelopes():
            assert envelope.hold or envelope.id in known, envelope

    @invariant()
    def nothing_is_bounced_twice(self) -> None:
        assert not hasattr(self, "spool") or all(count == 1 for count in self.spool.failed.values())

    def teardown(self) -> None:
        if hasattr(self, "box"):
            self.do(self.end())
        self.loop.close()

    async def end(self) -> None:
        """Everything works again: all that is left goes out."""
        box = self.box
        self.spool.failing = self.spool.full = False
        for gate in box.net.gates.values():
            gate.set()
        box.net.gates.clear()
        box.net.answers.clear()
        box.net.disposals.pop("hold@one.example", None)
        await box.settle()
        await box.advance(600, 20)
        await box.scheduler.release([each.id for each in self.spool.envelopes()])
        await box.settle()
        await box.advance(600, 20)
        assert not box.mail(), box.mail()
        for mail, envelope in self.accepted.items():
            if mail in self.removed:
                continue
            for recipient in envelope.recipients:
                address = str(recipient.address)
                if address in ("gone@one.example",) or not envelope.sender:
                    continue
                silent = recipient.notify is not None and not recipient.notify & Notify.FAILURE
                delivered = box.delivered[mail, address]
                bounced = self.spool.failed[envelope.queue_id, address]
                assert delivered or bounced == 1 or silent, (envelope.queue_id, address)
        await box.scheduler.stop(0)
        assert not self.loud, self.loud


def test_whatever_happens() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("what", sorted(OWN_SIDE))
def test_only_our_own_trouble_bounces_nothing(what: str) -> None:
    """Whatever else is done to it, mail that met nothing but our own trouble is never returned."""

    class Blameless(Machine):
        @rule(where=st.sampled_from(DOMAINS), what=st.sampled_from(sorted(OWN_SIDE | {"sent"})))
        def answer(self, where: str, what: str) -> None:
            self.box.net.answers[where] = ANSWERS[what]

        def prepare(self) -> None:
            self.box.net.answers["*"] = ANSWERS[what]
            self.box.net.disposals.pop("error@one.example", None)

        @invariant()
        def nothing_is_returned(self) -> None:
            assert not hasattr(self, "spool") or not self.spool.failed

    run_state_machine_as_test(
        Blameless,
        settings=settings(
            max_examples=EXAMPLES // 8,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
