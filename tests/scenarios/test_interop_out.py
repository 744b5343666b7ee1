"""Every kind of message out of the real process into programs that nobody here wrote; what arrives is what was sent."""

from __future__ import annotations

import contextlib
import os
import re
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.certificate import Certificate, certificate
from tests.peers.exim import Exim, exim
from tests.peers.postfix import Postfix, smtp_sink, with_login
from tests.scenarios.internet import HASTY, gone, table, tried
from tests.scenarios.relay import MESSAGE, Relay, relay
from tests.scenarios.sink import Sink, after_trace, sink

USER, PASSWORD = "gateway", "s3cret word"

AS_USER = ("-u", "root") if os.geteuid() == 0 else ()

HEADER = MESSAGE.partition(b"\r\n\r\n")[0] + b"\r\n"
KINDS = {
    "plain": MESSAGE,
    "no body": HEADER + b"\r\n",
    "no header": b"\r\njust text\r\n",
    "8bit": HEADER + b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + "Grüße\r\n".encode() * 50,
    "latin-1": MESSAGE + bytes(range(0xA0, 0x100)) + b"\r\n",
    "dots": MESSAGE + b".\r\n..\r\n...\r\n.x\r\n\r\n.\r\nx.\r\n" + b".",
    "blank lines": MESSAGE + b"\r\n" * 300,
    "blanks at line ends": HEADER + b"X-Blank: \t \r\n\r\nend \t\r\n\t\r\n",
    "lines of 998": MESSAGE + (b"y" * 998 + b"\r\n") * 40,
    "dots at the longest": MESSAGE + (b"." * 998 + b"\r\n") * 40,
    "large": MESSAGE + (b"0123456789abcdef" * 4 + b"\r\n") * 16_000,
    "folded header": HEADER + b"X-Long: " + b"word\r\n\tword\r\n word " * 40 + b"\r\n\r\nbody\r\n",
    "own trace": b"Received: from a by b; Thu, 1 Jan 2026 00:00:00 +0000\r\nX-Loop: a b\r\n" + MESSAGE,
    "duplicate fields": HEADER
    + b"Cc: one@example.org\r\nCc: two@example.org\r\nMessage-ID: <a@b>\r\nMessage-ID: <c@d>\r\n\r\nhello\r\n",
}
UTF8 = "From: Dürst <dürst@example.com>\r\nTo: <bøb@example.org>\r\nSubject: Grüße\r\n\r\nhällo\r\n".encode()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("keys"), "smarthost.example")


@pytest.fixture(scope="module")
def world() -> Iterator[Sink]:
    """Where Postfix sends what it got."""
    with sink() as found:
        yield found


@pytest.fixture(scope="module")
def with_postfix(keys: Certificate, world: Sink) -> Iterator[Postfix]:
    theirs = Postfix({"relayhost": f"[127.0.0.1]:{world.port}", "local_header_rewrite_clients": ""})
    with_login(theirs, keys, USER, PASSWORD)
    try:
        theirs.start()
        yield theirs
    finally:
        theirs.stop()


@pytest.fixture(scope="module")
def with_exim(keys: Certificate) -> Iterator[Exim]:
    with exim(keys, USER, PASSWORD) as theirs:
        yield theirs


@pytest.fixture(scope="module")
def box(
    tmp_path_factory: pytest.TempPathFactory, keys: Certificate, with_postfix: Postfix, with_exim: Exim
) -> Iterator[Relay]:
    """Domains postfix.example and exim.example by way of these two, with verified TLS and a login."""
    directory = tmp_path_factory.mktemp("box")
    ports = {"postfix.test": with_postfix.port, "exim.test": with_exim.port}
    logins = {"postfix.test": f"{USER}@postfix.example", "exim.test": USER}
    path = directory / "passwords"
    path.write_text("".join(f"[127.0.0.1]:{port} {logins[name]}:{PASSWORD}\n" for name, port in ports.items()))
    path.chmod(0o600)
    rows = {name: f"smtp:[127.0.0.1]:{port}" for name, port in ports.items()}
    settings = f"""\
{HASTY}
transport_maps = [{table(rows)}]
smtp_tls_security_level = "verify"
smtp_tls_CAfile = "{keys.authority}"
smtp_sasl_auth_enable = true
smtp_sasl_password_maps = "texthash:{path}"
"""
    with relay(directory, settings) as found:
        yield found


@pytest.fixture(autouse=True)
def forget(world: Sink) -> None:
    world.received.clear()


def hand_over(box: Relay, recipient: str, message: bytes, *options: str) -> str:
    """Octet by octet: smtplib's own sendmail mends line ends. The queue id."""
    with smtplib.SMTP("127.0.0.1", box.port, "client.example.com", timeout=30) as client:
        client.ehlo()
        utf8 = "SMTPUTF8" in options
        encoding = "utf-8" if utf8 else "ascii"
        client.command_encoding = encoding
        sender = "dürst@example.com" if utf8 else "alice@example.com"
        assert client.mail(sender, [*options])[0] == 250
        assert client.rcpt(recipient, [])[0] == 250
        assert client.docmd("DATA")[0] == 354
        assert client.sock is not None
        end = b"" if message.endswith(b"\r\n") else b"\r\n"
        client.sock.sendall(re.sub(rb"(?m)^\.", b"..", message) + end + b".\r\n")
        code, text = client.getreply()
        assert code == 250, text
    return text.decode().rsplit(" ", 1)[-1]


def whole(message: bytes) -> bytes:
    return message if message.endswith(b"\r\n") else message + b"\r\n"


@pytest.mark.parametrize("kind", KINDS)
def test_through_postfix_byte_for_byte(box: Relay, world: Sink, kind: str) -> None:
    message = KINDS[kind]
    gone(box, hand_over(box, "bob@postfix.test", message, "BODY=8BITMIME"))
    (one,) = world.wait_for(1)
    assert b"ESMTPSA" in one.content.partition(b"\r\n\r\n")[0]
    ours = after_trace(one.content)
    assert ours.startswith(b"Received: from client.example.com ")
    assert after_trace(ours) == whole(message)


@pytest.mark.parametrize("kind", KINDS)
def test_through_exim_byte_for_byte(box: Relay, with_exim: Exim, kind: str) -> None:
    message = KINDS[kind]
    gone(box, hand_over(box, "bob@exim.test", message, "BODY=8BITMIME"))
    found = newest(with_exim).replace(b"\n", b"\r\n")
    trace = found.index(b"Received: from client.example.com ")
    assert after_trace(found[trace:]) == whole(message)


def newest(theirs: Exim) -> bytes:
    """The one message that has come, taken away."""
    (content,) = theirs.messages(1)
    for path in (theirs.directory / "maildir" / "new").iterdir():
        path.unlink()
    return content


def test_addresses_and_headers_in_utf8(box: Relay, world: Sink, with_exim: Exim) -> None:
    gone(box, hand_over(box, "bøb@postfix.test", UTF8, "BODY=8BITMIME", "SMTPUTF8"))
    (one,) = world.wait_for(1)
    assert one.mail.startswith("MAIL FROM:<dürst@example.com>") and " SMTPUTF8" in one.mail
    assert one.rcpt[0].startswith("RCPT TO:<bøb@postfix.test>")
    assert b"UTF8SMTPSA" in one.content
    assert after_trace(after_trace(one.content)) == UTF8
    gone(box, hand_over(box, "bøb@exim.test", UTF8, "BODY=8BITMIME", "SMTPUTF8"))
    assert newest(with_exim).replace(b"\n", b"\r\n").endswith(UTF8)


def test_parameters_of_delivery_reports_are_passed_on(box: Relay, world: Sink) -> None:
    queue_id = box.send(
        "alice@example.com",
        "bob@postfix.test",
        mail_options=["RET=HDRS", "ENVID=a+2Bb"],
        rcpt_options=["NOTIFY=SUCCESS,DELAY", "ORCPT=rfc822;Robert+2B1@example.org"],
    )
    tried(box, queue_id, "sent")
    (one,) = world.wait_for(1)
    assert " RET=HDRS" in one.mail and " ENVID=a+2Bb" in one.mail
    assert " NOTIFY=SUCCESS,DELAY" in one.rcpt[0] and " ORCPT=rfc822;Robert+2B1@example.org" in one.rcpt[0]


def test_a_line_too_long_is_folded_and_loses_nothing(box: Relay, world: Sink) -> None:
    line = b"".join(b"%05d " % number for number in range(1000)).rstrip()
    gone(box, hand_over(box, "bob@postfix.test", MESSAGE + line + b"\r\nend\r\n"))
    (one,) = world.wait_for(1)
    lines = one.content.split(b"\r\n")
    assert max(map(len, lines)) <= 998
    body = one.content.partition(b"\r\n\r\n")[2]
    assert body.replace(b"\r\n ", b"") == b"hello\r\n" + line + b"\r\nend\r\n"


@pytest.mark.parametrize("options", ["", "-8", "-E", "-N", "-p", "-F -C", "-8 -E -N -p", "-e", "-P"])
def test_servers_that_know_less_and_less(tmp_path: Path, options: str) -> None:
    """Postfix's sink without one extension after the other, at last without EHLO: 7-bit mail goes everywhere."""
    messages = [KINDS[kind] for kind in ("plain", "dots", "lines of 998", "blank lines")]
    dump = tmp_path / "dump"
    with smtp_sink(*AS_USER, *options.split(), "-D", str(dump)) as port:
        with relay(tmp_path, f'{HASTY}relayhost = "[127.0.0.1]:{port}"\n') as found:
            for message in messages:
                tried(found, hand_over(found, "bob@example.org", message), "sent")
    taken = dump.read_bytes().replace(b"\r\n", b"\n")
    for message in messages:
        assert b"\n" + whole(message).replace(b"\r\n", b"\n") + b"\n" in taken


WORDS = ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", ".")
TEMPERS = {
    "-q": dict.fromkeys(WORDS[1:], "deferred"),  # hangs up
    "-Q": dict.fromkeys(WORDS, "deferred"),  # says 421
    "-r": dict.fromkeys(WORDS, "deferred"),  # says 450
    # What is refused before MAIL is no message's fault. EHLO alone: HELO does as well.
    "-f": dict.fromkeys(WORDS, "bounced") | {"CONNECT": "deferred", "EHLO": "sent"},  # says 500
}


@pytest.mark.parametrize("option", TEMPERS)
def test_what_each_refusal_of_a_smarthost_means(tmp_path: Path, option: str) -> None:
    expected = TEMPERS[option]
    with contextlib.ExitStack() as stack:
        ports = {word: stack.enter_context(smtp_sink(*AS_USER, option, word)) for word in expected}
        rows = {f"{number}.example": f"smtp:[127.0.0.1]:{port}" for number, port in enumerate(ports.values())}
        found = stack.enter_context(relay(tmp_path, f"{HASTY}transport_maps = [{table(rows)}]\n"))
        ids = {word: found.send(recipients=f"bob@{number}.example") for number, word in enumerate(expected)}
        status = {word: found.wait_for(rf"{one}: to=<.* status=(\w+)")[1] for word, one in ids.items()}
    assert status == expected


def test_a_server_that_refuses_before_the_content_is_over_is_heard(tmp_path: Path) -> None:
    with smtp_sink(*AS_USER, "-A", "0") as port, relay(tmp_path, f'{HASTY}relayhost = "[127.0.0.1]:{port}"\n') as found:
        queue_id = hand_over(found, "bob@example.org", KINDS["large"])
        assert " said: 550 " in tried(found, queue_id, "bounced")
