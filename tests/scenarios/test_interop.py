"""The real process between programs that nobody here wrote: their clients in front of it, their servers behind it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers import need
from tests.peers.certificate import Certificate, certificate
from tests.peers.clients import curl, msmtp, s_client, swaks
from tests.peers.exim import exim
from tests.peers.postfix import Postfix, postfix, smtp_sink, smtp_source, with_login
from tests.scenarios.relay import MESSAGE, Relay, relay
from tests.scenarios.sink import Sink, after_trace, sink

# With all that others would add.
COMPLETE = b"Message-ID: <1@example.com>\r\nDate: Sat, 21 Nov 2026 00:00:00 +0000\r\n" + MESSAGE
USER, PASSWORD = "gateway", "s3cret word"
SUBMISSION = """
[[listener]]
name = "lan"
address = "127.0.0.1"
port = 0

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
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("keys"), "gw.example.com")


@pytest.fixture(scope="module")
def smarthost() -> Iterator[Sink]:
    with sink(keywords=("PIPELINING", "SIZE 50000000", "8BITMIME", "SMTPUTF8", "DSN", "CHUNKING")) as found:
        yield found


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, keys: Certificate, smarthost: Sink) -> Iterator[Relay]:
    """A relay with TLS, logins and a smarthost that takes everything."""
    directory = tmp_path_factory.mktemp("front")
    settings = f"""\
relayhost = "[127.0.0.1]:{smarthost.port}"
in_flow_delay = 0
smtpd_tls_security_level = "may"
smtpd_tls_cert_file = "{keys.certificate}"
smtpd_tls_key_file = "{keys.key}"
smtpd_sasl_password_file = "{directory}/users"
smtpd_tls_received_header = true
message_size_limit = "30MiB"
spool_size = "256MiB"
"""
    found = Relay(directory, settings, SUBMISSION)
    found.run("edgemail", "passwd", USER, input=f"{PASSWORD}\n".encode())
    found.start()
    try:
        yield found
    finally:
        found._end()


@pytest.fixture(autouse=True)
def forget(smarthost: Sink) -> None:
    smarthost.received.clear()


def addresses(one: object) -> list[str]:
    return re.findall("<(.*?)>", " ".join(getattr(one, "rcpt")))  # noqa: B009


# clients


@pytest.mark.parametrize("options", [(), ("-d",), ("-A",)])
def test_smtp_source(front: Relay, smarthost: Sink, options: tuple[str, ...]) -> None:
    """-d: a connection kept for many messages; -A: transactions aborted on the way do no harm."""
    done = smtp_source(front.port, *options, messages=50, sessions=10, length=5000)
    assert done.returncode == 0, done.stderr
    if "-A" not in options:
        assert len(smarthost.wait_for(50)) == 50
    front.wait_empty()


def test_smtp_source_with_many_recipients(front: Relay, smarthost: Sink) -> None:
    done = smtp_source(front.port, "-r", "20", messages=5, sessions=2)
    assert done.returncode == 0, done.stderr
    assert [len(one.rcpt) for one in smarthost.wait_for(5)] == [20] * 5


def test_swaks_in_clear(front: Relay, smarthost: Sink) -> None:
    done = swaks(front.port, "alice@example.com", ["bob@example.org", "carol@example.org"], "--body", "one\n.two\n..\n")
    assert done.returncode == 0, done.stdout
    (one,) = smarthost.wait_for(1)
    assert addresses(one) == ["bob@example.org", "carol@example.org"]
    assert b"\r\none\r\n.two\r\n..\r\n" in one.content


def test_swaks_pipelined(front: Relay, smarthost: Sink) -> None:
    done = swaks(front.port, "alice@example.com", ["bob@example.org"], "--pipeline")
    assert done.returncode == 0, done.stdout
    smarthost.wait_for(1)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("listener", ["submission", "submissions"])
def test_swaks_with_tls_and_login(
    front: Relay, smarthost: Sink, keys: Certificate, mechanism: str, listener: str
) -> None:
    options = ["--auth", mechanism, "--auth-user", USER, "--auth-password", PASSWORD, "--tls-verify"]
    options += ["--tls-ca-path", str(keys.authority), "--tls-on-connect" if listener == "submissions" else "--tls"]
    done = swaks(front.ports[listener], "alice@example.com", ["bob@example.org"], *options)
    assert done.returncode == 0, done.stdout
    (one,) = smarthost.wait_for(1)
    assert b" with ESMTPSA id " in one.content
    assert b"TLSv1.3" in one.content


def test_swaks_with_a_wrong_password(front: Relay, keys: Certificate) -> None:
    options = ["--auth", "PLAIN", "--auth-user", USER, "--auth-password", "wrong", "--tls"]
    done = swaks(front.ports["submission"], "alice@example.com", ["bob@example.org"], *options)
    assert done.returncode == 28, done.stdout  # swaks: no authentication succeeded
    assert "535 5.7.8" in done.stdout
    assert "wrong" not in front.log()


def test_swaks_gets_no_login_in_clear(front: Relay) -> None:
    options = ["--auth", "PLAIN", "--auth-user", USER, "--auth-password", PASSWORD]
    done = swaks(front.ports["submission"], "alice@example.com", ["bob@example.org"], *options)
    assert done.returncode == 28, done.stdout
    assert "AUTH" not in done.stdout.replace("*** Host did not advertise", "").split("STARTTLS")[0]


def test_msmtp(front: Relay, smarthost: Sink, keys: Certificate) -> None:
    """Byte for byte, with long lines' neighbours, dots and 8-bit text, over STARTTLS with DSN."""
    body = COMPLETE + "Grüße\r\n.\r\n..dots\r\n".encode() + b"x" * 990 + b"\r\n"
    options = ["--tls=on", f"--tls-trust-file={keys.authority}", "--dsn-notify=failure", "--dsn-return=headers"]
    options.append("--set-date-header=off")
    done = msmtp(front.port, "alice@example.com", ["bob@example.org"], body.replace(b"\r\n", b"\n"), *options)
    assert done.returncode == 0, done.stderr
    (one,) = smarthost.wait_for(1)
    assert after_trace(one.content) == body
    assert " RET=HDRS" in one.mail and "NOTIFY=FAILURE" in one.rcpt[0]


def test_msmtp_with_login(front: Relay, smarthost: Sink, keys: Certificate, tmp_path: Path) -> None:
    options = ["--tls=on", f"--tls-trust-file={keys.authority}", "--auth=plain", f"--user={USER}"]
    options.append(f"--passwordeval=echo '{PASSWORD}'")
    done = msmtp(front.ports["submission"], "a@b.example", ["c@d.example"], MESSAGE, *options)
    assert done.returncode == 0, done.stderr
    assert b"ESMTPSA" in smarthost.wait_for(1)[0].content


@pytest.mark.parametrize("size", [0, 1000, 20_000_000])
def test_curl(front: Relay, smarthost: Sink, tmp_path: Path, size: int) -> None:
    message = tmp_path / "message"
    line = bytes(range(33, 110)) + b"\r\n"
    message.write_bytes(MESSAGE + line * (size // len(line)))
    done = curl(front.port, "alice@example.com", ["bob@example.org"], message)
    assert done.returncode == 0, done.stderr
    (one,) = smarthost.wait_for(1)
    assert hashlib.sha256(after_trace(one.content)).digest() == hashlib.sha256(message.read_bytes()).digest()


def test_curl_with_implicit_tls_and_login(front: Relay, smarthost: Sink, keys: Certificate, tmp_path: Path) -> None:
    message = tmp_path / "message"
    message.write_bytes(MESSAGE)
    options = ["--cacert", str(keys.authority), "--user", f"{USER}:{PASSWORD}"]
    done = curl(front.ports["submissions"], "a@b.example", ["c@d.example"], message, *options, scheme="smtps")
    assert done.returncode == 0, done.stderr
    smarthost.wait_for(1)


def test_openssl_verifies_the_certificate(front: Relay, keys: Certificate) -> None:
    """As a person would look: lower-case verbs, for an R at the beginning of a line renegotiates."""
    start = ["-starttls", "smtp", "-verify_return_error", "-verify_hostname", "gw.example.com"]
    done = s_client(front.port, *start, "-CAfile", str(keys.authority), lines=b"ehlo me\nquit\n")
    assert "Verify return code: 0 (ok)" in done.stdout, done.stdout + done.stderr
    assert re.search(r"(?m)^250.SIZE", done.stdout) and "221 2.0.0" in done.stdout
    assert "250-STARTTLS" not in done.stdout.partition("Verify return code")[2]
    missing = s_client(front.port, *start)
    assert missing.returncode != 0


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_openssl_gets_no_old_protocol(front: Relay, version: str) -> None:
    done = s_client(front.port, "-starttls", "smtp", version, "-cipher", "ALL:@SECLEVEL=0")
    assert "Cipher is (NONE)" in done.stdout or done.returncode != 0


# servers


def test_smtp_sink_behind(tmp_path: Path) -> None:
    """Postfix's sink with everything in it that a server may do: 1000 messages through, none left."""
    with smtp_sink("-u", "nobody") as port:
        settings = f'relayhost = "[127.0.0.1]:{port}"\nin_flow_delay = 0\n'
        with relay(tmp_path, settings) as found:
            assert smtp_source(found.port, "-d", messages=300, sessions=10, length=4000).returncode == 0
            found.wait_empty(60)
            assert found.log().count("status=sent") == 300


def behind(keys: Certificate, port: int, directory: Path, more: str = "", login: str = f"{USER}:{PASSWORD}") -> str:
    """Settings for a smarthost with a verified certificate and a login."""
    passwords = directory / "passwords"
    passwords.write_text(f"[127.0.0.1]:{port} {login}\n")
    passwords.chmod(0o600)
    return f"""\
relayhost = "[127.0.0.1]:{port}"
smtp_tls_security_level = "verify"
smtp_tls_CAfile = "{keys.authority}"
smtp_sasl_auth_enable = true
smtp_sasl_password_maps = "texthash:{passwords}"
minimal_backoff_time = "1s"
queue_run_delay = "1s"
in_flow_delay = 0
{more}"""


BODIES = [
    COMPLETE,
    COMPLETE + b".\r\n..\r\n.a\r\n",
    COMPLETE + "Grüße\r\n".encode() * 100,
    COMPLETE + (b"y" * 76 + b"\r\n") * 30_000,
]


def test_postfix_as_smarthost(tmp_path: Path, keys: Certificate, smarthost: Sink) -> None:
    need("postfix", root=True)
    theirs = Postfix({"relayhost": f"[127.0.0.1]:{smarthost.port}"})
    with_login(theirs, keys, USER, PASSWORD)
    try:
        theirs.start()
        login = f"{USER}@postfix.example:{PASSWORD}"
        with relay(tmp_path, behind(keys, theirs.port, tmp_path, login=login)) as found:
            for body in BODIES:
                found.send(message=body)
            found.wait_empty(60)
            assert len(re.findall(r"status=sent \(250 2\.0\.0 Ok: (?:\d+ bytes )?queued as", found.log())) == len(
                BODIES
            )
            assert PASSWORD not in found.log()
        received = smarthost.wait_for(len(BODIES))
        assert sorted(after_trace(after_trace(one.content)) for one in received) == sorted(BODIES)
        assert all(b"ESMTPSA" in one.content for one in received)
        assert f"sasl_username={USER}@postfix.example" in theirs.log()
    finally:
        theirs.stop()


def test_exim_as_smarthost(tmp_path: Path, keys: Certificate) -> None:
    with exim(keys, USER, PASSWORD) as theirs, relay(tmp_path, behind(keys, theirs.port, tmp_path)) as found:
        for body in BODIES:
            found.send(message=body)
        found.wait_empty(60)
        contents = [one.replace(b"\n", b"\r\n") for one in theirs.messages(len(BODIES))]
        for body in BODIES:
            assert any(content.endswith(body) for content in contents)
        assert f"A=plain:{USER}" in theirs.log() or f"A=login:{USER}" in theirs.log() or "A=cram" in theirs.log()
        assert PASSWORD not in found.log()


@pytest.mark.parametrize("server", ["postfix", "exim"])
def test_a_refused_login_pauses_the_route_and_bounces_nothing(tmp_path: Path, keys: Certificate, server: str) -> None:
    need(server, root=True)

    def scenario(port: int) -> None:
        with relay(tmp_path, behind(keys, port, tmp_path, login=f"{USER}:wrong")) as found:
            queue_id = found.send()
            one = found.wait_deferred()[0]  # the notice that the route pauses comes after it
            assert one["queue_id"] == queue_id
            assert "535" in one["recipients"][0]["reason"]
            assert not re.search(r"sender non-delivery|status=bounced", found.log())

    if server == "exim":
        with exim(keys, USER, PASSWORD) as theirs:
            scenario(theirs.port)
        return
    instance = Postfix()
    with_login(instance, keys, USER, PASSWORD)
    try:
        instance.start()
        scenario(instance.port)
    finally:
        instance.stop()


def test_a_smarthost_that_nobody_vouches_for_gets_nothing(tmp_path: Path, keys: Certificate) -> None:
    with exim(keys, USER, PASSWORD) as theirs:
        settings = behind(keys, theirs.port, tmp_path).replace(f'smtp_tls_CAfile = "{keys.authority}"\n', "")
        with relay(tmp_path, settings) as found:
            found.send()
            one = found.wait_deferred()[0]
            assert "ertificate" in one["recipients"][0]["reason"]
            assert "<=" not in theirs.log()


def test_bounces_of_postfix_as_smarthost_are_its_own(tmp_path: Path) -> None:
    """A 5xx at RCPT bounces here and now, with what Postfix said in the notice."""
    with postfix({"smtpd_recipient_restrictions": "reject", "smtpd_delay_reject": "yes"}) as theirs, sink() as home:
        maps = f'transport_maps = [{{ "example.com" = "smtp:[127.0.0.1]:{home.port}" }}]\n'
        settings = f'relayhost = "[127.0.0.1]:{theirs.port}"\nin_flow_delay = 0\n' + maps
        with relay(tmp_path, settings) as found:
            found.send("alice@example.com")
            (notice,) = home.wait_for(1)
            assert notice.mail.startswith("MAIL FROM:<>")
            assert addresses(notice) == ["alice@example.com"]
            assert b"554 5.7.1" in notice.content and b"Final-Recipient: rfc822; bob@example.org" in notice.content
            found.wait_empty()
