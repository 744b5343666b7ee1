"""What the status is made of: guards of room, reserved sessions, routes in words, the survey of the queue."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgemail.boot import components
from edgemail.boot.certs import CERT, make
from edgemail.boot.status import Status
from edgemail.boot.survey import REST, SHORTEST_REST, SHOWN, Survey, by_cause
from edgemail.clock import RELEASE_DATE, ManualClock
from edgemail.envelope import Address, Envelope, Recipient
from edgemail.errors import Kind
from edgemail.health.board import State
from edgemail.health.guard import RESERVED_SESSIONS, Guards, Level, RoomGuard
from edgemail.relay.queue.link import Answer, Ask, LinkStatus
from edgemail.relay.queue.link import State as LinkState
from edgemail.relay.queue.sites import SiteStatus
from edgemail.relay.send.conversation import LINES, WATCHED, Conversation, Watch
from edgemail.reply import Reply
from edgemail.settings import Configuration, Listener, Settings
from edgemail.spool.memory import MemorySpool
from edgemail.spool.space import Figures
from edgemail.spool.verbs import Room
from edgemail.spool.writer import Vitals


def test_a_room_guard_trips_once_and_falls_with_a_little_more() -> None:
    guard = RoomGuard("disk", "The disk is full", ManualClock())
    seen = [guard.measure(free, 100, 1000) for free in (500, 101, 100, 90, 101, 105, 106, 99)]
    assert seen == [False, False, True, True, True, True, False, True]
    assert guard.trips == 2
    found = guard.condition()
    assert (found.state, found.reason, found.message) == (State.FAILED, "disk-full", "The disk is full")
    assert found.numbers["measured"] == 0.901 and found.numbers["threshold"] == 0.9


def test_what_a_file_system_does_not_count_is_never_full() -> None:
    guard = RoomGuard("inodes", "None left", ManualClock())
    assert guard.measure(0, 16, 0) is False
    assert guard.condition().state is State.OK


def test_sessions_are_kept_for_clients_that_hold_none() -> None:
    guards = Guards(ManualClock())
    guards.memory.level = Level.NO_SESSIONS
    total = 200
    admitted = 0
    for _ in range(20):
        if guards.session_refusal("gw", 0, total) is None:
            admitted, total = admitted + 1, total + 1
    assert admitted == RESERVED_SESSIONS
    assert str(guards.session_refusal("gw", 1, total)) == "421 4.3.2 gw Error: out of memory, try again later"
    total -= 50  # old ones leave: that is no room for more of them
    assert guards.session_refusal("gw", 0, total) is None
    assert guards.session_refusal("gw", 0, total + RESERVED_SESSIONS) is not None
    assert guards.session_refusal("gw", 1, total) is not None
    guards.memory.level = Level.FEWER_DELIVERIES
    assert guards.session_refusal("gw", 9, 500) is None


class FakeStore:
    """What the status asks of the spool."""

    def __init__(self) -> None:
        self.vital = Vitals(True, 0.0, 0.0, "")
        self.free = Room(10**9, 10**6)
        self.lost = ""

    def vitals(self) -> Vitals:
        return self.vital

    def room(self) -> Room:
        return self.free

    def figures(self) -> Figures:
        return Figures(0, 10**9, 10**9, 10**9, self.free.inodes, 8 << 20, 0, 10**10, 10**6)


class FakeRelay:
    """As much of the relay as /livez and /readyz look at."""

    def __init__(self) -> None:
        settings = Settings(myhostname="gw")
        self.clock = ManualClock()
        self.configuration = Configuration("", settings, ())
        self.store = FakeStore()
        self.scheduler = SimpleNamespace(active=lambda id: False, sites=lambda: ())
        self.links = SimpleNamespace(snapshot=lambda: ())
        self.server = SimpleNamespace(addresses=())
        self.credentials = SimpleNamespace(verdicts={})
        self.status = Status(self)  # type: ignore[arg-type]
        self.status.prober.verdict = ""

    def refusal(self, size: int) -> Reply | None:
        return self.status.refusal(size)


@pytest.mark.parametrize(
    ("vital", "alive", "ready"),
    [
        (Vitals(True, 0.0, 0.0, ""), "", ""),
        (Vitals(True, 0.0, 0.0, "Input/output error"), "", "the spool cannot be written: Input/output error"),
        (Vitals(True, 0.0, 9.0, ""), "", "451 4.3.0 Error: the disk does not answer, try again later"),
        (Vitals(True, 0.0, 11.0, ""), "", "the medium has not answered for 11 s"),
        (Vitals(True, 0.0, 119.0, ""), "", "the medium has not answered for 119 s"),
        (Vitals(True, 0.0, 121.0, ""), "the medium has not answered for 121 s", None),
        (Vitals(True, 9.0, 0.0, ""), "", ""),
        (Vitals(True, 11.0, 0.0, ""), "the spool's writer has not taken up its work for 11 s", None),
        (Vitals(False, 0.0, 0.0, ""), "the spool's writer has ended", None),
    ],
)
def test_what_is_alive_and_what_is_ready(vital: Vitals, alive: str, ready: str | None) -> None:
    relay = FakeRelay()
    relay.store.vital = vital
    assert relay.status.alive() == alive
    assert relay.status.ready() == (alive if ready is None else ready)


def test_a_loop_that_does_not_turn_is_not_alive() -> None:
    relay = FakeRelay()
    relay.clock.advance(11.0)
    assert relay.status.alive() == "nothing was measured for 11 s"
    relay.status.measure()
    assert relay.status.alive() == ""


def test_guards_and_probe_decide_readiness_and_not_life() -> None:
    relay = FakeRelay()
    relay.store.free = Room(10**9, 15)
    assert relay.status.ready() == "452 4.3.1 Insufficient system storage: no inodes left"
    relay.store.free = Room(10**9, -1)  # a file system that counts none
    relay.status.prober.verdict = "listener lan: it hangs up"
    assert relay.status.ready() == "listener lan: it hangs up"
    assert relay.status.alive() == ""


def test_what_is_measured_trips_the_guards_of_room() -> None:
    relay = FakeRelay()
    relay.store.free = Room(10**9, 15)
    relay.status.measure()
    assert relay.status.guards.inodes.full and not relay.status.guards.disk.full
    assert relay.status.board.status()["reason"] == "inodes-full"


def site(**changes: object) -> SiteStatus:
    base = SiteStatus("smtp:[isp]:587", "smtp", True, "up", "", "", None, 0.0, 0.0, 5, 1, 7)
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "state", "reason", "message", "counts"),
    [
        ({}, State.OK, "", "", True),
        ({"state": "new"}, State.OK, "", "", True),
        (
            {"state": "paused", "kind": Kind.ROUTE, "reason": "535 no"},
            State.DEGRADED,
            "route-paused",
            "Mail through [isp]:587 waits: 535 no",
            True,
        ),
        (
            {"state": "paused", "kind": Kind.LINK, "reason": "no route"},
            State.DEGRADED,
            "link-failed",
            "Mail through [isp]:587 waits: no route",
            True,
        ),
        (
            {"state": "dead", "configured": False, "reason": "refused"},
            State.DEGRADED,
            "route-dead",
            "[isp]:587 does not work: refused",
            False,
        ),
    ],
)
def test_a_route_in_words(changes: dict[str, object], state: State, reason: str, message: str, counts: bool) -> None:
    found = components.routes([site(**changes)], 100.0)["route.smtp:[isp]:587"]
    assert (found.state, found.reason, found.message, found.counts) == (state, reason, message, counts)
    assert found.numbers["waiting"] == 7


def test_routes_are_bounded_and_those_that_fail_come_first() -> None:
    many = [site(name=f"smtp:d{n}.example", configured=False) for n in range(500)]
    many += [site(name="smtp:bad.example", configured=False, state="dead"), site()]
    found = components.routes(many, 0.0)
    assert len(found) == components.SHOWN_ROUTES
    assert list(found)[:2] == ["route.smtp:[isp]:587", "route.smtp:bad.example"]


def test_links_in_words() -> None:
    asked = {"etrn": Ask("hub.example", 5.0, Answer.REFUSED, "ship.example: 459 service unavailable")}
    up = LinkStatus("lte", "lte", LinkState.UP, "", 0.0, 2, 10, 100, 0, 0, asked)
    down = replace(up, name="fibre", state=LinkState.DOWN, reason="no carrier")
    found = components.links([up, down])
    assert found["link.lte"].state is State.OK and found["link.lte"].numbers["day_bytes"] == 10
    said = [found["link.lte"].numbers[f"etrn_{what}"] for what in ("at", "result", "words")]
    assert said == [5.0, "refused", "ship.example: 459 service unavailable"]
    assert found["link.fibre"].message == "Link fibre is down: no carrier"
    assert found["link.fibre"].reason == "link-down" and not found["link.fibre"].counts


def test_certificates(tmp_path: Path) -> None:
    make(tmp_path, "gw.example.com")
    settings = Settings(smtpd_tls_cert_file=str(tmp_path / CERT))
    configuration = Configuration("", settings, (Listener("lan", "127.0.0.1", 25, "lan", settings),))
    for wall, trusted, state, reason in (
        (RELEASE_DATE, True, State.OK, ""),
        (RELEASE_DATE + 3660 * 86400, True, State.DEGRADED, "certificate-expired"),
        (RELEASE_DATE + 3660 * 86400, False, State.OK, ""),
        (RELEASE_DATE + 3640 * 86400, True, State.DEGRADED, "certificate-ends"),
    ):
        clock = ManualClock(wall)
        clock.trust = trusted
        found = components.Certificates(clock).conditions(configuration)["certificate.cert.pem"]
        assert (found.state, found.reason) == (state, reason), wall
    gone = replace(settings, smtpd_tls_cert_file=str(tmp_path / "gone.pem"))
    configuration = replace(configuration, listeners=(Listener("lan", "127.0.0.1", 25, "lan", gone),))
    found = components.Certificates(ManualClock()).conditions(configuration)["certificate.gone.pem"]
    assert found.reason == "certificate-unreadable"


def test_the_clock() -> None:
    clock = ManualClock()
    assert components.clock(clock)["clock"].state is State.OK
    clock.trust = False
    assert components.clock(clock)["clock"].reason == "clock-untrusted"


def test_the_survey_counts_by_cause_and_rests() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        spool = MemorySpool(clock)
        for number in range(60):
            recipient = Recipient(Address("bob", f"d{number % 50}.example"), reason="greylisted", status="4.2.0")
            intake = spool.intake()
            intake.write(b"x" * 10)
            await intake.commit(
                Envelope(
                    intake.id,
                    Address("a", "b.example"),
                    (recipient,),
                    received_at=clock.wall() - 100 * number,
                    attempts=1,
                    next_attempt=clock.wall() + 30,
                    hold=number == 59,
                )
            )
        survey = Survey(spool, clock, lambda id: False, lambda envelope, recipient: "")
        assert survey.due
        found = await survey.take()
        assert not survey.due
        clock.advance(SHORTEST_REST * REST)
        assert survey.due
        assert (found.depth, found.states) == (60, {"deferred": 59, "hold": 1})
        assert found.oldest == RELEASE_DATE - 5900 and found.next_attempt == RELEASE_DATE + 30
        assert sum(found.ages) == 60 and len(found.ages) == len(found.age_heads) == 10
        rows = by_cause(found, RELEASE_DATE)
        assert len(rows) == SHOWN + 1 and sum(row["messages"] for row in rows) == 60
        assert rows[0]["messages"] == 2 and rows[0]["reason"] == "greylisted" and rows[0]["next"] == 30
        assert rows[-1]["destination"].endswith(" more")
        await spool.close()

    asyncio.run(scenario())


def test_a_conversation_hides_logins_and_contents() -> None:
    talk = Conversation()
    talk.said(Reply(220, "", "isp ESMTP\nsecond"))
    talk.sent(b"EHLO gw\r\n")
    talk.sent(b"AUTH PLAIN AGFubmEAaHVudGVyMg==\r\n", secret=True)
    talk.sent(b"aHVudGVyMg==\r\n", secret=True)
    talk.sent(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 9 LAST\r\nsecret it\r\n", content=True)
    talk.said(Reply(250, "2.0.0", "Ok\x1b[31m"))
    assert talk.lines == [
        "< 220-isp ESMTP",
        "< 220 second",
        "> EHLO gw",
        "> AUTH PLAIN ********",
        "> ********",
        "> MAIL FROM:<a@b>",
        "> RCPT TO:<c@d>",
        "> BDAT 9 LAST",
        "> (11 octets of the message)",
        "< 250 2.0.0 Ok?[31m",
    ]
    for _ in range(LINES):
        talk.sent(b"NOOP\r\n")
    assert len(talk.lines) == LINES


def test_only_some_messages_are_watched() -> None:
    watch = Watch()
    for id in range(WATCHED + 1):
        watch.begin(id)
    assert watch.of(0) is None and watch.of(WATCHED) is not None
