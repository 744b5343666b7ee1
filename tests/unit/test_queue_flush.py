"""What a flush says that it did."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from typing import Any, Final

import pytest

from edgemail.envelope import Envelope
from edgemail.relay.queue.flush import OTHER, REASONS, Flush
from edgemail.relay.queue.orders import PIECE
from edgemail.relay.queue.schedule import AHEAD, TURNS
from edgemail.relay.queue.waiting import DOMAINS
from tests.queue import Rig, later, play, refused, sent, silent, unreachable
from tests.unit.test_keep import Box
from tests.unit.test_keep import play as play_box

NAMES: Final = 20  # domains known by name, where there are more


async def flushed(rig: Rig, **what: Any) -> dict[str, Any]:
    """Flush, let happen what happens without time, and say what is known then."""
    account = Flush()
    asked = asyncio.ensure_future(rig.scheduler.flush(**what, account=account))
    await rig.settle()
    await asked
    await rig.settle()
    rig.scheduler.leave(account)
    rig.scheduler.leave(account)  # safe to call twice
    return account.as_json()


def said(found: dict[str, Any]) -> tuple[int, ...]:
    return tuple(found[name] for name in ("count", "sent", "returned", "waiting", "untried"))


def test_sent_returned_and_waiting() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = silent
        for number in range(6):
            await rig.accept(f"b@{number}.example.net")
        both = await rig.accept("x@0.example.net", "x@1.example.net")
        await rig.settle()
        answers = [sent, later, refused, sent, sent, silent]
        rig.net.answers = {f"{number}.example.net": answer for number, answer in enumerate(answers)}
        found = await flushed(rig)
        assert said(found) == (7, 3, 1, 3, 0)
        reasons = {one["reason"]: one["messages"] for one in found["reasons"]}
        assert sum(reasons.values()) == 3
        assert any("greylisted" in reason and messages == 2 for reason, messages in reasons.items()), reasons
        assert rig.waiting(both.id) == ["x@1.example.net"], "half of it was sent: it waits"
        assert rig.scheduler._dispatch.accounts.open == []

    play(scenario)


def test_a_site_that_is_still_dead_answers_for_all_that_waits_for_it() -> None:
    """One or a few attempts; the others are not even looked at, and are accounted for all the same."""

    async def scenario(rig: Rig) -> None:
        rig.net.smarthost = "[isp.example]"
        rig.net.answers["*"] = unreachable
        for number in range(300):
            await rig.accept(f"b{number}@example.net")
        await rig.advance(5.0)
        assert len(rig.notices()) == 1
        tried = len(rig.net.tried)
        found = await flushed(rig)
        assert said(found) == (301, 0, 0, 301, 0)
        assert sum(one["messages"] for one in found["reasons"]) == 301
        assert all("Connection timed out" in one["reason"] for one in found["reasons"])
        assert len(rig.net.tried) - tried <= 5

    play(scenario)


def test_mail_that_waits_for_its_link_says_so() -> None:
    async def scenario(box: Box) -> None:
        await box.link("fibre", False)
        await box.accept("b@example.net")
        await box.accept("b@free.example")
        box.net.answers["*"] = later
        await box.settle()
        found = await flushed(box, domain="example.net")
        assert said(found) == (1, 0, 0, 1, 0)
        assert found["reasons"][0]["reason"].startswith("link fibre is down")

    play_box(scenario)


def test_what_has_not_had_its_turn_is_not_heard_of() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        for number in range(4):
            await rig.accept(f"b{number}@example.net")
        await rig.settle()
        rig.net.answers.clear()
        gate = rig.net.hold("example.net")
        account = Flush()
        assert await rig.scheduler.flush(account=account) == 4
        await rig.settle()
        assert said(account.as_json()) == (4, 0, 0, 0, 4)
        assert not await account.end(0.01)
        gate.set()
        await rig.settle()
        await rig.advance(2.0)
        assert await account.end(5.0)
        assert said(account.as_json()) == (4, 4, 0, 0, 0)
        rig.scheduler.leave(account)

    play(scenario, default_destination_concurrency_limit=1)


def test_what_somebody_holds_or_removes_meanwhile_does_not_count() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        mails = [await rig.accept(f"b{number}@example.net") for number in range(5)]
        await rig.settle()
        gate = rig.net.hold("b0@example.net")
        account = Flush()
        await rig.scheduler.flush(account=account)
        await rig.settle()
        await rig.scheduler.hold([mails[1].id], "")
        await rig.scheduler.remove([mails[2].id])
        await rig.scheduler.requeue([mails[3].id])
        gate.set()
        await rig.settle()
        assert await account.end(5.0)
        assert said(account.as_json()) == (2, 0, 0, 2, 0)
        rig.scheduler.leave(account)

    play(scenario, default_destination_concurrency_limit=1)


def test_nothing_to_be_flushed_is_soon_known() -> None:
    async def scenario(rig: Rig) -> None:
        account = Flush()
        assert await rig.scheduler.flush(account=account) == 0
        assert await account.end(5.0)
        assert said(account.as_json()) == (0, 0, 0, 0, 0)

    play(scenario)


def test_reasons_are_bounded_and_of_each_message_the_first_word_counts() -> None:
    account = Flush()
    account.begin(array("Q", range(1, 302)))
    for number in range(1, 301):
        account.waits(number, [f"reason {number}"])
        account.waits(number, ["another"])
        account.gone(number, sent=True)
        account.waits(number + 1000, ["of no message of ours"])
    found = account.as_json()
    assert said(found) == (301, 0, 0, 300, 1)
    assert len(found["reasons"]) == REASONS + 1
    assert found["reasons"][0] == {"reason": OTHER, "messages": 300 - REASONS}


class Reads:
    """How often the envelope of each message was read."""

    def __init__(self, rig: Rig) -> None:
        self.found: Counter[int] = Counter()
        self._real = rig.spool.envelope
        rig.spool.envelope = self

    def __call__(self, id: int) -> Envelope | None:
        self.found[id] += 1
        envelope: Envelope | None = self._real(id)
        return envelope


@pytest.mark.parametrize(
    ("domain", "meant"),
    [("b.example", ("b.example",)), ("@B.example", ("b.example", "sub.b.example")), ("a.c.example", ())],
)
def test_a_flush_reads_the_mail_of_its_domain_and_no_other(domain: str, meant: tuple[str, ...]) -> None:
    """And the first delivery has begun when it returns."""

    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = silent
        for _ in range(3):
            for name in ("a.example", "b.example", "sub.b.example", "notb.example", "c.example"):
                await rig.accept(f"x@{name}")
        await rig.settle()
        tried = len(rig.net.tried)
        rig.net.answers.clear()
        reads = Reads(rig)
        wanted = {mail.id for mail in rig.mail().values() if mail.recipients[0].address.domain in meant}
        assert rig.scheduler.flush_at_once(domain) == len(wanted) == 3 * len(meant)
        await asyncio.sleep(0)
        assert len(rig.net.tried) == tried + bool(meant), "the others come after it"
        await rig.settle()
        assert reads.found == Counter(wanted), "each once"
        assert not wanted & set(rig.mail())
        assert len(rig.net.tried) == tried + len(wanted)

    play(scenario, default_destination_concurrency_limit=0, initial_destination_concurrency=5)


def test_a_flush_of_many_messages_goes_on_beside_everything_else() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = silent
        for number in range(3 * PIECE + 1):
            await rig.accept(f"b{number}@example.net")
        await rig.settle()
        rig.net.answers.clear()
        assert rig.scheduler.flush_at_once("example.net") == 3 * PIECE + 1
        await rig.settle()
        assert not rig.mail()

    play(scenario)


def test_what_only_envelopes_tell_is_not_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message with more domains than the index knows, and more domains than it names."""

    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        many = await rig.accept(*(f"x@{number}.example" for number in range(DOMAINS + 1)))
        await rig.settle()
        assert rig.scheduler.flush_at_once("1.example") is None
        assert await rig.scheduler.flush(domain="1.example") == 1
        assert await rig.scheduler.flush(domain="other.example") == 0
        await rig.scheduler.remove([many.id])
        assert rig.scheduler.flush_at_once("1.example") == 0
        for number in range(NAMES + 1):
            await rig.accept(f"x@{number}.example")
        await rig.settle()
        assert rig.scheduler.flush_at_once("@7.example") is None
        assert await rig.scheduler.flush(domain="@7.example") == 1
        assert rig.scheduler.flush_at_once("7.example") == 1
        await rig.settle()
        gone = [mail.id for mail in rig.mail().values() if str(mail.recipients[0].address) == "x@9.example"]
        assert await rig.scheduler.remove(gone) == gone
        await rig.scheduler.flush()
        await rig.settle()
        assert rig.scheduler.flush_at_once("@7.example") == 1, "they all have names, now that they were tried again"
        await rig.settle()

    monkeypatch.setattr("edgemail.relay.queue.waiting.NAMES", NAMES)
    play(scenario)


def test_two_domains_with_one_mark_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the envelope, when it is looked at: the other one waits on, for as long as it would have."""
    monkeypatch.setattr("edgemail.relay.queue.waiting.mark", lambda domain: 7)

    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        other = await rig.accept("x@other.example")
        await rig.accept("x@b.example")
        await rig.settle()
        rig.net.answers.clear()
        account = Flush()
        tried = len(rig.net.tried)
        assert await rig.scheduler.flush(domain="b.example", account=account) == 2, "as far as the index knows"
        await rig.settle()
        assert [address for _, _, address in rig.net.tried[tried:]] == ["x@b.example"]
        assert said(account.as_json()) == (1, 1, 0, 0, 0)
        rig.scheduler.leave(account)
        assert rig.scheduler.flush_at_once("@nowhere.example") == 1
        await rig.settle()
        await rig.advance(290.0, 10.0)
        assert list(rig.mail()) == [other.id]
        await rig.advance(200.0, 10.0)
        assert not rig.mail()

    play(scenario)


def test_nothing_is_asked_before_all_that_waits_is_known() -> None:
    async def scenario() -> None:
        rig = Rig()
        assert rig.scheduler.flush_at_once("example.net") is None
        await rig.scheduler.load()
        assert rig.scheduler.flush_at_once("example.net") == 0
        await rig.scheduler.stop(0)
        assert rig.scheduler.flush_at_once("example.net") is None

    asyncio.run(scenario())


def test_while_mail_is_under_way_the_rest_of_a_flush_is_looked_at_in_small_pieces() -> None:
    """What comes in for the first connection must not wait until the last message has found its place."""

    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = silent
        for number in range(PIECE):
            await rig.accept(f"b{number}@example.net")
        await rig.settle()
        rig.net.hold("*")
        turns: list[int] = []
        reads = Reads(rig)
        running = asyncio.create_task(rig.scheduler.run())
        for _ in range(5):
            await asyncio.sleep(0)
        assert rig.scheduler.flush_at_once("example.net") == PIECE
        assert reads.found.total() == 1
        for _ in range(200):
            before = reads.found.total()
            await asyncio.sleep(0)
            turns.append(reads.found.total() - before)
        assert sum(turns) == PIECE - 1
        assert max(turns) <= AHEAD
        assert turns[:TURNS] == [0] * TURNS
        rig.net.gates["*"].set()
        await rig.scheduler.stop(5.0)
        await running

    play(scenario)
