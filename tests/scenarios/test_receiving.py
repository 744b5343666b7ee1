"""The real process as its clients see it: sessions, refusals, limits, what is kept of a message and what is logged."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dns import FakeDns, Fault
from tests.scenarios.client import Client, id_in
from tests.scenarios.relay import MESSAGE, Relay, relay
from tests.scenarios.sink import Sink, after_trace, sink
from tests.servers import FULL

TWO = """
[[listener]]
name = "lan"
address = "127.0.0.1"
port = 0

[[listener]]
name = "legacy"
address = "127.0.0.1"
port = 0
profile = "legacy"
"""


@pytest.fixture(scope="module")
def smarthost() -> Iterator[Sink]:
    with sink(keywords=[word for word in FULL if not word.startswith("SIZE")]) as found:
        yield found


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    with relay(tmp_path_factory.mktemp("relay"), listeners=TWO) as found:
        yield found


class Front:
    """The process with the settings of one test."""

    def __init__(self, relay: Relay, smarthost: Sink) -> None:
        self.relay = relay
        self.smarthost = smarthost

    def set(self, settings: str = "", listeners: str = TWO) -> Relay:
        quick = "in_flow_delay = 0\nsmtpd_error_sleep_time = 0\n"
        self.relay.reload(f'relayhost = "[127.0.0.1]:{self.smarthost.port}"\n{quick}{settings}', listeners)
        assert re.findall("read again|stays in force", self.relay.log())[-1] == "read again", self.relay.log()
        return self.relay


@pytest.fixture
def front(process: Relay, smarthost: Sink) -> Iterator[Front]:
    smarthost.received.clear()
    yield Front(process, smarthost)
    process.wait_empty()
    assert "panic: " not in process.log()


def recipients(one: object) -> list[str]:
    return re.findall("<(.*?)>", " ".join(getattr(one, "rcpt")))  # noqa: B009


# sessions


def test_a_session_in_old_form(front: Front) -> None:
    """HELO; what is kept is what came, byte for byte, with one header before it that names the acknowledged id."""
    server = front.set('mydomain = "example.com"\nrelay_domains = ["example.com"]\n')
    content = b"From: Customer Service <info@oreilly.com>\r\nTo: <somebody@elsewhere.example>\r\nBcc: <x@y.example>\r\n"
    content += b"Return-Path: <z@y.example>\r\nMessage-ID: <one@oreilly.com>\r\n\r\n\x80\xff text\r\n.hidden\r\n"
    with Client(server.port, source="127.0.0.2") as client:
        assert client.greeting == "220 gw.example.com ESMTP edgemail"
        assert client.say("HELO mail.oreilly.com") == "250 gw.example.com"
        assert client.say("MAIL FROM:<info@oreilly.com>") == "250 2.1.0 Ok"
        assert client.say("RCPT TO:<kdent@example.com>") == "250 2.1.5 Ok"
        assert client.say("DATA") == "354 End data with <CR><LF>.<CR><LF>"
        client.send(content.replace(b"\r\n.hidden", b"\r\n..hidden") + b".\r\n")
        queue_id = id_in(client.reply())
        assert client.say("quit") == "221 2.0.0 Bye"
        assert client.line() == b""
    (one,) = front.smarthost.wait_for(1)
    assert recipients(one) == ["kdent@example.com"]
    assert after_trace(one.content) == content
    trace = one.content[: -len(content)].decode()
    assert re.fullmatch(
        r"Received: from mail\.oreilly\.com \(unknown \[127\.0\.0\.2\]\)\r\n"
        rf"\tby gw\.example\.com \(edgemail\) with SMTP id {queue_id}\r\n"
        r"\tfor <kdent@example\.com>; [A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d [+-]\d{4} \(\S+\)\r\n",
        trace,
    ), trace


def test_the_log_of_a_message(front: Front) -> None:
    """The lines, and their order, that log readers written for Postfix look for."""
    server = front.set()
    with Client(server.port) as client:
        client.say("EHLO client.example.com")
        queue_id = client.message(b"Message-ID: <m1@example.com>\r\n\r\nx\r\n", "bob@example.org")
        client.say("QUIT")
    (one,) = front.smarthost.wait_for(1)
    server.wait_for(f"{queue_id}: removed")
    server.wait_for(r"disconnect from unknown\[127\.0\.0\.1\] ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5")
    start = r"(?m)^[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S+ edgemail/"
    steps = [
        rf"smtpd\[\d+\]: {queue_id}: client=unknown\[127\.0\.0\.1\]$",
        rf"cleanup\[\d+\]: {queue_id}: message-id=<m1@example\.com>$",
        rf"qmgr\[\d+\]: {queue_id}: from=<alice@example\.com>, size={len(one.content)}, nrcpt=1 \(queue active\)$",
        rf"smtp\[\d+\]: {queue_id}: to=<bob@example\.org>, relay=127\.0\.0\.1\[127\.0\.0\.1\]:\d+, delay=[\d.]+, "
        rf"delays=[\d./]+, dsn=2\.0\.0, status=sent \(250 2\.0\.0 Ok: queued as 1\)$",
        rf"qmgr\[\d+\]: {queue_id}: removed$",
    ]
    places = []
    for step in steps:
        found = re.search(start + step, server.log())
        assert found, f"{step}\n{server.log()}"
        places.append(found.start())
    assert places == sorted(places)
    connected = re.search(start + r"smtpd\[\d+\]: connect from unknown\[127\.0\.0\.1\]$", server.log())
    assert connected and connected.start() < places[0]


def test_one_header_names_no_recipient_among_several(front: Front) -> None:
    server = front.set()
    server.send(recipients=["bob@example.org", "carol@example.org", "bob@EXAMPLE.org"])
    (one,) = front.smarthost.wait_for(1)
    assert recipients(one) == ["bob@example.org", "carol@example.org"]
    assert b"\tfor <" not in one.content and after_trace(one.content) == MESSAGE


def test_names_of_clients(front: Front) -> None:
    """One whose name leads back to it has it in the log and in the trace; one that claims a name has none."""
    zones = {
        "3.0.0.127.in-addr.arpa": {"PTR": ["printer.example.com."]},
        "printer.example.com": {"A": ["127.0.0.3"]},
        "4.0.0.127.in-addr.arpa": {"PTR": ["printer.example.com."]},
        "5.0.0.127.in-addr.arpa": {"PTR": ["slow.example.com."]},
    }
    with FakeDns(zones) as dns:
        dns.fail("5.0.0.127.in-addr.arpa", Fault.SERVFAIL)
        server = front.set(f'smtpd_peername_lookup = true\ndns_nameservers = ["{dns.address}"]\n')
        names = {"127.0.0.3": "printer.example.com", "127.0.0.4": "unknown", "127.0.0.5": "unknown"}
        for address, name in names.items():
            with Client(server.port, source=address) as client:
                client.say("EHLO claimed.example.com")
                queue_id = client.message(b"Subject: %s\r\n\r\n" % address.encode())
            assert f"connect from {name}[{address}]\n" in server.log()
            assert f"{queue_id}: client={name}[{address}]\n" in server.log()
    for one in front.smarthost.wait_for(3):
        found = re.match(r"Received: from claimed\.example\.com \((\S+) \[(\S+)\]\)", one.content.decode())
        assert found and names[found[2]] == found[1]


def test_the_null_sender(front: Front) -> None:
    server = front.set()
    server.send(sender="")
    (one,) = front.smarthost.wait_for(1)
    assert one.mail.startswith("MAIL FROM:<>")


def test_two_transactions_keep_apart(front: Front) -> None:
    server = front.set()
    with Client(server.port) as client:
        client.say("EHLO client.example.com")
        ids = {client.message(b"Subject: 1\r\n\r\n", "a@example.org"), client.message(b"\r\n2\r\n", "b@example.org")}
    assert len(ids) == 2
    found = sorted((recipients(one), after_trace(one.content)) for one in front.smarthost.wait_for(2))
    assert found == [(["a@example.org"], b"Subject: 1\r\n\r\n"), (["b@example.org"], b"\r\n2\r\n")]


# clients that leave


def test_a_client_that_leaves_in_mid_message_leaves_nothing(front: Front) -> None:
    server = front.set()
    lost = len(re.findall("lost connection after DATA", server.log()))
    with Client(server.port) as client:
        client.ask("HELO me", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
        client.send(MESSAGE + b"x" * 200_000 + b"\r\n.\r")
    server.wait_for(r"lost connection after DATA \(\d+ bytes\) from unknown\[127\.0\.0\.1\]", count=lost + 1)
    server.wait_empty()
    assert not front.smarthost.received


def test_a_client_that_does_not_wait_for_the_answer_is_served(front: Front) -> None:
    """It said all it had to say and closed its half: the message is complete, so it is taken, and it is told."""
    server = front.set()
    with Client(server.port) as client:
        client.send(b"HELO me\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n" + MESSAGE + b".\r\n")
        client.socket.shutdown(socket.SHUT_WR)
        assert [client.reply()[:3] for _ in range(5)] == ["250", "250", "250", "354", "250"]
        assert client.line() == b""
    front.smarthost.wait_for(1)


# relay control


def test_who_may_relay(front: Front) -> None:
    server = front.set('mynetworks = ["127.0.0.1/32"]\nrelay_domains = ["example.net"]\n')
    denied = "554 5.7.1 <b@elsewhere.example>: Relay access denied"
    with Client(server.port, source="127.0.0.2") as stranger, Client(server.port) as friend:
        for client, answer in ((stranger, denied), (friend, "250 2.1.5 Ok")):
            client.ask("HELO me", "MAIL FROM:<a@gw.example.com>")
            assert client.say("RCPT TO:<b@elsewhere.example>") == answer
            assert client.say("RCPT TO:<b@example.net>") == "250 2.1.5 Ok"
            assert client.say("RCPT TO:<b@sub.example.net>") == "250 2.1.5 Ok"
        for routed in ("b%elsewhere.example@example.net", '"b@elsewhere.example"@example.net', "x!b@example.net"):
            answer = stranger.say(f"RCPT TO:<{routed}>")
            assert answer == f"554 5.7.1 <{routed}>: Relay access denied"
    line = r"NOQUEUE: reject: RCPT from unknown\[127\.0\.0\.2\]: 554 5\.7\.1 <b@elsewhere\.example>: Relay access "
    assert re.search(
        line + r"denied; from=<a@gw\.example\.com> to=<b@elsewhere\.example> proto=SMTP helo=<me>", server.log()
    )


def test_a_listener_has_networks_of_its_own(front: Front) -> None:
    listeners = TWO.replace('profile = "legacy"', 'profile = "legacy"\nmynetworks = []\n')
    server = front.set(listeners=listeners)
    for name, code in (("lan", "250"), ("legacy", "554")):
        with Client(server.ports[name]) as client:
            client.ask("HELO me", "MAIL FROM:<a@b.example>")
            assert client.say("RCPT TO:<b@elsewhere.example>").startswith(code)


def test_unlisted_recipients(front: Front) -> None:
    """Tables as files, read again when they change, without a reload; nobody's sender gets a bounce."""
    relayed, local = front.relay.directory / "relay_recipients", front.relay.directory / "local_recipients"
    relayed.write_text("user1@example.net x\nuser2@example.net x\n@oreillynet.com x\n")
    local.write_text("kdent x\n")
    server = front.set(f"""\
mynetworks = []
mydestination = ["example.com"]
relay_domains = ["example.net", "oreillynet.com"]
relay_recipient_maps = ["texthash:{relayed}"]
local_recipient_maps = ["texthash:{local}"]
""")
    unknown = "550 5.1.1 <{}>: Recipient address rejected: User unknown in {} recipient table"
    with Client(server.port) as client:
        client.ask("HELO me", "MAIL FROM:<a@b.example>")
        for good in ("user1@example.net", "any@oreillynet.com", "kdent@example.com", "KDent@Example.COM"):
            assert client.say(f"RCPT TO:<{good}>") == "250 2.1.5 Ok", good
        for always in ("postmaster", "Postmaster@example.com", "postmaster@example.net", "root@example.com"):
            assert client.say(f"RCPT TO:<{always}>") == "250 2.1.5 Ok", always
        nobody, nonexistent = "nobody@example.net", "nonexistent@example.com"
        assert client.say(f"RCPT TO:<{nobody}>") == unknown.format(nobody, "relay")
        assert client.say(f"RCPT TO:<{nonexistent}>") == unknown.format(nonexistent, "local")
    relayed.write_text("nobody@example.net x\n")
    server.wait_until(lambda: asked(server, nobody) == "250 2.1.5 Ok", "second look at the table")
    assert asked(server, "user2@example.net") == unknown.format("user2@example.net", "relay")


def asked(server: Relay, recipient: str) -> str:
    """The answer to RCPT in a session of its own."""
    with Client(server.port) as client:
        return client.ask("HELO me", "MAIL FROM:<a@b.example>", f"RCPT TO:<{recipient}>")[-1]


def test_postmaster_reaches_the_administrator(front: Front) -> None:
    server = front.set('mynetworks = []\nadmin_address = "admin@example.net"\n')
    with Client(server.port) as client:
        client.say("HELO me")
        client.message(MESSAGE, "postmaster", "root@gw.example.com", "abuse@gw.example.com")
    assert {name for one in front.smarthost.wait_for(1) for name in recipients(one)} == {"admin@example.net"}


def test_mail_for_postmaster_waits_for_an_administrator_and_no_longer(tmp_path: Path) -> None:
    """Named at a reload or at a start: what waited for that alone is sent, what a person holds is not."""
    with sink() as host:
        settings = f'relayhost = "[127.0.0.1]:{host.port}"\n'
        with relay(tmp_path, settings + 'admin_address = ""\n') as server:
            first, second = server.send(recipients="postmaster"), server.send(recipients="root")
            for each in (first, second):
                server.wait_for(rf"{each}: on hold: mail for postmaster waits: set admin_address and reload")
            host.stop()
            by_hand = server.send()
            server.wait_deferred()
            server.run("edgemail", "queue", "hold", by_hand)
            host.start()
            server.reload(settings + 'admin_address = "admin@example.com"\n')
            for each in (first, second):
                server.wait_for(rf"{each}: removed")
            assert "2 held messages for postmaster released" in server.log()
            assert [each["queue_id"] for each in server.waiting()] == [by_hand]
            server.reload(settings + 'admin_address = ""\n')
            third = server.send(recipients="abuse")
            server.wait_for(rf"{third}: on hold")
            assert server.stop() == 0
            server.configure(settings + 'admin_address = "admin@example.com"\n')
            server.start()
            server.wait_for(rf"{third}: removed")
            assert [each["queue_id"] for each in server.waiting()] == [by_hand]


def test_soft_bounce_says_the_same_more_softly(front: Front) -> None:
    settings = 'mydestination = ["example.com"]\nmynetworks = []\nmessage_size_limit = 2000\n'
    with Client(front.set(settings).port) as client:
        hard = refusals(client)
    with Client(front.set(settings + "soft_bounce = true\n").port) as client:
        soft = refusals(client)
    assert [one[:3] for one in hard] == ["552", "554", "550", "554", "552", "550", "554"]
    assert soft == [re.sub(r"^5(\d\d) 5\.", r"4\1 4.", one) for one in hard]


def refusals(client: Client) -> list[str]:
    """A refusal of each kind that a session has."""
    client.say("EHLO me")
    found = [client.say("MAIL FROM:<a@b.example> SIZE=2001")]
    client.say("MAIL FROM:<a@b.example>")
    found += [client.say("RCPT TO:<x@elsewhere.example>"), client.say("RCPT TO:<nobody@example.com>")]
    found.append(client.say("DATA"))
    for content in (b"x" * 70 + b"\r\n", b"a\nb\r\n", b"Received: x\r\n"):
        client.ask("RSET", "MAIL FROM:<a@b.example>", "RCPT TO:<postmaster@example.com>")
        times = {b"x": 40, b"a": 1, b"R": 50}[content[:1]]
        found.append(client.data(content * times))
    return found


# limits


def test_the_recipient_limit_keeps_the_first_thousand(front: Front) -> None:
    server = front.set()
    names = [f"user{number}@example.org" for number in range(1001)]
    with Client(server.port) as client:
        replies = client.ask("HELO me", "MAIL FROM:<a@b.example>", *(f"RCPT TO:<{name}>" for name in names))
        assert replies[2:-1] == ["250 2.1.5 Ok"] * 1000
        assert replies[-1] == "452 4.5.3 Error: too many recipients"
        id_in(client.data(MESSAGE))
    found: list[str] = []
    server.wait_until(lambda: sum(len(one.rcpt) for one in front.smarthost.received) >= 1000, "thousand recipients")
    for one in front.smarthost.received:
        found += recipients(one)
    assert sorted(found) == sorted(names[:1000])


@pytest.mark.parametrize("bdat", [False, True])
def test_the_size_limit(front: Front, bdat: bool) -> None:
    """At MAIL, and at the end; the session goes on and what fits is taken."""
    server = front.set("message_size_limit = 50_000\n")
    with Client(server.port) as client:
        assert "\n250-SIZE 50000\n" in client.say("EHLO me")
        assert client.say("MAIL FROM:<a@b.example> SIZE=50001") == "552 5.3.4 Message size exceeds fixed limit"
        for size, answer in ((90_000, "552 5.3.4 Error: message file too big"), (49_000, "250 2.0.0 Ok: queued as ")):
            client.ask("MAIL FROM:<a@b.example> SIZE=50000", "RCPT TO:<c@d.example>")
            content = b"0123456789abcdef\r\n" * (size // 18)
            if bdat:
                client.send(b"BDAT %d LAST\r\n" % len(content) + content)
                assert client.reply().startswith(answer)
            else:
                assert client.data(content).startswith(answer)
    front.smarthost.wait_for(1)
    assert len(front.smarthost.received) == 1


def test_a_client_that_does_not_stop_is_stopped(front: Front) -> None:
    """Past twice the limit nothing more is read: it is told why, and the session ends."""
    server = front.set("message_size_limit = 50_000\n")
    with Client(server.port) as client:
        client.ask("EHLO me", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
        client.send(b"0123456789abcdef\r\n" * 20_000)
        assert client.reply() == "552 5.3.4 Error: message file too big"
        assert client.line() == b""
    server.wait_for(r"NOQUEUE: reject: DATA from \S+: 552 5\.3\.4 Error: message file too big; from=<a@b\.example>")


def test_no_size_limit(front: Front) -> None:
    server = front.set("message_size_limit = 0\nqueue_minfree = 0\n")
    content = b"".join(b"%076d\r\n" % number for number in range(200_000))
    with Client(server.port) as client:
        assert "250-SIZE\n" in client.say("EHLO me")
        client.message(b"\r\n" + content)
    (one,) = front.smarthost.wait_for(1)
    assert after_trace(one.content) == b"\r\n" + content


@pytest.mark.parametrize("before", ["", "EHLO me", "DATA"])
def test_a_silent_client_is_told_that_its_time_is_up(front: Front, before: str) -> None:
    server = front.set('smtpd_timeout = "1s"\n')
    with Client(server.port) as client:
        if before == "DATA":
            client.ask("EHLO me", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
            client.send(MESSAGE)
        elif before:
            client.say(before)
        assert client.reply() == "421 4.4.2 gw.example.com Error: timeout exceeded"
        assert client.line() == b""
    verb = before.partition(" ")[0] or "CONNECT"
    server.wait_for(rf"timeout after {verb}(?: \(\d+ bytes\))? from unknown\[127\.0\.0\.1\]")


def test_junk_commands_become_errors(front: Front) -> None:
    server = front.set("smtpd_junk_command_limit = 5\nsmtpd_hard_error_limit = 3\n")
    with Client(server.port) as client:
        client.say("EHLO me")
        replies = client.ask(*["NOOP"] * 8)
    assert replies[:7] == ["250 2.0.0 Ok"] * 7
    assert replies[7] == "421 4.7.0 gw.example.com Error: too many errors"


def test_a_loop_ends(front: Front) -> None:
    server = front.set("hopcount_limit = 50\n")
    with Client(server.port) as client:
        client.say("EHLO me")
        for count in (50, 49):
            client.ask("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>")
            answer = client.data(b"Received: from x by y; now\r\n" * count + b"Subject: x\r\n\r\nReceived: no\r\n")
            assert answer == "554 5.4.0 Error: too many hops" if count == 50 else id_in(answer)
    front.smarthost.wait_for(1)


# line ends


ENDS = [b"\n.\n", b"\r.\r", b"\r\n.\n", b"\n.\r\n", b"\r.\r\n", b"\r\n.\r", b"\r\n\x00.\r\n", b"\r\n.\x00\r\n"]


@pytest.mark.parametrize("end", ENDS)
def test_no_end_but_one_ends_a_message(front: Front, end: bytes) -> None:
    """What stands behind a false end is content: refused with it, and the session is in step."""
    server = front.set()
    behind = b"MAIL FROM:<admin@example.com>\r\nRCPT TO:<victim@example.com>\r\nDATA\r\nx\r\n"
    with Client(server.port) as client:
        client.ask("EHLO me", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
        client.send(b"Subject: x\r\n\r\na" + end + behind + b".\r\n")
        assert client.reply() == "550 5.6.11 Error: bare <CR>, bare <LF> or <NUL> in the message"
        assert client.say("NOOP") == "250 2.0.0 Ok"
        client.message(MESSAGE)
    (one,) = front.smarthost.wait_for(1)
    assert recipients(one) == ["bob@example.org"]


def test_an_old_device(front: Front) -> None:
    """The profile legacy takes lines that end anyhow, and they leave as lines."""
    server = front.set()
    with Client(server.ports["legacy"]) as client:
        client.send(b"HELO printer\nMAIL FROM:<scan@b.example>\nRCPT TO:<c@d.example>\nDATA\n")
        assert [client.reply()[:3] for _ in range(4)] == ["250", "250", "250", "354"]
        client.send(b"Subject: scan\n\none\rtwo\r\n..three\x00\n.\nQUIT\n")
        queue_id = id_in(client.reply())
        assert client.reply() == "221 2.0.0 Bye"
    (one,) = front.smarthost.wait_for(1)
    assert after_trace(one.content) == b"Subject: scan\r\n\r\none\r\ntwo\r\n.three\r\n"
    assert re.search(rf" edgemail/legacy/smtpd\[\d+\]: {queue_id}: client=", server.log())


def test_an_old_device_gets_no_starttls(front: Front) -> None:
    server = front.set()
    with Client(server.ports["legacy"]) as old, Client(server.ports["lan"]) as new:
        assert "STARTTLS" not in old.say("EHLO me") and "STARTTLS" in new.say("EHLO me")


# names and lists as they may be written


@pytest.mark.parametrize(
    "written",
    [
        'mydestination = "$mydomain, one.example, two.example"\n',
        'mydestination = "$mydomain one.example two.example"\n',
        'mydestination = """$mydomain,\n    one.example,\n    two.example"""\n',
        'mydestination = ["$mydomain", "one.example", "two.example"]\n',
    ],
)
def test_lists_in_every_form(front: Front, written: str) -> None:
    server = front.set(f'myorigin = "$mydomain"\n{written}mydomain = "own.example"\nmynetworks = []\n')
    with Client(server.port) as client:
        client.ask("HELO me", "MAIL FROM:<a@b.example>")
        for domain in ("own.example", "one.example", "two.example"):
            assert client.say(f"RCPT TO:<postmaster@{domain}>") == "250 2.1.5 Ok"
            assert client.say(f"RCPT TO:<x@{domain}>").startswith("550 5.1.1 ")
        assert client.say("RCPT TO:<postmaster@three.example>").startswith("554 5.7.1 ")


def test_a_remark_in_a_value_is_refused(tmp_path: Path) -> None:
    server = Relay(tmp_path, 'myhostname = "a.b # text"\n')
    done = server.run("edgemail", "run", "--config", str(server.path), check=False)
    assert done.returncode == 78
    assert ":6: myhostname: 'a.b # text' is not a host name (a comment inside the quotes is part of" in done.stderr


# where it listens


def listens(port: int, host: str) -> bool:
    try:
        with socket.create_connection((host, port), 5):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    "address, protocols, reached",
    [
        ("loopback-only", "all", ["127.0.0.1", "::1"]),
        ("loopback-only", "ipv4", ["127.0.0.1"]),
        ("all", "all", ["127.0.0.1", "127.0.0.2", "::1"]),
        ("all", "ipv4", ["127.0.0.1", "127.0.0.2"]),
        ("lo", "all", ["127.0.0.1", "::1"]),
        ("127.0.0.2", "all", ["127.0.0.2"]),
    ],
)
def test_interfaces(tmp_path: Path, address: str, protocols: str, reached: list[str]) -> None:
    settings = f'inet_interfaces = "{address}"\ninet_protocols = "{protocols}"\n'
    with relay(tmp_path, settings, '[[listener]]\nname = "lan"\nport = 0\n') as found:
        bound = re.findall(r"listening on (\S+) port (\d+),", found.log())
        ports = {int(port) for _, port in bound}
        for host in ("127.0.0.1", "127.0.0.2", "::1"):
            assert any(listens(port, host) for port in ports) is (host in reached), (host, bound)
