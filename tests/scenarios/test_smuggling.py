"""SMTP smuggling, end to end: every end of data that some server somewhere believes in, through the real process.

What is taken is one message; what arrives behind it is one message: at a server that believes in all of those ends, at
Postfix and at Exim. The strict listener, which refuses them, has its tests with the dialog and in test_receiving.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.peers.certificate import Certificate, certificate
from tests.peers.exim import exim
from tests.peers.postfix import postfix
from tests.scenarios.client import Client
from tests.scenarios.relay import Relay, relay
from tests.scenarios.sink import Sink, sink
from tests.scenarios.test_interop import PASSWORD, USER, behind

ENDS = (
    *(b"\n.\n", b"\r\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\n.\r", b"\r.\n", b"\n\n.\r\n"),
    *(b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\0\r\n.\r\0\n", b"\r\r\n.\r\r\n", b"\r\n.\r\r\n", b"\n.\n.\n", b"\r\n..\r\n"),
)
HIDDEN = b"MAIL FROM:<admin@example.com>\r\nRCPT TO:<victim@example.org>\r\nDATA\r\nSubject: evil\r\n\r\nevil\r\n"
LENIENT_END = re.compile(rb"(?:^|[\r\n])\0?\.\0?[\r\n]")
LISTENERS = """
[[listener]]
name = "lan"
address = "127.0.0.1"
port = 0

[[listener]]
name = "old"
address = "127.0.0.1"
port = 0
profile = "legacy"
"""


class Lenient:
    """A server that takes any of those for the end, and any line end for one: envelopes as it understands them."""

    def __init__(self) -> None:
        self.taken: list[tuple[bytes, list[bytes], bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard, sender, recipients, content = b"", b"", list[bytes](), False
        writer.write(b"220 lenient\r\n")
        while data := await reader.read(65536):
            heard += data
            while True:
                if content:
                    end = LENIENT_END.search(heard)
                    if end is None:
                        break
                    self.taken.append((sender, recipients, heard[: end.start()]))
                    heard, content, recipients = heard[end.end() :].lstrip(b"\r\n"), False, []
                    writer.write(b"250 taken\r\n")
                    continue
                line = re.match(rb"([^\r\n]*)(?:\r\n|\n|\r)", heard)
                if line is None:
                    break
                heard = heard[line.end() :]
                verb = line[1][:4].upper()
                if verb == b"MAIL":
                    sender = line[1]
                elif verb == b"RCPT":
                    recipients.append(line[1])
                content = verb == b"DATA"
                writer.write({b"DATA": b"354 go\r\n", b"QUIT": b"221 bye\r\n"}.get(verb, b"250 ok\r\n"))
            await writer.drain()


def message(number: int, end: bytes) -> bytes:
    return b"Subject: %d\r\n\r\nbefore" % number + end + HIDDEN


def hand_over(server: Relay) -> int:
    """Each end by every way in; how many messages the relay has taken."""
    ways = []
    for number, end in enumerate(ENDS):
        for listener, chunked in (("old", False), ("lan", False), ("lan", True)):
            with Client(server.ports[listener]) as client:
                body = message(number, end)
                client.ask("EHLO me", "MAIL FROM:<alice@example.com>", "RCPT TO:<bob@example.org>")
                if chunked:
                    client.send(b"BDAT %d LAST\r\n" % len(body) + body)
                    reply = client.reply()
                else:
                    assert client.say("DATA").startswith("354")
                    middle = body.index(end) + len(end) // 2
                    client.send(body[:middle])  # cut in two where it matters
                    body = body[middle:]
                    client.send(body + b".\r\n")
                    reply = client.reply()
                assert client.say("NOOP") == "250 2.0.0 Ok", f"{end!r}: something was left to be read as a command"
                clean = end == b"\r\n..\r\n"
                assert reply.startswith("250" if listener == "old" or clean else "550 5.6.11"), f"{end!r}: {reply}"
                ways.append(reply.startswith("250"))
        server.run("sendmail", "-i", "-f", "alice@example.com", "bob@example.org", input=message(number, end))
        ways.append(True)
    return sum(ways)


SETTINGS = "in_flow_delay = 0\nsmtpd_client_connection_count_limit = 0\n"


def test_towards_a_server_that_believes_in_every_end(tmp_path: Path) -> None:
    lenient = Lenient()
    with sink(script=lenient.serve) as smarthost:
        with relay(tmp_path, SETTINGS + f'relayhost = "[127.0.0.1]:{smarthost.port}"\n', LISTENERS) as server:
            count = hand_over(server)
            server.wait_empty(60)
    assert len(lenient.taken) == count
    for sender, recipients, content in lenient.taken:
        assert sender.startswith(b"MAIL FROM:<alice@example.com>")
        assert recipients == [b"RCPT TO:<bob@example.org>"]
        assert b"evil" in content


def arrived(smarthost: Sink, count: int) -> None:
    found = smarthost.wait_for(count)
    assert len(found) == count
    for one in found:
        assert one.mail.startswith("MAIL FROM:<alice@example.com>")
        assert len(one.rcpt) == 1
        assert one.rcpt[0].startswith("RCPT TO:<bob@example.org>")
        assert b"evil" in one.content


def test_through_postfix(tmp_path: Path) -> None:
    with sink() as world, postfix({"relayhost": f"[127.0.0.1]:{world.port}"}) as theirs:
        with relay(tmp_path, SETTINGS + f'relayhost = "[127.0.0.1]:{theirs.port}"\n', LISTENERS) as server:
            count = hand_over(server)
            server.wait_empty(60)
        arrived(world, count)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("keys"), "gw.example.com")


def test_into_exim(tmp_path: Path, keys: Certificate) -> None:
    with exim(keys, USER, PASSWORD) as theirs:
        with relay(tmp_path, behind(keys, theirs.port, tmp_path), LISTENERS) as server:
            count = hand_over(server)
            server.wait_empty(60)
        found = theirs.messages(count)
        assert len(found) == count
        assert all(b"evil" in one and b"victim" in one for one in found)
        assert "victim@example.org" not in theirs.log()
