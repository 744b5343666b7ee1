"""The courier against servers that behave, refuse, lie, stall and break; on loopback, with the memory spool."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edgemail.clock import ManualClock
from edgemail.envelope import Address, Body, Delivery, Envelope, Notify, Outcome, Recipient, Ret, Route, Target
from edgemail.errors import Kind, SpoolDamaged
from edgemail.relay.send.credentials import Login
from edgemail.relay.send.deliver import Courier
from edgemail.relay.send.resolve import Host, ResolveError
from edgemail.reply import Reply
from edgemail.settings import Configuration, Maps, Settings
from edgemail.spool.memory import MemorySpool
from tests.servers import DROP, FULL, PLAIN, RESET, STALL, Authority, FakeServer

IP4 = socket.AF_INET
IP6 = socket.AF_INET6
MESSAGE = b"Subject: x\r\n\r\n.a dot\r\nhello\r\n"
TEMPORARY, PERMANENT, ROUTE, LINK, LOCAL = (
    Kind.MESSAGE_TEMPORARY,
    Kind.MESSAGE_PERMANENT,
    Kind.ROUTE,
    Kind.LINK,
    Kind.LOCAL,
)


class Hosts:
    """A resolver that knows what the test told it."""

    def __init__(self, **hops: Sequence[Host] | ResolveError) -> None:
        self.hops: dict[str, Sequence[Host] | ResolveError] = dict(hops)
        self.asked: list[tuple[str, bool]] = []

    async def hosts(self, hop: str, settings: Settings, *, configured: bool, domain: str) -> tuple[Host, ...]:
        self.asked.append((hop, configured))
        found = self.hops[hop]
        if isinstance(found, ResolveError):
            raise found
        return tuple(found)


class Logins:
    """Credentials without tables."""

    def __init__(self, login: Login | None) -> None:
        self._login = login

    def login(self, maps: Maps, hop: str, host: str = "") -> Login | None:
        return self._login

    def reload(self, configuration: Configuration) -> None:
        self._login = None


def at(server: FakeServer | int, name: str = "fake.example", *, address: str = "127.0.0.1") -> Host:
    port = server if isinstance(server, int) else server.port
    return Host(name, ((IP6 if ":" in address else IP4, address),), port)


@dataclasses.dataclass
class Rig:
    """A courier, its spool and its resolver."""

    courier: Courier
    spool: MemorySpool
    clock: ManualClock
    resolver: Hosts
    configuration: Configuration

    async def mail(
        self,
        *to: str,
        content: bytes = MESSAGE,
        hops: Sequence[str] = ("hop",),
        configured: bool = True,
        recipients: Sequence[Recipient] = (),
        **envelope: Any,
    ) -> Delivery:
        """Keep a message and make the delivery of all its recipients."""
        intake = self.spool.intake()
        for place in range(0, len(content), 16384):
            intake.write(content[place : place + 16384])
            await intake.drain()
        known = tuple(recipients) or tuple(Recipient(Address.of(each)) for each in to or ("b@example.net",))
        sender = envelope.pop("sender", Address("a", "example.com"))
        kept = await intake.commit(Envelope(0, sender, known, **envelope))
        targets = tuple(Target(place, each, each.address) for place, each in enumerate(known))
        return Delivery(kept, targets, Route("smtp", tuple(hops), configured))

    async def send(self, *to: str, **more: Any) -> tuple[Outcome, ...]:
        return await self.courier.deliver(await self.mail(*to, **more))


@asynccontextmanager
async def rig(*hosts: Host, login: Login | None = None, hops: Any = None, **settings: Any) -> AsyncIterator[Rig]:
    clock = ManualClock()
    spool = MemorySpool(clock)
    limits = {name: 2.0 for name in Settings.__dataclass_fields__ if re.fullmatch(r"smtp_.*_timeout", name)}
    limits["smtp_quit_timeout"] = 0.5
    values = {"myhostname": "gw.example.com", "myorigin": "example.com", "smtp_helo_name": "gw.example.com"} | limits
    configuration = Configuration("", Settings(**values | settings), ())
    resolver = Hosts(**hops) if hops is not None else Hosts(hop=hosts)
    courier = Courier(spool, clock, configuration, resolver=resolver, credentials=Logins(login))
    try:
        yield Rig(courier, spool, clock, resolver, configuration)
    finally:
        await courier.close()
        await spool.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        before = asyncio.all_tasks()
        await scenario()
        await asyncio.sleep(0)
        left = [task for task in asyncio.all_tasks() - before if not task.done() and "_accept" not in repr(task)]
        assert not left

    asyncio.run(whole())


def one(outcomes: Iterable[Outcome]) -> Outcome:
    (outcome,) = outcomes
    return outcome


# -- what goes well ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keywords", [FULL, FULL[:-1], PLAIN, (), ("CHUNKING",)])
def test_a_message_arrives_whole(keywords: Sequence[str]) -> None:
    async def scenario() -> None:
        async with FakeServer(keywords) as server, rig(at(server)) as box:
            outcome = one(await box.send())
            assert outcome.delivered, outcome
            assert str(outcome.reply) == "250 2.0.0 Ok: queued as 1"
            assert outcome.relay == f"fake.example[127.0.0.1]:{server.port}"
            assert [each.content for each in server.received] == [MESSAGE]
            assert server.received[0].mail.startswith("MAIL FROM:<a@example.com>")
            assert server.received[0].rcpt == ["RCPT TO:<b@example.net>"]

    run(scenario)


@pytest.mark.parametrize("keywords", [FULL, FULL[:-1], PLAIN, ("CHUNKING",)])
def test_a_long_message_arrives_whole(keywords: Sequence[str]) -> None:
    content = b"Subject: x\r\n\r\n" + b"".join(b".%d a line of text\r\n" % n for n in range(20_000))

    async def scenario() -> None:
        async with FakeServer(keywords) as server, rig(at(server)) as box:
            assert one(await box.send(content=content)).delivered
            assert [each.content for each in server.received] == [content]

    run(scenario)


def test_line_ends_leave_as_crlf_whatever_the_spool_holds() -> None:
    async def scenario() -> None:
        for keywords in (FULL, PLAIN):
            async with FakeServer(keywords) as server, rig(at(server)) as box:
                assert one(await box.send(content=b"Subject: x\n\n.\nbare\rend")).delivered
                assert server.received[0].content == b"Subject: x\r\n\r\n.\r\nbare\r\nend\r\n"

    run(scenario)


def test_recipients_have_their_own_results_and_a_refused_one_stops_nobody() -> None:
    def rcpt(line: str) -> bytes:
        if "two" in line:
            return b"550 5.1.1 no such user\r\n"
        if "three" in line:
            return b"452 4.2.2 mailbox full\r\n"
        return b"552 5.5.3 too many\r\n" if "four" in line else b"250 ok\r\n"

    async def scenario() -> None:
        for keywords in (FULL, FULL[:-1], PLAIN):
            async with FakeServer(keywords, {"RCPT": rcpt}) as server, rig(at(server)) as box:
                results = await box.send("one@x.example", "two@x.example", "three@x.example", "four@x.example")
                assert [each.kind for each in results] == [None, PERMANENT, TEMPORARY, TEMPORARY]
                assert [each.reply.status for each in results] == ["2.0.0", "5.1.1", "4.2.2", "4.5.3"]
                assert [each.reply.code for each in results] == [250, 550, 452, 452]
                assert all(each.remote for each in results)
                assert not any(each.site_failed for each in results)
                assert server.received[0].rcpt == ["RCPT TO:<one@x.example>"]

    run(scenario)


def test_dsn_parameters_go_where_dsn_is_offered_and_nowhere_else() -> None:
    recipients = (
        Recipient(Address("b", "x.example"), Notify.SUCCESS | Notify.DELAY, "rfc822;Bob+2BSmith@x.example"),
        Recipient(Address("c", "x.example"), Notify.NEVER),
        Recipient(Address("d", "x.example")),
    )

    async def scenario() -> None:
        async with FakeServer() as server, rig(at(server)) as box:
            done = await box.send(recipients=recipients, ret=Ret.HDRS, envid="QQ+2B314")
            assert all(each.relayed_dsn for each in done)
            assert server.received[0].mail.endswith(" RET=HDRS ENVID=QQ+2B314")
            assert server.received[0].rcpt == [
                "RCPT TO:<b@x.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Bob+2BSmith@x.example",
                "RCPT TO:<c@x.example> NOTIFY=NEVER",
                "RCPT TO:<d@x.example>",
            ]
        async with FakeServer(PLAIN) as server, rig(at(server)) as box:
            done = await box.send(recipients=recipients, ret=Ret.HDRS, envid="QQ+2B314")
            assert not any(each.relayed_dsn for each in done)
            assert server.received[0].mail == f"MAIL FROM:<a@example.com> SIZE={len(MESSAGE)}"
            assert server.received[0].rcpt[0] == "RCPT TO:<b@x.example>"

    run(scenario)


def test_the_null_sender_stays_null_and_a_bare_one_is_completed() -> None:
    async def scenario() -> None:
        async with FakeServer() as server, rig(at(server)) as box:
            await box.send(sender=Address(""))
            await box.send(sender=Address("root"))
            assert [each.mail.split(" SIZE")[0] for each in server.received] == [
                "MAIL FROM:<>",
                "MAIL FROM:<root@example.com>",
            ]

    run(scenario)


def test_one_connection_carries_many_messages() -> None:
    async def scenario() -> None:
        async with FakeServer() as server, rig(at(server)) as box:
            for _ in range(20):
                assert one(await box.send()).delivered
                assert repr(box.courier) == "<Courier <Pool 0 active, 1 idle>>"
            assert (server.connections, len(server.received)) == (1, 20)
            assert server.lines.count("RSET") == 0
        assert server.lines[-1] == "QUIT"

    run(scenario)


def test_after_a_refusal_the_connection_is_reset_and_used_again() -> None:
    answers = {"RCPT": [b"550 5.1.1 no\r\n"]}

    async def scenario() -> None:
        for keywords in (FULL, FULL[:-1], PLAIN):
            async with FakeServer(keywords, {"RCPT": list(answers["RCPT"])}) as server, rig(at(server)) as box:
                assert one(await box.send()).kind is PERMANENT
                assert one(await box.send()).delivered
                assert (server.connections, len(server.received)) == (1, 1)

    run(scenario)


def test_a_connection_is_not_reused_beyond_its_limits() -> None:
    async def scenario() -> None:
        async with FakeServer() as server, rig(at(server), smtp_connection_reuse_count_limit=2) as box:
            for _ in range(4):
                await box.send()
            assert server.connections == 2
        async with FakeServer() as server, rig(at(server), smtp_connection_reuse_time_limit=10.0) as box:
            for _ in range(3):
                await box.send()
                box.clock.advance(1.5)
            assert server.connections == 1
            box.clock.advance(10)
            await box.send()
            assert server.connections == 2
        async with FakeServer() as server, rig(at(server), smtp_connection_cache_time_limit=0.0) as box:
            await box.send()
            await box.send()
            assert server.connections == 2

    run(scenario)


def test_a_changed_configuration_ends_idle_connections() -> None:
    async def scenario() -> None:
        async with FakeServer() as server, rig(at(server)) as box:
            await box.send()
            settings = dataclasses.replace(box.configuration.settings, smtp_helo_name="new.example.com")
            box.courier.reload(dataclasses.replace(box.configuration, settings=settings))
            assert repr(box.courier) == "<Courier <Pool 0 active, 0 idle>>"
            await box.send()
            assert [line for line in server.lines if line.startswith("EHLO")] == [
                "EHLO gw.example.com",
                "EHLO new.example.com",
            ]

    run(scenario)


@pytest.mark.parametrize("end", [DROP, b"421 4.4.2 timeout exceeded\r\n"])
def test_an_idle_connection_that_the_server_closed_costs_nothing(end: bytes) -> None:
    async def scenario() -> None:
        # The server closes when the second message's first command comes: nothing was known before that.
        answers = {"MAIL": [b"250 ok\r\n", end]}
        async with FakeServer(FULL, answers) as server, rig(at(server)) as box:
            assert one(await box.send()).delivered
            assert one(await box.send()).delivered
            assert (server.connections, len(server.received)) == (2, 2)

    run(scenario)


def test_an_idle_connection_that_says_something_is_not_used() -> None:
    async def scenario() -> None:
        answers = {"LAST": [b"250 2.0.0 Ok\r\n421 4.3.2 going down\r\n"]}
        async with FakeServer(FULL, answers) as server, rig(at(server)) as box:
            assert one(await box.send()).delivered
            await asyncio.sleep(0.02)
            assert one(await box.send()).delivered
            assert server.connections == 2

    run(scenario)


# -- what the server cannot carry -------------------------------------------------------------------------------------

UTF8 = b"Subject: \xc3\xa4\r\n\r\nx\r\n"


@pytest.mark.parametrize(
    ("keywords", "envelope", "status"),
    [
        (("SIZE 10",), {}, "5.3.4"),
        (("SIZE 0",), {}, ""),
        (("SIZE",), {}, ""),
        (("SIZE x",), {}, ""),
        ((), {"body": Body.EIGHT_BIT}, ""),
        ((), {"eight_bit": True}, "5.6.3"),
        (("8BITMIME",), {"eight_bit": True}, ""),
        (("8BITMIME",), {"content": UTF8, "eight_bit": True, "smtputf8": True}, "5.6.7"),
        (("8BITMIME", "SMTPUTF8"), {"content": UTF8, "eight_bit": True, "smtputf8": True}, ""),
        (("8BITMIME",), {"content": b"Subject: x\r\n\r\n\xc3\xa4\r\n", "eight_bit": True, "smtputf8": True}, ""),
        ((), {"smtputf8": True}, ""),
        (("8BITMIME",), {"sender": Address("ä", "example.com"), "smtputf8": True}, "5.6.7"),
        (("8BITMIME", "SMTPUTF8"), {"sender": Address("ä", "example.com"), "smtputf8": True}, ""),
        (FULL, {"sender": Address("a> SIZE=1", "example.com")}, "5.1.7"),
        (FULL, {"sender": Address("a\r\nRSET", "example.com")}, "5.1.7"),
    ],
)
def test_what_a_server_cannot_carry_bounces_before_it_is_sent(
    keywords: Sequence[str], envelope: dict[str, Any], status: str
) -> None:
    async def scenario() -> None:
        async with FakeServer(keywords) as server, rig(at(server)) as box:
            outcome = one(await box.send(**envelope))
            if status:
                assert (outcome.kind, outcome.reply.status, outcome.remote) == (PERMANENT, status, False)
                assert not server.received
                assert not any(line.startswith("MAIL") for line in server.lines)
            else:
                assert outcome.delivered, outcome
                eight_bit = envelope.get("eight_bit", False)
                assert ("BODY=8BITMIME" in server.received[0].mail) == eight_bit

    run(scenario)


def test_only_the_recipient_that_cannot_be_said_is_refused() -> None:
    async def scenario() -> None:
        async with FakeServer(PLAIN) as server, rig(at(server)) as box:
            names = ("b@x.example", "ä@x.example", "b\r\nDATA@x.example", "<c>@x.example")
            results = await box.send(*names)
            assert [each.kind for each in results] == [None, PERMANENT, PERMANENT, PERMANENT]
            assert [each.reply.status for each in results[1:]] == ["5.6.7", "5.1.3", "5.1.3"]
            assert server.received[0].rcpt == ["RCPT TO:<b@x.example>"]

    run(scenario)


def test_overlooked_keywords_are_not_used() -> None:
    async def scenario() -> None:
        async with FakeServer() as server, rig(at(server), smtp_discard_ehlo_keywords=("chunking", "dsn")) as box:
            assert one(await box.send(ret=Ret.FULL)).delivered
            assert "DATA" in server.lines
            assert "RET" not in server.received[0].mail

    run(scenario)


# -- refusals, each at each place -------------------------------------------------------------------------------------


@pytest.mark.parametrize("keywords", [FULL, FULL[:-1], PLAIN])
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "END"])
@pytest.mark.parametrize(
    ("reply", "kind", "site_failed"),
    [
        (b"451 4.3.0 later\r\n", TEMPORARY, False),
        (b"550 5.7.1 never\r\n", PERMANENT, False),
        (b"530 5.7.0 log in first\r\n", ROUTE, True),
        (b"535 5.7.8 who\r\n", ROUTE, True),
        (b"538 5.7.11 encrypt\r\n", ROUTE, True),
        (b"421 4.3.2 closing\r\n", TEMPORARY, False),
        (b"lorem ipsum\r\n", ROUTE, True),
        (b"250-one\r\n550 two\r\n", ROUTE, True),
        (b"334 \r\n", ROUTE, True),
    ],
)
def test_a_refusal_means_what_it_says(
    keywords: Sequence[str], verb: str, reply: bytes, kind: Kind, site_failed: bool
) -> None:
    async def scenario() -> None:
        place = verb if verb != "END" else "LAST" if "CHUNKING" in keywords else "."
        async with FakeServer(keywords, {place: reply}) as server, rig(at(server)) as box:
            outcome = one(await box.send())
            assert (outcome.kind, outcome.site_failed) == (kind, site_failed), outcome
        async with FakeServer(keywords, {place: reply}) as server, rig(at(server)) as box:
            outcome = one(await box.send(configured=False))
            assert (outcome.kind, outcome.site_failed) == (kind if kind is not ROUTE else TEMPORARY, site_failed)

    run(scenario)


@pytest.mark.parametrize(
    ("reply", "kind"), [(b"451 4.3.0 x\r\n", TEMPORARY), (b"554 5.6.0 x\r\n", PERMANENT), (b"250 ok\r\n", ROUTE)]
)
def test_data_refused(reply: bytes, kind: Kind) -> None:
    async def scenario() -> None:
        for keywords in (FULL[:-1], PLAIN):
            async with FakeServer(keywords, {"DATA": reply}) as server, rig(at(server)) as box:
                outcome = one(await box.send())
                assert outcome.kind is kind
                assert not server.received

    run(scenario)


def test_a_chunk_refused_in_the_middle() -> None:
    content = b"Subject: x\r\n\r\n" + b"0123456789" * 30_000 + b"\r\n"

    async def scenario() -> None:
        for keywords in (FULL, ("CHUNKING",)):
            answers = {"CHUNK": [b"250 ok\r\n", b"452 4.3.1 full\r\n", b"503 5.5.1 no\r\n", b"503 5.5.1 no\r\n"]}
            async with FakeServer(keywords, answers) as server, rig(at(server)) as box:
                outcome = one(await box.send(content=content))
                assert (outcome.kind, outcome.reply.status) == (TEMPORARY, "4.3.1")
                assert one(await box.send()).delivered
                # On a busy machine all chunks may be on their way before the refusal is heard.
                assert "RSET" in server.lines or any(line.endswith(" LAST") for line in server.lines[:-3])
                assert server.connections == 1

    run(scenario)


def test_go_ahead_without_recipients_gets_a_lone_dot() -> None:
    async def scenario() -> None:
        answers = {"RCPT": b"550 5.1.1 no\r\n", "DATA": b"354 go\r\n"}
        async with FakeServer(FULL[:-1], answers) as server, rig(at(server)) as box:
            results = await box.send("b@x.example", "c@x.example")
            assert [each.kind for each in results] == [PERMANENT, PERMANENT]
            assert [each.reply.status for each in results] == ["5.1.1", "5.1.1"]
            assert not any(each.content for each in server.received)
            server.answers = {}
            assert one(await box.send()).delivered  # back in step
            assert server.connections == 1

    run(scenario)


def test_mail_taken_although_every_recipient_was_refused_counts_as_refused() -> None:
    async def scenario() -> None:
        answers = {"RCPT": b"550 5.1.1 no\r\n", "LAST": b"250 2.0.0 took it\r\n"}
        async with FakeServer(FULL, answers) as server, rig(at(server)) as box:
            assert one(await box.send()).kind is PERMANENT

    run(scenario)


def test_a_refusal_in_the_middle_of_the_content_is_heard() -> None:
    content = b"Subject: x\r\n\r\n" + b"0123456789\r\n" * 400_000

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 x\r\n")
        await reader.readline()
        writer.write(b"250-x\r\n250 PIPELINING\r\n")
        await reader.readuntil(b"DATA\r\n")
        writer.write(b"250 ok\r\n250 ok\r\n354 go\r\n")
        await reader.read(65536)
        writer.write(b"552 5.3.4 that is enough\r\n")
        await writer.drain()
        await reader.read(-1)

    async def scenario() -> None:
        async with FakeServer(script=refuse) as server, rig(at(server)) as box:
            outcome = one(await box.send(content=content))
            assert (outcome.kind, outcome.reply.status) == (PERMANENT, "5.3.4")

    run(scenario)


# -- greetings and what comes before MAIL -----------------------------------------------------------------------------

GREETINGS: list[tuple[bytes, str]] = [
    (b"421 4.3.2 busy\r\n", "host fake.example[127.0.0.1] refused to talk to me: 421 4.3.2 busy"),
    (b"554 5.7.1 go away\r\n", "host fake.example[127.0.0.1] refused to talk to me: 554 5.7.1 go away"),
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", "protocol error"),
    (b"220-a\r\n221 b\r\n", "protocol error"),
    (b"x" * 10_000_000, "protocol error"),
    (b"220-" + b"x" * 1000 + b"\r\n", "timed out"),
    (b"220-x\r\n" * 1_000_000, "protocol error"),
    (b"\0\0\0\r\n", "protocol error"),
    (b"354 go\r\n", "refused to talk"),
    (DROP, "lost connection with fake.example[127.0.0.1] while receiving the initial server greeting"),
    (RESET, "lost connection"),
    (STALL, "timed out while receiving the initial server greeting"),
]


@pytest.mark.parametrize(("greeting", "text"), GREETINGS, ids=range(len(GREETINGS)))
def test_a_bad_greeting_is_the_servers_fault(greeting: bytes, text: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        patience = 0.3 if "timed out" in text else 20.0
        async with (
            FakeServer(FULL, {"GREETING": greeting}) as server,
            rig(at(server), smtp_helo_timeout=patience) as box,
        ):
            outcome = one(await box.send())
            assert (outcome.kind, outcome.site_failed) == (ROUTE, True)
            outcome = one(await box.send(configured=False))
            assert (outcome.kind, outcome.site_failed) == (TEMPORARY, True)

    run(scenario)
    assert text in caplog.text
    assert "status=deferred" in caplog.text


def test_another_server_is_tried_after_a_refused_greeting() -> None:
    async def scenario() -> None:
        for greeting in (b"421 4.3.2 busy\r\n", b"554 5.7.1 no\r\n"):
            async with FakeServer(FULL, {"GREETING": greeting}) as first, FakeServer() as second:
                async with rig(at(first, "mx1.example"), at(second, "mx2.example")) as box:
                    assert one(await box.send()).delivered
                async with rig(
                    at(first, "mx1.example"), at(second, "mx2.example"), smtp_skip_5xx_greeting=False
                ) as box:
                    outcome = one(await box.send(configured=False))
                    assert outcome.delivered == greeting.startswith(b"421")
                    assert outcome.delivered or outcome.kind is TEMPORARY  # a refused greeting never bounces

    run(scenario)


def test_helo_for_a_server_that_knows_no_ehlo() -> None:
    async def scenario() -> None:
        async with FakeServer(FULL, {"EHLO": b"502 5.5.1 what\r\n"}) as server, rig(at(server)) as box:
            assert one(await box.send()).delivered
            assert server.lines[:4] == [
                "EHLO gw.example.com",
                "HELO gw.example.com",
                "MAIL FROM:<a@example.com>",
                "RCPT TO:<b@example.net>",
            ]
        refused = {"EHLO": b"502 5.5.1 what\r\n", "HELO": b"550 5.7.1 no\r\n"}
        async with FakeServer(FULL, refused) as server, rig(at(server)) as box:
            assert one(await box.send()).kind is ROUTE
        async with FakeServer(FULL, {"EHLO": b"450 4.7.1 later\r\n"}) as server, rig(at(server)) as box:
            assert one(await box.send()).kind is ROUTE
            assert "HELO" not in " ".join(server.lines)

    run(scenario)


def test_a_server_with_our_own_name_is_not_sent_to() -> None:
    async def scenario() -> None:
        for answers in ({}, {"GREETING": b"220 other.example\r\n"}):
            async with FakeServer(FULL, answers, name="GW.example.com") as server, rig(at(server)) as box:
                outcome = one(await box.send(configured=False))
                assert (outcome.kind, outcome.reply.status) == (PERMANENT, "5.4.6")
                assert outcome.reply.text == "mail for example.net loops back to myself"
                outcome = one(await box.send())
                assert (outcome.kind, outcome.site_failed) == (ROUTE, True)
                assert not server.received

    run(scenario)


def test_bare_lf_replies_are_read() -> None:
    answers = {"GREETING": b"220 x\n", "EHLO": b"250-x\n250 SIZE\n", "MAIL": b"250 ok\n", "DATA": b"354\n"}

    async def scenario() -> None:
        async with FakeServer((), answers) as server, rig(at(server)) as box:
            assert one(await box.send()).delivered

    run(scenario)


def test_pipelining_that_is_a_lie_ends_with_the_time_limit() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 x\r\n")
        await reader.readline()
        writer.write(b"250-x\r\n250 PIPELINING\r\n")
        await reader.read(65536)  # only the first command is looked at
        writer.write(b"250 ok\r\n")
        await reader.read(-1)

    async def scenario() -> None:
        async with FakeServer(script=deaf) as server, rig(at(server), smtp_rcpt_timeout=0.1) as box:
            outcome = one(await box.send())
            assert (outcome.kind, outcome.reply.status) == (TEMPORARY, "4.4.2")
            assert "timed out while sending RCPT TO" in outcome.reply.text

    run(scenario)


@pytest.mark.parametrize(
    ("verb", "limit", "doing"),
    [
        ("GREETING", "smtp_helo_timeout", "receiving the initial server greeting"),
        ("EHLO", "smtp_helo_timeout", "performing the EHLO handshake"),
        ("MAIL", "smtp_mail_timeout", "sending MAIL FROM"),
        ("RCPT", "smtp_rcpt_timeout", "sending RCPT TO"),
        ("DATA", "smtp_data_init_timeout", "sending DATA command"),
        (".", "smtp_data_done_timeout", "sending end of data -- message may be sent more than once"),
    ],
)
def test_each_phase_has_its_time_limit(verb: str, limit: str, doing: str) -> None:
    async def scenario() -> None:
        limits: dict[str, Any] = {limit: 0.1 if verb != "EHLO" else 0.5}  # in which the greeting has to come, too
        for keywords in (FULL[:-1], PLAIN):
            async with FakeServer(keywords, {verb: STALL}) as server, rig(at(server), **limits) as box:
                outcome = one(await box.send())
                assert outcome.reply.text.endswith(f"timed out while {doing}")
                assert outcome.kind is (ROUTE if verb in {"GREETING", "EHLO"} else TEMPORARY)
                assert repr(box.courier) == "<Courier <Pool 0 active, 0 idle>>"

    run(scenario)


def test_content_that_is_not_taken_ends_with_the_time_limit() -> None:
    content = b"Subject: x\r\n\r\n" + b"0123456789\r\n" * 1_000_000

    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 x\r\n")
        await reader.readline()
        writer.write(b"250-x\r\n250 PIPELINING\r\n")
        await reader.readuntil(b"DATA\r\n")
        writer.write(b"250 ok\r\n250 ok\r\n354 go\r\n")
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with FakeServer(script=stuck) as server, rig(at(server), smtp_data_xfer_timeout=0.2) as box:
            outcome = one(await box.send(content=content))
            assert outcome.reply.text.endswith("timed out while sending message body")

    run(scenario)


@pytest.mark.parametrize("verb", ["LAST", "."])
@pytest.mark.parametrize("end", [DROP, RESET])
def test_lost_behind_the_final_dot_no_other_server_gets_a_copy(verb: str, end: bytes) -> None:
    async def scenario() -> None:
        keywords = FULL if verb == "LAST" else FULL[:-1]
        async with FakeServer(keywords, {verb: end}) as first, FakeServer() as second:
            async with rig(at(first, "mx1.example"), at(second, "mx2.example")) as box:
                outcome = one(await box.send())
                assert (outcome.kind, outcome.site_failed) == (TEMPORARY, False)
                assert "message may be sent more than once" in outcome.reply.text
                assert second.connections == 0

    run(scenario)


def test_lost_before_that_the_next_server_gets_it() -> None:
    async def scenario() -> None:
        for verb in ("MAIL", "RCPT", "DATA"):
            async with FakeServer(FULL[:-1], {verb: DROP}) as first, FakeServer() as second:
                async with rig(at(first, "mx1.example"), at(second, "mx2.example")) as box:
                    assert one(await box.send()).delivered
                    assert len(second.received) == 1

    run(scenario)


# -- several servers, several hops ------------------------------------------------------------------------------------


def test_a_recipient_put_off_by_one_server_is_offered_to_the_next() -> None:
    async def scenario() -> None:
        answers = {"RCPT": lambda line: b"450 4.2.0 grey\r\n" if "two" in line else b"250 ok\r\n"}
        async with FakeServer(FULL, answers) as first, FakeServer() as second:
            async with rig(at(first, "mx1.example"), at(second, "mx2.example")) as box:
                results = await box.send("one@x.example", "two@x.example")
                assert [each.relay.split("[")[0] for each in results] == ["mx1.example", "mx2.example"]
                assert all(each.delivered for each in results)
        async with FakeServer(FULL, answers) as first, FakeServer(FULL, answers) as second, FakeServer() as third:
            hosts = at(first, "mx1.example"), at(second, "mx2.example"), at(third, "mx3.example")
            async with rig(*hosts) as box:
                results = await box.send("one@x.example", "two@x.example")
                assert [each.kind for each in results] == [None, TEMPORARY]
                assert third.connections == 0  # smtp_mx_session_limit
            async with rig(*hosts, smtp_mx_session_limit=0) as box:
                assert all(each.delivered for each in await box.send("one@x.example", "two@x.example"))

    run(scenario)


def test_a_recipients_own_answer_outweighs_the_next_servers_silence() -> None:
    async def scenario() -> None:
        async with FakeServer(FULL, {"RCPT": b"450 4.2.0 grey\r\n"}) as server:
            async with rig(at(server, "mx1.example"), at(closed_port(), "mx2.example")) as box:
                outcome = one(await box.send())
                assert (outcome.kind, outcome.reply.status, outcome.site_failed) == (TEMPORARY, "4.2.0", False)

    run(scenario)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_connection_refused(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    port = closed_port()

    async def scenario() -> None:
        async with rig(at(port)) as box:
            outcome = one(await box.send())
            assert (outcome.kind, outcome.site_failed, outcome.relay) == (ROUTE, True, "none")
            outcome = one(await box.send(configured=False))
            assert (outcome.kind, outcome.site_failed) == (TEMPORARY, True)

    run(scenario)
    assert f"status=deferred (connect to fake.example[127.0.0.1]:{port}: Connection refused)" in caplog.text


def test_no_route_anywhere_is_the_links_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def dead(loop: asyncio.AbstractEventLoop, address: tuple[str, int]) -> None:
        raise OSError(101 if address[0].endswith("1") else 113, "Network is unreachable")

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "sock_connect", lambda sock, address: dead(loop, address))
        two = Host("mx.example", ((IP4, "192.0.2.1"), (IP4, "192.0.2.2")), 25)
        for configured in (True, False):
            async with rig(two) as box:
                outcome = one(await box.send(configured=configured))
                assert (outcome.kind, outcome.site_failed, outcome.reply.status) == (LINK, True, "4.4.1")

    run(scenario)


def test_the_next_hop_in_order_and_what_is_said_when_none_works() -> None:
    nowhere = ResolveError(PERMANENT, Reply(550, "5.1.2", "Host not found"))
    silent = ResolveError(LINK, Reply(450, "4.4.3", "resolver does not answer"))

    async def scenario() -> None:
        async with FakeServer() as server:
            dead = [at(closed_port())]
            hops: dict[str, Any] = {"a": dead, "b": [at(server)], "none": nowhere, "silent": silent}
            async with rig(hops=hops) as box:
                assert one(await box.send(hops=("a", "b"))).delivered
                assert one(await box.send(hops=("none", "b"), configured=False)).delivered
                assert box.resolver.asked == [("a", True), ("b", True), ("none", False)]  # b's connection was kept
                for hop, configured, kind in [
                    ("none", True, ROUTE),
                    ("none", False, PERMANENT),
                    ("silent", True, LINK),
                    ("silent", False, LINK),
                ]:
                    assert one(await box.send(hops=(hop,), configured=configured)).kind is kind
                assert one(await box.send(hops=("a", "none"), configured=False)).kind is TEMPORARY
                assert one(await box.send(hops=("silent", "a"), configured=False)).kind is TEMPORARY
                assert one(await box.send(hops=("[bad",))).kind is ROUTE

    run(scenario)


def test_addresses_are_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that swallows everything costs 250 ms, not the whole time limit."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        real = loop.sock_connect
        tried: list[str] = []

        async def connect(sock: socket.socket, address: Any) -> None:
            tried.append(address[0])
            if address[0] == "::2":
                await asyncio.sleep(3600)
            await real(sock, address)

        monkeypatch.setattr(loop, "sock_connect", connect)
        async with FakeServer() as server:
            host = Host("mx.example", ((IP6, "::2"), (IP6, "::3"), (IP4, "127.0.0.1")), server.port)
            async with rig(host, smtp_connect_timeout=3600.0) as box, asyncio.timeout(20):
                outcome = one(await box.send())
                assert outcome.delivered
                assert outcome.relay.startswith("mx.example[127.0.0.1]")
                assert tried == ["::2", "127.0.0.1"]

    run(scenario)


def test_an_ipv6_address_is_preferred_as_told() -> None:
    with socket.socket(IP6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 on this machine")

    async def scenario() -> None:
        async with FakeServer() as four, FakeServer(host="::1", port=four.port):
            host = Host("mx.example", ((IP4, "127.0.0.1"), (IP6, "::1")), four.port)
            for preference, address in (("any", "127.0.0.1"), ("ipv4", "127.0.0.1"), ("ipv6", "::1")):
                async with rig(host, smtp_address_preference=preference) as box:
                    assert one(await box.send()).relay == f"mx.example[{address}]:{four.port}"

    run(scenario)


def test_no_more_addresses_than_the_limit() -> None:
    async def scenario() -> None:
        dead = closed_port()
        hosts = [Host(f"mx{n}.example", ((IP4, "127.0.0.1"), (IP4, "127.0.0.2")), dead) for n in range(3)]
        async with FakeServer() as server, rig(*hosts, at(server)) as box:
            assert one(await box.send()).kind is ROUTE
            assert server.connections == 0
        async with FakeServer() as server, rig(*hosts, at(server), smtp_mx_address_limit=0) as box:
            assert one(await box.send()).delivered

    run(scenario)


# -- trouble of our own -----------------------------------------------------------------------------------------------


def test_a_damaged_message_is_set_aside_and_never_ends_with_a_dot() -> None:
    async def scenario() -> None:
        for keywords in (FULL, FULL[:-1]):
            async with FakeServer(keywords) as server, rig(at(server)) as box:
                delivery = await box.mail()
                whole = box.spool.body

                def torn(id: int, whole: Callable[[int], Iterator[bytes]] = whole) -> Iterator[bytes]:
                    yield from whole(id)
                    raise SpoolDamaged(id, "checksum")

                box.spool.body = torn  # type: ignore[method-assign]
                outcome = one(await box.courier.deliver(delivery))
                assert (outcome.kind, outcome.remote) == (LOCAL, False)
                await asyncio.sleep(0.01)
                assert not server.received
                assert [each.id for each in box.spool.damaged()] == [delivery.envelope.id]

    run(scenario)


def test_a_message_removed_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with FakeServer() as server, rig(at(server)) as box:
            delivery = await box.mail()
            gone = dataclasses.replace(delivery, envelope=dataclasses.replace(delivery.envelope, id=4711))
            assert one(await box.courier.deliver(gone)).kind is LOCAL

            def missing(id: int) -> Iterator[bytes]:
                raise KeyError(id)

            box.spool.body = missing  # type: ignore[method-assign]
            assert one(await box.courier.deliver(delivery)).kind is LOCAL

    run(scenario)
    assert "Traceback" not in caplog.text


def test_what_nobody_expected_is_local_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with FakeServer() as server, rig(at(server)) as box:
            assert one(await box.send(hops=("unknown-to-the-resolver",))).kind is LOCAL
            assert one(await box.send(hops=())).kind is LOCAL

    run(scenario)
    assert "KeyError" in caplog.text


def test_a_delivery_that_is_given_up_leaves_nothing_open() -> None:
    async def scenario() -> None:
        for verb in ("GREETING", "MAIL", "LAST"):
            async with FakeServer(FULL, {verb: STALL}) as server, rig(at(server)) as box:
                task = asyncio.ensure_future(box.send())
                while not (server.connections if verb == "GREETING" else server.lines[1:]):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert repr(box.courier) == "<Courier <Pool 0 active, 0 idle>>"

    run(scenario)


def test_a_reload_reaches_the_logins() -> None:
    async def scenario() -> None:
        settings: dict[str, Any] = {"smtp_sasl_auth_enable": True, "smtp_sasl_security_options": ("noanonymous",)}
        server = FakeServer((*FULL, "AUTH PLAIN"), users={"kdent": "top secret"})
        async with server, rig(at(server), login=ME, **settings) as box:
            box.courier.reload(box.configuration)
            assert one(await box.send()).delivered
            assert not any(line.startswith("AUTH") for line in server.lines)

    run(scenario)


def test_soft_bounce_makes_everything_temporary() -> None:
    async def scenario() -> None:
        async with FakeServer(FULL, {"RCPT": b"550 5.1.1 no\r\n"}) as server, rig(at(server), soft_bounce=True) as box:
            outcome = one(await box.send())
            assert (outcome.kind, str(outcome.reply)) == (TEMPORARY, "450 4.1.1 no")

    run(scenario)


def test_the_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        answers = {"RCPT": lambda line: b"550 5.1.1 no\r\n" if "two" in line else b"250 ok\r\n"}
        async with FakeServer(FULL, answers) as server, rig(at(server)) as box:
            delivery = await box.mail("one", "two@x.example", received_at=box.clock.wall() - 3.25)
            first, second = delivery.targets
            first = dataclasses.replace(first, address=Address("one", "example.com"))
            await box.courier.deliver(dataclasses.replace(delivery, targets=(first, second)))
            relay = f"fake.example[127.0.0.1]:{server.port}"
            name = delivery.envelope.queue_id
            assert [record.getMessage() for record in caplog.records if "status=" in record.getMessage()] == [
                f"{name}: to=<one@example.com>, orig_to=<one>, relay={relay}, delay=3.2, delays=3.2/0/0/0, dsn=2.0.0, "
                "status=sent (250 2.0.0 Ok: queued as 1)",
                f"{name}: to=<two@x.example>, relay={relay}, delay=3.2, delays=3.2/0/0/0, dsn=5.1.1, status=bounced "
                "(host fake.example[127.0.0.1] said: 550 5.1.1 no (in reply to RCPT TO command))",
            ]
            await box.send()
            assert "conn_use=2" in caplog.records[-1].getMessage()

    run(scenario)


def test_a_hundred_deliveries_at_once() -> None:
    async def scenario() -> None:
        async with FakeServer() as server, rig(at(server)) as box:
            deliveries = [await box.mail() for _ in range(100)]
            results = await asyncio.gather(*(box.courier.deliver(each) for each in deliveries))
            assert all(one(each).delivered for each in results)
            assert len(server.received) == 100
            assert repr(box.courier) == "<Courier <Pool 0 active, 20 idle>>"

    run(scenario)


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize(
    ("level", "names", "sent"),
    [
        ("none", ("other.example",), "clear"),
        ("may", ("other.example",), "tls"),
        ("encrypt", ("other.example",), "tls"),
        ("verify", ("fake.example",), "tls"),
        ("verify", ("other.example",), ""),
        ("secure", ("fake.example",), ""),
        ("secure", ("hop",), "tls"),
        ("secure", ("mx.hop",), "tls"),
        ("secure", ("mx.hop.example",), ""),
    ],
)
def test_each_level_asks_for_what_it_says(level: str, names: tuple[str, ...], sent: str, authority: Authority) -> None:
    async def scenario() -> None:
        settings: dict[str, Any] = {"smtp_tls_security_level": level, "smtp_tls_CAfile": str(authority.file)}
        async with FakeServer(tls=authority.server(*names)) as server, rig(at(server), **settings) as box:
            outcome = one(await box.send())
            if sent:
                assert outcome.delivered, outcome
                assert bool(server.sessions) == (sent == "tls")
                return
            assert (outcome.kind, outcome.site_failed, outcome.reply.status) == (ROUTE, True, "4.7.5")
            assert not server.received
            outcome = one(await box.send(configured=False))
            assert (outcome.kind, outcome.site_failed) == (TEMPORARY, True)

    run(scenario)


@pytest.mark.parametrize(
    ("level", "words", "name", "delivered"),
    [
        ("verify", ("nexthop",), "hop", True),
        ("verify", ("nexthop",), "fake.example", False),
        ("verify", ("dot-nexthop",), "mx.hop", True),
        ("verify", ("dot-nexthop",), "hop", False),
        ("secure", ("hostname",), "fake.example", True),
        ("secure", ("nexthop",), "mx.hop", False),
    ],
)
def test_names_that_a_certificate_may_bear_are_settings(
    level: str, words: tuple[str, ...], name: str, delivered: bool, authority: Authority
) -> None:
    async def scenario() -> None:
        settings: dict[str, Any] = {
            "smtp_tls_security_level": level,
            "smtp_tls_CAfile": str(authority.file),
            f"smtp_tls_{level}_cert_match": words,
        }
        async with FakeServer(tls=authority.server(name)) as server, rig(at(server), **settings) as box:
            assert one(await box.send()).delivered is delivered

    run(scenario)


def test_roots_may_stand_in_a_directory(authority: Authority, tmp_path: Path) -> None:
    """As OpenSSL has them: under the hash of the subject."""
    told = ["openssl", "x509", "-noout", "-subject_hash", "-in", str(authority.file)]
    subject = subprocess.run(told, check=True, capture_output=True, text=True).stdout.strip()
    settings: dict[str, Any] = {"smtp_tls_security_level": "verify", "smtp_tls_CApath": str(tmp_path)}

    async def scenario() -> None:
        async with FakeServer(tls=authority.server("fake.example")) as server:
            async with rig(at(server), **settings) as box:
                assert not one(await box.send()).delivered
            (tmp_path / f"{subject}.0").write_bytes(authority.file.read_bytes())
            async with rig(at(server), **settings) as box:
                assert one(await box.send()).delivered

    run(scenario)


def test_a_stranger_and_an_expired_certificate(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "Stranger")

    async def scenario() -> None:
        settings: dict[str, Any] = {"smtp_tls_CAfile": str(authority.file)}
        for context in (stranger.server("fake.example"), authority.server("fake.example", expired=True)):
            async with FakeServer(tls=context) as server:
                for level in ("may", "encrypt"):
                    async with rig(at(server), smtp_tls_security_level=level, **settings) as box:
                        assert one(await box.send()).delivered
                async with rig(at(server), smtp_tls_security_level="verify", **settings) as box:
                    outcome = one(await box.send())
                    assert outcome.kind is ROUTE
                    assert "not trusted" in outcome.reply.text

    run(scenario)


def test_dates_are_not_judged_by_a_clock_that_cannot_know(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "Stranger")

    async def scenario() -> None:
        settings: dict[str, Any] = {"smtp_tls_CAfile": str(authority.file), "smtp_tls_security_level": "verify"}
        async with FakeServer(tls=authority.server("fake.example", expired=True)) as server:
            async with rig(at(server), **settings) as box:
                box.clock.trust = False
                assert one(await box.send()).delivered
        async with FakeServer(tls=stranger.server("fake.example")) as server, rig(at(server), **settings) as box:
            box.clock.trust = False
            assert one(await box.send()).kind is ROUTE

    run(scenario)


def test_without_starttls_only_may_goes_on(authority: Authority) -> None:
    async def scenario() -> None:
        for answers, tls in (({}, None), ({"STARTTLS": b"454 4.7.0 not now\r\n"}, authority.server("fake.example"))):
            async with FakeServer(FULL, answers, tls=tls) as server:
                async with rig(at(server)) as box:
                    assert one(await box.send()).delivered
                async with rig(at(server), smtp_tls_security_level="encrypt") as box:
                    outcome = one(await box.send())
                    assert (outcome.kind, outcome.site_failed) == (ROUTE, True)

    run(scenario)


def test_a_failed_handshake_at_level_may_goes_on_in_clear_on_a_fresh_connection(authority: Authority) -> None:
    context = authority.server("fake.example")
    context.set_ciphers("AES128-SHA")
    context.maximum_version = context.minimum_version = ssl.TLSVersion.TLSv1_2

    async def scenario() -> None:
        async with FakeServer(tls=context) as server:
            async with rig(at(server)) as box:
                assert one(await box.send()).delivered
                assert server.connections == 2
                assert repr(box.courier) == "<Courier <Pool 0 active, 1 idle>>"
            async with rig(at(server), smtp_tls_security_level="encrypt") as box:
                outcome = one(await box.send())
                assert outcome.kind is ROUTE
                assert "Cannot start TLS" in outcome.reply.text

    run(scenario)


def test_octets_injected_behind_starttls_are_not_believed(authority: Authority) -> None:
    async def scenario() -> None:
        answers = {"STARTTLS": b"220 go\r\n250-fake.example\r\n250 AUTH PLAIN\r\n"}
        async with FakeServer(FULL, answers, tls=authority.server("fake.example")) as server, rig(at(server)) as box:
            outcome = one(await box.send())
            assert outcome.kind is ROUTE
            assert "protocol error" in outcome.reply.text
            assert not server.sessions

    run(scenario)


def test_what_was_said_in_clear_is_forgotten(authority: Authority) -> None:
    async def scenario() -> None:
        def ehlo(line: str) -> bytes:
            said.append(line)
            return b"250-x\r\n250-SIZE 10\r\n250 STARTTLS\r\n" if len(said) == 1 else b"250 x\r\n"

        said: list[str] = []
        async with FakeServer(FULL, {"EHLO": ehlo}, tls=authority.server("fake.example")) as server:
            async with rig(at(server)) as box:
                assert one(await box.send()).delivered  # SIZE 10 is no more
                assert server.received[0].mail == "MAIL FROM:<a@example.com>"

    run(scenario)


def test_tls_from_the_first_byte(authority: Authority) -> None:
    async def scenario() -> None:
        settings: dict[str, Any] = {
            "smtp_tls_security_level": "verify",
            "smtp_tls_wrappermode": True,
            "smtp_tls_CAfile": str(authority.file),
        }
        context = authority.server("fake.example", "127.0.0.1")
        async with FakeServer(tls=context, implicit=True) as server:
            async with rig(at(server), **settings) as box:
                assert one(await box.send()).delivered
                assert "STARTTLS" not in server.lines
            async with rig(at(server, "127.0.0.1"), **settings) as box:
                assert one(await box.send()).delivered
        async with FakeServer() as server, rig(at(server), **settings) as box:  # no TLS there
            assert one(await box.send()).kind is ROUTE

    run(scenario)


def test_the_next_connection_resumes_the_tls_session(authority: Authority) -> None:
    async def scenario() -> None:
        settings: dict[str, Any] = {
            "smtp_tls_security_level": "verify",
            "smtp_tls_CAfile": str(authority.file),
            "smtp_connection_cache_time_limit": 0.0,
        }
        async with FakeServer(tls=authority.server("fake.example")) as server, rig(at(server), **settings) as box:
            for _ in range(3):
                assert one(await box.send()).delivered
                while box.courier._connections._farewells:
                    await asyncio.wait(box.courier._connections._farewells)
            assert server.sessions == ["full", "resumed", "resumed"]

    run(scenario)


def test_roots_that_cannot_be_read_are_the_routes_fault(tmp_path: Path, authority: Authority) -> None:
    async def scenario() -> None:
        settings: dict[str, Any] = {
            "smtp_tls_security_level": "verify",
            "smtp_tls_CAfile": str(tmp_path / "missing.pem"),
        }
        async with FakeServer(tls=authority.server("fake.example")) as server, rig(at(server), **settings) as box:
            outcome = one(await box.send())
            assert outcome.kind is ROUTE
            assert "not configured well" in outcome.reply.text

    run(scenario)


# -- logging in -------------------------------------------------------------------------------------------------------

ME = Login("kdent", "top secret")


@pytest.mark.parametrize("mechanisms", ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2 LOGIN", "CRAM-MD5 PLAIN"])
@pytest.mark.parametrize("level", ["may", "verify"])
def test_logging_in_under_tls(
    mechanisms: str, level: str, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def scenario() -> None:
        settings: dict[str, Any] = {
            "smtp_tls_security_level": level,
            "smtp_tls_CAfile": str(authority.file),
            "smtp_sasl_auth_enable": True,
            "smtp_sasl_tls_verified_security_options": ("noanonymous",),
        }
        context = authority.server("fake.example")
        server = FakeServer((*FULL, f"AUTH {mechanisms}"), tls=context, users={"kdent": "top secret"})
        async with server, rig(at(server), login=ME, **settings) as box:
            assert one(await box.send()).delivered
            known = [word for word in mechanisms.split() if word != "XOAUTH2"]
            assert [line.split()[1] for line in server.lines if line.startswith("AUTH")] == known[:1]

    run(scenario)
    assert "secret" not in caplog.text


def test_no_password_in_clear() -> None:
    async def scenario() -> None:
        settings: dict[str, Any] = {"smtp_sasl_auth_enable": True}
        keywords = (*FULL, "AUTH PLAIN LOGIN", "AUTH=PLAIN LOGIN")
        async with FakeServer(keywords) as server, rig(at(server), login=ME, **settings) as box:
            outcome = one(await box.send())
            assert (outcome.kind, outcome.reply.status) == (ROUTE, "4.7.0")
            assert not any(line.startswith("AUTH") for line in server.lines)
        allowed: dict[str, Any] = {"smtp_sasl_security_options": ("noanonymous",)}
        server = FakeServer((*FULL, "AUTH=LOGIN PLAIN"), users={"kdent": "top secret"})
        async with server, rig(at(server), login=ME, **settings, **allowed) as box:
            assert one(await box.send()).delivered
        server = FakeServer((*FULL, "AUTH PLAIN CRAM-MD5"), users={"kdent": "top secret"})
        async with server, rig(at(server), login=ME, **settings) as box:
            assert one(await box.send()).delivered

    run(scenario)


@pytest.mark.parametrize("reply", [b"535 5.7.8 no\r\n", b"454 4.7.0 later\r\n", b"550 5.7.1 no\r\n", b"504 x\r\n"])
def test_a_refused_login_is_the_routes_failure(reply: bytes) -> None:
    async def scenario() -> None:
        settings: dict[str, Any] = {"smtp_sasl_auth_enable": True, "smtp_sasl_security_options": ("noanonymous",)}
        keywords = (*FULL, "AUTH PLAIN LOGIN")
        async with FakeServer(keywords, {"AUTH": reply}) as server, rig(at(server), login=ME, **settings) as box:
            outcome = one(await box.send())
            assert (outcome.kind, outcome.site_failed, outcome.remote) == (ROUTE, True, True)
            tries = [line for line in server.lines if line.startswith("AUTH")]
            assert len(tries) == (2 if reply.startswith(b"504") else 1)
            assert not server.received

    run(scenario)


def test_a_server_that_does_not_offer_auth_bounces_nothing_for_want_of_it() -> None:
    async def scenario() -> None:
        settings: dict[str, Any] = {"smtp_sasl_auth_enable": True}
        async with FakeServer() as server, rig(at(server), login=ME, **settings) as box:
            assert one(await box.send()).delivered
        answers = {"RCPT": b"554 5.7.1 Relay access denied\r\n"}
        async with FakeServer(FULL, answers) as server, rig(at(server), login=ME, **settings) as box:
            assert one(await box.send()).kind is ROUTE

    run(scenario)
