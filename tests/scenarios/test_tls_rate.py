"""smtpd_client_new_tls_session_rate_limit at the real process: new TLS sessions count, resumed ones do not."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.relay import Relay, relay

SETTINGS = """
smtpd_client_new_tls_session_rate_limit = 2
smtpd_client_event_limit_exceptions = []
"""
LISTENERS = """
[[listener]]
name = "lan"
address = "127.0.0.1"
port = 0
[[listener]]
name = "implicit"
address = "127.0.0.1"
port = 0
smtpd_tls_wrappermode = true
"""


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Relay]:
    with relay(tmp_path, SETTINGS, LISTENERS) as found:
        yield found


def context() -> ssl.SSLContext:
    found = ssl.create_default_context()
    found.check_hostname, found.verify_mode = False, ssl.CERT_NONE
    return found


class Talk:
    """One connection; `said` is the last answer."""

    def __init__(self, port: int) -> None:
        self.socket: socket.socket = socket.create_connection(("127.0.0.1", port), timeout=20)

    def say(self, line: bytes = b"") -> bytes:
        if line:
            self.socket.sendall(line + b"\r\n")
        return self.socket.recv(4096)

    def secure(self, using: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
        self.socket = found = using.wrap_socket(self.socket, session=session)
        return found


def test_starttls(strict: Relay) -> None:
    using = context()
    session = None
    for number, reused in enumerate([False, True, True, False]):
        talk = Talk(strict.ports["lan"])
        with talk.socket:
            talk.say()
            talk.say(b"EHLO client.example.com")
            assert talk.say(b"STARTTLS").startswith(b"220"), number
            secured = talk.secure(using, session if reused else None)
            with secured:
                assert talk.say(b"EHLO client.example.com").startswith(b"250"), number
                assert secured.session_reused is reused
                talk.say(b"QUIT")
                session = secured.session
    talk = Talk(strict.ports["lan"])
    with talk.socket:
        talk.say()
        talk.say(b"EHLO client.example.com")
        assert (
            talk.say(b"STARTTLS")
            == b"421 4.7.0 gw.example.com Error: too many new TLS sessions from unknown[127.0.0.1]\r\n"
        )
        assert talk.socket.recv(100) == b""
    strict.wait_for(r"warning: New TLS session rate limit exceeded: unknown\[127.0.0.1\]")


def test_tls_from_the_first_byte(strict: Relay) -> None:
    answers = []
    for _ in range(3):
        talk = Talk(strict.ports["implicit"])
        with talk.secure(context()):
            answers.append(talk.say()[:9])
    assert answers == [b"220 gw.ex", b"220 gw.ex", b"421 4.7.0"]
