"""TLS at the listeners: what is spoken, certificates that change, memory, and what comes before a handshake."""

from __future__ import annotations

import asyncio
import asyncio.selector_events
import asyncio.sslproto
import contextlib
import logging
import os
import shutil
import ssl
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from edgemail.clock import ManualClock
from edgemail.relay.receive import listen, tls
from edgemail.relay.receive.auth import set_password
from edgemail.relay.receive.session import Session
from edgemail.relay.receive.tls import ServerTls, key_of, server_context
from edgemail.settings import Settings
from edgemail.spool.intake import SpoolIntake
from tests.receiving import HOST, listener, serving, settings
from tests.servers import Authority


class Papers:
    """A certificate for the box, and what a client needs to believe it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.path = folder / "box.pem"
        self.renew()

    def renew(self) -> None:
        """A new certificate of the same authority, put in place as an administrator does."""
        self.authority.server(HOST, "127.0.0.1")
        shutil.move(self.authority.folder / f"{HOST}-False.pem", self.path)

    def settings(self, **changes: Any) -> Settings:
        values = {"smtpd_tls_security_level": "may", "smtpd_tls_cert_file": str(self.path)}
        return settings(**{**values, "smtpd_tls_key_file": str(self.path), **changes})

    def client(self, *, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.file))
        context.maximum_version = newest
        return context


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def papers(folder: Papers, tmp_path: Path) -> Papers:
    """The same with files of its own."""
    mine = object.__new__(Papers)
    mine.folder, mine.authority = tmp_path, folder.authority
    mine.path = tmp_path / "box.pem"
    shutil.copy(folder.path, mine.path)
    return mine


@pytest.mark.parametrize(
    ("newest", "version"), [(ssl.TLSVersion.TLSv1_3, "TLSv1.3"), (ssl.TLSVersion.TLSv1_2, "TLSv1.2")]
)
def test_starttls(papers: Papers, newest: ssl.TLSVersion, version: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "edgemail")

    async def scenario() -> None:
        async with serving(listener(papers.settings(smtpd_tls_received_header=True))) as box:
            wire = await box.wire()
            assert "STARTTLS" in await wire.hello()
            await wire.starttls(papers.client(newest=newest))
            assert (await wire.say("MAIL FROM:<a@b.example>")).startswith("250")  # HELO is not required
            await wire.say("RSET")
            assert "STARTTLS" not in await wire.say("EHLO client.example.org")
            assert await wire.say("STARTTLS") == "554 5.5.1 Error: TLS already active"
            assert (await wire.mail()).startswith("250 2.0.0 Ok: queued as ")
            assert (await wire.say("QUIT")).startswith("221")
            assert await wire.rest() == b""
            (body,) = box.stored()
            lines = body.decode().split("\r\n")
            assert lines[1].startswith(f"\t(using {version} with cipher ")
            assert " with ESMTPS id " in lines[2]
            (envelope,) = box.accepted
            assert envelope.origin.protocol == "ESMTPS"

    asyncio.run(scenario())
    assert f"Anonymous TLS connection established from unknown[127.0.0.1]: {version} with cipher " in caplog.text


def test_tls_is_noted_in_received_only_where_that_is_asked_for(papers: Papers) -> None:
    async def scenario() -> None:
        async with serving(listener(papers.settings())) as box:
            wire = await box.wire()
            await wire.hello()
            await wire.starttls(papers.client())
            await wire.say("EHLO x")
            await wire.mail()
            assert b"(using" not in box.stored()[0]

    asyncio.run(scenario())


def test_what_was_said_in_clear_is_forgotten(papers: Papers) -> None:
    async def scenario() -> None:
        async with serving(listener(papers.settings(smtpd_helo_required=True))) as box:
            wire = await box.wire()
            await wire.hello()
            await wire.starttls(papers.client())
            assert (await wire.say("MAIL FROM:<a@b.example>")).startswith("503")

    asyncio.run(scenario())


def test_a_login_in_clear_is_forgotten(papers: Papers, tmp_path: Path) -> None:
    set_password(str(tmp_path / "users"), "anna", "secret")
    chosen = papers.settings(
        smtpd_sasl_auth_enable=True,
        smtpd_sasl_password_file=str(tmp_path / "users"),
        smtpd_tls_auth_only=False,
        smtpd_relay_restrictions=("permit_sasl_authenticated", "reject"),
    )

    async def scenario() -> None:
        async with serving(listener(chosen)) as box:
            wire = await box.wire()
            await wire.hello()
            assert (await wire.say("AUTH PLAIN AGFubmEAc2VjcmV0")).startswith("235")
            await wire.starttls(papers.client())
            await wire.say("EHLO x", "MAIL FROM:<a@b.example>")
            assert "Access denied" in await wire.say("RCPT TO:<a@b.example>")
            await wire.say("RSET")
            assert (await wire.say("AUTH PLAIN AGFubmEAc2VjcmV0")).startswith("235")
            assert (await wire.mail()).startswith("250")
            assert box.accepted[0].origin.protocol == "ESMTPSA"

    asyncio.run(scenario())


def test_a_handshake_is_not_read_as_commands(papers: Papers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read before TLS stands between the socket and the reader, however early the client speaks."""
    reading: list[bool] = []
    real = Session._handshake

    async def handshake(self: Session, context: ssl.SSLContext) -> bool:
        transport: Any = self.transport
        reading.append(transport.is_reading())
        return await real(self, context)

    monkeypatch.setattr(Session, "_handshake", handshake)

    async def scenario() -> None:
        async with serving(listener(papers.settings(smtpd_tls_wrappermode=True))) as box:
            wire = await box.wire(tls=papers.client())
            assert (await wire.reply()).startswith("220")

    asyncio.run(scenario())
    assert reading == [False]


def test_level_encrypt(papers: Papers) -> None:
    async def scenario() -> None:
        async with serving(listener(papers.settings(smtpd_tls_security_level="encrypt"))) as box:
            wire = await box.wire()
            await wire.hello()
            assert await wire.say("MAIL FROM:<a@b.example>") == "530 5.7.0 Must issue a STARTTLS command first"
            await wire.starttls(papers.client())
            await wire.say("EHLO x")
            assert (await wire.mail()).startswith("250")

    asyncio.run(scenario())


def test_wrappermode(papers: Papers) -> None:
    async def scenario() -> None:
        chosen = papers.settings(smtpd_tls_wrappermode=True, smtpd_tls_security_level="encrypt")
        async with serving(listener(chosen)) as box:
            wire = await box.wire(tls=papers.client())
            assert (await wire.reply()).startswith("220 ")
            assert "STARTTLS" not in await wire.say("EHLO x")
            assert (await wire.mail(b"X: y\r\n\r\n" + b"z" * 300_000 + b"\r\n")).startswith("250")
            await wire.say("QUIT")
            assert await wire.rest() == b""
            assert len(box.accepted) == 1

    asyncio.run(scenario())


def test_wrappermode_counts_before_the_handshake(papers: Papers) -> None:
    async def scenario() -> None:
        chosen = papers.settings(
            smtpd_tls_wrappermode=True,
            smtpd_tls_security_level="encrypt",
            smtpd_client_connection_count_limit=1,
            smtpd_starttls_timeout=5.0,
        )
        async with serving(listener(chosen)) as box:
            silent = await box.wire()
            await box.until(lambda: box.server.sessions == 1)
            late = await box.wire()
            assert await late.rest() == b""
            await silent.close()
            await box.until(lambda: box.server.sessions == 0)
            with contextlib.closing((await box.wire(tls=papers.client())).writer):
                pass

    asyncio.run(scenario())


def test_no_certificate(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        chosen = settings(smtpd_tls_security_level="may", smtpd_tls_cert_file="/nowhere/cert.pem")
        wrapped = settings(
            smtpd_tls_security_level="may", smtpd_tls_cert_file="/nowhere/cert.pem", smtpd_tls_wrappermode=True
        )
        async with serving(listener(chosen), listener(wrapped, name="submissions")) as box:
            wire = await box.wire()
            await wire.hello()
            assert await wire.say("STARTTLS") == "454 4.7.0 TLS not available due to local problem"
            assert (await wire.mail()).startswith("250")
            other = await box.wire(1)
            assert await other.rest() == b""

    asyncio.run(scenario())
    assert "TLS is not available" in caplog.text


@pytest.mark.parametrize("behind", [b"MAIL FROM:<evil@example.org>\r\n", b"x" * 5000])
def test_commands_behind_starttls_in_clear_end_the_session(papers: Papers, behind: bytes) -> None:
    async def scenario() -> None:
        async with serving(listener(papers.settings())) as box:
            wire = await box.wire()
            await wire.hello()
            wire.send(b"STARTTLS\r\n" + behind)
            rest = await wire.rest()
            assert rest.startswith(b"421 4.7.0 ")
            assert rest.count(b"\r\n") == 1
            await box.until(lambda: box.server.sessions == 0)
            assert box.accepted == []

    asyncio.run(scenario())


def test_clear_text_instead_of_a_handshake_ends_the_session(papers: Papers) -> None:
    async def scenario() -> None:
        async with serving(listener(papers.settings())) as box:
            wire = await box.wire()
            await wire.hello()
            assert (await wire.say("STARTTLS")).startswith("220")
            wire.send(b"MAIL FROM:<evil@example.org>\r\n")
            assert b"250" not in await wire.rest()
            await box.until(lambda: box.server.sessions == 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_handshake_that_does_not_come_is_given_up(papers: Papers, wrapped: bool) -> None:
    async def scenario() -> None:
        chosen = papers.settings(smtpd_starttls_timeout=0.05, smtpd_tls_wrappermode=wrapped)
        async with serving(listener(chosen)) as box:
            wire = await box.wire()
            if not wrapped:
                await wire.hello()
                await wire.say("STARTTLS")
            assert await wire.rest() == b""
            await box.until(lambda: box.server.sessions == 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_client_that_leaves_in_its_handshake(papers: Papers, wrapped: bool) -> None:
    async def scenario() -> None:
        async with serving(listener(papers.settings(smtpd_tls_wrappermode=wrapped))) as box:
            for octets in (b"", b"\x16\x03\x01"):
                wire = await box.wire()
                if not wrapped:
                    await wire.hello()
                    await wire.say("STARTTLS")
                wire.send(octets)
                await wire.close()
            await box.until(lambda: box.server.sessions == 0)

    asyncio.run(scenario())


def test_the_client_ends_tls_without_a_word(papers: Papers) -> None:
    async def scenario() -> None:
        async with serving(listener(papers.settings())) as box:
            wire = await box.wire()
            await wire.hello()
            await wire.starttls(papers.client())
            await wire.say("EHLO x")
            raw: Any = wire.writer.transport
            raw.abort()
            await box.until(lambda: box.server.sessions == 0)

    asyncio.run(scenario())


def test_a_client_that_ends_tls_after_the_dot_does_not_stop_the_commit(
    papers: Papers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        real = SpoolIntake.commit

        async def commit(self: SpoolIntake, *rest: Any) -> Any:
            await gate.wait()
            return await real(self, *rest)

        monkeypatch.setattr(SpoolIntake, "commit", commit)
        async with serving(listener(papers.settings())) as box:
            wire = await box.wire()
            await wire.hello()
            await wire.starttls(papers.client())
            await wire.say("EHLO x", "MAIL FROM:<a@b.example>", "RCPT TO:<a@b.example>", "DATA")
            wire.send(b"x\r\n.\r\n")
            await box.until(lambda: any(each.committing for each in box.server._sessions))
            await wire.close()
            await asyncio.sleep(0.01)
            gate.set()
            await box.until(lambda: box.server.sessions == 0)
            assert len(box.accepted) == len(box.stored()) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_drain_does_not_wait_for_a_handshake(papers: Papers, wrapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "CANCEL_SECONDS", 0.05)

    async def scenario() -> None:
        async with serving(listener(papers.settings(smtpd_tls_wrappermode=wrapped))) as box:
            wire = await box.wire()
            if not wrapped:
                await wire.hello()
                await wire.say("STARTTLS")
            await box.until(lambda: box.server.sessions == 1)
            async with asyncio.timeout(5):
                await box.server.drain(0.0)

    asyncio.run(scenario())


# ---- contexts


def test_a_new_certificate_is_taken_and_a_bad_one_is_not(papers: Papers, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "edgemail")
    clock = ManualClock()
    server = ServerTls(papers.settings(), clock.monotonic)
    first = server.context()
    assert first is not None
    papers.renew()
    assert server.context() is first  # not looked at again before its time
    clock.advance(1.0)
    second = server.context()
    assert second is not None
    assert second is not first
    assert "was read again" in caplog.text
    papers.path.write_bytes(b"-----BEGIN NONSENSE-----\n")
    for _ in range(3):
        clock.advance(1.0)
        assert server.context() is second
    assert caplog.text.count("the one read before stays in use") == 1
    papers.path.unlink()
    for _ in range(3):
        clock.advance(1.0)
        assert server.context() is second
    assert caplog.text.count("No such file") == 1
    papers.renew()
    clock.advance(1.0)
    assert server.context() not in (None, second)


def test_a_key_that_is_not_the_certificates(papers: Papers, caplog: pytest.LogCaptureFixture) -> None:
    key = papers.folder / "key.pem"
    shutil.copy(papers.path, key)
    clock = ManualClock()
    server = ServerTls(papers.settings(smtpd_tls_key_file=str(key)), clock.monotonic)
    first = server.context()
    assert first is not None
    papers.renew()  # only one of the two files was changed
    clock.advance(1.0)
    assert server.context() is first
    shutil.copy(papers.path, key)
    os.utime(key, (1, 1))
    clock.advance(1.0)
    assert server.context() not in (None, first)


def test_sessions_cannot_be_resumed_for_ever(papers: Papers) -> None:
    clock = ManualClock()
    server = ServerTls(papers.settings(), clock.monotonic)
    first = server.context()
    clock.advance(3599.0)
    assert server.context() is first
    clock.advance(1.0)
    second = server.context()
    assert second not in (None, first)
    for _ in range(tls.SESSIONS + 1):
        last = server.context()
    assert last not in (None, second)


def test_no_tickets_where_sessions_are_not_kept(papers: Papers) -> None:
    context = server_context(papers.settings(smtpd_tls_session_cache_timeout=0.0))
    assert context.options & ssl.OP_NO_TICKET
    assert context.num_tickets == 0
    assert server_context(papers.settings()).num_tickets > 0
    server = ServerTls(papers.settings(smtpd_tls_session_cache_timeout=0.0), ManualClock().monotonic)
    assert server.context() is not server.context()  # nor in OpenSSL's cache, which TLS 1.2 uses without tickets


def test_what_a_context_allows(papers: Papers) -> None:
    context = server_context(papers.settings())
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_NONE
    assert context.cert_store_stats()["x509"] == 0
    only = papers.settings(smtpd_tls_security_level="encrypt", smtpd_tls_mandatory_protocols=">=TLSv1.3")
    assert server_context(only).minimum_version is ssl.TLSVersion.TLSv1_3
    for grade in ("strong", "ultra"):
        server_context(papers.settings(smtpd_tls_eecdh_grade=grade))


def test_listeners_share_a_context_where_they_can(papers: Papers) -> None:
    may = papers.settings()
    assert key_of(may) == key_of(papers.settings(smtpd_tls_security_level="encrypt", smtpd_tls_wrappermode=True))
    assert key_of(may) != key_of(papers.settings(smtpd_tls_protocols=">=TLSv1.3"))


def test_the_attributes_that_make_connections_small_exist() -> None:
    """They are asyncio's own and not documented: if one goes away, 280 KiB for each TLS connection come back."""
    assert isinstance(asyncio.sslproto.SSLProtocol.max_size, int)
    assert isinstance(asyncio.selector_events._SelectorSocketTransport.max_size, int)  # type: ignore[attr-defined]
    tls.slim()
    assert asyncio.sslproto.SSLProtocol.max_size == 16 * 1024
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    loop = asyncio.new_event_loop()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept: Any = asyncio.sslproto.SSLProtocol(loop, asyncio.Protocol(), context, loop.create_future(), True)
        assert tracemalloc.get_traced_memory()[0] - before < 48 * 1024
        kept._app_transport._closed = True  # there never was a connection
    finally:
        tracemalloc.stop()
        loop.close()


def test_the_reader_of_a_session_is_small() -> None:
    assert Session.line_length_limit <= 64 * 1024
