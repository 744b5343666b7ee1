"""TLS and logins at the listeners of the real process: submission, implicit TLS, certificates that change."""

from __future__ import annotations

import base64
import re
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemail.relay.receive.auth import set_password
from tests.peers.certificate import Certificate, certificate
from tests.peers.clients import s_client
from tests.scenarios.client import Client, any_certificate, id_in
from tests.scenarios.relay import MESSAGE, Relay, relay
from tests.scenarios.sink import Sink, after_trace, sink

USER, PASSWORD = "kdent", "Rumpelstiltskin"
LISTENERS = """
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


def encoded(*parts: str) -> str:
    return base64.b64encode("\0".join(parts).encode()).decode()


PLAIN = encoded("", USER, PASSWORD)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("keys"), "gw.example.com")


@pytest.fixture(scope="module")
def smarthost() -> Iterator[Sink]:
    with sink() as found:
        yield found


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    directory = tmp_path_factory.mktemp("relay")
    set_password(str(directory / "users"), USER, PASSWORD)
    with relay(directory, f'smtpd_sasl_password_file = "{directory}/users"\n', LISTENERS) as found:
        yield found
        assert PASSWORD not in found.log() and PLAIN not in found.log()


class Front:
    """The process with the settings of one test; a copy of the certificate that a test may change."""

    def __init__(self, relay: Relay, smarthost: Sink, keys: Certificate, directory: Path) -> None:
        self.relay = relay
        self.smarthost = smarthost
        self.authority = keys.authority
        self.certificate = Path(shutil.copy(keys.certificate, directory / "cert.pem"))
        self.key = Path(shutil.copy(keys.key, directory / "key.pem"))

    def set(self, settings: str = "", listeners: str = LISTENERS, users: Path | None = None) -> Relay:
        self.relay.reload(
            f"""\
relayhost = "[127.0.0.1]:{self.smarthost.port}"
in_flow_delay = 0
smtpd_error_sleep_time = 0
smtpd_tls_cert_file = "{self.certificate}"
smtpd_tls_key_file = "{self.key}"
smtpd_sasl_password_file = "{users or self.relay.directory / "users"}"
{settings}""",
            listeners,
        )
        assert re.findall("read again|stays in force", self.relay.log())[-1] == "read again", self.relay.log()
        return self.relay

    def verified(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))


@pytest.fixture
def front(process: Relay, smarthost: Sink, keys: Certificate, tmp_path: Path) -> Iterator[Front]:
    smarthost.received.clear()
    yield Front(process, smarthost, keys, tmp_path)
    process.wait_empty()
    assert "panic: " not in process.log()


# logins


def test_submission_as_a_program_does_it(front: Front) -> None:
    """STARTTLS with a verified name, AUTH that was not offered before it, a message, and what its trace says."""
    server = front.set("smtpd_tls_received_header = true\n")
    with Client(server.ports["submission"]) as client:
        before = client.say("EHLO smtp.example.com")
        assert "250-STARTTLS\n" in before and "AUTH" not in before and "VRFY" not in before
        assert client.say("AUTH PLAIN " + PLAIN).startswith("530 5.7.0 ")
        client.starttls(front.verified(), "gw.example.com")
        assert client.say("MAIL FROM:<root@example.com>") == "250 2.1.0 Ok"  # no EHLO before: allowed, as before TLS
        assert client.say("RSET") == "250 2.0.0 Ok"
        after = client.say("EHLO smtp.example.com")
        assert "250-AUTH PLAIN LOGIN\n" in after and "STARTTLS" not in after
        assert client.say("AUTH PLAIN " + PLAIN) == "235 2.7.0 Authentication successful"
        queue_id = client.message(MESSAGE, "root@localhost.example.com", sender="root@example.com")
        assert client.say("QUIT") == "221 2.0.0 Bye"
    (one,) = front.smarthost.wait_for(1)
    assert after_trace(one.content) == MESSAGE
    trace = one.content[: -len(MESSAGE)].decode()
    assert re.search(r"\r\n\t\(using TLSv1\.3 with cipher TLS_\w+ \(\d+/\d+ bits\)\)\r\n", trace), trace
    assert f"with ESMTPSA id {queue_id}\r\n" in trace and USER not in trace
    start = rf" edgemail/submission/smtpd\[\d+\]: {queue_id}: client=unknown\[127\.0\.0\.1\], "
    assert re.search(start + rf"sasl_method=PLAIN, sasl_username={USER}$", server.log(), re.MULTILINE)
    assert re.search(
        r" edgemail/submission/smtpd\[\d+\]: Anonymous TLS connection established from unknown\[127\.0\.0\.1\]: "
        r"TLSv1\.3 with cipher ",
        server.log(),
    )


@pytest.mark.parametrize(
    "lines, code",
    [
        ([f"AUTH PLAIN {PLAIN}"], "235"),
        ([f"AUTH PLAIN {encoded(USER, USER, PASSWORD)}"], "235"),
        (["AUTH PLAIN", PLAIN], "235"),
        (["auth login", encoded(USER), encoded(PASSWORD)], "235"),
        ([f"AUTH LOGIN {encoded(USER)}", encoded(PASSWORD)], "235"),
        ([f"AUTH PLAIN {encoded('', USER, 'wrong')}"], "535"),
        ([f"AUTH PLAIN {encoded('', 'nobody', PASSWORD)}"], "535"),
        ([f"AUTH PLAIN {encoded('root', USER, PASSWORD)}"], "535"),
        (["AUTH PLAIN", "*"], "501"),
        (["AUTH PLAIN", "no base64"], "501"),
        (["AUTH CRAM-MD5"], "504"),
        (["AUTH DIGEST-MD5"], "504"),
    ],
)
def test_forms_of_auth(front: Front, lines: list[str], code: str) -> None:
    server = front.set()
    with Client(server.ports["submissions"], tls=any_certificate()) as client:
        client.say("EHLO me")
        for line in lines[:-1]:
            assert client.say(line).startswith("334 ")
        assert client.say(lines[-1]).startswith(code)
        assert client.say("NOOP") == "250 2.0.0 Ok"
        client.say("MAIL FROM:<a@b.example>")
        assert client.say("RCPT TO:<c@d.example>")[:3] == ("250" if code == "235" else "554")


def test_what_a_login_is_good_for(front: Front) -> None:
    """Without one nobody may send anything at a submission listener, to the box's own domains neither."""
    server = front.set('mynetworks = ["127.0.0.0/8"]\nrelay_domains = ["example.net"]\n')
    with Client(server.ports["submission"]) as client:
        client.say("EHLO me")
        assert client.say("MAIL FROM:<a@b.example>") == "530 5.7.0 Must issue a STARTTLS command first"
        client.starttls()
        client.ask("EHLO me", "MAIL FROM:<a@b.example>")
        for recipient in ("x@example.org", "x@example.net", "x@gw.example.com"):
            assert client.say(f"RCPT TO:<{recipient}>").startswith("554 5.7.1 "), recipient
        client.say("RSET")
        assert client.say("AUTH PLAIN " + PLAIN).startswith("235 ")
        assert client.say("AUTH PLAIN " + PLAIN) == "503 5.5.1 Error: already authenticated"
        client.say("MAIL FROM:<a@b.example>")
        for recipient in ("x@example.org", "x@example.net"):
            assert client.say(f"RCPT TO:<{recipient}>") == "250 2.1.5 Ok", recipient


def test_a_login_opens_the_lan_listener_to_strangers(front: Front) -> None:
    server = front.set("smtpd_sasl_auth_enable = true\nmynetworks = []\n")
    with Client(server.ports["lan"]) as client:
        assert "AUTH" not in client.say("EHLO me")
        assert client.say("AUTH PLAIN " + PLAIN).startswith("538 5.7.11 ")
        client.starttls()
        client.say("EHLO me")
        assert client.say("AUTH PLAIN " + PLAIN).startswith("235 ")
        client.message(MESSAGE)
    (one,) = front.smarthost.wait_for(1)
    assert b" with ESMTPSA id " in one.content


def test_logins_in_clear_where_they_are_asked_for(front: Front) -> None:
    settings = 'smtpd_sasl_auth_enable = true\nsmtpd_tls_auth_only = false\nsmtpd_tls_security_level = "none"\n'
    listeners = LISTENERS[: LISTENERS.index('\n[[listener]]\nname = "submission"')]
    server = front.set(settings + "mynetworks = []\nbroken_sasl_auth_clients = true\n", listeners)
    with Client(server.ports["lan"]) as client:
        hello = client.say("EHLO me")
        assert "250-AUTH PLAIN LOGIN\n250-AUTH=PLAIN LOGIN\n" in hello and "STARTTLS" not in hello
        assert client.say("AUTH PLAIN " + PLAIN).startswith("235 ")
        client.message(MESSAGE)
    (one,) = front.smarthost.wait_for(1)
    assert b" with ESMTPA id " in one.content


def test_a_changed_password_counts_at_once(front: Front) -> None:
    server = front.set()
    server.run("edgemail", "passwd", "visitor", input=b"first\n")

    def login(password: str) -> str:
        with Client(server.ports["submissions"], tls=any_certificate()) as client:
            client.say("EHLO me")
            return client.say("AUTH PLAIN " + encoded("", "visitor", password))[:3]

    server.wait_until(lambda: login("first") == "235", "login")
    server.run("edgemail", "passwd", "visitor", input=b"second\n")
    server.wait_until(lambda: login("second") == "235", "login with the new password")
    assert login("first") == "535"
    assert "SASL PLAIN authentication failed: sasl_username=visitor" in server.log()


def test_guessing_ends_the_session(front: Front) -> None:
    server = front.set("smtpd_hard_error_limit = 3\n")
    with Client(server.ports["submissions"], tls=any_certificate()) as client:
        client.say("EHLO me")
        wrong = "AUTH PLAIN " + encoded("", USER, "wrong")
        assert [client.say(wrong)[:3] for _ in range(3)] == ["535", "535", "421"]
        assert client.line() == b""


def test_a_password_file_that_is_gone_is_our_own_trouble(front: Front, tmp_path: Path) -> None:
    """Not the client's: it is told to come again. What was read once stays in use."""
    users = tmp_path / "users"
    set_password(str(users), USER, PASSWORD)
    server = front.set(users=users)

    def login() -> str:
        with Client(server.ports["submissions"], tls=any_certificate()) as client:
            client.say("EHLO me")
            return client.say("AUTH PLAIN " + PLAIN)

    kept = users.read_text()
    users.unlink()
    assert login() == "454 4.7.0 Temporary authentication failure"
    assert f"error: {users}: No such file or directory" in server.log()
    users.write_text(kept)
    assert login().startswith("235 ")
    users.unlink()
    server.wait_until(lambda: login().startswith("235 ") and f"warning: {users}: " in server.log(), "complaint")


# TLS


def test_a_session_inside_tls_and_one_in_clear(front: Front) -> None:
    """Level may: both; what was said before the handshake does not count after it."""
    server = front.set("smtpd_tls_received_header = true\n")
    with Client(server.ports["lan"]) as client:
        client.say("EHLO before.example.com")
        client.starttls(front.verified(), "gw.example.com")
        client.message(b"Subject: tls\r\n\r\n")
        client.say("HELO after.example.com")
        client.message(b"Subject: helo\r\n\r\n")
    with Client(server.ports["lan"]) as client:
        client.say("EHLO clear.example.com")
        client.message(b"Subject: clear\r\n\r\n")
    found = {after_trace(one.content): one.content for one in front.smarthost.wait_for(3)}
    assert b"from unknown (unknown" in found[b"Subject: tls\r\n\r\n"]
    assert b"(using TLSv1.3" in found[b"Subject: tls\r\n\r\n"]
    assert b"from after.example.com (" in found[b"Subject: helo\r\n\r\n"]
    assert b"(using " not in found[b"Subject: clear\r\n\r\n"] and b"with ESMTP id" in found[b"Subject: clear\r\n\r\n"]


def test_commands_behind_starttls_do_not_get_into_tls(front: Front) -> None:
    server = front.set()
    with Client(server.ports["lan"]) as client:
        client.say("EHLO me")
        client.send(b"STARTTLS\r\nMAIL FROM:<injected@example.com>\r\n")
        assert client.reply().startswith("421 4.7.0 ")
        assert client.line() == b""


def test_no_tls_where_none_is_wanted(front: Front) -> None:
    listeners = LISTENERS[: LISTENERS.index('\n[[listener]]\nname = "submission"')]
    server = front.set('smtpd_tls_security_level = "none"\n', listeners)
    with Client(server.ports["lan"]) as client:
        assert "STARTTLS" not in client.say("EHLO me")
        assert client.say("STARTTLS").startswith("502 5.5.1 ")


def version(port: int, *, least: ssl.TLSVersion | None = None, most: ssl.TLSVersion | None = None) -> str:
    """What implicit TLS comes to; "" when nothing."""
    context = any_certificate()
    if least is not None:
        context.minimum_version = least
    if most is not None:
        context.maximum_version = most
    try:
        with Client(port, tls=context) as client:
            assert isinstance(client.socket, ssl.SSLSocket)
            return client.socket.version() or ""
    except (ssl.SSLError, ConnectionError):
        return ""


def test_protocols(front: Front) -> None:
    old, new = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
    server = front.set()
    port = server.ports["submissions"]
    assert (version(port, most=old), version(port)) == ("TLSv1.2", "TLSv1.3")
    front.set('smtpd_tls_mandatory_protocols = ">=TLSv1.3"\n')
    assert (version(port, most=old), version(port)) == ("", "TLSv1.3")
    front.set('smtpd_tls_mandatory_protocols = "!SSLv2, !SSLv3, !TLSv1, !TLSv1.1, !TLSv1.3"\n')
    assert (version(port, least=new), version(port)) == ("", "TLSv1.2")


def ciphers(port: int) -> str:
    """The cipher that a client of TLS 1.2 gets which would take any."""
    done = s_client(port, "-tls1_2", "-cipher", "ALL:@SECLEVEL=0")
    found = re.search(r"Cipher is (\S+)", done.stdout)
    return found[1] if found else ""


def test_ciphers_and_curves(front: Front) -> None:
    server = front.set('smtpd_tls_mandatory_ciphers = "high"\n')
    port = server.ports["submissions"]
    first = ciphers(port)
    assert first.startswith("ECDHE-ECDSA-"), first  # forward secrecy always
    front.set(f'smtpd_tls_mandatory_ciphers = "high"\nsmtpd_tls_exclude_ciphers = ["{first}"]\n')
    second = ciphers(port)
    assert second.startswith("ECDHE-ECDSA-") and second != first
    for weak in ("aNULL:@SECLEVEL=0", "eNULL:@SECLEVEL=0", "RC4:3DES:@SECLEVEL=0", "kRSA:@SECLEVEL=0"):
        done = s_client(port, "-tls1_2", "-cipher", weak)
        assert "Cipher is (NONE)" in done.stdout or "no cipher match" in done.stderr.lower(), weak
    for grade, curve in (("strong", "prime256v1"), ("ultra", "secp384r1")):
        front.set(f'smtpd_tls_eecdh_grade = "{grade}"\n')
        done = s_client(port, "-tls1_2")
        assert re.search(rf"(?:Server|Peer) Temp Key: ECDH, {curve}", done.stdout), done.stdout


def test_defined_names_stand_in_tls_parameters(front: Front) -> None:
    server = front.set('smtpd_tls_protocols = ">=TLSv1.3"\nsmtpd_tls_mandatory_protocols = "$smtpd_tls_protocols"\n')
    assert version(server.ports["submissions"], most=ssl.TLSVersion.TLSv1_2) == ""


@pytest.mark.parametrize("timeout, resumed", [("3600s", True), ("0s", False)])
def test_sessions_are_resumed(front: Front, tmp_path: Path, timeout: str, resumed: bool) -> None:
    server = front.set(f'smtpd_tls_session_cache_timeout = "{timeout}"\n')
    port, kept = server.ports["submissions"], tmp_path / "session"
    s_client(port, "-tls1_2", "-sess_out", str(kept))
    again = s_client(port, "-tls1_2", "-sess_in", str(kept))
    assert ("Reused, TLSv1.2" in again.stdout) is resumed, again.stdout


def test_tls_lines_of_the_log_can_be_turned_off(front: Front) -> None:
    server = front.set("smtpd_tls_loglevel = 0\n")
    before = server.log().count("TLS connection established")
    assert version(server.ports["submissions"])
    server.send()
    assert server.log().count("TLS connection established") == before


@pytest.mark.parametrize("hello", [b"EHLO me\r\n", b"\x16\x03\x01\xff\xff", b"GET / HTTP/1.1\r\n\r\n"])
def test_no_tls_at_the_implicit_port(front: Front, hello: bytes) -> None:
    """It comes to an end, it is logged, and the next client is served."""
    server = front.set()
    count = server.log().count("SSL_accept error")
    with socket.create_connection(("127.0.0.1", server.ports["submissions"]), 10) as plain:
        plain.sendall(hello)
        plain.shutdown(socket.SHUT_WR)
        server.wait_for(r"SSL_accept error from unknown\[127\.0\.0\.1\]: ", count=count + 1)
    assert version(server.ports["submissions"]) == "TLSv1.3"


# certificates


def serial(port: int) -> bytes:
    """The certificate that a client sees now."""
    with Client(port, tls=any_certificate()) as client:
        assert isinstance(client.socket, ssl.SSLSocket)
        return client.socket.getpeercert(binary_form=True) or b""


def test_a_renewed_certificate_needs_no_restart(front: Front, tmp_path: Path) -> None:
    """Files replaced, as renewal hooks do: new sessions have the new one, an open one goes on; no signal was sent."""
    server = front.set()
    port = server.ports["submissions"]
    old = serial(port)
    assert server.process is not None
    pid = server.process.pid
    other = tmp_path / "other"
    other.mkdir()
    renewed = certificate(other, "gw.example.com")
    with Client(port, tls=any_certificate()) as open_one:
        for source, target in ((renewed.key, front.key), (renewed.certificate, front.certificate)):
            beside = target.with_suffix(".new")
            shutil.copy(source, beside)
            beside.replace(target)
        server.wait_until(lambda: serial(port) != old, "new certificate")
        assert open_one.say("NOOP") == "250 2.0.0 Ok"
    assert serial(port) == ssl.PEM_cert_to_DER_cert(renewed.certificate.read_text())
    assert server.process.pid == pid and server.process.poll() is None


@pytest.mark.parametrize("broken", ["torn", "foreign key", "gone"])
def test_a_broken_certificate_does_not_replace_a_good_one(front: Front, tmp_path: Path, broken: str) -> None:
    server = front.set()
    port = server.ports["submissions"]
    good = serial(port)
    before = server.log().count("the one read before stays in use")
    if broken == "torn":
        front.certificate.write_bytes(front.certificate.read_bytes()[:300])
    elif broken == "foreign key":
        other = tmp_path / "other"
        other.mkdir()
        shutil.copy(certificate(other, "gw.example.com").key, front.key)
    else:
        front.certificate.unlink()
    server.wait_until(
        lambda: serial(port) == good and server.log().count("the one read before stays in use") > before, "complaint"
    )


def test_the_boxs_own_certificate(tmp_path: Path, smarthost: Sink) -> None:
    """Without smtpd_tls_cert_file: made at the first start, for myhostname, kept over a restart; its key is private."""
    named = 'myhostname = "own.example.com"\n'  # for which none was made yet
    with relay(tmp_path, named + f'relayhost = "[127.0.0.1]:{smarthost.port}"\n') as server:
        assert "made, self-signed, for own.example.com" in server.log()
        path = tmp_path / "spool" / "tls" / "cert.pem"
        made = path.read_bytes()
        assert (path.with_name("key.pem").stat().st_mode & 0o777) == 0o600
        with Client(server.port) as client:
            client.say("EHLO me")
            client.starttls(ssl.create_default_context(cafile=str(path)), "own.example.com")
        server.restart()
        assert path.read_bytes() == made


def test_openssl_by_hand(front: Front) -> None:
    """The whole of a submission typed into s_client, in lower case as one must."""
    server = front.set()
    lines = f"""\
ehlo smtp.example.com
auth plain {PLAIN}
mail from:<root@example.com>
rcpt to:<root@localhost.example.com>
data
subject: typed

x
.
quit
"""
    options = ["-starttls", "smtp", "-quiet", "-CAfile", str(front.authority), "-verify_return_error"]
    done = s_client(server.ports["submission"], *options, lines=lines.encode())
    said = done.stdout.splitlines()
    assert "250-AUTH PLAIN LOGIN" in said, done.stdout + done.stderr
    end = said[said.index("235 2.7.0 Authentication successful") :]
    assert end[1:4] == ["250 2.1.0 Ok", "250 2.1.5 Ok", "354 End data with <CR><LF>.<CR><LF>"]
    id_in(end[4])
    assert end[5] == "221 2.0.0 Bye"
    (one,) = front.smarthost.wait_for(1)
    assert after_trace(one.content) == b"subject: typed\r\n\r\nx\r\n"
