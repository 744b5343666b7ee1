"""CRAM-MD5: the exchange, the users whose passwords are kept for it, and that nobody else gets in by it."""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from base64 import b64decode, b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgemail.relay.receive.auth import (
    Digest,
    Exchange,
    Hashed,
    Login,
    Passwords,
    Recoverable,
    parse_password,
    parse_users,
    set_password,
)
from edgemail.relay.receive.policy import Policy
from edgemail.relay.receive.service import Service
from edgemail.relay.wire.sasl import mechanism
from edgemail.settings import Listener
from tests.receiving import settings


def test_the_example_of_the_rfc() -> None:
    """RFC 2195 2."""
    challenge = b"<1896.697170952@postoffice.reston.mci.net>"
    assert Recoverable(b"tanstaaftanstaaf").answers(challenge, "b913a602c7eda7a495b4e6e7334d3890")
    assert not Recoverable(b"tanstaaftanstaaf").answers(challenge, "b913a602c7eda7a495b4e6e7334d3891")


def test_an_exchange_with_our_own_client() -> None:
    server, client = Exchange("CRAM-MD5", "gw.example.com"), mechanism("CRAM-MD5", "tim b", "secret")
    challenge = server.step(client.initial)
    assert isinstance(challenge, bytes)
    assert re.fullmatch(rb"<[0-9a-f]{32}@gw\.example\.com>", challenge)
    step = server.step(client.respond(challenge))
    assert isinstance(step, Digest)
    assert (step.user, Recoverable(b"secret").answers(step.challenge, step.digest)) == ("tim b", True)
    assert "secret" not in repr(step)
    assert step.digest not in repr(step)
    assert Exchange("CRAM-MD5").step(None) != Exchange("CRAM-MD5").step(None)


@pytest.mark.parametrize(
    "response", [b"", b"tim", b"tim abc", b" " + b"a" * 32, b"tim " + b"-" * 32, b"\xff " + b"a" * 32]
)
def test_responses_that_make_no_sense(response: bytes) -> None:
    exchange = Exchange("CRAM-MD5")
    exchange.step(None)
    assert exchange.step(response) is None


def test_the_server_speaks_first() -> None:
    assert Exchange("CRAM-MD5").step(b"tim " + b"a" * 32) is None


def digest(user: str, password: bytes, challenge: bytes = b"<1@x>") -> Digest:
    return Digest(user, challenge, hmac.new(password, challenge, "md5").hexdigest())


def test_users_with_a_recoverable_password(tmp_path: Path) -> None:
    path = str(tmp_path / "users")
    set_password(path, "old", "s3cret", recoverable=True)
    set_password(path, "new", "s3cret")
    text = Path(path).read_text()
    assert text.splitlines()[0] == f"old:cram:{b64encode(b's3cret').decode()}"
    assert Path(path).stat().st_mode & 0o777 == 0o600

    async def verdicts() -> list[bool]:
        with ThreadPoolExecutor(1) as worker:
            passwords = Passwords(path, worker, time.monotonic)
            found = [digest("old", b"s3cret"), digest("old", b"other"), digest("new", b"s3cret"), digest("nobody", b"")]
            logins = [Login("old", b"s3cret"), Login("old", b"other"), Login("new", b"s3cret")]
            return [await passwords.verify(each) for each in found] + [await passwords.verify(each) for each in logins]

    assert asyncio.run(verdicts()) == [True, False, False, False, True, False, True]
    set_password(path, "old", "s3cret")  # and no longer
    assert isinstance(parse_users(Path(path), Path(path).read_text())["old"], Hashed)


def test_a_line_that_cannot_be_read_is_not_quoted() -> None:
    assert parse_password("cram:" + b64encode(b"x y").decode()) == Recoverable(b"x y")
    assert repr(parse_password("cram:" + b64encode(b"x y").decode())) == "Recoverable()"
    with pytest.raises(ValueError, match="expected user:cram:password") as error:
        parse_password("cram:s3cret!")
    assert "s3cret" not in str(error.value)
    assert b64decode("eCB5") == b"x y"


@pytest.mark.parametrize(
    ("profile", "tls_only", "address", "offered"),
    [
        ("lan", True, "127.0.0.1", "PLAIN LOGIN"),  # which the dialog then does not show in clear
        ("odmr", True, "127.0.0.1", "PLAIN LOGIN CRAM-MD5"),
        ("odmr", True, "::1", "PLAIN LOGIN CRAM-MD5"),
        ("odmr", True, "192.0.2.1", "CRAM-MD5"),
        ("odmr", False, "192.0.2.1", "PLAIN LOGIN CRAM-MD5"),
    ],
)
def test_what_is_offered_in_clear(tmp_path: Path, profile: str, tls_only: bool, address: str, offered: str) -> None:
    values = settings(smtpd_sasl_auth_enable=True, smtpd_tls_auth_only=tls_only)
    with ThreadPoolExecutor(1) as worker:
        passwords = Passwords(str(tmp_path / "users"), worker, time.monotonic)
        service = Service(Listener("x", "127.0.0.1", 0, profile, values), Policy(values), passwords, None)
        assert " ".join(service.in_clear(address)) == offered
        assert service.atrn == (profile == "odmr")
        assert Service(Listener("x", "", 0, profile, values), Policy(values), None, None).in_clear(address) == ()
