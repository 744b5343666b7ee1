"""Servers that refuse, stall, lie, flood and break, against the real process: mail waits, and nothing grows."""

from __future__ import annotations

import asyncio
import email
import email.policy
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.internet import HASTY, Internet, gone, tried
from tests.scenarios.relay import MESSAGE, Relay, relay
from tests.scenarios.sink import Sink
from tests.servers import DROP, FULL, PLAIN, RESET, STALL

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

QUICK = "".join(
    f'smtp_{phase}_timeout = "1s"\n'
    for phase in ("helo", "starttls", "mail", "rcpt", "data_init", "data_xfer", "data_done", "rset", "quit", "connect")
)
GROWTH = 6 << 20  # octets that the process may grow by while servers flood it


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A greeting that does not end."""
    while True:
        writer.write(b"220-" + b"x" * 500 + b"\r\n")
        await writer.drain()


async def endless_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A greeting of one line that does not end."""
    writer.write(b"220 ")
    while True:
        writer.write(b"y" * 4096)
        await writer.drain()


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A greeting that comes an octet at a time, and never to its end."""
    for octet in b"220 slow.example ESMTP and so on and on and on and on and on":
        writer.write(bytes((octet,)))
        await writer.drain()
        await asyncio.sleep(0.1)


async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes the commands, then reads nothing of a content larger than all buffers."""
    writer.write(b"220 deaf.example ESMTP\r\n")
    for reply in (b"250-deaf.example\r\n250 8BITMIME\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
        await reader.readline()
        writer.write(reply)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.Event().wait()


async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hangs up in the middle of the content."""
    writer.write(b"220 cut.example ESMTP\r\n")
    for reply in (b"250-cut.example\r\n250 8BITMIME\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
        await reader.readline()
        writer.write(reply)
    await reader.readline()


async def tls_on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speaks TLS where SMTP was expected."""
    writer.write(b"\x15\x03\x01\x00\x02\x02\x46")
    await reader.read()


@dataclass(frozen=True)
class Bad:
    """A server, and what the log says of it."""

    says: str
    answers: dict[str, Any] = field(default_factory=dict)
    script: Script | None = None
    keywords: tuple[str, ...] = PLAIN
    content: bytes = MESSAGE


def at(verb: str, answer: bytes, says: str, **more: Any) -> Bad:
    return Bad(says, {verb: answer}, **more)


LARGE = MESSAGE + (b"z" * 998 + b"\r\n") * 6000

BAD = {
    "hangs up at the greeting": at(
        "GREETING", DROP, "lost connection with .* while receiving the initial server greet"
    ),
    "hangs up at EHLO": at("EHLO", DROP, "lost connection with .* while performing the EHLO handshake"),
    "hangs up at MAIL": at("MAIL", DROP, "lost connection with .* while sending MAIL FROM"),
    "resets at RCPT": at("RCPT", RESET, "lost connection with .* while sending RCPT TO"),
    "hangs up at DATA": at("DATA", DROP, "lost connection with .* while sending DATA command"),
    "hangs up within the content": Bad("lost connection with .* while sending message body", script=cut, content=LARGE),
    "stalls at MAIL": at("MAIL", STALL, "timed out while sending MAIL FROM"),
    "stalls at RCPT with pipelining": at("RCPT", STALL, "timed out while sending RCPT TO", keywords=FULL),
    "stalls at DATA": at("DATA", STALL, "timed out while sending DATA command"),
    "takes nothing of the content": Bad("timed out while sending message body", script=deaf, content=LARGE),
    "says 421 at MAIL": at("MAIL", b"421 4.3.2 going down\r\n", "421 4\\.3\\.2 going down"),
    "says 421 at RCPT": at("RCPT", b"421 4.3.2 going down\r\n", "421 4\\.3\\.2 going down"),
    "says 451 at the end": at(".", b"451 4.3.0 queue file write error\r\n", "451 4\\.3\\.0 queue file"),
    "says 452 to a chunk": at("LAST", b"452 4.3.1 no room\r\n", "452 4\\.3\\.1 no room", keywords=FULL),
    "answers in no words": at("MAIL", b"\r\n", "protocol error"),
    "answers with other numbers": at("MAIL", b"250-one\r\n550 two\r\n", "protocol error"),
    "answers with a number that is none": at("MAIL", b"999 what\r\n", "protocol error"),
    "answers with NUL": at("MAIL", b"\0\0\0\0\0\0\r\n", "protocol error"),
    "goes ahead at MAIL": at("MAIL", b"354 go\r\n", "protocol error"),
    "goes ahead at the end": at(".", b"354 more\r\n", "protocol error"),
    "speaks TLS at once": Bad("timed out while receiving the initial server greeting", script=tls_on_connect),
    "floods with lines": Bad("protocol error", script=flood),
    "floods with a line": Bad("protocol error", script=endless_line),
    "drips": Bad("timed out while receiving the initial server greeting", script=drip),
}


def slug(what: str) -> str:
    return re.sub("[^a-z0-9]+", "-", what.lower())


def resident(box: Relay) -> int:
    """Octets of memory that the process has."""
    assert box.process is not None
    text = Path(f"/proc/{box.process.pid}/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+) kB", text)[0]) << 10


@pytest.fixture(scope="module")
def net() -> Iterator[Internet]:
    with Internet() as found:
        yield found


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, net: Internet) -> Iterator[Relay]:
    with relay(tmp_path_factory.mktemp("box"), f"{net.settings}{HASTY}{QUICK}") as found:
        yield found


@dataclass
class Gallery:
    """Every bad server with a message for it, twice tried; then all are good."""

    hosts: dict[str, Sink]
    ids: dict[str, str]
    grown: int


@pytest.fixture(scope="module")
def gallery(net: Internet, box: Relay) -> Gallery:
    tried(box, box.send(recipients="warm@example.com"), "sent")  # what is loaded at the first delivery is loaded
    before = resident(box)
    hosts = {}
    for what, bad in BAD.items():
        host = net.host(f"{slug(what)}.example", answers=dict(bad.answers), script=bad.script, keywords=bad.keywords)
        hosts[what] = host
    ids = {what: box.send(recipients=f"bob@{slug(what)}.example", message=bad.content) for what, bad in BAD.items()}
    for queue_id in ids.values():
        box.wait_for(rf"{queue_id}: to=<.* status=(deferred|bounced)", 60, count=2)
    grown = resident(box) - before
    for host in hosts.values():
        host.server.received.clear()
        host.server.answers = {}
        host.server.script = None
    return Gallery(hosts, ids, grown)


@pytest.mark.parametrize("what", BAD)
def test_a_server_that_misbehaves_gets_its_mail_when_it_behaves(
    gallery: Gallery, net: Internet, box: Relay, what: str
) -> None:
    queue_id = gallery.ids[what]
    tried(box, queue_id, "sent")
    gone(box, queue_id)
    log = box.log()
    assert re.search(rf"{queue_id}: to=<.* status=deferred \(.*{BAD[what].says}", log)
    assert not re.search(rf"{queue_id}: .*(bounced|expired)", log)
    assert log.count(f"{queue_id}: to=") >= 3
    (one,) = gallery.hosts[what].received
    assert one.content.endswith(BAD[what].content)


def test_misbehaving_servers_cost_no_memory_and_no_traceback(gallery: Gallery, box: Relay) -> None:
    assert gallery.grown < GROWTH, f"{gallery.grown / 1e6:.1f} MB"
    assert "Traceback" not in box.log()


@pytest.mark.parametrize("end", [DROP, STALL], ids=["hangs up", "stalls"])
def test_what_was_lost_behind_the_final_dot_is_said_again_but_to_no_other_server(
    net: Internet, box: Relay, end: bytes
) -> None:
    """The server may have it: a second copy from the same one is better than a third from another, and than none."""
    domain = f"doubt{len(end)}.example"
    first = net.host(f"a.{domain}", answers={".": [end]}, keywords=PLAIN)
    second = net.host(f"b.{domain}")
    net.domain(domain, f"a.{domain}", f"b.{domain}")
    queue_id = box.send(recipients=f"bob@{domain}")
    line = tried(box, queue_id, "deferred")
    assert re.search(
        r"(lost connection|timed out).* while sending end of data -- message may be sent more than once", line
    )
    assert f" relay=a.{domain}[" in tried(box, queue_id, "sent")
    assert len(first.received) == 2 and not second.received


@pytest.mark.parametrize(
    "reply",
    [
        b"550 5.7.1 \x1b[31mred\x1b[0m \x07\x00 and \xff\xfe not UTF-8\r\n",
        b"550 5.7.1 line\rforged: 1\r\n",
        b"".join(b"550-5.7.1 line %d of many\r\n" % number for number in range(99)) + b"550 5.7.1 end\r\n",
        b"550 5.7.1 " + b"long " * 380 + b"\r\n",
        b"550 %s %d {0} \xc2\x85\xe2\x80\xa8Subject: injected\r\n",
        b"550\r\n",
    ],
    ids=["control", "bare CR", "99 lines", "long", "format", "bare code"],
)
def test_whatever_a_refusal_says_log_and_bounce_are_well_formed(net: Internet, box: Relay, reply: bytes) -> None:
    name = f"words{len(net.dns.questions)}.example"
    net.host(name, answers={"RCPT": reply}, keywords=PLAIN)
    queue_id = box.send(recipients=f"bob@{name}")
    line = box.wait_for(rf"{queue_id}: to=<.* status=.*")[0]
    assert "status=bounced" in line
    assert not re.search("[\x00-\x08\x0a-\x1f\x7f-\x9f]", line)
    content = net.notice(queue_id).content
    assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|\r(?!\n)|(?<!\r)\n", content)
    assert max(map(len, content.split(b"\r\n"))) <= 998
    notice = email.message_from_bytes(content, policy=email.policy.default)
    assert notice.get_content_type() == "multipart/report"
    assert not notice.defects
    parts = list(notice.iter_parts())
    assert [part.get_content_type() for part in parts] in (
        ["text/plain", "message/delivery-status", "message/rfc822"],
        ["text/plain", "message/delivery-status", "message/rfc822-headers"],
    )
    fields = list(parts[1].walk())[2]  # of the one recipient
    assert fields["Action"] == "failed"
    assert re.fullmatch(r"5\.\d+\.\d+", fields["Status"])
    assert str(fields["Diagnostic-Code"]).startswith("smtp; 550")
    assert "forged" not in fields and notice["Subject"] == "Undelivered Mail Returned to Sender"


def test_mail_for_a_healthy_server_overtakes_what_a_silent_one_holds_up(net: Internet, box: Relay) -> None:
    silent = net.host("silent.example", answers={"GREETING": STALL})
    net.host("healthy.example")
    for _ in range(30):
        box.send(recipients="bob@silent.example")
    assert silent.server.connections > 0
    begun = time.monotonic()
    tried(box, box.send(recipients="bob@healthy.example"), "sent")
    assert time.monotonic() - begun < 5
    box.run("postsuper", "-d", "ALL")


def test_a_server_that_ends_every_connection_after_one_message_gets_all_of_them(net: Internet, box: Relay) -> None:
    host = net.host("oneshot.example", answers={"RSET": DROP, "QUIT": RESET}, keywords=PLAIN)

    def once(line: str) -> bytes:
        return b"421 4.7.0 one message a connection\r\n" if host.server.connections < len(host.received) + 1 else b""

    host.server.answers = {**host.server.answers, "MAIL": once}
    ids = [box.send(recipients="bob@oneshot.example") for _ in range(10)]
    for queue_id in ids:
        tried(box, queue_id, "sent")
    assert len(host.received) == 10


def test_a_server_that_comes_back_hears_from_us_without_being_asked(net: Internet, box: Relay) -> None:
    """Down, then silent, then refusing, then well: no order of troubles makes mail forget to be tried."""
    host = net.host("moody.example")
    host.stop()
    queue_id = box.send(recipients="bob@moody.example")
    tried(box, queue_id, "deferred")
    host.server.answers = {"GREETING": STALL}
    host.start()
    box.wait_for(rf"{queue_id}: .*timed out")
    host.server.answers = {"RCPT": b"450 4.2.1 busy\r\n"}
    box.wait_for(rf"{queue_id}: .*450 4\.2\.1 busy")
    host.server.answers = {}
    tried(box, queue_id, "sent")
