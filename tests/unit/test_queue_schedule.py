"""The queue manager: what is tried when, what stays, what leaves, and what a person may ask of it."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest

from edgemail.envelope import Address, Disposal, Envelope, Recipient, Route
from edgemail.errors import Kind, SpoolError
from edgemail.relay.queue.waiting import Flag
from edgemail.settings import Settings
from tests.queue import (
    Rig,
    disposal,
    later,
    local,
    no_link,
    no_login,
    play,
    refused,
    sent,
    silent,
    unreachable,
)

DAY = 86_400.0


def test_a_message_is_sent_and_gone(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(rig: Rig) -> None:
        with caplog.at_level("INFO"):
            mail = await rig.accept("b@example.net")
            await rig.settle()
        assert not rig.mail()
        assert rig.delivered == {(mail.id, "b@example.net"): 1}
        said = [r.getMessage() for r in caplog.records if r.name == "edgemail.qmgr"]
        assert f"{mail.queue_id}: from=<a@example.org>, size={mail.size}, nrcpt=1 (queue active)" in said
        assert f"{mail.queue_id}: removed" in said

    play(scenario)


def test_a_temporary_refusal_of_one_recipient_leaves_it_alone_behind() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["slow@example.net"] = later
        mail = await rig.accept("b@example.net", "slow@example.net")
        await rig.settle()
        (left,) = rig.mail().values()
        assert [str(r.address) for r in left.recipients] == ["slow@example.net"]
        assert left.recipients[0].reason == "host mx.example[192.0.2.1] said: 450 4.2.0 greylisted"
        assert left.recipients[0].status == "4.2.0"
        assert left.recipients[0].kind is Kind.MESSAGE_TEMPORARY
        assert left.attempts == 1
        assert left.next_attempt - left.last_attempt >= 300
        rig.net.answers.clear()
        await rig.advance(400, 100)
        assert not rig.mail()
        assert rig.delivered == {(mail.id, "b@example.net"): 1, (mail.id, "slow@example.net"): 1}

    play(scenario)


@pytest.mark.parametrize("counts", ["link-up", "wall"])
def test_tries_grow_apart_and_end_in_a_bounce(counts: str) -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["example.net"] = later
        rig.net.answers["example.org"] = later
        mail = await rig.accept("b@example.net")
        await rig.settle()
        await rig.advance(6 * DAY, 100.0)
        tries = rig.attempts(mail.id)
        gaps = [after - before for before, after in itertools.pairwise(tries)]
        for gap, least in zip(gaps, [1000, 2000, *[4000] * (len(gaps) - 2)], strict=True):
            assert least <= gap <= least * 1.1 + 1000  # the wait, its jitter, the time until the next queue run
        assert mail.id not in rig.mail()
        assert 5 * DAY <= tries[-1] <= 5 * DAY + 5500
        (bounce,) = rig.notices()
        assert bounce.sender == Address("", "")
        assert [str(r.address) for r in bounce.recipients] == ["a@example.org"]

    play(
        scenario,
        queue_run_delay=1000.0,
        minimal_backoff_time=1000.0,
        maximal_backoff_time=4000.0,
        lifetime_counts=counts,
    )


def test_lifetime_zero_returns_at_the_first_temporary_failure() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["example.net"] = later
        rig.net.answers["example.org"] = local
        mail = await rig.accept("b@example.net")
        await rig.settle()
        assert mail.id not in rig.mail()
        assert len(rig.notices()) == 1

    play(scenario, maximal_queue_lifetime=0.0)


@pytest.mark.parametrize(
    ("answer", "days"),
    [(no_link, 30), (no_login, 30), (unreachable, 30), (local, 3)],  # the last is tried every half minute
)
def test_our_own_trouble_never_bounces(answer: object, days: int) -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.smarthost = "[isp.example]:587"
        rig.net.answers["*"] = answer  # type: ignore[assignment]
        mail = await rig.accept("b@example.net")
        await rig.settle()
        await rig.advance(days * DAY, 3600)
        assert mail.id in rig.mail()
        assert not [each for each in rig.notices() if not each.sender]
        left = rig.mail()[mail.id]
        assert left.waited < 4000
        rig.net.answers.clear()
        await rig.advance(10_000, 500)
        assert rig.delivered[mail.id, "b@example.net"] == 1

    play(scenario, maximal_queue_lifetime=4000.0)


def test_with_lifetime_zero_our_own_trouble_waits_too() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.smarthost = "[isp.example]:587"
        rig.net.answers["*"] = no_login
        mail = await rig.accept("b@example.net")
        await rig.settle()
        await rig.advance(DAY, 1000)
        assert mail.id in rig.mail()

    play(scenario, maximal_queue_lifetime=0.0, bounce_queue_lifetime=0.0)


def test_a_dead_destination_found_by_mx_does_not_stop_the_clock() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["example.net"] = silent
        rig.net.answers["example.org"] = local
        mails = [await rig.accept(f"b{i}@example.net") for i in range(20)]
        await rig.settle()
        assert len(rig.net.tried) < 10  # the site is dead, the others were not tried
        assert all(rig.mail()[mail.id].recipients[0].reason for mail in mails)
        await rig.advance(6 * DAY, 1000)
        assert not [mail for mail in mails if mail.id in rig.mail()]
        assert len(rig.notices()) == 20

    play(scenario)


def test_a_permanent_refusal_is_returned_at_once() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["bogus@example.net"] = refused
        rig.net.answers["example.org"] = local
        mail = await rig.accept("bogus@example.net", "b@example.net")
        await rig.settle()
        assert mail.id not in rig.mail()
        (bounce,) = rig.mail().values()
        assert "<bogus@example.net>: host mx.example[192.0.2.1] said: 550 5.1.1 no such" in rig.text(bounce)
        assert "<b@example.net>" not in rig.text(bounce)

    play(scenario)


def test_soft_bounce_keeps_everything() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.disposals["b@example.net"] = disposal(Disposal.ERROR, "no mail for you", "5.7.1")
        rig.net.answers["c@example.net"] = later
        mail = await rig.accept("b@example.net", "c@example.net")
        await rig.settle()
        await rig.advance(10 * DAY, 4000)
        left = rig.mail()[mail.id]
        assert [r.status for r in left.recipients] == ["4.7.1", "4.2.0"]
        assert not rig.notices()

    play(scenario, soft_bounce=True)


def test_what_a_row_says_is_done() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.disposals["gone@example.net"] = disposal(Disposal.ERROR, "the user has moved", "5.1.6")
        rig.net.disposals["double-bounce@example.net"] = disposal(Disposal.DISCARD, "dropped")
        rig.net.disposals["postmaster@example.net"] = disposal(Disposal.HOLD, "set admin_address")
        rig.net.answers["example.org"] = local
        mail = await rig.accept(
            "gone@example.net", "double-bounce@example.net", "postmaster@example.net", "b@example.net"
        )
        await rig.settle()
        assert rig.delivered == {(mail.id, "b@example.net"): 1}
        left = rig.mail()[mail.id]
        assert rig.waiting(mail.id) == ["postmaster@example.net"]
        assert left.hold
        assert left.hold_reason == "set admin_address"
        (bounce,) = rig.notices()
        assert "Status: 5.1.6" in rig.text(bounce)
        assert "<gone@example.net>: the user has moved" in rig.text(bounce)
        rig.net.disposals.clear()
        assert await rig.scheduler.release([mail.id]) == [mail.id]
        await rig.settle()
        assert rig.delivered[mail.id, "postmaster@example.net"] == 1

    play(scenario, notify_classes=())


def test_a_router_that_fails_is_our_own_trouble() -> None:
    async def scenario(rig: Rig) -> None:
        def broken(envelope: Envelope, recipient: Recipient) -> tuple[Route, Address]:
            raise OSError("the table is gone")

        route, rig.net.route = rig.net.route, broken  # type: ignore[method-assign]
        await rig.crash()
        mail = await rig.accept("b@example.net")
        await rig.settle()
        assert rig.mail()[mail.id].recipients[0].kind is Kind.LOCAL
        rig.net.route = route  # type: ignore[method-assign]
        await rig.crash()
        await rig.advance(400)
        assert not rig.mail()

    play(scenario)


def test_a_delivery_that_raises_is_our_own_trouble() -> None:
    async def scenario(rig: Rig) -> None:
        def broken(index: int) -> object:
            raise RuntimeError("a slip")

        rig.net.answers["example.net"] = broken  # type: ignore[assignment]
        mail = await rig.accept("b@example.net")
        await rig.settle()
        assert rig.mail()[mail.id].recipients[0].kind is Kind.LOCAL
        rig.net.answers.clear()
        await rig.advance(400)
        assert not rig.mail()

    play(scenario)


def test_recipients_are_split_by_site_and_by_the_limit() -> None:
    async def scenario(rig: Rig) -> None:
        rig.transports["smtp"] = Settings(**{**rig.settings, "default_destination_recipient_limit": 3})
        await rig.crash()
        await rig.accept(*(f"u{i}@example.net" for i in range(7)), "v@example.com")
        await rig.settle()
        assert sorted(rig.net.sizes) == [1, 1, 3, 3]
        assert not rig.mail()

    play(scenario)


def test_a_delivered_part_is_durable_while_another_still_runs() -> None:
    async def scenario(rig: Rig) -> None:
        gate = rig.net.hold("slow.example")
        mail = await rig.accept("b@example.net", "c@slow.example")
        await rig.settle()
        assert rig.waiting(mail.id) == ["c@slow.example"]
        await rig.crash()
        gate.set()
        await rig.settle()
        assert not rig.mail()
        assert rig.delivered == {(mail.id, "b@example.net"): 1, (mail.id, "c@slow.example"): 1}

    play(scenario)


# ---- concurrency


def test_a_site_that_comes_back_is_not_flooded() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.smarthost = "[isp.example]:587"
        gates = [rig.net.hold(f"b{i}@example.net") for i in range(60)]
        for i in range(60):
            await rig.accept(f"b{i}@example.net")
        await rig.settle()
        site = "smtp:[isp.example]:587"
        assert rig.net.running[site] == 5
        for gate in gates:
            gate.set()
            await rig.settle()
            assert rig.net.running[site] <= 20
        assert 10 <= rig.net.most[site] <= 20
        assert not rig.mail()

    play(scenario)


def test_the_limit_of_a_transport_holds() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.smarthost = "[isp.example]:587"
        rig.transports["smtp"] = Settings(**{**rig.settings, "default_destination_concurrency_limit": 2})
        await rig.crash()
        gate = rig.net.hold("*")
        for i in range(20):
            await rig.accept(f"b{i}@example.net")
        await rig.settle()
        assert rig.net.most["smtp:[isp.example]:587"] == 2
        gate.set()
        await rig.settle()
        assert rig.net.most["smtp:[isp.example]:587"] == 2
        assert not rig.mail()

    play(scenario)


def test_a_message_with_many_parts_for_a_busy_site_gets_all_of_them_out() -> None:
    """Even when it is the only one that may be in hand."""

    async def scenario(rig: Rig) -> None:
        rig.net.smarthost = "[isp.example]:587"
        rig.transports["smtp"] = Settings(
            **{**rig.settings, "default_destination_recipient_limit": 1, "default_destination_concurrency_limit": 2}
        )
        await rig.crash()
        rig.net.answers["u3@example.net"] = later
        first = await rig.accept(*(f"u{i}@example.net" for i in range(9)))
        second = await rig.accept(*(f"v{i}@example.net" for i in range(9)))
        gate = rig.net.hold("*")
        await rig.settle()
        assert [rig.scheduler.active(mail.id) for mail in (first, second)] == [True, False]
        gate.set()
        await rig.settle()
        assert rig.waiting(first.id) == ["u3@example.net"]
        assert rig.waiting(second.id) == []
        assert rig.net.sizes == [1] * 18

    play(scenario, qmgr_message_active_limit=1)


def test_what_is_in_hand_is_bounded() -> None:
    async def scenario(rig: Rig) -> None:
        gate = rig.net.hold("*")
        for i in range(30):
            await rig.accept(f"b@d{i}.example", f"c@d{i}.example")
        await rig.settle()
        assert sum(rig.net.running.values()) <= 10
        assert sum(map(rig.scheduler.active, rig.mail())) <= 10
        gate.set()
        await rig.settle()
        assert not rig.mail()

    play(scenario, qmgr_message_active_limit=10)


def test_recipients_in_hand_are_bounded() -> None:
    async def scenario(rig: Rig) -> None:
        gate = rig.net.hold("*")
        for i in range(10):
            await rig.accept(*(f"b{n}@d{i}.example" for n in range(10)))
        await rig.settle()
        assert sum(map(rig.scheduler.active, rig.mail())) <= 4
        gate.set()
        await rig.settle()
        assert not rig.mail()

    play(scenario, qmgr_message_recipient_limit=40)


def test_silent_destinations_do_not_stop_mail_for_one_that_answers() -> None:
    async def scenario(rig: Rig) -> None:
        await rig.accept("a@healthy.example")
        await rig.settle()
        for i in range(500):
            rig.net.hold(f"silent{i}.example")
            await rig.accept(f"b@silent{i}.example", f"c@silent{i}.example")
            await rig.accept(f"d@silent{i}.example")
        await rig.settle()
        assert sum(rig.net.running.values()) > 100  # connecting takes more slots than transfers may
        for i in range(30):
            mail = await rig.accept(f"b{i}@healthy.example")
            await rig.settle()
            assert mail.id not in rig.mail()

    play(scenario)


def test_a_destination_never_seen_does_not_wait_for_those_that_are_known_to_fail() -> None:
    async def scenario(rig: Rig) -> None:
        for i in range(500):
            rig.net.answers[f"silent{i}.example"] = silent
            await rig.accept(f"b@silent{i}.example")
        await rig.settle()
        for i in range(500):
            rig.net.hold(f"silent{i}.example")
        await rig.advance(400)
        assert sum(rig.net.running.values()) > 100
        mail = await rig.accept("b@never-seen.example")
        await rig.settle()
        assert mail.id not in rig.mail()

    play(scenario)


def test_destinations_that_fall_silent_under_way_give_their_slots_back() -> None:
    async def scenario(rig: Rig) -> None:
        for i in range(20):
            await rig.accept(f"b@once{i}.example")
        await rig.accept("b@healthy.example")
        await rig.settle()
        for i in range(20):
            rig.net.hold(f"once{i}.example")
            for n in range(5):
                await rig.accept(f"c{n}@once{i}.example")
        await rig.settle()
        mail = await rig.accept("c@healthy.example")
        await rig.settle()
        assert mail.id in rig.mail()  # all slots are taken by destinations that answered a moment ago
        await rig.advance(31)
        assert mail.id not in rig.mail()

    play(scenario, default_process_limit=20)


def test_new_mail_is_not_stuck_behind_a_backlog() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.smarthost = "[isp.example]:587"
        for i in range(300):
            await rig.keep(f"old{i}@example.net")
        await rig.crash()
        gate = rig.net.hold("*")
        await rig.settle()
        new = [await rig.accept(f"new{i}@example.net") for i in range(10)]
        await rig.settle()
        before = len(rig.net.tried)
        gate.set()
        await rig.settle()
        order = [mail for _, mail, _ in rig.net.tried[before:]]
        last = max(order.index(mail.id) for mail in new)
        assert last <= 40  # and the backlog has its turns between them
        assert any(mail not in {each.id for each in new} for mail in order[:last])
        assert not rig.mail()

    play(scenario, qmgr_message_active_limit=50)


def test_a_pile_of_new_mail_does_not_starve_the_backlog() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.smarthost = "[isp.example]:587"
        old = [await rig.keep(f"old{i}@example.net") for i in range(10)]
        await rig.crash()
        gate = rig.net.hold("*")
        for i in range(300):
            await rig.accept(f"new{i}@example.net")
        await rig.settle()
        gate.set()
        await rig.settle()
        order = [mail for _, mail, _ in rig.net.tried]
        assert max(order.index(mail.id) for mail in old) <= 60

    play(scenario)


def test_senders_are_slowed_when_arrivals_outrun_deliveries() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.smarthost = "[isp.example]:587"
        gate = rig.net.hold("*")
        assert rig.scheduler.flow() == 0
        for i in range(150):
            await rig.accept(f"b{i}@example.net")
        await rig.settle()
        assert rig.scheduler.flow() == 2.0
        gate.set()
        await rig.settle()
        assert rig.scheduler.flow() == 0

    play(scenario, in_flow_delay=2.0, qmgr_message_active_limit=100)


def test_nobody_is_slowed_while_there_is_nowhere_to_deliver() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.smarthost = "[isp.example]:587"
        rig.net.answers["*"] = no_link
        for i in range(300):
            await rig.accept(f"b{i}@example.net")
            await rig.settle()
            assert rig.scheduler.flow() == 0

    play(scenario)


# ---- dead sites


def test_mail_for_a_dead_site_is_neither_tried_nor_written_again_until_its_time() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.smarthost = "[isp.example]:587"
        rig.net.answers["*"] = unreachable
        mails = [await rig.accept(f"b{i}@example.net") for i in range(200)]
        await rig.settle()
        tried = len(rig.net.tried)
        assert tried <= 5
        suspended = rig.mail()[mails[-1].id].recipients[0]
        assert suspended.reason.startswith("delivery temporarily suspended: ")
        assert suspended.kind is Kind.ROUTE
        (site,) = [each for each in rig.scheduler.sites() if each.configured]
        assert site.state == "paused"
        assert 300 <= site.next_probe - rig.clock.wall() <= 330
        assert site.since == rig.clock.wall()
        commits = rig.spool.commits
        await rig.advance(400)
        assert len(rig.net.tried) - tried == 1  # one probe
        assert rig.spool.commits - commits <= 2
        (site,) = [each for each in rig.scheduler.sites() if each.configured]
        assert 600 <= site.next_probe - rig.clock.wall() <= 660
        rig.net.answers.clear()
        await rig.advance(5000, 500)
        assert not rig.mail()

    play(scenario, notify_classes=())


def test_a_refused_login_pauses_the_route_at_once_and_somebody_is_told_once() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.smarthost = "[isp.example]:587"
        rig.net.answers["example.net"] = no_login
        await rig.accept("b@example.net")
        await rig.settle()
        for i in range(50):
            await rig.accept(f"c{i}@example.net")
        await rig.settle()
        assert len([1 for *_, to in rig.net.tried if to.endswith("example.net")]) == 1
        (notice,) = rig.notices()
        assert str(notice.recipients[0].address) == "boss@example.com"
        assert str(notice.sender) == "double-bounce@gw7.example.com"
        text = rig.text(notice)
        assert "authentication failed" in text
        assert "smtp:[isp.example]:587" in text
        await rig.advance(3 * DAY, 2000)
        assert len(rig.notices()) == 1
        rig.net.answers.clear()
        await rig.advance(5000, 500)
        assert not rig.mail()
        rig.net.answers["example.net"] = no_login
        await rig.accept("d@example.net")
        await rig.settle()
        assert len(rig.notices()) == 1

    play(scenario, notice_recipient="boss@example.com")


def test_a_flush_ignores_the_dead_site_list() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["example.net"] = silent
        mails = [await rig.accept(f"b{i}@example.net", f"c{i}@example.com") for i in range(12)]
        await rig.settle()
        tried = len(rig.net.tried)
        rig.net.answers.clear()
        assert await rig.scheduler.flush(domain="EXAMPLE.net") == 12
        await rig.settle()
        assert len(rig.net.tried) - tried == 12
        assert not [mail for mail in mails if mail.id in rig.mail()]

    play(scenario)


def test_a_flush_of_one_domain_leaves_the_others_alone() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        await rig.accept("b@example.net")
        await rig.accept("b@sub.example.net")
        await rig.accept("b@example.com", "c@example.net")
        await rig.accept("b@example.com")
        await rig.settle()
        assert await rig.scheduler.flush(domain="example.net") == 2
        assert await rig.scheduler.flush(domain="@example.net") == 3
        assert await rig.scheduler.flush(site="example.com") == 2
        assert await rig.scheduler.flush(site="smtp:sub.example.net") == 1
        assert await rig.scheduler.flush(site="nowhere") == 0
        assert await rig.scheduler.flush() == 4
        assert await rig.scheduler.flush(ids=list(rig.mail())[:2]) == 2
        rig.net.answers.clear()
        await rig.settle()
        assert not rig.mail()

    play(scenario)


def test_a_flush_to_a_site_that_is_still_dead_costs_few_attempts() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.smarthost = "[isp.example]:587"
        rig.net.answers["*"] = unreachable
        for i in range(100):
            await rig.accept(f"b{i}@example.net")
        await rig.settle()
        tried = len(rig.net.tried)
        assert await rig.scheduler.flush() >= 100
        await rig.settle()
        assert len(rig.net.tried) - tried <= 10
        assert all(each.recipients[0].reason for each in rig.mail().values() if not each.bounce)

    play(scenario)


# ---- orders


def test_hold_and_release() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        mail = await rig.accept("b@example.net")
        await rig.settle()
        assert await rig.scheduler.hold([mail.id], "a person looks at it") == [mail.id]
        assert await rig.scheduler.hold([mail.id]) == []
        kept = rig.mail()[mail.id]
        assert (kept.hold, kept.hold_reason) == (True, "a person looks at it")
        tried = len(rig.net.tried)
        assert await rig.scheduler.flush() == 0
        await rig.advance(2 * DAY, 4000)
        await rig.crash()
        await rig.advance(2 * DAY, 4000)
        assert len(rig.net.tried) == tried
        assert await rig.scheduler.release([mail.id, 12345]) == [mail.id]
        assert await rig.scheduler.release([mail.id]) == []
        await rig.settle()
        assert len(rig.net.tried) == tried + 1
        assert rig.mail()[mail.id].waited < 4000  # its clock stood still

    play(scenario)


def test_hold_is_honoured_after_the_attempt_that_is_under_way() -> None:
    async def scenario(rig: Rig) -> None:
        gate = rig.net.hold("example.net")
        rig.net.answers["c@example.net"] = later
        mail = await rig.accept("b@example.net", "c@example.net")
        await rig.settle()
        assert rig.scheduler.active(mail.id)
        assert await rig.scheduler.hold([mail.id], "wait") == [mail.id]
        assert rig.mail()[mail.id].hold
        gate.set()
        await rig.settle()
        kept = rig.mail()[mail.id]
        assert (kept.hold, kept.hold_reason) == (True, "wait")
        assert rig.waiting(mail.id) == ["c@example.net"]
        await rig.advance(DAY, 4000)
        assert len(rig.net.tried) == 2
        await rig.scheduler.release([mail.id])
        rig.net.answers.clear()
        await rig.settle()
        assert not rig.mail()

    play(scenario)


def test_hold_and_release_while_it_is_under_way_changes_nothing() -> None:
    async def scenario(rig: Rig) -> None:
        gate = rig.net.hold("example.net")
        rig.net.answers["example.net"] = later
        mail = await rig.accept("b@example.net")
        await rig.settle()
        await rig.scheduler.hold([mail.id])
        assert await rig.scheduler.release([mail.id]) == [mail.id]
        gate.set()
        await rig.settle()
        assert not rig.mail()[mail.id].hold
        rig.net.answers.clear()
        await rig.advance(400)
        assert not rig.mail()

    play(scenario)


def test_a_removed_message_does_not_come_back() -> None:
    async def scenario(rig: Rig) -> None:
        gate = rig.net.hold("example.net")
        rig.net.answers["b@example.net"] = refused
        waiting = await rig.accept("x@example.com")
        rig.net.answers["example.com"] = later
        mail = await rig.accept("b@example.net", "c@example.net")
        await rig.settle()
        assert await rig.scheduler.remove([mail.id, waiting.id, 999]) == [mail.id, waiting.id]
        assert await rig.scheduler.remove([mail.id, waiting.id]) == []
        assert not rig.mail()
        gate.set()
        await rig.settle()
        await rig.advance(DAY, 4000)
        assert not rig.mail()  # and no bounce about it

    play(scenario)


def test_requeue_gives_a_new_id_and_works_the_route_out_anew() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        held = await rig.keep("b@example.net", hold=True, hold_reason="why")
        mail = await rig.accept("c@example.net")
        await rig.settle()
        gate = rig.net.hold("busy.example")
        busy = await rig.accept("d@busy.example")
        await rig.settle()
        rig.net.answers.clear()
        pairs = await rig.scheduler.requeue([held.id, mail.id, busy.id, 999])
        assert [old for old, _ in pairs] == [held.id, mail.id]
        assert set(rig.mail()) == {busy.id, *(new for _, new in pairs)}
        assert rig.text(rig.mail()[pairs[0][1]]).startswith("Received: by gw7.example.com")
        gate.set()
        await rig.settle()
        assert not rig.mail()

    play(scenario)


def test_orders_that_the_spool_refuses_change_nothing() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        mail = await rig.accept("b@example.net")
        await rig.settle()
        rig.spool.failing = True
        for order in (rig.scheduler.hold, rig.scheduler.remove, rig.scheduler.requeue):
            with pytest.raises(SpoolError):
                await order([mail.id])
        rig.spool.failing = False
        rig.net.answers.clear()
        await rig.advance(400)
        assert not rig.mail()

    play(scenario)


# ---- restarts and clocks


def test_what_waits_survives_a_restart_with_its_time() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        mail = await rig.accept("b@example.net")
        await rig.settle()
        await rig.advance(700, 100)
        tried = rig.attempts(mail.id)
        assert len(tried) == 2
        await rig.crash()
        await rig.advance(290, 10)
        assert rig.attempts(mail.id) == tried
        await rig.advance(100, 10)
        assert len(rig.attempts(mail.id)) == 3

    play(scenario, maximal_backoff_time=600.0)


@pytest.mark.parametrize("jump", [-50 * 365 * DAY, 50 * 365 * DAY])
def test_a_clock_that_jumps_neither_hurries_nor_expires_nor_strands_mail(jump: float) -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        mail = await rig.accept("b@example.net")
        await rig.settle()
        rig.clock.started += jump
        await rig.advance(290)
        assert len(rig.attempts(mail.id)) == 1
        await rig.advance(100)
        assert len(rig.attempts(mail.id)) == 2
        rig.clock.started -= jump
        await rig.crash()
        await rig.advance(700, 50)
        assert len(rig.attempts(mail.id)) == 3
        rig.clock.started += jump
        await rig.crash()
        await rig.advance(1400, 50)
        assert len(rig.attempts(mail.id)) == 4
        assert mail.id in rig.mail()

    play(scenario)


def test_nothing_expires_while_the_clock_is_not_trusted() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        rig.clock.trust = False
        mail = await rig.accept("b@example.net")
        await rig.settle()
        await rig.advance(20 * DAY, 4000)
        assert mail.id in rig.mail()
        rig.clock.trust = True
        await rig.advance(5000)
        assert mail.id not in rig.mail()

    play(scenario)


def test_time_when_the_box_was_off_does_not_count() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        mail = await rig.accept("b@example.net")
        await rig.settle()
        rig.clock.advance(20 * DAY)
        await rig.crash()
        await rig.settle()
        assert len(rig.attempts(mail.id)) == 2
        assert mail.id in rig.mail()

    play(scenario)


def test_a_lifetime_by_the_wall_counts_all_time() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        mail = await rig.accept("b@example.net")
        await rig.settle()
        rig.clock.advance(20 * DAY)
        await rig.crash()
        await rig.settle()
        assert mail.id not in rig.mail()

    play(scenario, lifetime_counts="wall")


# ---- the spool in trouble


def test_an_outcome_is_kept_until_the_spool_takes_it() -> None:
    async def scenario(rig: Rig) -> None:
        gate = rig.net.hold("example.net")
        mail = await rig.accept("b@example.net")
        await rig.settle()
        rig.spool.failing = True
        gate.set()
        await rig.settle()
        rig.spool.failing = False
        other = await rig.keep("c@example.com")
        rig.spool.failing = True
        rig.scheduler.accepted(other)
        await rig.advance(600, 10)
        assert rig.delivered == {(mail.id, "b@example.net"): 1}  # nothing more is sent that could not be recorded
        rig.spool.failing = False
        await rig.advance(120, 10)
        assert not rig.mail()
        assert rig.delivered == {(mail.id, "b@example.net"): 1, (other.id, "c@example.com"): 1}

    play(scenario)


def test_a_full_spool_still_drains_and_its_bounces_come_later() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["bogus@example.net"] = refused
        rig.net.answers["example.org"] = local
        bad = await rig.keep("bogus@example.net", "b@example.net")
        good = await rig.keep("c@example.net")
        rig.spool.full = True
        for mail in (bad, good):
            rig.scheduler.accepted(mail)
        await rig.advance(60, 5)
        assert list(rig.mail()) == [bad.id]
        assert rig.waiting(bad.id) == ["bogus@example.net"]
        rig.spool.full = False
        await rig.advance(120, 5)
        assert bad.id not in rig.mail()
        assert len(rig.notices()) == 1
        assert rig.delivered == {(bad.id, "b@example.net"): 1, (good.id, "c@example.net"): 1}

    play(scenario, notify_classes=())


def test_a_damaged_record_is_set_aside_and_the_rest_goes_on() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        bad = await rig.accept("b@example.net")
        worse = await rig.accept("b@example.org")
        good = await rig.accept("c@example.com")
        await rig.settle()
        rig.spool.damage_envelope(bad.id)
        rig.spool.damage_body(worse.id)
        rig.net.answers = {"example.org": refused}
        await rig.advance(400)
        assert good.id not in rig.mail()
        assert not [mail for mail in rig.mail().values() if not mail.bounce]
        assert [each.id for each in rig.spool.damaged()] == [bad.id, worse.id]

    play(scenario)


def test_stop_ends_what_is_under_way_and_keeps_it() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.hold("example.net")
        mail = await rig.accept("b@example.net")
        await rig.settle()
        await rig.scheduler.stop(0)
        assert rig.waiting(mail.id) == ["b@example.net"]
        assert not rig.scheduler.look() <= 0

    play(scenario)


def test_run_serves_until_stop() -> None:
    async def scenario(rig: Rig) -> None:
        running = asyncio.create_task(rig.scheduler.run())
        await rig.accept("b@example.net")
        for _ in range(100):
            await asyncio.sleep(0)
        assert not rig.mail()
        await rig.scheduler.stop(1)
        await running

    play(scenario)


def test_reload_applies_to_what_waits_and_tries_paused_routes() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.smarthost = "[isp.example]:587"
        rig.net.answers["*"] = no_login
        mail = await rig.accept("b@example.net")
        await rig.settle()
        rig.net.answers.clear()
        rig.configure(minimal_backoff_time=10.0)
        new = await rig.accept("c@example.net")
        await rig.settle()
        assert new.id not in rig.mail()
        await rig.advance(400)
        assert mail.id not in rig.mail()

    play(scenario, notify_classes=())


def test_flags_of_waiting_mail_fit_beside_its_stand() -> None:
    assert all(flag & 3 == 0 and flag < 1 << 16 for name, flag in vars(Flag).items() if name.isupper())
    assert replace(Envelope(1, Address("a"), ()), hold=True).hold
    assert sent(0).delivered
