"""What aiosmtpd's own class does wrong, and that nothing of it came with the plumbing: each test tries both.

When a release of aiosmtpd mends one of these, its half of the test fails and can go; ours must stay.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import socket
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult

from edgemail.envelope import Address, Envelope, Route
from edgemail.relay.receive.auth import set_password
from edgemail.relay.receive.reception import Reception
from edgemail.relay.receive.session import Session
from edgemail.spool.intake import SpoolIntake
from edgemail.spool.verbs import Change
from tests.receiving import HOST, Box, Wire, listener, serving, settings
from tests.servers import Authority

QUEUED = "250 2.0.0 Ok: queued as "
MIB = 1024 * 1024


@dataclass
class Stock:
    """aiosmtpd as it comes, with the least handler that keeps what it is given."""

    options: dict[str, Any]
    handle: Callable[[], Awaitable[str]] | None = None
    stored: list[bytes] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    senders: list[str] = field(default_factory=list)
    protocols: list[SMTP] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    port: int = 0

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.handle is not None:
            return await self.handle()
        self.stored.append(bytes(envelope.content))
        self.recipients += envelope.rcpt_tos
        self.senders.append(envelope.mail_from)
        return "250 Ok: queued"

    def protocol(self) -> SMTP:
        self.protocols.append(SMTP(self, **{"hostname": HOST, **self.options}))
        return self.protocols[-1]

    async def wire(self, *, tls: ssl.SSLContext | None = None) -> Wire:
        self.wires.append(await Wire.open(self.port, tls=tls))
        return self.wires[-1]


@contextlib.asynccontextmanager
async def stock(handle: Callable[[], Awaitable[str]] | None = None, **options: Any) -> AsyncIterator[Stock]:
    """The stock class behind a listening socket."""
    rig = Stock(options, handle)
    server = await asyncio.get_running_loop().create_server(rig.protocol, "127.0.0.1", 0)
    rig.port = server.sockets[0].getsockname()[1]
    try:
        yield rig
    finally:
        server.close()
        for wire in rig.wires:
            await wire.close()
        tasks = [each._handler_coroutine for each in rig.protocols if each._handler_coroutine is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for protocol in rig.protocols:
            if protocol.transport is not None:
                protocol.transport.abort()
        await asyncio.sleep(0.01)


Rig = Stock | Box


def both(
    check: Callable[[Rig], Awaitable[Any]], *, options: dict[str, Any] | None = None, **changes: Any
) -> tuple[Any, Any]:
    """What `check` finds of the stock class and of ours."""

    async def scenario() -> tuple[Any, Any]:
        async with stock(**(options or {})) as theirs:
            first = await check(theirs)
        async with serving(**changes) as ours:
            return first, await check(ours)

    return asyncio.run(scenario())


async def hello(rig: Rig) -> tuple[Wire, str]:
    wire = await rig.wire()
    return wire, await wire.hello()


class Nothing:
    """An intake that forgets what it is given: what a message costs on its way to the spool."""

    id = 1
    size = 0

    def write(self, data: bytes) -> None:
        self.size += len(data)

    async def drain(self) -> None:
        await asyncio.sleep(0)

    async def commit(self, envelope: Envelope, also: Change | None = None) -> Envelope:
        return replace(envelope, size=self.size)

    async def abort(self) -> None:
        return None


def into_nothing(given: Reception) -> Reception:
    spool: Any = given.spool
    spool.intake = Nothing
    return given


# ---- what EHLO says


@pytest.mark.parametrize("keyword", ["PIPELINING", "CHUNKING", "DSN", "ENHANCEDSTATUSCODES", "VRFY"])
def test_extensions_that_are_not_offered(keyword: str) -> None:
    async def offered(rig: Rig) -> bool:
        return keyword in (await hello(rig))[1].replace(" ", "-").replace("\n", "-").split("-")

    assert both(offered) == (False, True)


def test_auth_is_offered_where_nobody_can_log_in(tmp_path: Path) -> None:
    async def offered(rig: Rig) -> bool:
        return "AUTH" in (await hello(rig))[1]

    assert both(offered, options={"auth_require_tls": False}) == (True, False)


def test_bdat() -> None:
    async def said(rig: Rig) -> str:
        wire, _ = await hello(rig)
        await wire.say("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>")
        wire.send(b"BDAT 3 LAST\r\na\r\n")
        return (await wire.reply())[:3]

    assert both(said) == ("500", "250")


def test_dsn_parameters_and_their_case() -> None:
    async def said(rig: Rig) -> tuple[str, str]:
        wire, _ = await hello(rig)
        mail = await wire.say("MAIL FROM:<a@b.example> RET=HDRS ENVID=MixedCase")
        await wire.say("RSET")
        await wire.say("MAIL FROM:<a@b.example>")
        return mail[:3], (await wire.say("RCPT TO:<c@d.example> NOTIFY=NEVER ORCPT=rfc822;Mixed@Case.example"))[:3]

    assert both(said) == (("555", "555"), ("250", "250"))


def test_replies_carry_enhanced_codes() -> None:
    async def said(rig: Rig) -> list[bool]:
        wire, _ = await hello(rig)
        commands = ("NOOP", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "RSET", "VRFY a@b.example", "BOGUS")
        return [(await wire.say(command))[5:6] == "." for command in commands]

    theirs, ours = both(said)
    assert not any(theirs)
    assert all(ours)


# ---- content


def test_bare_line_ends_and_nul_are_passed_on() -> None:
    content = b"one\ntwo\rthree\0\n.\nMAIL FROM:<smuggled@example.org>\n"

    async def sent(rig: Rig) -> tuple[str, bool]:
        wire, _ = await hello(rig)
        await wire.say("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
        wire.send(content + b"\r\n.\r\n")
        reply = await wire.reply()
        kept = rig.stored if isinstance(rig, Stock) else rig.stored()
        return reply[:10], any(content in each for each in kept)

    assert both(sent) == (("250 Ok: qu", True), ("550 5.6.11", False))


def test_a_command_ends_at_a_bare_lf() -> None:
    async def said(rig: Rig) -> str:
        wire, _ = await hello(rig)
        wire.send(b"NOOP\nNOOP\r\n")
        return (await wire.reply())[:3]

    assert both(said, options={}) == ("250", "500")


def peak(send: Callable[[Wire], Awaitable[Any]], rig: Any) -> int:
    """The most memory that was in use while a client sent, in bytes."""

    async def scenario() -> int:
        async with rig as server:
            wire, _ = await hello(server)
            await wire.say("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
            wire.writer.transport.set_write_buffer_limits(high=64 * 1024)
            tracemalloc.start()
            try:
                before = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
                await send(wire)
                return tracemalloc.get_traced_memory()[1] - before
            finally:
                tracemalloc.stop()

    return asyncio.run(scenario())


def test_a_long_message_costs_many_times_its_size() -> None:
    lines = (b"x" * 76 + b"\r\n") * 840  # 64 KiB

    async def send(wire: Wire) -> None:
        for _ in range(25 * 16):
            wire.send(lines)
            await wire.writer.drain()
        wire.send(b".\r\n")
        assert (await wire.reply()).startswith("250")

    async def short(wire: Wire) -> None:
        for _ in range(6 * 16):
            wire.send(lines)
            await wire.writer.drain()
        wire.send(b".\r\n")
        assert (await wire.reply()).startswith("250")

    assert peak(short, stock()) > 12 * MIB  # of 6 MiB
    assert peak(send, serving(reception=into_nothing, message_size_limit=0)) < 2 * MIB  # of 25 MiB


def test_an_endless_line_costs_its_length() -> None:
    piece = b"x" * 65536

    async def send(wire: Wire) -> None:
        for _ in range(25 * 16):
            wire.send(piece)
            await wire.writer.drain()

    assert peak(send, stock(data_size_limit=1000)) > 12 * MIB
    assert peak(send, serving(reception=into_nothing, message_size_limit=0)) < 2 * MIB


def test_a_flood_past_the_size_limit_is_read_for_ever() -> None:
    async def ends(rig: Rig) -> bool:
        wire, _ = await hello(rig)
        await wire.say("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                wire.send(b"x" * 10_000 + b"\r\n")
                await wire.writer.drain()
                await asyncio.sleep(0)
        try:
            async with asyncio.timeout(1.5):
                return (await wire.rest()).startswith(b"552 5.3.4")
        except TimeoutError:
            return False

    assert both(ends, options={"data_size_limit": 100_000}, message_size_limit=100_000) == (False, True)


# ---- exceptions, ends, patience


def test_an_exception_is_told_to_the_client_and_bounces_the_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = OSError(28, "No space left on device", "/data/spool/secret")

    async def fail(*_: Any) -> Any:
        raise failure

    async def said(rig: Rig) -> str:
        wire, _ = await hello(rig)
        return await wire.mail()

    async def scenario() -> tuple[str, str]:
        async with stock(handle=fail) as theirs:
            first = await said(theirs)
        monkeypatch.setattr(SpoolIntake, "commit", fail)
        async with serving() as ours:
            return first, await said(ours)

    theirs, ours = asyncio.run(scenario())
    assert theirs == "500 Error: (OSError) [Errno 28] No space left on device: '/data/spool/secret'"
    assert ours == "451 4.3.0 Error: queue file write error"


def test_the_end_of_input_cancels_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    fate: list[str] = []

    async def slow(*_: Any) -> Any:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            fate.append("cancelled")
            raise
        fate.append("done")
        return "250 Ok: queued"

    async def commit(self: SpoolIntake, envelope: Envelope, also: Change | None = None) -> Envelope:
        await slow()
        return await real(self, envelope, also)

    real = SpoolIntake.commit

    async def half_close(rig: Rig) -> bytes:
        wire, _ = await hello(rig)
        await wire.say("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
        wire.send(b"x\r\n.\r\n")
        await asyncio.sleep(0.01)
        wire.writer.write_eof()
        return await wire.rest()

    async def scenario() -> tuple[bytes, bytes]:
        async with stock(handle=slow) as theirs:
            first = await half_close(theirs)
        monkeypatch.setattr(SpoolIntake, "commit", commit)
        async with serving() as ours:
            return first, await half_close(ours)

    theirs, ours = asyncio.run(scenario())
    assert fate == ["cancelled", "done"]
    assert theirs == b""
    assert ours.startswith(QUEUED.encode())


def test_the_timeout_is_for_all_of_a_message() -> None:
    async def slowly(rig: Rig) -> str:
        wire, _ = await hello(rig)
        await wire.say("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
        with contextlib.suppress(ConnectionError):
            for _ in range(35):
                wire.send(b"a line\r\n")
                await asyncio.sleep(0.1)
            wire.send(b".\r\n")
            return (await wire.reply())[:3]
        return ""

    assert both(slowly, options={"timeout": 3.0}, smtpd_timeout=3.0) == ("", "250")


def test_a_timeout_hangs_up_without_a_word() -> None:
    async def last(rig: Rig) -> bytes:
        wire, _ = await hello(rig)
        return (await wire.rest())[:9]

    assert both(last, options={"timeout": 0.05}, smtpd_timeout=0.05) == (b"", b"421 4.4.2")


def test_shutting_down_drops_a_message_in_mid_air() -> None:
    async def scenario() -> tuple[bytes, str]:
        async with stock() as theirs:
            wire, _ = await hello(theirs)
            await wire.say("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
            wire.send(b"x\r\n")
            for task in asyncio.all_tasks():  # what Controller.stop does
                if task is not asyncio.current_task():
                    task.cancel()
            first = await wire.rest()
        async with serving() as ours:
            wire, _ = await hello(ours)
            await wire.say("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
            wire.send(b"x\r\n")
            drained = asyncio.ensure_future(ours.server.drain(10.0))
            await asyncio.sleep(0.01)
            wire.send(b".\r\n")
            second = await wire.reply()
            await wire.close()
            await drained
            return first, second

    first, second = asyncio.run(scenario())
    assert first == b""
    assert second.startswith(QUEUED)


# ---- limits


def test_recipients_without_end() -> None:
    async def taken(rig: Rig) -> int:
        wire, _ = await hello(rig)
        await wire.say("MAIL FROM:<a@b.example>")
        replies = [await wire.say(f"RCPT TO:<a{number}@b.example>") for number in range(30)]
        return sum(reply.startswith("250") for reply in replies)

    assert both(taken, smtpd_recipient_limit=20) == (30, 20)


@pytest.mark.parametrize("line", ["", "MAIL FROM:", "DATA", "RCPT TO:<a@b.example>"])
def test_errors_without_end(line: str) -> None:
    async def answered(rig: Rig) -> int:
        wire, _ = await hello(rig)
        wire.send(f"{line}\r\n".encode() * 100 + b"QUIT\r\n")
        return (await wire.rest()).count(b"\r\n") - 1

    theirs, ours = both(answered, smtpd_hard_error_limit=20)
    assert theirs == 100
    assert ours == 19


def test_sessions_of_one_client_without_end() -> None:
    async def greeted(rig: Rig) -> int:
        greetings = [await (await rig.wire()).reply() for _ in range(10)]
        return sum(each.startswith("220") for each in greetings)

    assert both(greeted, smtpd_client_connection_count_limit=5) == (10, 5)


def test_the_limits_of_lines_belong_to_everybody() -> None:
    """Each EHLO of anybody raises the limit of MAIL for all; each new connection puts it back for all."""
    long = "MAIL FROM:<" + "a" * 530 + "@b.example>"

    async def said(rig: Rig) -> list[str]:
        wire, _ = await hello(rig)
        found = [(await wire.say(long))[:3]]
        await wire.say("RSET")
        for _ in range(5):
            await wire.say("EHLO again")
        found.append((await wire.say(long))[:3])
        await wire.say("RSET")
        await (await rig.wire()).reply()
        found.append((await wire.say(long))[:3])
        return found

    theirs, ours = both(said)
    assert theirs == ["500", "250", "500"]
    assert ours == ["250"] * 3


# ---- addresses


@pytest.mark.parametrize(
    "address",
    [
        "<a b@c.example>",
        "<foo>SIZE=1",
        "<a\x01@c.example>",
        "<a@c.example>SIZE=1",
        "<(x)a@c.example>",
    ],
)
def test_addresses_that_are_none(address: str) -> None:
    async def said(rig: Rig) -> str:
        wire, _ = await hello(rig)
        return (await wire.say(f"MAIL FROM:{address}"))[:1]

    assert both(said) == ("2", "5")


def test_the_null_sender_is_a_string_of_two_brackets() -> None:
    async def scenario() -> tuple[str, Address]:
        async with stock() as theirs:
            wire, _ = await hello(theirs)
            await wire.say("MAIL FROM:<>", "RCPT TO:<c@d.example>", "DATA")
            wire.send(b"x\r\n.\r\n")
            await wire.reply()
        async with serving() as ours:
            wire, _ = await hello(ours)
            await wire.say("MAIL FROM:<>", "RCPT TO:<c@d.example>", "DATA")
            wire.send(b"x\r\n.\r\n")
            await wire.reply()
            return theirs.senders[0], ours.accepted[0].sender

    assert asyncio.run(scenario()) == ("<>", Address(""))


def test_the_null_sender_as_a_recipient() -> None:
    async def said(rig: Rig) -> str:
        wire, _ = await hello(rig)
        await wire.say("MAIL FROM:<a@b.example>")
        return (await wire.say("RCPT TO:<>"))[:1]

    assert both(said) == ("2", "5")


# ---- AUTH


def login(user: str, password: str) -> str:
    return base64.b64encode(f"\0{user}\0{password}".encode()).decode()


AUTH: dict[str, Any] = {
    "auth_require_tls": False,
    "authenticator": lambda *_: AuthResult(success=True, auth_data=b"anna"),
}


def users(folder: Path, password: str) -> dict[str, Any]:
    set_password(str(folder / "users"), "anna", password)
    return {
        "smtpd_sasl_auth_enable": True,
        "smtpd_sasl_password_file": str(folder / "users"),
        "smtpd_tls_auth_only": False,
    }


def test_mechanisms_in_lower_case(tmp_path: Path) -> None:
    async def said(rig: Rig) -> str:
        wire, _ = await hello(rig)
        return (await wire.say("AUTH plain " + login("anna", "secret")))[:3]

    assert both(said, options=AUTH, **users(tmp_path, "secret")) == ("504", "235")


def test_long_lines_of_auth(tmp_path: Path) -> None:
    password = "s" * 3000  # a token in place of a password; RFC 4954 4 allows 12288 octets

    async def said(rig: Rig) -> str:
        wire, _ = await hello(rig)
        await wire.say("AUTH PLAIN")
        return (await wire.say(login("anna", password)))[:3]

    assert both(said, options=AUTH, **users(tmp_path, password)) == ("500", "235")


def test_a_login_stops_the_loop(tmp_path: Path) -> None:
    def slow(*_: Any) -> AuthResult:
        turns.append("begun")
        stop = asyncio.get_running_loop().time() + 0.05
        while asyncio.get_running_loop().time() < stop:
            pass
        turns.append("over")
        return AuthResult(success=True, auth_data=b"anna")

    turns: list[str] = []

    async def tick() -> None:
        while True:
            turns.append("tick")
            await asyncio.sleep(0)

    async def said(rig: Rig) -> int:
        wire, _ = await hello(rig)
        ticking = asyncio.ensure_future(tick())
        turns.clear()
        await wire.say("AUTH PLAIN " + login("anna", "secret"))
        ticking.cancel()
        if "begun" in turns:
            return turns[turns.index("begun") : turns.index("over")].count("tick")
        return turns.count("tick")

    theirs, ours = both(said, options={**AUTH, "authenticator": slow}, **users(tmp_path, "secret"))
    assert theirs == 0
    assert ours > 10


# ---- TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("stock"))
    made.server(HOST, "127.0.0.1")
    return made


@contextlib.asynccontextmanager
async def both_with_tls(authority: Authority) -> AsyncIterator[tuple[Rig, Rig, ssl.SSLContext]]:
    path = str(authority.folder / f"{HOST}-False.pem")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    client = ssl.create_default_context(cafile=str(authority.file))
    chosen = settings(smtpd_tls_security_level="may", smtpd_tls_cert_file=path, smtpd_tls_key_file=path)
    async with stock(tls_context=server) as theirs, serving(listener(chosen)) as ours:
        yield theirs, ours, client


def test_starttls_inside_tls(authority: Authority) -> None:
    async def scenario() -> list[str]:
        found = []
        async with both_with_tls(authority) as (theirs, ours, client):
            for rig in (theirs, ours):
                wire, _ = await hello(rig)
                await wire.starttls(client)
                await wire.say("EHLO again")
                found.append((await wire.say("STARTTLS"))[:3])
                wire.writer.transport.abort()
        return found

    assert asyncio.run(scenario()) == ["220", "554"]


def test_much_clear_text_behind_starttls_leaves_the_handshake_hanging(authority: Authority) -> None:
    async def scenario() -> list[bool]:
        found = []
        async with both_with_tls(authority) as (theirs, ours, _client):
            for rig in (theirs, ours):
                wire, _ = await hello(rig)
                wire.send(b"STARTTLS\r\n" + b"NOOP\r\n" * 500)
                try:
                    async with asyncio.timeout(1.5):
                        await wire.rest()
                    found.append(False)
                except TimeoutError:
                    found.append(True)
                wire.writer.transport.abort()
        return found

    assert asyncio.run(scenario()) == [True, False]


# ---- what a connection costs


def test_the_name_of_the_box_is_asked_of_dns_for_each_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def getfqdn(name: str = "") -> str:
        asked.append(name)
        return HOST

    monkeypatch.setattr(socket, "getfqdn", getfqdn)

    async def connect(rig: Rig) -> int:
        asked.clear()
        for _ in range(3):
            await (await rig.wire()).reply()
        return len(asked)

    assert both(connect, options={"hostname": None}) == (3, 0)


def test_every_line_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.INFO, "mail")  # boot.log may have silenced it in an earlier test

    async def said(rig: Rig) -> bool:
        caplog.clear()
        wire, _ = await hello(rig)
        await wire.say("NOOP private words")
        return "private words" in caplog.text

    assert both(said) == (True, False)


def test_none_of_the_stock_verbs_is_left() -> None:
    async def scenario() -> None:
        async with serving() as box:
            await hello(box)
            (session,) = box.server._sessions
            assert isinstance(session, Session)
            assert session._smtp_methods == session._auth_methods == session._handle_hooks == {}
            assert session._timeout_handle is None

    asyncio.run(scenario())


def test_an_error_in_a_route_is_no_refusal() -> None:
    """The stock class would answer 500; a bug of ours must not bounce anybody's mail."""

    def route(address: Address) -> Route:
        raise KeyError(address)

    async def scenario() -> str:
        async with serving(reception=lambda given: replace(given, route=route)) as box:
            wire, _ = await hello(box)
            await wire.say("MAIL FROM:<a@b.example>")
            return await wire.say("RCPT TO:<c@d.example>")

    assert asyncio.run(scenario()).startswith("451 4.3.0 ")
