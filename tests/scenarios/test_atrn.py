"""ATRN (RFC 2645) at the real process: a provider, its customers, and another edgemail on the other side."""

from __future__ import annotations

import base64
import hmac
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.scenarios.client import Client
from tests.scenarios.relay import Relay, relay
from tests.scenarios.sink import after_trace, sink

PROVIDER = """
myhostname = "hub.example.net"
relay_domains = ["branch.example", "two.example", "other.example"]
defer_transports = ["ondemand"]
default_transport = "smtp:[127.0.0.1]:1"
relay_transport = "ondemand:[192.0.2.1]"
odmr_domain_maps = [{ "branch" = "branch.example, two.example", "other" = "other.example" }]
smtpd_sasl_password_file = "users"
queue_run_delay = "1s"
minimal_backoff_time = "1s"
maximal_backoff_time = "1s"
"""
LISTENERS = """
[[listener]]
name = "lan"
address = "127.0.0.1"
port = 0
[[listener]]
name = "odmr"
address = "127.0.0.1"
port = 0
profile = "odmr"
"""
PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two whose passwords are kept for CRAM-MD5, and one whose is not, as `edgemail passwd` writes them."""
    directory = tmp_path_factory.mktemp("users")
    found = Relay(directory, PROVIDER, LISTENERS)
    for user in ("branch", "other"):
        found.run("edgemail", "passwd", "--cram", user, input=f"{PASSWORD}\n".encode())
    assert (directory / "users").stat().st_mode & 0o777 == 0o600
    found.run("edgemail", "passwd", "hashed", input=f"{PASSWORD}\n".encode())
    return directory / "users"


@pytest.fixture
def hub(tmp_path: Path, users: Path) -> Iterator[Relay]:
    directory = tmp_path / "hub"
    directory.mkdir()
    found = Relay(directory, PROVIDER, LISTENERS)
    shutil.copy(users, directory / "users")
    found.start()
    try:
        yield found
    finally:
        found._end()


def cram(client: Client, user: str, password: str = PASSWORD) -> str:
    """Log in as fetchmail does; the reply."""
    reply = client.say("AUTH CRAM-MD5")
    assert reply.startswith("334 "), reply
    digest = hmac.new(password.encode(), base64.b64decode(reply[4:]), "md5").hexdigest()
    return client.say(base64.b64encode(f"{user} {digest}".encode()).decode())


def customer(hub: Relay, user: str = "branch") -> Client:
    """A session that has logged in."""
    client = Client(hub.ports["odmr"])
    client.say("EHLO branch.example")
    assert cram(client, user).startswith("235 ")
    return client


def numbers(hub: Relay) -> list[str]:
    """Recipients of what is queued."""
    return sorted(each["address"] for one in hub.waiting() for each in one["recipients"])


def test_what_is_answered(hub: Relay) -> None:
    hub.send(recipients="bob@other.example")
    with Client(hub.ports["odmr"]) as client:
        hello = client.say("EHLO branch.example")
        assert hello.index("250-ATRN") < hello.index("250-AUTH PLAIN LOGIN CRAM-MD5")  # loopback: PLAIN in clear
        assert client.say("ATRN branch.example") == "530 5.7.0 Authentication required"
        assert cram(client, "branch", "wrong") == "535 5.7.8 Error: authentication failed"
        assert (
            cram(client, "hashed") == "535 5.7.8 Error: authentication failed"
        )  # there is no password to compare with
        assert cram(client, "nobody") == "535 5.7.8 Error: authentication failed"
        assert cram(client, "branch") == "235 2.7.0 Authentication successful"
        assert client.say("ATRN other.example") == "450 4.7.1 ATRN request refused"
        assert client.say("ATRN branch.example,other.example") == "450 4.7.1 ATRN request refused"
        assert client.say("ATRN sub.branch.example") == "450 4.7.1 ATRN request refused"
        assert client.say("ATRN -x") == "501 5.5.4 Syntax: ATRN [domain[,domain...]]"
        assert client.say("ATRN branch.example") == "453 4.0.0 You have no mail"
        assert client.say("ATRN") == "453 4.0.0 You have no mail"
        assert client.say("QUIT").startswith("221")
    with Client(hub.ports["odmr"]) as client:
        client.say("EHLO branch.example")
        plain = base64.b64encode(f"\0hashed\0{PASSWORD}".encode()).decode()
        assert client.say(f"AUTH PLAIN {plain}").startswith("235 ")
        assert client.say("ATRN") == "450 4.7.1 ATRN request refused"  # who is in no table has no domains
    with Client(hub.port) as client:
        client.say("EHLO branch.example")
        assert client.say("ATRN branch.example") == "502 5.5.1 Error: command not implemented"
    assert numbers(hub) == ["bob@other.example"]


def test_from_afar_no_password_goes_in_clear(tmp_path: Path) -> None:
    found = Relay(tmp_path, PROVIDER, LISTENERS.replace("127.0.0.1", "*"))
    found.run("edgemail", "passwd", "--cram", "branch", input=f"{PASSWORD}\n".encode())
    found.start()
    try:
        here = next(line.split()[3].split("/")[0] for line in addresses() if " lo " not in line)
    except StopIteration:
        pytest.skip("this machine has no address but loopback's")
    else:
        with Client(found.ports["odmr"], host=here) as client:
            assert "\n250-AUTH CRAM-MD5\n" in client.say("EHLO branch.example")
            assert client.say("AUTH PLAIN AGEAYg==").startswith("504 ")
            client.starttls()
            assert "\n250-AUTH PLAIN LOGIN CRAM-MD5\n" in client.say("EHLO branch.example")
    finally:
        found._end()


def addresses() -> list[str]:
    return subprocess.run(["ip", "-o", "-4", "addr"], capture_output=True, text=True, check=False).stdout.splitlines()


class Customer:
    """The server's half of a customer, scripted: what it heard, and the messages it took."""

    def __init__(self, client: Client, *, chunking: bool = False) -> None:
        self.client = client
        self.heard: list[str] = []
        self.messages: list[bytes] = []
        self.chunking = chunking
        client.send(b"220 branch.example ESMTP\r\n")

    def serve(self, *, stop_at: str = "QUIT", recipients: bytes = b"250 2.1.5 ok\r\n") -> None:
        """Until a command that begins with `stop_at`, which is not answered but for QUIT."""
        while True:
            line = self.client.line()
            assert line, "the provider has hung up"
            word = line.decode().rstrip("\r\n")
            self.heard.append(word)
            if word == "QUIT":
                self.client.send(b"221 2.0.0 bye\r\n")
            if word.startswith(stop_at):
                return
            if word.startswith("EHLO"):
                self.client.send(b"250-branch.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
            elif word.startswith("RCPT"):
                self.client.send(recipients)
            elif word == "DATA":
                self.client.send(b"354 go\r\n")
                message = b""
                while (line := self.client.line()) != b".\r\n":
                    message += line
                self.messages.append(message)
                self.client.send(b"250 2.0.0 taken\r\n")
            else:
                self.client.send(b"250 2.0.0 ok\r\n")


@pytest.mark.parametrize("tls", [False, True])
def test_several_domains_over_one_connection(hub: Relay, tls: bool) -> None:
    for number in range(5):
        hub.send(recipients=f"user{number}@branch.example")
    hub.send(recipients=["a@two.example", "b@branch.example"])
    hub.send(recipients="bob@other.example")
    hub.wait_deferred(7)
    with Client(hub.ports["odmr"]) as client:
        if tls:
            client.say("EHLO branch.example")
            client.starttls()
        client.say("EHLO branch.example")
        assert cram(client, "branch").startswith("235 ")
        assert client.say("ATRN branch.example,two.example") == "250 2.0.0 Ok, now reversing the connection"
        with customer(hub) as second:
            assert second.say("ATRN two.example") == "451 4.3.2 Unable to process ATRN request now"
        served = Customer(client)
        served.serve()
        assert client.line() == b""
    assert len(served.messages) == 6
    assert served.heard[0] == "EHLO hub.example.net"
    rcpt = sorted(re.findall("<(.*?)>", line)[0] for line in served.heard if line.startswith("RCPT"))
    assert rcpt == ["a@two.example", "b@branch.example", *(f"user{number}@branch.example" for number in range(5))]
    hub.wait_until(lambda: numbers(hub) == ["bob@other.example"], "mail for the other customer alone")
    assert len(re.findall(r"relay=branch\[127\.0\.0\.1\]:\d+, .*status=sent", hub.log())) == 7
    with customer(hub) as again:
        assert again.say("ATRN").startswith("453 ")


def test_outcomes_are_the_queues_own(hub: Relay) -> None:
    """A refusal for now waits on, a refusal for good is bounced."""
    hub.send(recipients="later@branch.example")
    hub.wait_deferred(1)
    with customer(hub) as client:
        client.say("ATRN branch.example")
        Customer(client).serve(recipients=b"450 4.2.0 later\r\n")
    hub.wait_for(r"to=<later@branch\.example>.*dsn=4\.2\.0, status=deferred")
    assert numbers(hub) == ["later@branch.example"]
    with customer(hub) as client:
        assert client.say("ATRN").startswith("250 ")
        Customer(client).serve(recipients=b"550 5.1.1 nobody\r\n")
    hub.wait_for(r"to=<later@branch\.example>.*dsn=5\.1\.1, status=bounced")
    hub.wait_until(lambda: "later@branch.example" not in numbers(hub), "a bounce")


@pytest.mark.parametrize("word", ["EHLO", "MAIL", "DATA"])
def test_a_customer_that_drops_in_the_turn_round(hub: Relay, word: str) -> None:
    """Mail is untouched, and the next session gets it."""
    for number in range(3):
        hub.send(recipients=f"user{number}@branch.example")
    hub.wait_deferred(3)
    with customer(hub) as client:
        assert client.say("ATRN branch.example").startswith("250 ")
        Customer(client).serve(stop_at=word)
    hub.wait_for("disconnect from .* atrn=1")
    assert len(numbers(hub)) == 3
    with customer(hub) as client:
        assert client.say("ATRN branch.example").startswith("250 ")
        served = Customer(client)
        served.serve()
    assert len(served.messages) == 3
    hub.wait_empty()


def test_nothing_may_follow_atrn(hub: Relay) -> None:
    hub.send(recipients="bob@branch.example")
    hub.wait_deferred(1)
    with customer(hub) as client:
        said = client.ask("ATRN branch.example", "NOOP")
        assert said == ["503 5.5.1 Error: nothing may follow ATRN before its reply", "250 2.0.0 Ok"]
        assert client.say("ATRN branch.example").startswith("250 ")


def test_a_provider_that_stops_in_a_session(hub: Relay) -> None:
    for number in range(3):
        hub.send(recipients=f"user{number}@branch.example")
    hub.wait_deferred(3)
    with customer(hub) as client:
        assert client.say("ATRN branch.example").startswith("250 ")
        served = Customer(client)
        served.serve(stop_at="MAIL")
        assert hub.stop() == 0
    hub.start()
    hub.wait_deferred(3)
    assert "Traceback" not in hub.log_path.read_text()


# ---- edgemail on both sides

BRANCH = """
myhostname = "gw.branch.example"
relay_domains = ["branch.example"]
relayhost = "[127.0.0.1]:{sink}"
smtp_tls_security_level = "{level}"
[transport.relay]
smtp_tls_security_level = "none"
"""


@pytest.mark.parametrize("level", ["none", "encrypt"])
def test_a_branch_that_nobody_can_reach(hub: Relay, tmp_path: Path, level: str) -> None:
    """Its listener is on an address of its own; the hub's mail comes over the connection that the branch makes."""
    (tmp_path / "branch").mkdir()
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    bodies = [b"Subject: %d\r\n\r\n%s\r\n" % (number, b"x\r\n" * number * 3000) for number in range(4)]
    for body in bodies:
        hub.send(recipients="bob@branch.example", message=body)
    hub.send(recipients="bob@two.example")
    hub.wait_deferred(5)
    with sink() as inner, relay(tmp_path / "branch", BRANCH.format(sink=inner.port, level=level)) as branch:
        asked = ["edgemail", "atrn", f"127.0.0.1:{hub.ports['odmr']}", "--user", "branch"]
        asked += ["--password-file", str(tmp_path / "password")]
        done = branch.run(*asked, "branch.example")
        assert done.stdout == "250 2.0.0 Ok, now reversing the connection\n4 messages received\n"
        found = [after_trace(one.content) for one in inner.wait_for(4)]
        assert sorted(map(after_trace, found)) == sorted(bodies)
        assert numbers(hub) == ["bob@two.example"]
        log = branch.log()
        assert PASSWORD not in log + hub.log()
        assert len(re.findall("client=127.0.0.1", log)) == 4
        done = branch.run(*asked, "branch.example", "--json")
        assert json.loads(done.stdout) == {"code": 453, "reply": "453 4.0.0 You have no mail", "count": 0}
        done = branch.run(*asked, "other.example", check=False)
        assert (done.returncode, done.stdout.split()[0]) == (69, "450")


def test_mail_both_ways_over_one_connection(hub: Relay, tmp_path: Path) -> None:
    """What the branch has for its hub goes first, over the connection that then brings what the hub has for it."""
    (tmp_path / "branch").mkdir()
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    settings = f"""
myhostname = "gw.branch.example"
relay_domains = ["branch.example"]
relayhost = "[127.0.0.1]:{hub.ports["odmr"]}"
defer_transports = ["smtp"]
relay_transport = "inner:[127.0.0.1]:1"
"""
    with relay(tmp_path / "branch", settings) as branch:
        for number in range(3):
            hub.send(recipients=f"down{number}@branch.example")
            branch.send(sender="joe@branch.example", recipients=f"up{number}@other.example")
        hub.wait_deferred(3)
        branch.wait_deferred(3)
        asked = ["edgemail", "atrn", f"127.0.0.1:{hub.ports['odmr']}", "--user", "branch"]
        asked += ["--password-file", str(tmp_path / "password")]
        done = branch.run(*asked, "branch.example")
        assert done.stdout.endswith("\n3 messages received\n")
        branch.wait_until(lambda: [name[:4] for name in numbers(branch)] == ["down"] * 3, "mail exchanged")
        hub.wait_until(lambda: [name[:2] for name in numbers(hub)] == ["up"] * 3, "mail exchanged")
        hub.wait_for(r"disconnect from .* mail=3 .* atrn=1")
        assert (
            len(re.findall("connect from .*atrn=1|sasl_username=branch", hub.log())) == 4
        )  # one session, three messages
        assert len(re.findall(r"to=<up\d@other\.example>.*status=sent", branch.log())) == 3


def test_a_provider_that_hangs_up_on_what_we_send(tmp_path: Path) -> None:
    """What was to go up stays, and is told why; nothing is asked for any more."""
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    provider = Scripted([], atrn=b"421 4.3.2 closing\r\n")
    settings = BRANCH.format(sink=provider.port, level="none").replace(
        "[transport.relay]", 'defer_transports = ["smtp"]\n[transport.relay]'
    )
    with relay(tmp_path, settings) as branch:
        branch.send(recipients="bob@other.example")
        branch.wait_deferred(1)
        named = ("--user", "branch", "--password-file", str(tmp_path / "password"), "branch.example")
        done = branch.run("edgemail", "atrn", f"127.0.0.1:{provider.port}", *named, check=False)
        provider.thread.join(20)
        assert (done.returncode, done.stdout) == (75, "")
        assert provider.asked.startswith("MAIL FROM:<alice@example.com>")
        branch.wait_for(
            r"to=<bob@other\.example>.*status=deferred \(host 127\.0\.0\.1\[127\.0\.0\.1\] said: 421 4\.3\.2"
        )
        assert numbers(branch) == ["bob@other.example"]


CODES = ("220", "250", "502", "503", "502", "502", "250", "554", "554", "554", "250", "354", "250", "221")


class Scripted:
    """A provider that turns every session round and then says what it wants; the answers."""

    def __init__(self, lines: Sequence[bytes], *, atrn: bytes = b"250 now turn\r\n") -> None:
        self.lines = lines
        self.atrn = atrn
        self.answers: list[str] = []
        self.asked = ""
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        with self.socket, self.socket.accept()[0] as found, found.makefile("rb") as said:
            found.settimeout(20)
            for answer in (
                b"220 p\r\n",
                b"250-p\r\n250 AUTH CRAM-MD5\r\n",
                b"334 PGFAYj4=\r\n",
                b"235 in\r\n",
                self.atrn,
            ):
                found.sendall(answer)
                if answer is not self.atrn:
                    self.asked = said.readline().decode().strip()
            for line in (b"", *self.lines):
                found.sendall(line)
                self._answer(said)

    def _answer(self, said: BinaryIO) -> None:
        while (line := said.readline().decode().strip())[3:4] == "-":
            pass
        self.answers.append(line)


def test_a_customer_takes_mail_for_what_it_asked_for_alone(tmp_path: Path) -> None:
    """A provider that would relay through us, or send what was not asked for, is refused."""
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    script = [
        b"EHLO p\r\n",
        b"STARTTLS\r\n",
        b"AUTH PLAIN AGEAYg==\r\n",
        b"ETRN branch.example\r\n",
        b"ATRN branch.example\r\n",
        b"MAIL FROM:<a@example.net>\r\n",
        b"RCPT TO:<bob@elsewhere.example>\r\n",
        b"RCPT TO:<bob@sub.branch.example>\r\n",
        b"RCPT TO:<bob@gw.branch.example>\r\n",
        b"RCPT TO:<bob@branch.example>\r\n",
        b"DATA\r\n",
        b"Subject: x\r\n\r\nhello\r\n.\r\n",
        b"QUIT\r\n",
    ]
    with sink() as inner, relay(tmp_path, BRANCH.format(sink=inner.port, level="may")) as branch:
        provider = Scripted(script)
        arguments = ("--user", "branch", "--password-file", str(tmp_path / "password"), "Branch.example")
        done = branch.run("edgemail", "atrn", f"127.0.0.1:{provider.port}", *arguments, check=False)
        provider.thread.join(20)
        assert done.stdout == "250 now turn\n1 message received\n", done.stderr
        assert provider.asked == "ATRN branch.example"
        codes = [answer[:3] for answer in provider.answers]
        assert codes == list(CODES)
        inner.wait_for(1)
        hung = Scripted([], atrn=b"250 now turn\r\n")  # and hangs up
        done = branch.run("edgemail", "atrn", f"127.0.0.1:{hung.port}", *arguments, check=False)
        hung.thread.join(20)
        assert (done.returncode, done.stdout) == (0, "250 now turn\n0 messages received\n")


def test_a_provider_that_takes_no_atrn(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    with relay(tmp_path, BRANCH.format(sink=1, level="none")) as branch:
        named = ("--user", "branch", "--password-file", str(tmp_path / "password"), "branch.example")
        itself = branch.run("edgemail", "atrn", f"127.0.0.1:{branch.port}", *named, check=False)
        assert itself.returncode == 69
        assert "loops back to myself" in itself.stderr
        with sink() as plain:
            done = branch.run("edgemail", "atrn", f"127.0.0.1:{plain.port}", *named, check=False)
            assert (done.returncode, done.stdout) == (69, "")
            assert "does not offer AUTH" in done.stderr
        for answer, code in ((b"451 busy\r\n", 75), (b"450 no\r\n", 69), (b"502 what\r\n", 69), (b"453 none\r\n", 0)):
            provider = Scripted([], atrn=answer)
            done = branch.run("edgemail", "atrn", f"127.0.0.1:{provider.port}", *named, check=False)
            provider.thread.join(20)
            assert (done.returncode, done.stdout) == (code, f"{answer.decode().strip()}\n0 messages received\n")
        done = branch.run("edgemail", "atrn", "127.0.0.1:1", *named, check=False)
        assert (done.returncode, done.stdout) == (75, "")
        done = branch.run(
            "edgemail", "atrn", "127.0.0.1", "--user", "x", "--password-file", "/none", "a.b", check=False
        )
        assert done.returncode == 66
