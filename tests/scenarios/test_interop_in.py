"""Clients that nobody here wrote in front of the real process, in the modes they have: swaks, msmtp, curl, Postfix."""

from __future__ import annotations

import re
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemail.relay.receive.auth import set_password
from tests.peers.certificate import Certificate, certificate
from tests.peers.clients import curl, msmtp, swaks
from tests.peers.postfix import Postfix, postfix, smtp_source
from tests.scenarios.relay import MESSAGE, Relay
from tests.scenarios.sink import Sink, after_trace, sink

USER, PASSWORD = "gateway", "s3cret word"
LOGIN = ["--auth-user", USER, "--auth-password", PASSWORD]
LISTENERS = """
[[listener]]
name = "lan"
address = "127.0.0.1"
port = 0
smtpd_sasl_auth_enable = true

[[listener]]
name = "clear"
address = "127.0.0.1"
port = 0
smtpd_tls_security_level = "none"
smtpd_sasl_auth_enable = true
smtpd_tls_auth_only = false

[[listener]]
name = "submission"
address = "127.0.0.1"
port = 0
profile = "submission"

[[listener]]
name = "submissions"
address = "127.0.0.1"
port = 0
profile = "submissions"

[[listener]]
name = "legacy"
address = "127.0.0.1"
port = 0
profile = "legacy"
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("keys"), "gw.example.com")


@pytest.fixture(scope="module")
def smarthost() -> Iterator[Sink]:
    with sink() as found:
        yield found


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, keys: Certificate, smarthost: Sink) -> Iterator[Relay]:
    directory = tmp_path_factory.mktemp("front")
    settings = f"""\
relayhost = "[127.0.0.1]:{smarthost.port}"
in_flow_delay = 0
smtpd_error_sleep_time = 0
smtpd_tls_cert_file = "{keys.certificate}"
smtpd_tls_key_file = "{keys.key}"
smtpd_tls_received_header = true
smtpd_sasl_password_file = "{directory}/users"
"""
    set_password(f"{directory}/users", USER, PASSWORD)
    found = Relay(directory, settings, LISTENERS)
    found.start()
    try:
        yield found
        assert "panic: " not in found.log()
        assert PASSWORD not in found.log()
    finally:
        found._end()


@pytest.fixture(autouse=True)
def forget(smarthost: Sink) -> None:
    smarthost.received.clear()


def protocol(content: bytes) -> str:
    """What our trace header says that the client spoke."""
    found = re.search(rb"\tby gw\.example\.com \(edgemail\) with (\S+) id ", content)
    assert found, content[:500]
    return found[1].decode()


# swaks, which speaks every mixture


@pytest.mark.parametrize("pipeline", [False, True], ids=["lockstep", "pipelined"])
@pytest.mark.parametrize(
    "listener, spoken, options",
    [
        ("lan", "SMTP", ["--protocol", "SMTP"]),
        ("lan", "ESMTP", ["--protocol", "ESMTP"]),
        ("lan", "ESMTPS", ["--protocol", "ESMTPS"]),
        ("lan", "ESMTPSA", ["--protocol", "ESMTPSA", *LOGIN]),
        ("lan", "ESMTPS", ["--tls-optional", "--auth-optional", "CRAM-MD5", *LOGIN]),
        ("clear", "ESMTP", ["--tls-optional"]),
        ("clear", "ESMTPA", ["--protocol", "ESMTPA", "--auth", "PLAIN", *LOGIN]),
        ("clear", "ESMTPA", ["--protocol", "ESMTPA", "--auth", "LOGIN", *LOGIN]),
        ("submission", "ESMTPSA", ["--tls", "--auth", "LOGIN", *LOGIN]),
        ("submission", "ESMTPSA", ["--tls", "--tls-protocol", "tlsv1_2", "--auth", "PLAIN", *LOGIN]),
        ("submissions", "ESMTPSA", ["--tls-on-connect", "--auth", "PLAIN", *LOGIN]),
        ("submissions", "ESMTPSA", ["--tlsc", "--auth", "LOGIN", "--tls-protocol", "tlsv1_3", *LOGIN]),
    ],
)
def test_swaks(front: Relay, smarthost: Sink, listener: str, spoken: str, options: list[str], pipeline: bool) -> None:
    if pipeline and spoken == "SMTP":
        options = ["--protocol", "ESMTP"]  # without EHLO there is nothing to offer it
        spoken = "ESMTP"
    more = ["--pipeline"] if pipeline else []
    done = swaks(front.ports[listener], "alice@example.com", ["bob@example.org"], *options, *more)
    assert done.returncode == 0, done.stdout
    (one,) = smarthost.wait_for(1)
    assert protocol(one.content) == spoken
    assert (b"\t(using TLSv1." in one.content) is spoken.startswith("ESMTPS")


@pytest.mark.parametrize(
    "listener, code, options",
    [
        ("submission", 28, ["--tls", "--auth", "PLAIN", "--auth-user", USER, "--auth-password", "wrong"]),
        ("submission", 28, ["--tls", "--auth", "CRAM-MD5", *LOGIN]),
        ("submission", 23, []),  # MAIL is refused
        ("submission", 24, ["--tls"]),  # RCPT is refused
        ("clear", 29, ["--tls"]),  # no STARTTLS
        ("lan", 28, ["--auth", "PLAIN", *LOGIN]),  # no AUTH in clear
        ("submissions", 29, ["--tls-on-connect", "--tls-protocol", "tlsv1"]),
    ],
)
def test_swaks_is_refused(front: Relay, smarthost: Sink, listener: str, code: int, options: list[str]) -> None:
    """With swaks' own exit codes for the phase that failed; nothing gets through."""
    done = swaks(front.ports[listener], "alice@example.com", ["bob@example.org"], *options)
    assert done.returncode == code, done.stdout
    front.wait_empty()  # what another test's message left behind goes within a second
    assert not smarthost.received


@pytest.mark.parametrize(
    "how, phase",
    [
        *(("--quit-after", phase) for phase in ("CONNECT", "FIRST-EHLO", "TLS", "MAIL", "RCPT")),
        *(("--drop-after", phase) for phase in ("CONNECT", "FIRST-EHLO", "TLS", "MAIL", "RCPT", "DATA")),
    ],
)
def test_swaks_leaves_early(front: Relay, smarthost: Sink, how: str, phase: str) -> None:
    tls = ["--tls"] if phase == "TLS" else []
    swaks(front.port, "alice@example.com", ["bob@example.org"], *tls, how, phase)
    assert swaks(front.port, "alice@example.com", ["bob@example.org"]).returncode == 0
    assert len(smarthost.wait_for(1)) == 1
    front.wait_empty()
    assert len(smarthost.received) == 1


def test_swaks_drops_before_the_acknowledgement(front: Relay, smarthost: Sink) -> None:
    """The message was complete: it is taken once, whether or not the client waits to hear of it."""
    swaks(front.port, "alice@example.com", ["bob@example.org"], "--drop-after-send", "DOT")
    smarthost.wait_for(1)
    front.wait_empty()


def test_swaks_and_a_relay_that_is_denied(front: Relay) -> None:
    done = swaks(front.ports["submission"], "a@b.example", ["victim@elsewhere.example"], "--tls", "--pipeline")
    assert done.returncode == 24, done.stdout
    assert "554 5.7.1 <victim@elsewhere.example>: " in done.stdout


# msmtp and curl


@pytest.mark.parametrize("mechanism", ["plain", "login", "on"])
def test_msmtp(front: Relay, smarthost: Sink, keys: Certificate, mechanism: str) -> None:
    lines = MESSAGE.replace(b"\r\n", b"\n")
    for listener, starttls in (("submission", "on"), ("submissions", "off")):
        options = ["--tls=on", f"--tls-starttls={starttls}", f"--tls-trust-file={keys.authority}"]
        options += [f"--auth={mechanism}", f"--user={USER}", f"--passwordeval=echo '{PASSWORD}'"]
        done = msmtp(front.ports[listener], "a@b.example", ["c@d.example", "e@f.example"], lines, *options)
        assert done.returncode == 0, done.stderr
    for one in smarthost.wait_for(2):
        assert protocol(one.content) == "ESMTPSA" and len(one.rcpt) == 2
        assert one.content.endswith(MESSAGE)  # it adds a Date of its own


def test_msmtp_asks_what_the_server_can(front: Relay, keys: Certificate) -> None:
    done = msmtp(front.port, "", [], b"", "--serverinfo", "--tls=on", f"--tls-trust-file={keys.authority}")
    assert done.returncode == 0, done.stderr
    for word in ("SIZE", "PIPELINING", "DSN", "AUTH"):
        assert word in done.stdout, done.stdout


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_curl(front: Relay, smarthost: Sink, keys: Certificate, tmp_path: Path, mechanism: str) -> None:
    message = tmp_path / "message"
    message.write_bytes(MESSAGE)
    options = ["--cacert", str(keys.authority), "--user", f"{USER}:{PASSWORD}", "--login-options", f"AUTH={mechanism}"]
    for listener, scheme, more in (("submission", "smtp", ["--ssl-reqd"]), ("submissions", "smtps", [])):
        done = curl(front.ports[listener], "a@b.example", ["c@d.example"], message, *options, *more, scheme=scheme)
        assert done.returncode == 0, done.stderr
    assert [after_trace(one.content) for one in smarthost.wait_for(2)] == [MESSAGE] * 2


# Postfix as the sender


def test_postfix_sends_through_us(front: Relay, smarthost: Sink) -> None:
    """Everything that a Postfix behind the relay would send it, over TLS: its bodies arrive as it had them."""
    bodies = [MESSAGE, MESSAGE + b".\r\n..\r\n", MESSAGE + "Grüße\r\n".encode() * 100, MESSAGE + b"y" * 990 + b"\r\n"]
    settings = {"relayhost": f"[127.0.0.1]:{front.port}", "smtp_tls_security_level": "encrypt"}
    settings["local_header_rewrite_clients"] = ""  # it would add a Date
    with postfix(settings) as theirs:
        inject(theirs, bodies)
        received = smarthost.wait_for(len(bodies), 60)
        assert theirs.log().count("status=sent (250 2.0.0 Ok: queued as ") >= len(bodies)
    assert sorted(after_trace(after_trace(one.content)) for one in received) == sorted(bodies)
    assert {protocol(one.content) for one in received} == {"ESMTPS"}


def inject(theirs: Postfix, bodies: list[bytes]) -> None:
    with smtplib.SMTP("127.0.0.1", theirs.port, "client.example.com", timeout=30) as client:
        for body in bodies:
            client.sendmail("alice@example.com", ["bob@example.org"], body)


def test_postfix_tries_a_bad_recipient_beside_a_good_one(front: Relay, smarthost: Sink) -> None:
    """It pipelines MAIL, RCPT, RCPT, DATA: the good one gets its mail, the bad one a 550 in the log of the sender."""
    with postfix({"relayhost": f"[127.0.0.1]:{front.port}", "smtp_tls_security_level": "may"}) as theirs:
        with smtplib.SMTP("127.0.0.1", theirs.port, "client.example.com", timeout=30) as client:
            client.sendmail("alice@example.com", ["bob@example.org", "nobody@gw.example.com"], MESSAGE)
        theirs.wait_for("status=bounced")
        assert "550 5.1.1 <nobody@gw.example.com>: Recipient address rejected: User unknown in local" in theirs.log()
    found = [one for one in smarthost.wait_for(1) if "bob@example.org" in " ".join(one.rcpt)]
    assert len(found) == 1


@pytest.mark.parametrize("listener", ["lan", "legacy"])
def test_smtp_source_of_many_kinds(front: Relay, smarthost: Sink, listener: str) -> None:
    """-o: an old client that says HELO and waits; -N: a subject for each; many recipients."""
    for options in (("-o",), ("-N", "-r", "3"), ("-d", "-l", "200000")):
        done = smtp_source(front.ports[listener], *options, messages=10, sessions=5)
        assert done.returncode == 0, done.stderr
    assert len(smarthost.wait_for(30)) == 30
    front.wait_empty()
