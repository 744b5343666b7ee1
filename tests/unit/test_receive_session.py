"""Sessions over real sockets: what is said, what is kept, what goes wrong, and when patience ends."""

from __future__ import annotations

import asyncio
import base64
import gc
import logging
import smtplib
import socket
import tracemalloc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgemail.envelope import Address, Body, Disposal, Envelope, Notify, Ret, Route
from edgemail.errors import SpoolError, SpoolFull
from edgemail.relay.receive import connection as connection_module
from edgemail.relay.receive import session as session_module
from edgemail.relay.receive.auth import set_password
from edgemail.relay.receive.session import Reception
from edgemail.relay.wire.dialog import Dialog
from edgemail.reply import Reply
from edgemail.spool.intake import SpoolIntake
from tests.receiving import HOST, Box, Wire, listener, serving, settings

MESSAGE = b"Message-ID: <1@example.org>\r\nSubject: x\r\n\r\nhello\r\n"
QUEUED = "250 2.0.0 Ok: queued as "


def test_a_message_by_a_real_client() -> None:
    async def scenario() -> None:
        async with serving() as box:
            port = box.port

            def send() -> None:
                with smtplib.SMTP("127.0.0.1", port, local_hostname="pr1.example.org") as client:
                    client.sendmail("me@example.org", ["you@example.net"], MESSAGE + b".dot\r\n..\r\n")

            await asyncio.to_thread(send)
            (body,) = box.stored()
            header, _, rest = body.partition(b"Message-ID:")
            assert b"Message-ID:" + rest == MESSAGE + b".dot\r\n..\r\n"
            lines = header.decode().split("\r\n")
            (envelope,) = box.accepted
            assert lines[0] == "Received: from pr1.example.org (unknown [127.0.0.1])"
            assert lines[1] == f"\tby {HOST} (edgemail) with ESMTP id {envelope.queue_id}"
            assert lines[2].startswith("\tfor <you@example.net>; ")
            assert envelope.message_id == "<1@example.org>"
            assert envelope.size == len(body)

    asyncio.run(scenario())


def test_the_envelope_is_what_was_said() -> None:
    async def scenario() -> None:
        async with serving() as box:
            wire = await box.wire()
            assert await wire.reply() == f"220 {HOST} ESMTP edgemail"
            await wire.say("EHLO [192.0.2.1]")
            await wire.say("MAIL FROM:<Me@Example.org> SIZE=100 BODY=8BITMIME RET=HDRS ENVID=QQ+2B1")
            await wire.say("RCPT TO:<One@Example.net> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Bob+2B1@Example.com")
            await wire.say("RCPT TO:<two@example.net> NOTIFY=NEVER")
            await wire.say("RCPT TO:<One@EXAMPLE.NET>")  # once more
            await wire.say("RCPT TO:<postmaster>")
            assert await wire.say("DATA") == "354 End data with <CR><LF>.<CR><LF>"
            wire.send(MESSAGE + b"caf\xe9 " + b"x" * 1000 + b"\r\n.\r\n")
            assert (await wire.reply()).startswith(QUEUED)
            (kept,) = box.accepted
            assert kept == next(iter(box.spool.envelopes()))
            assert kept.sender == Address("Me", "Example.org")
            first, second, third = kept.recipients
            assert (first.address, first.notify) == (Address("One", "Example.net"), Notify.SUCCESS | Notify.DELAY)
            assert first.orcpt == "rfc822;Bob+2B1@Example.com"
            assert (second.notify, third.address) == (Notify.NEVER, Address("postmaster"))
            assert (kept.body, kept.ret, kept.envid) == (Body.EIGHT_BIT, Ret.HDRS, "QQ+2B1")
            assert (kept.eight_bit, kept.long_lines, kept.smtputf8) == (True, True, False)
            origin = kept.origin
            assert (origin.client_name, origin.client_address, origin.helo) == ("unknown", "127.0.0.1", "[192.0.2.1]")
            assert (origin.protocol, origin.listener, origin.sasl_username) == ("ESMTP", "lan", "")

    asyncio.run(scenario())


def test_helo_smtputf8_null_sender_and_bdat() -> None:
    async def scenario() -> None:
        async with serving() as box:
            wire = await box.wire()
            await wire.reply()
            assert await wire.say("HELO old") == f"250 {HOST}"
            assert (await wire.mail()).startswith(QUEUED)
            assert box.accepted[0].origin.protocol == "SMTP"

        async with serving() as box:
            wire = await box.wire()
            await wire.hello()
            await wire.say("MAIL FROM:<> SMTPUTF8", "RCPT TO:<dömäin@example.net>")
            wire.send(b"BDAT 8\r\nX: y\r\n\r\nBDAT 7 LAST\r\nhello\r\n")
            assert await wire.reply() == "250 2.0.0 Ok: 8 bytes"
            assert (await wire.reply()).startswith(QUEUED)
            (kept,) = box.accepted
            assert not kept.sender
            assert kept.smtputf8
            assert kept.origin.protocol == "UTF8SMTP"
            assert box.stored()[0].endswith(b"\r\nX: y\r\n\r\nhello\r\n")

    asyncio.run(scenario())


def test_several_transactions_and_a_reset() -> None:
    async def scenario() -> None:
        async with serving() as box:
            wire = await box.wire()
            await wire.hello()
            assert (await wire.mail()).startswith(QUEUED)
            await wire.say("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.net>", "RSET")
            assert await wire.say("RCPT TO:<b@example.net>") == "503 5.5.1 Error: need MAIL command"
            assert (await wire.mail()).startswith(QUEUED)
            await wire.say("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.net>")
            wire.send(b"BDAT 3\r\nabcEHLO again\r\n")
            assert (await wire.reply()).startswith("250 2.0.0 Ok: 3")
            assert (await wire.reply()).startswith("250-")
            assert (await wire.mail()).startswith(QUEUED)
            assert len(box.accepted) == len(box.stored()) == 3
            assert box.spool._pool.intakes == set()

    asyncio.run(scenario())


def test_what_was_pipelined_is_answered_in_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    transport: Any = asyncio.selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
    real = transport.write

    def write(self: Any, data: bytes) -> None:
        if self.get_extra_info("sockname")[1] == served[0]:
            writes.append(data)
        real(self, data)

    served = [0]

    async def scenario() -> None:
        async with serving() as box:
            served[0] = box.port
            wire = await box.wire()
            await wire.hello()
            writes.clear()
            await wire.say("MAIL FROM:<a@example.org>", *["RCPT TO:<b@example.net>"] * 20, "DATA")
            assert len(writes) == 1
            assert writes[0].count(b"\r\n") == 22

    monkeypatch.setattr(transport, "write", write)
    asyncio.run(scenario())


# ---- refusals


def test_relay_denied_and_the_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "edgemail")

    async def scenario() -> None:
        async with serving(mynetworks=("192.0.2.0/24",)) as box:
            wire = await box.wire()
            await wire.hello()
            await wire.say("MAIL FROM:<me@example.org>")
            assert await wire.say("RCPT TO:<x@example.net>") == "554 5.7.1 <x@example.net>: Relay access denied"
            assert await wire.say("DATA") == "554 5.5.1 Error: no valid recipients"
            await wire.say("QUIT")

    asyncio.run(scenario())
    assert (
        "NOQUEUE: reject: RCPT from unknown[127.0.0.1]: 554 5.7.1 <x@example.net>: Relay access denied; "
        "from=<me@example.org> to=<x@example.net> proto=ESMTP helo=<client.example.org>" in caplog.messages
    )
    assert caplog.messages[0] == "connect from unknown[127.0.0.1]"
    assert caplog.messages[-1] == "disconnect from unknown[127.0.0.1] ehlo=1 mail=1 rcpt=1 unknown=1 quit=1 commands=5"


def test_soft_bounce() -> None:
    async def scenario() -> None:
        async with serving(mynetworks=("192.0.2.0/24",), soft_bounce=True) as box:
            wire = await box.wire()
            await wire.hello()
            await wire.say("MAIL FROM:<me@example.org>")
            assert await wire.say("RCPT TO:<x@example.net>") == "454 4.7.1 <x@example.net>: Relay access denied"
            assert await wire.say("BOGUS") == "400 4.5.2 Error: command not recognized"
            await wire.say("RCPT TO:<postmaster>", "DATA")
            wire.send(b"bare\nlf\r\n.\r\n")
            assert (await wire.reply()).startswith("450 4.6.11 ")

    asyncio.run(scenario())


def test_an_error_route_is_refused_at_rcpt() -> None:
    def route(address: Address) -> Route:
        if address.local == "kdent":
            return Route("error", disposal=Disposal.ERROR, text="no mail accepted for kdent", status="5.2.1")
        return Route("hold", disposal=Disposal.HOLD, text="waits")

    async def scenario() -> None:
        async with serving(reception=lambda given: replace(given, route=route)) as box:
            wire = await box.wire()
            await wire.hello()
            await wire.say("MAIL FROM:<me@example.org>")
            reply = await wire.say("RCPT TO:<kdent@ora.example>")
            assert reply == "550 5.2.1 <kdent@ora.example>: Recipient address rejected: no mail accepted for kdent"
            assert (await wire.say("RCPT TO:<other@ora.example>")).startswith("250")

    asyncio.run(scenario())


def test_the_guards_are_asked_at_mail() -> None:
    asked: list[int] = []

    def refusal(size: int) -> Reply | None:
        asked.append(size)
        return Reply(452, "4.3.1", "Insufficient system storage") if size > 1000 else None

    async def scenario() -> None:
        async with serving(reception=lambda given: replace(given, refusal=refusal)) as box:
            wire = await box.wire()
            await wire.hello()
            assert await wire.say("MAIL FROM:<a@b.example> SIZE=2000") == "452 4.3.1 Insufficient system storage"
            assert (await wire.say("MAIL FROM:<a@b.example>")).startswith("250")

    asyncio.run(scenario())
    assert asked == [2000, -1]


def test_the_limits_of_a_client() -> None:
    async def scenario() -> None:
        async with serving(smtpd_client_message_rate_limit=1, smtpd_client_recipient_rate_limit=2) as box:
            wire = await box.wire()
            await wire.hello()
            await wire.say("MAIL FROM:<a@b.example>")
            for expected in ("250", "250", "450 4.7.1 Error: too many recipients from unknown[127.0.0.1]"):
                assert (await wire.say("RCPT TO:<a@b.example>")).startswith(expected)
            await wire.say("RSET")
            reply = await wire.say("MAIL FROM:<a@b.example>")
            assert reply == "450 4.7.1 Error: too much mail from unknown[127.0.0.1]"

    asyncio.run(scenario())


def test_the_recipient_limit_keeps_the_first() -> None:
    async def scenario() -> None:
        async with serving(smtpd_recipient_limit=3) as box:
            wire = await box.wire()
            await wire.hello()
            await wire.say("MAIL FROM:<a@b.example>", *[f"RCPT TO:<a{number}@b.example>" for number in range(3)])
            assert await wire.say("RCPT TO:<late@b.example>") == "452 4.5.3 Error: too many recipients"
            await wire.say("DATA")
            wire.send(b"x\r\n.\r\n")
            assert (await wire.reply()).startswith(QUEUED)
            assert len(box.accepted[0].recipients) == 3

    asyncio.run(scenario())


def test_too_many_hops() -> None:
    async def scenario() -> None:
        async with serving(hopcount_limit=5) as box:
            wire = await box.wire()
            await wire.hello()
            assert (await wire.mail(b"Received: x\r\n" * 4 + b"\r\n")).startswith(QUEUED)
            assert await wire.mail(b"Received: x\r\n" * 5 + b"\r\nbody\r\n") == "554 5.4.0 Error: too many hops"
            assert await wire.mail(b"Received: x\r\n" * 5) == "554 5.4.0 Error: too many hops"
            assert (await wire.mail(b"\r\n" + b"Received: x\r\n" * 50)).startswith(QUEUED)
            assert len(box.stored()) == 2
            assert box.spool._pool.intakes == set()

    asyncio.run(scenario())


def test_content_that_earns_a_refusal_leaves_the_session_in_step() -> None:
    async def scenario() -> None:
        async with serving(message_size_limit=100_000) as box:
            wire = await box.wire()
            await wire.hello()
            assert (await wire.mail(b"a\nb\r\n")).startswith("550 5.6.11 ")
            assert (await wire.mail(b"x" * 120_000 + b"\r\n")).startswith("552 5.3.4 ")
            assert (await wire.mail()).startswith(QUEUED)
            assert len(box.stored()) == 1
            assert box.spool._pool.intakes == set()

    asyncio.run(scenario())


def test_too_many_errors() -> None:
    async def scenario() -> None:
        async with serving(smtpd_soft_error_limit=2, smtpd_hard_error_limit=5) as box:
            wire = await box.wire()
            await wire.hello()
            for _ in range(4):
                assert (await wire.say("BOGUS")).startswith("500 ")
            assert await wire.say("BOGUS") == f"421 4.7.0 {HOST} Error: too many errors"
            assert await wire.rest() == b""

    asyncio.run(scenario())


def test_past_the_soft_limit_errors_take_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def pause(self: Any, seconds: float) -> None:
        if seconds:
            pauses.append(seconds)

    monkeypatch.setattr(session_module.Session, "_pause", pause)

    async def scenario() -> None:
        async with serving(smtpd_soft_error_limit=2, smtpd_error_sleep_time=7.0) as box:
            wire = await box.wire()
            await wire.hello()
            for count in (0, 0, 1, 2):
                await wire.say("BOGUS")
                assert pauses == [7.0] * count
            await wire.say("NOOP")
            assert pauses == [7.0] * 2

    asyncio.run(scenario())


def test_a_session_full_of_junk_ends() -> None:
    async def scenario() -> None:
        async with serving(smtpd_junk_command_limit=10, smtpd_hard_error_limit=3) as box:
            wire = await box.wire()
            await wire.hello()
            wire.send(b"NOOP\r\n" * 1000)
            rest = await wire.rest()
            assert rest.count(b"250 2.0.0 Ok") == 12
            assert rest.endswith(f"421 4.7.0 {HOST} Error: too many errors\r\n".encode())

    asyncio.run(scenario())


# ---- the spool in trouble


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (SpoolFull("full"), "452 4.3.1 Insufficient system storage: the spool is full"),
        (SpoolError("io"), "451 4.3.0 Error: queue file write error"),
        (RuntimeError("surprise"), "451 4.3.0 Error: queue file write error"),
        (OSError(28, "No space left on device", "/data/spool"), "451 4.3.0 Error: queue file write error"),
    ],
)
@pytest.mark.parametrize("where", ["commit", "drain", "write"])
def test_trouble_in_the_spool_is_temporary(
    error: Exception, reply: str, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [True]
    real = getattr(SpoolIntake, where)

    def fail(self: SpoolIntake, *rest: Any, **more: Any) -> Any:
        if broken[0] and (where != "write" or not rest[0].startswith(b"Received:")):
            raise error
        return real(self, *rest, **more)

    monkeypatch.setattr(SpoolIntake, where, fail)

    async def scenario() -> None:
        async with serving() as box:
            wire = await box.wire()
            await wire.hello()
            assert await wire.mail(b"x\r\n" * 50_000) == reply
            broken[0] = False
            assert (await wire.mail()).startswith(QUEUED)
            assert len(box.accepted) == len(box.stored()) == 1
            assert box.spool._pool.intakes == set()

    asyncio.run(scenario())
    assert str(error) in caplog.text


def test_what_cannot_be_kept_is_let_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(self: SpoolIntake) -> None:
        raise SpoolFull("full")

    monkeypatch.setattr(SpoolIntake, "drain", full)

    async def scenario() -> None:
        async with serving() as box:
            wire = await box.wire()
            await wire.hello()
            await wire.say("MAIL FROM:<a@b.example>", "RCPT TO:<b@b.example>", "DATA")
            assert len(box.spool._pool.intakes) == 1
            wire.send(b"x\r\n")
            await box.until(lambda: box.spool._pool.intakes == set())
            wire.send(b".\r\n")
            assert (await wire.reply()).startswith("452 4.3.1 ")

    asyncio.run(scenario())


def test_a_message_that_is_all_header_and_has_no_last_line_end() -> None:
    async def scenario() -> None:
        async with serving(hopcount_limit=2) as box:
            wire = await box.wire()
            await wire.hello()
            await wire.say("MAIL FROM:<a@b.example>", "RCPT TO:<b@b.example>")
            wire.send(b"BDAT 21 LAST\r\nMessage-ID: <1@x.org>")
            assert (await wire.reply()).startswith(QUEUED)
            assert box.accepted[0].message_id == "<1@x.org>"
            await wire.say("MAIL FROM:<a@b.example>", "RCPT TO:<b@b.example>")
            wire.send(b"BDAT 24 LAST\r\nReceived: x\r\nReceived: x")
            assert await wire.reply() == "554 5.4.0 Error: too many hops"

    asyncio.run(scenario())


def test_the_last_words_reach_a_client_that_is_still_sending() -> None:
    """No reset follows the 421 while the client still talks: many a small TCP stack would drop the 421 with it."""

    async def scenario() -> None:
        async with serving(smtpd_hard_error_limit=3) as box:
            loop = asyncio.get_running_loop()
            with socket.socket() as client:
                client.setblocking(False)
                await loop.sock_connect(client, ("127.0.0.1", box.port))
                sending = asyncio.ensure_future(loop.sock_sendall(client, b"BOGUS\r\n" * 3 + b"NOOP\r\n" * 50_000))
                heard = b""
                while data := await loop.sock_recv(client, 65536):
                    heard += data
                assert heard.endswith(f"421 4.7.0 {HOST} Error: too many errors\r\n".encode())
                await sending
                for _ in range(5):
                    await loop.sock_sendall(client, b"NOOP\r\n")
                    await asyncio.sleep(0.002)

    asyncio.run(scenario())


def test_no_intake_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with serving() as box:

            def intake() -> Any:
                raise SpoolFull("full")

            monkeypatch.setattr(box.spool, "intake", intake)
            wire = await box.wire()
            await wire.hello()
            await wire.say("MAIL FROM:<a@b.example>", "RCPT TO:<b@b.example>")
            assert await wire.say("DATA") == "452 4.3.1 Insufficient system storage: the spool is full"
            wire.send(b"BDAT 5 LAST\r\nabcde")
            assert (await wire.reply()).startswith("452 4.3.1 ")
            assert (await wire.say("NOOP")).startswith("250")

    asyncio.run(scenario())


def test_an_exception_in_any_answer_is_our_own_trouble(caplog: pytest.LogCaptureFixture) -> None:
    def route(address: Address) -> Route:
        raise ZeroDivisionError("a bug")

    async def scenario() -> None:
        async with serving(reception=lambda given: replace(given, route=route)) as box:
            wire = await box.wire()
            await wire.hello()
            await wire.say("MAIL FROM:<a@b.example>")
            assert await wire.say("RCPT TO:<b@b.example>") == "451 4.3.0 Error: queue file write error"
            assert (await wire.say("NOOP")).startswith("250")

    asyncio.run(scenario())
    assert "ZeroDivisionError: a bug" in caplog.text


def test_an_exception_in_the_dialog_ends_the_session(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def receive_data(self: Dialog, data: bytes) -> None:
        assert 1 / (data != b"BOOM\r\n")
        real(self, data)

    real = Dialog.receive_data
    monkeypatch.setattr(Dialog, "receive_data", receive_data)

    async def scenario() -> None:
        async with serving() as box:
            wire = await box.wire()
            await wire.hello()
            wire.send(b"BOOM\r\n")
            assert await wire.rest() == f"421 4.3.0 {HOST} Error: internal error\r\n".encode()
            await wire.close()
            await box.until(lambda: box.server.sessions == 0)

    asyncio.run(scenario())
    assert "ZeroDivisionError" in caplog.text


def test_the_queue_failing_does_not_take_the_250_back(caplog: pytest.LogCaptureFixture) -> None:
    def accepted(envelope: Envelope) -> None:
        raise RuntimeError("the queue is not well")

    async def scenario() -> None:
        async with serving(reception=lambda given: replace(given, accepted=accepted)) as box:
            wire = await box.wire()
            await wire.hello()
            assert (await wire.mail()).startswith(QUEUED)
            assert len(box.stored()) == 1

    asyncio.run(scenario())
    assert "the queue is not well" in caplog.text


def held(box: Box, monkeypatch: pytest.MonkeyPatch, step: str) -> asyncio.Event:
    """Make a step of the spool wait for the event that is returned."""
    gate = asyncio.Event()
    real = getattr(SpoolIntake, step)

    async def wait(self: SpoolIntake, *rest: Any, **more: Any) -> Any:
        await gate.wait()
        return await real(self, *rest, **more)

    monkeypatch.setattr(SpoolIntake, step, wait)
    return gate


def test_nothing_but_the_commit_writes_the_250(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with serving() as box:
            gate = held(box, monkeypatch, "commit")
            wire = await box.wire()
            await wire.hello()
            sent = asyncio.ensure_future(wire.mail())
            await box.until(lambda: any(each.committing for each in box.server._sessions))
            for _ in range(50):
                await asyncio.sleep(0)
            assert not sent.done()
            assert box.accepted == []
            gate.set()
            assert (await sent).startswith(QUEUED)

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["half", "close", "reset"])
def test_a_client_that_leaves_after_the_dot_does_not_stop_the_commit(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with serving() as box:
            gate = held(box, monkeypatch, "commit")
            wire = await box.wire()
            await wire.hello()
            await wire.say("MAIL FROM:<me@example.org>", "RCPT TO:<you@example.net>", "DATA")
            wire.send(MESSAGE + b".\r\n")
            await box.until(lambda: any(each.committing for each in box.server._sessions))
            if how == "half":
                wire.writer.write_eof()
            elif how == "close":
                await wire.close()
            else:
                wire.reset()
                await box.until(lambda: all(each.transport is None for each in box.server._sessions))
            for _ in range(20):
                await asyncio.sleep(0.001)
            gate.set()
            await box.until(lambda: box.server.sessions == 0 or how == "half")
            if how == "half":
                assert (await wire.reply()).startswith(QUEUED)
                assert await wire.rest() == b""
            assert len(box.accepted) == len(box.stored()) == 1

    asyncio.run(scenario())


async def reset(wire: Wire) -> None:
    wire.reset()


def test_a_client_that_leaves_before_the_dot_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "edgemail")

    async def scenario() -> None:
        async with serving() as box:
            for leave in (Wire.close, reset):
                wire = await box.wire()
                await wire.hello()
                await wire.say("MAIL FROM:<me@example.org>", "RCPT TO:<you@example.net>", "DATA")
                wire.send(b"x" * 300_000)
                await wire.writer.drain()
                await box.until(lambda: any(each.clerk.taken > 100_000 for each in box.server._sessions))
                await leave(wire)
                await box.until(lambda: box.server.sessions == 0)
            assert box.accepted == []
            assert box.stored() == []
            assert box.spool._pool.intakes == set()
            assert box.spool._chunks == {}

    asyncio.run(scenario())
    assert sum(message.startswith("lost connection after DATA (") for message in caplog.messages) == 2


def test_back_pressure_stops_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with serving() as box:
            wire = await box.wire()
            await wire.hello()
            gate = held(box, monkeypatch, "drain")
            await wire.say("MAIL FROM:<me@example.org>", "RCPT TO:<you@example.net>", "DATA")
            wire.writer.transport.set_write_buffer_limits(high=0)
            wire.send(b"x" * 30_000_000)
            for _ in range(100):
                await asyncio.sleep(0.001)
            (session,) = box.server._sessions
            assert session.clerk.taken <= 64 * 1024
            assert session._held_size <= 2 * connection_module.READ_AHEAD
            assert wire.writer.transport.get_write_buffer_size() > 10_000_000
            gate.set()
            wire.writer.transport.abort()

    asyncio.run(scenario())


# ---- patience


def test_a_silent_client(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "edgemail")

    async def scenario() -> None:
        async with serving(smtpd_timeout=0.05) as box:
            wire = await box.wire()
            await wire.hello()
            assert await wire.reply() == f"421 4.4.2 {HOST} Error: timeout exceeded"
            assert await wire.rest() == b""

    asyncio.run(scenario())
    assert "timeout after EHLO from unknown[127.0.0.1]" in caplog.messages


def test_the_time_is_for_progress_not_for_the_whole() -> None:
    async def scenario() -> None:
        async with serving(smtpd_timeout=3.0) as box:
            wire = await box.wire()
            await wire.hello()
            await wire.say("MAIL FROM:<me@example.org>", "RCPT TO:<you@example.net>", "DATA")
            for _ in range(35):
                wire.send(b"a line\r\n")
                await asyncio.sleep(0.1)
            wire.send(b".\r\n")
            assert (await wire.reply()).startswith(QUEUED)
            await wire.say("MAIL FROM:<me@example.org>", "RCPT TO:<you@example.net>", "DATA")
            wire.send(b"a line\r\n")
            assert await wire.reply() == f"421 4.4.2 {HOST} Error: timeout exceeded"
            assert len(box.stored()) == 1

    asyncio.run(scenario())


def test_a_client_that_does_not_read_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "CLOSE_SECONDS", 0.05)

    async def scenario() -> None:
        async with serving(smtpd_timeout=0.2, smtpd_junk_command_limit=10**9) as box:
            with socket.socket() as deaf:
                deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                deaf.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(deaf, ("127.0.0.1", box.port))
                await box.until(lambda: box.server.sessions == 1)
                (session,) = box.server._sessions
                flood = asyncio.ensure_future(loop.sock_sendall(deaf, b"NOOP\r\n" * 3_000_000))
                most = 0

                def over() -> bool:
                    nonlocal most
                    if session.transport is not None:
                        most = max(most, session.transport.get_write_buffer_size())
                    return box.server.sessions == 0

                await box.until(over)
                assert most < 400_000
                flood.cancel()
                await asyncio.gather(flood, return_exceptions=True)

    asyncio.run(scenario())


def test_flow_is_asked_before_a_message_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def pause(self: Any, seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(session_module.Session, "_pause", pause)

    async def scenario() -> None:
        async with serving(reception=lambda given: replace(given, flow=lambda: 1.0)) as box:
            wire = await box.wire()
            await wire.hello()
            assert pauses == []
            await wire.mail()
            assert pauses == [1.0]

    asyncio.run(scenario())


# ---- names


def test_the_name_of_a_client() -> None:
    async def named(address: str) -> str:
        return "evil) by x\r\nX: y (pr1.example.org"

    async def broken(address: str) -> str:
        raise OSError("no resolver")

    async def scenario(peername: Any, expected: str, lookup: bool) -> None:
        async with serving(
            reception=lambda given: replace(given, peername=peername), smtpd_peername_lookup=lookup
        ) as box:
            wire = await box.wire()
            await wire.hello()
            await wire.mail()
            assert box.accepted[0].origin.client_name == expected

    asyncio.run(scenario(named, "evil??by?x??X:?y??pr1.example.org", True))
    asyncio.run(scenario(broken, "unknown", True))
    asyncio.run(scenario(broken, "unknown", False))


def test_a_lookup_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "PEERNAME_SECONDS", 0.05)

    async def never(address: str) -> str:
        await asyncio.Event().wait()
        raise AssertionError

    async def scenario() -> None:
        async with serving(reception=lambda given: replace(given, peername=never), smtpd_peername_lookup=True) as box:
            wire = await box.wire()
            assert (await wire.reply()).startswith("220")

    asyncio.run(scenario())


# ---- login


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    set_password(str(path), "kdent", "Rumpelstiltskin")
    return path


def people(path: Path, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "smtpd_sasl_auth_enable": True,
        "smtpd_sasl_password_file": str(path),
        "smtpd_tls_auth_only": False,
        "smtpd_relay_restrictions": ("permit_sasl_authenticated", "reject"),
        "syslog_name": "edgemail/submission",
    }
    return listener(settings(**{**values, **changes}), name="submission")


def test_auth_plain(users: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "edgemail")

    async def scenario() -> None:
        async with serving(people(users)) as box:
            wire = await box.wire()
            assert "250-AUTH PLAIN LOGIN" in await wire.hello()
            await wire.say("MAIL FROM:<a@b.example>")
            assert "Access denied" in await wire.say("RCPT TO:<x@example.net>")
            await wire.say("RSET")
            reply = await wire.say("auth plain " + b64("\0kdent\0Rumpelstiltskin"))
            assert reply == "235 2.7.0 Authentication successful"
            assert await wire.say("AUTH PLAIN") == "503 5.5.1 Error: already authenticated"
            assert (await wire.mail()).startswith(QUEUED)
            (kept,) = box.accepted
            assert (kept.origin.sasl_username, kept.origin.protocol) == ("kdent", "ESMTPA")
            assert b"kdent" not in box.stored()[0]

    asyncio.run(scenario())
    assert ": client=unknown[127.0.0.1], sasl_method=PLAIN, sasl_username=kdent" in caplog.text
    assert "Rumpelstiltskin" not in caplog.text
    record = next(each for each in caplog.records if "sasl_username" in each.getMessage())
    assert record.__dict__["syslog_name"] == "edgemail/submission"


def test_auth_by_prompts_and_its_end(users: Path) -> None:
    async def scenario() -> None:
        async with serving(people(users)) as box:
            wire = await box.wire()
            await wire.hello()
            assert await wire.say("AUTH PLAIN") == "334 "
            assert await wire.say("*") == "501 5.7.0 Authentication aborted"
            assert await wire.say("AUTH LOGIN") == "334 " + b64("Username:")
            assert await wire.say("*") == "501 5.7.0 Authentication aborted"
            assert (await wire.say("AUTH LOGIN", "not base64!")).startswith("501 5.5.2")
            assert (await wire.say("NOOP")).startswith("250")
            assert (await wire.say("AUTH CRAM-MD5")).startswith("504 5.5.4")
            assert await wire.say("AUTH LOGIN " + b64("kdent")) == "334 " + b64("Password:")
            assert (await wire.say(b64("Rumpelstiltskin"))).startswith("235 2.7.0")

    asyncio.run(scenario())


def test_auth_that_fails(users: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pauses: list[float] = []

    async def pause(self: Any, seconds: float) -> None:
        if seconds:
            pauses.append(seconds)

    monkeypatch.setattr(session_module.Session, "_pause", pause)

    async def scenario() -> None:
        async with serving(people(users, smtpd_hard_error_limit=3, smtpd_error_sleep_time=1.0)) as box:
            wire = await box.wire()
            await wire.hello()
            refused = "535 5.7.8 Error: authentication failed"
            assert await wire.say("AUTH PLAIN " + b64("\0kdent\0wrong")) == refused
            assert await wire.say("AUTH PLAIN " + b64("\0hunter2\0x")) == refused
            assert pauses == [1.0, 1.0]
            assert (await wire.say("AUTH PLAIN " + b64("\0kdent\0wrong"))).startswith("421 4.7.0 ")

    asyncio.run(scenario())
    assert "unknown[127.0.0.1]: SASL PLAIN authentication failed: sasl_username=kdent" in caplog.text
    assert "hunter2" not in caplog.text  # it may be a password
    assert "wrong" not in caplog.text


def test_auth_only_under_tls(users: Path) -> None:
    async def scenario() -> None:
        async with serving(people(users, smtpd_tls_auth_only=True)) as box:
            wire = await box.wire()
            assert "AUTH" not in await wire.hello()
            reply = await wire.say("AUTH PLAIN " + b64("\0kdent\0Rumpelstiltskin"))
            assert reply == "538 5.7.11 Encryption required for requested authentication mechanism"

    asyncio.run(scenario())


def test_auth_without_its_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(people(tmp_path / "none")) as box:
            wire = await box.wire()
            await wire.hello()
            reply = await wire.say("AUTH PLAIN " + b64("\0kdent\0x"))
            assert reply == "454 4.7.0 Temporary authentication failure"

    asyncio.run(scenario())


# ---- transcripts


def test_a_transcript_for_the_postmaster(users: Path) -> None:
    async def scenario() -> None:
        async with serving(people(users, notify_classes=("policy", "protocol", "resource"))) as box:
            wire = await box.wire()
            await wire.hello()
            await wire.say("BOGUS command")
            await wire.say("AUTH PLAIN " + b64("\0kdent\0secret-one"))
            await wire.say("AUTH LOGIN", b64("kdent"), b64("secret-two"))
            await wire.say(b64("secret-three"))  # a client out of step
            await wire.say("MAIL FROM:<a@b.example>", "RCPT TO:<x@example.net>")
            await wire.say("QUIT")
            await box.until(lambda: bool(box.notices))
            ((kind, subject, text),) = box.notices
            assert kind == "policy"
            assert subject == "edgemail SMTP server: errors from unknown[127.0.0.1]"
            assert " In:  BOGUS command\n Out: 500 5.5.2 Error: command not recognized\n" in text
            assert " In:  RCPT TO:<x@example.net>\n Out: 554 5.7.1 " in text
            assert " In:  AUTH\n Out: 535 5.7.8" in text
            for secret in ("secret-one", "secret-two", "secret-three"):
                assert b64(secret)[:8] not in text
            assert b64("\0kdent\0secret-one") not in text

    asyncio.run(scenario())


def test_a_transcript_is_bounded() -> None:
    async def scenario() -> None:
        async with serving(
            notify_classes=("protocol",), smtpd_hard_error_limit=1000, smtpd_soft_error_limit=1000
        ) as box:
            wire = await box.wire()
            await wire.hello()
            for _ in range(10):
                await wire.say(*["X" * 1500] * 50)
            await wire.say("QUIT")
            await box.until(lambda: bool(box.notices))
            text = box.notices[0][2]
            assert len(text) < 100 * 220 + 500
            assert "lines are left out" in text

    asyncio.run(scenario())


@pytest.mark.parametrize("classes", [(), ("resource", "software"), ("policy",)])
def test_no_transcript_where_nobody_asks_or_nothing_was_wrong(classes: tuple[str, ...]) -> None:
    async def scenario() -> None:
        async with serving(notify_classes=classes) as box:
            wire = await box.wire()
            await wire.hello()
            await wire.say("BOGUS")  # class protocol
            await wire.say("QUIT")
            await box.until(lambda: box.server.sessions == 0)
            assert box.notices == []

    asyncio.run(scenario())


def test_a_receiving_side_alone() -> None:
    def alone(given: Reception) -> Reception:
        return Reception.alone(given.spool, given.clock, given.configuration)

    async def scenario() -> None:
        async with serving(reception=alone) as box:
            wire = await box.wire()
            await wire.hello()
            assert (await wire.mail()).startswith(QUEUED)
            assert len(box.stored()) == 1

    asyncio.run(scenario())


def test_an_ended_session_does_not_wait_for_the_collector() -> None:
    async def scenario() -> None:
        async with serving() as box:
            wire = await box.wire()
            await wire.hello()
            (session,) = box.server._sessions
            alive = weakref.ref(session)
            del session
            await wire.mail()
            await wire.say("QUIT")
            await wire.close()
            await box.until(lambda: box.server.sessions == 0)
            gc.disable()
            try:
                await box.until(lambda: alive() is None)
            finally:
                gc.enable()

    asyncio.run(scenario())


def test_what_a_session_costs() -> None:
    async def scenario() -> int:
        async with serving(smtpd_client_connection_count_limit=0) as box:
            loop = asyncio.get_running_loop()
            clients = [socket.socket() for _ in range(41)]
            tracemalloc.start()
            try:
                before = 0
                for client in clients:
                    client.setblocking(False)
                    await loop.sock_connect(client, ("127.0.0.1", box.port))
                    await loop.sock_recv(client, 1000)
                    await loop.sock_sendall(client, b"EHLO client.example.org\r\n")
                    await loop.sock_recv(client, 1000)
                    before = before or tracemalloc.get_traced_memory()[0]  # with the first
                return (tracemalloc.get_traced_memory()[0] - before) // 40
            finally:
                tracemalloc.stop()
                for client in clients:
                    client.close()

    assert asyncio.run(scenario()) < 16 * 1024
