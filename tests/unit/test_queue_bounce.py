"""Notices: who is told what, and that what is written can be read by a program and by a person."""

from __future__ import annotations

import asyncio
import email
import email.policy
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.envelope import Address, Disposal, Envelope, Notify, Outcome, Recipient, Ret
from edgemail.errors import Kind
from edgemail.relay.queue import dsn
from edgemail.reply import Reply
from edgemail.spool.job import Fate
from edgemail.spool.records import Tail
from edgemail.spool.verbs import Change
from tests.queue import CONTENT, REFUSED, Rig, disposal, later, local, play, refused, sent, unreachable

GOLDEN = Path(__file__).parents[1] / "golden" / "bounces"
HEADER = b"From: a@example.org\r\nSubject: x\r\n"


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def parsed(raw: bytes) -> EmailMessage:
    """A message as a strict reader has it."""
    assert raw.count(b"\r\n") == raw.count(b"\n") == raw.count(b"\r")
    assert raw.endswith(b"\r\n")
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    for part in message.walk():
        assert not part.defects, part.defects
    return message


def content(rig: Rig, envelope: Envelope) -> bytes:
    return b"".join(rig.spool.body(envelope.id))


def report(rig: Rig, envelope: Envelope) -> tuple[EmailMessage, list[EmailMessage], bytes]:
    """A notice: itself, the groups of fields of its status part, and what comes back of the original."""
    raw = content(rig, envelope)
    message = parsed(raw)
    human, status, returned = message.iter_parts()
    assert human.get_content_type() == "text/plain"
    assert message.get_content_type() == "multipart/report"
    assert message["content-type"].params["report-type"] == "delivery-status"
    boundary = message.get_boundary()
    assert boundary
    assert raw.count(boundary.encode()) == 5  # in the header, before each part, at the end
    assert status.get_content_type() in ("message/delivery-status", "message/global-delivery-status")
    original = raw.rpartition(b"\r\n\r\n" if returned.get_content_type() == "none" else boundary.encode() + b"\r\n")[2]
    original = original.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--" + boundary.encode() + b"--")[0]
    fields = [group for group in status.get_payload() if isinstance(group, EmailMessage)]
    return message, fields, original


def golden(name: str, raw: bytes) -> None:
    path = GOLDEN / f"{name}.eml"
    if os.environ.get("EDGEMAIL_WRITE_GOLDEN"):
        path.write_bytes(raw)
    assert raw.decode() == path.read_bytes().decode()


def only(rig: Rig) -> Envelope:
    (notice,) = rig.notices()
    return notice


def test_a_bounce_says_everything_it_should() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["bogus@example.net"] = refused
        rig.net.answers["example.org"] = later
        one = Recipient(Address.of("bogus@example.net"), orcpt="rfc822;Bogus+2BX@example.net")
        mail = await rig.accept(one, "b@example.net", envid="QQ314159+2B", ret=Ret.FULL)
        await rig.settle()
        notice = only(rig)
        message, (general, group), original = report(rig, notice)
        assert notice.sender == Address("", "")
        assert notice.recipients[0].address == mail.sender
        assert b"From: MAILER-DAEMON@gw7.example.com (Mail Delivery System)\r\n" in content(rig, notice)
        assert message["to"] == "a@example.org"
        assert message["subject"] == "Undelivered Mail Returned to Sender"
        assert message["auto-submitted"] == "auto-replied"
        assert general["reporting-mta"] == "dns; gw7.example.com"
        assert general["original-envelope-id"] == "QQ314159+"
        assert general["arrival-date"]
        assert group["final-recipient"] == "rfc822; bogus@example.net"
        assert group["original-recipient"] == "rfc822; Bogus+X@example.net"
        assert group["action"] == "failed"
        assert group["status"] == "5.1.1"
        assert group["remote-mta"] == "dns; mx.example"
        assert group["diagnostic-code"] == "smtp; 550 5.1.1 no such user"
        assert original == CONTENT
        golden("failed", content(rig, notice))

    play(scenario)


@pytest.mark.parametrize(
    ("ret", "size", "kind"),
    [
        (None, 40_000, "message/rfc822"),
        (None, 60_000, "text/rfc822-headers"),
        (Ret.FULL, 40_000, "message/rfc822"),
        (Ret.FULL, 60_000, "text/rfc822-headers"),
        (Ret.HDRS, 10, "text/rfc822-headers"),
    ],
)
def test_how_much_of_the_original_comes_back(ret: Ret | None, size: int, kind: str) -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        rig.net.answers["b@example.net"] = refused
        body = b"y" * 76 + b"\r\n"
        await rig.accept("b@example.net", ret=ret, content=HEADER + b"\r\n" + body * (size // len(body)))
        await rig.settle()
        message, _, original = report(rig, only(rig))
        assert [part.get_content_type() for part in message.iter_parts()][2] == kind
        if kind == "text/rfc822-headers":
            assert original == HEADER
        else:
            assert original == HEADER + b"\r\n" + body * (size // len(body))

    play(scenario)


def test_a_header_without_an_end_is_cut_at_the_limit() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        rig.net.answers["b@example.net"] = refused
        await rig.accept("b@example.net", content=b"X: " + b"y" * 70 + b"\r\n" + b" z\r\n" * 100_000)
        await rig.settle()
        assert len(content(rig, only(rig))) < 53_000

    play(scenario)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_the_end_of_a_header_is_found_wherever_the_pieces_end(at: int) -> None:
    from edgemail.relay.queue.bounce import _header

    whole = HEADER + b"\r\nbody\r\n\r\nmore"
    end = len(HEADER) + 2
    pieces = [whole[: end - at], whole[end - at :]]
    assert b"".join(_header(pieces)) == HEADER
    assert b"".join(_header([whole[i : i + 1] for i in range(len(whole))])) == HEADER
    assert b"".join(_header([HEADER])) == HEADER


@pytest.mark.parametrize(
    ("notify", "told"),
    [
        (None, True),
        (Notify.NEVER, False),
        (Notify.SUCCESS, False),
        (Notify.DELAY, False),
        (Notify.FAILURE, True),
        (Notify.FAILURE | Notify.SUCCESS, True),
    ],
)
def test_of_a_failure_hears_who_wants_to(notify: Notify | None, told: bool) -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        rig.net.answers["b@example.net"] = refused
        await rig.accept(Recipient(Address.of("b@example.net"), notify=notify))
        await rig.settle()
        assert len(rig.mail()) == len(rig.notices()) == told

    play(scenario)


@pytest.mark.parametrize(("dsn_there", "notify", "told"), [(False, 1, True), (True, 1, False), (False, 2, False)])
def test_success_is_reported_where_the_next_hop_will_not(dsn_there: bool, notify: int, told: bool) -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        rig.net.answers["example.net"] = lambda index: sent(index, dsn=dsn_there)
        mail = await rig.accept(Recipient(Address.of("b@example.net"), notify=Notify(notify)), "c@example.net")
        await rig.settle()
        assert mail.id not in rig.mail()
        if not told:
            assert not rig.mail()
            return
        notice = only(rig)
        message, (_, group), original = report(rig, notice)
        assert message["subject"] == "Successful Mail Delivery Report"
        assert group["action"] == "relayed"
        assert group["status"] == "2.0.0"
        assert original == HEADER
        golden("relayed", content(rig, notice))

    play(scenario)


def test_nothing_is_reported_about_what_was_discarded() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.disposals["b@example.net"] = disposal(Disposal.DISCARD, "x")
        await rig.accept(Recipient(Address.of("b@example.net"), notify=Notify.SUCCESS))
        await rig.settle()
        assert not rig.mail()

    play(scenario)


def test_a_delay_is_told_once() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        mail = await rig.accept(
            "b@example.net",
            Recipient(Address.of("c@example.net"), notify=Notify.DELAY | Notify.FAILURE),
            Recipient(Address.of("d@example.net"), notify=Notify.FAILURE),
        )
        await rig.settle()
        await rig.advance(3000, 500)
        assert not rig.notices()
        await rig.advance(3000, 500)
        notice = only(rig)
        message, groups, original = report(rig, notice)
        assert message["subject"] == "Delayed Mail (still being retried)"
        assert [group["final-recipient"] for group in groups[1:]] == ["rfc822; b@example.net", "rfc822; c@example.net"]
        assert {group["action"] for group in groups[1:]} == {"delayed"}
        assert groups[1]["will-retry-until"]
        assert original == HEADER
        golden("delayed", content(rig, notice))
        await rig.crash()
        await rig.advance(20_000, 500)
        assert len(rig.notices()) == 1
        assert mail.id in rig.mail()

    play(scenario, delay_warning_time=3600.0)


def test_no_delay_is_told_by_default() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        await rig.accept("b@example.net")
        await rig.settle()
        await rig.advance(2 * 86_400, 2000)
        assert not rig.notices()

    play(scenario)


def test_the_last_word_on_a_message_that_expired() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        await rig.accept("b@example.net")
        await rig.settle()
        await rig.advance(3000, 300)
        notice = only(rig)
        _, (_, group), _ = report(rig, notice)
        assert group["action"] == "failed"
        assert group["status"] == "4.2.0"
        golden("expired", content(rig, notice))

    play(scenario, maximal_queue_lifetime=600.0)


# ---- mail that cannot be returned


@pytest.mark.parametrize("classes", [(), ("2bounce",)])
def test_a_bounce_that_cannot_be_delivered_is_never_bounced(classes: tuple[str, ...]) -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = refused
        rig.net.answers["boss@example.com"] = later
        await rig.accept("b@example.net")
        await rig.settle()
        if not classes:
            assert not rig.mail()
            return
        notice = only(rig)
        assert str(notice.sender) == "double-bounce@gw7.example.com"
        assert str(notice.recipients[0].address) == "boss@example.com"
        message, (_, group), original = report(rig, notice)
        assert message["subject"] == "Postmaster Copy: Undelivered Mail"
        assert group["final-recipient"] == "rfc822; a@example.org"
        assert b"Subject: Undelivered Mail Returned to Sender" in original
        assert b"boundary" in original
        rig.net.answers["boss@example.com"] = refused
        await rig.advance(400)
        assert not rig.mail()  # and nothing is said about that

    play(scenario, notify_classes=classes, double_bounce_notice_recipient="boss@example.com")


def test_a_null_sender_from_outside_hears_nothing() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = refused
        await rig.accept("b@example.net", sender="")
        await rig.accept("b@example.net", sender="double-bounce@gw7.example.com")
        await rig.settle()
        assert not rig.mail()

    play(scenario)


def test_bounces_have_a_lifetime_of_their_own() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        await rig.accept("b@example.net", sender="")
        mail = await rig.accept("b@example.net")
        await rig.settle()
        await rig.advance(4000, 500)
        assert list(rig.mail()) == [mail.id]

    play(scenario, bounce_queue_lifetime=1000.0)


def test_the_postmaster_has_copies_of_the_classes_that_are_asked_for() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        rig.net.answers["b@example.net"] = refused
        await rig.accept("b@example.net")
        await rig.settle()
        copy, bounce = rig.notices()
        assert str(copy.recipients[0].address) == "sent-bounces@example.com"
        assert str(copy.sender) == "double-bounce@gw7.example.com"
        message, (_, group), original = report(rig, copy)
        assert message["subject"] == "Postmaster Copy: Undelivered Mail"
        assert message["to"] == "sent-bounces@example.com"
        assert group["final-recipient"] == "rfc822; b@example.net"
        assert original == HEADER
        assert not bounce.sender

    play(scenario, notify_classes=("bounce",), bounce_notice_recipient="sent-bounces@example.com")


def test_the_postmaster_hears_of_a_delay_where_that_is_asked_for() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        await rig.accept("b@example.net")
        await rig.settle()
        await rig.advance(6000, 500)
        _, copy = rig.notices()
        message, _, _ = report(rig, copy)
        assert message["subject"] == "Postmaster Warning: Delayed Mail"

    play(scenario, notify_classes=("delay",), delay_warning_time=3600.0)


def test_a_notice_of_trouble_goes_to_whom_it_concerns() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        rig.scheduler.notice("policy", "ignored", "not asked for")
        rig.scheduler.notice("protocol", "session with errors", "line one\nline\ttwo \x1b[2J ü\n\nend")
        await rig.settle()
        notice = only(rig)
        assert str(notice.recipients[0].address) == "errors@example.com"
        message = parsed(content(rig, notice))
        assert message["subject"] == "Postmaster notice (protocol): session with errors"
        assert message["auto-submitted"] == "auto-generated"
        assert message.get_content().splitlines() == ["line one", "line two [2J ?", "", "end"]

    play(scenario, notify_classes=("protocol",), error_notice_recipient="errors@example.com")


def test_notices_are_bounded() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        for i in range(100):
            rig.scheduler.notice("resource", f"number {i}", "text")
        await rig.settle()
        assert len(rig.notices()) == 20
        await rig.advance(3700, 100)
        rig.scheduler.notice("resource", "another", "text")
        await rig.settle()
        assert len(rig.notices()) == 21

    play(scenario)


def test_the_postmaster_hears_once_an_hour_that_mail_waits_for_this_box_itself() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = local
        for i in range(5):
            await rig.accept(f"b{i}@example.net")
        await rig.settle()
        notice = only(rig)
        assert "local trouble" in rig.text(notice)
        await rig.advance(3000, 100)
        assert len(rig.notices()) == 1
        await rig.advance(3000, 100)
        assert len(rig.notices()) == 2

    play(scenario)


def test_a_notice_that_nobody_can_read_is_queued_once() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.disposals["postmaster"] = disposal(Disposal.HOLD, "set admin_address")
        rig.net.smarthost = "[isp.example]:587"
        for _ in range(5):
            rig.net.answers["*"] = unreachable
            for i in range(5):
                await rig.accept(f"b{i}@example.net")
            await rig.settle()
            rig.net.answers.clear()
            await rig.advance(5000, 500)
        (notice,) = rig.notices()
        assert notice.hold

    play(scenario)


# ---- what stands in them


def test_an_internationalised_message_has_an_internationalised_notice() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        rig.net.answers["jürgen@bücher.example"] = lambda index: replace(
            refused(index), reply=Reply(550, "5.1.1", "niemand heißt so")
        )
        one = Recipient(Address.of("jürgen@bücher.example"), orcpt="utf-8;j\\x{FC}rgen@b\\x{FC}cher.example")
        await rig.accept(
            one,
            sender="ä@example.org",
            smtputf8=True,
            eight_bit=True,
            content="Subject: grüße\r\n\r\nhällo\r\n".encode(),
        )
        await rig.settle()
        notice = only(rig)
        assert notice.smtputf8
        assert notice.eight_bit
        raw = content(rig, notice)
        text = raw.decode()
        assert "Content-Type: message/global-delivery-status\r\n" in text
        assert "Content-Type: message/global\r\n" in text
        assert "Final-Recipient: utf-8; jürgen@bücher.example\r\n" in text
        assert "Original-Recipient: utf-8; jürgen@bücher.example\r\n" in text
        assert "Diagnostic-Code: smtp; 550 5.1.1 niemand heißt so\r\n" in text
        assert "Content-Transfer-Encoding: 8bit\r\n" in text
        golden("global", raw)

    play(scenario)


def test_a_plain_notice_is_plain_whatever_the_server_said() -> None:
    async def scenario(rig: Rig) -> None:
        said = Reply(550, "5.1.1", "käse\n\x1b[2J\r\nFrom: me\n" + "x" * 3000 + " y" * 3000)
        rig.net.answers["*"] = later
        rig.net.answers["b@example.net"] = lambda index: replace(refused(index), reply=said)
        one = Recipient(Address.of("b@example.net"), orcpt="utf-8;j\\x{FC}rgen@example.net")
        await rig.accept(one)
        await rig.settle()
        raw = content(rig, only(rig))
        assert raw.isascii()
        assert b"Original-Recipient: utf-8; j\\x{FC}rgen@example.net\r\n" in raw
        assert max(map(len, raw.split(b"\r\n"))) <= 998
        assert b"\x1b" not in raw
        report(rig, only(rig))

    play(scenario)


def test_eight_bit_content_is_declared() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        rig.net.answers["b@example.net"] = refused
        await rig.accept("b@example.net", content=HEADER + b"\r\n\xff\xfe\r\n", eight_bit=True)
        await rig.accept("b@example.net", content=HEADER + b"\r\n\xff\xfe\r\n", eight_bit=True, ret=Ret.HDRS)
        await rig.settle()
        wide, narrow = rig.notices()
        assert (wide.eight_bit, narrow.eight_bit) == (True, False)
        assert content(rig, wide).count(b"Content-Transfer-Encoding: 8bit\r\n") == 2
        assert b"8bit" not in content(rig, narrow)
        _, _, original = report(rig, wide)
        assert original == HEADER + b"\r\n\xff\xfe\r\n"

    play(scenario)


def test_the_boundary_never_stands_in_the_original() -> None:
    import random

    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        rig.net.answers["b@example.net"] = refused
        guess = random.Random(7)
        first = await rig.keep("b@example.net")
        await rig.scheduler.remove([first.id])
        lines = b"".join(
            f"--{first.id + 1:08X}.{guess.getrandbits(64):016X}/gw7.example.com\r\n".encode() for _ in range(3)
        )
        await rig.accept("b@example.net", content=HEADER + b"\r\n" + lines)
        await rig.settle()
        _, _, original = report(rig, only(rig))
        assert original == HEADER + b"\r\n" + lines

    play(scenario)


def test_bare_addresses_are_completed() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        rig.net.answers["nobody"] = refused
        await rig.accept("nobody", sender="root")
        await rig.settle()
        message, (general, group), _ = report(rig, only(rig))
        assert message["to"] == "root@gw7.example.com"
        assert group["final-recipient"] == "rfc822; nobody@gw7.example.com"
        assert general["x-edgemail-sender"] == "rfc822; root@gw7.example.com"

    play(scenario)


def test_expired_and_refused_stand_in_one_report() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = local
        rig.net.answers["b@example.net"] = later
        rig.net.answers["c@example.net"] = later
        await rig.accept("b@example.net", "c@example.net", "d@example.com")
        await rig.settle()
        rig.net.answers["c@example.net"] = refused
        await rig.advance(900, 100)
        _, groups, _ = report(rig, only(rig))
        assert [(g["final-recipient"], g["status"]) for g in groups[1:]] == [
            ("rfc822; b@example.net", "4.2.0"),
            ("rfc822; c@example.net", "5.1.1"),
        ]
        (left,) = [mail for mail in rig.mail().values() if not mail.bounce]
        assert [r.kind for r in left.recipients] == [Kind.LOCAL]
        assert left.waited == 0  # its own time begins when something can be done for it
        rig.net.answers["d@example.com"] = later
        await rig.scheduler.flush(ids=[left.id])
        await rig.settle()
        assert left.id in rig.mail()

    play(scenario, maximal_queue_lifetime=350.0, notify_classes=())


def test_a_bounce_and_a_warning_at_once_are_each_written_once() -> None:
    """The spool takes the first and then fails for a while."""

    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = later
        mail = await rig.accept("b@example.net", "c@example.net")
        await rig.settle()
        rig.net.answers["c@example.net"] = refused
        finish, made = rig.spool.finish, []

        def one_only(tail: Tail, envelope: Envelope, also: Change, fate: Fate) -> asyncio.Future[None]:
            made.append(envelope)
            rig.spool.failing = len(made) == 2
            future: asyncio.Future[None] = finish(tail, envelope, also, fate)
            return future

        rig.spool.finish = one_only
        await rig.advance(400)
        assert len(made) == 2
        rig.spool.failing = False
        await rig.advance(30, 5)
        rig.net.answers["c@example.net"] = later
        subjects = sorted(str(parsed(content(rig, each))["subject"]) for each in rig.notices())
        assert subjects == ["Delayed Mail (still being retried)", "Undelivered Mail Returned to Sender"]
        assert rig.waiting(mail.id) == ["b@example.net"]
        assert rig.mail()[mail.id].delay_warned

    play(scenario, delay_warning_time=200.0)


@given(st.text(), st.text(max_size=5), st.text(alphabet=" ", max_size=4))
def test_wrapped_lines_hold_everything_and_nothing_harmful(text: str, first: str, rest: str) -> None:
    lines = list(dsn.wrap(text, "X: ", rest or " "))
    assert lines
    for line in lines:
        assert line.splitlines() in ([], [line])
        assert len(line) <= 78 or len(line.split()[-1]) > 70
        assert len(line) < 998
    joined = "".join("".join(lines).split())
    assert joined == "".join(("X:" + dsn.clean(text)).split())


def test_reasons_are_one_line() -> None:
    from edgemail.relay.queue.settle import reason

    many = Outcome(0, Kind.MESSAGE_TEMPORARY, replace(REFUSED, text="a\nb"), "mx[::1]:25", remote=True)
    assert reason(many) == "host mx[::1] said: 550 5.1.1 a b"
    assert reason(Outcome(0, None, REFUSED, text="host x said: y")) == "host x said: y"
