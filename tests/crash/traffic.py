"""What tests of a dying process share: numbered messages, who was told what, and what the spool of the dead holds."""

from __future__ import annotations

import hashlib
import random
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from edgemail.spool.store import open_reader
from tests.scenarios.client import Client
from tests.scenarios.sink import Sink, after_trace
from tests.servers import Received

RECIPIENTS = ("bob@example.org", "carol@example.org")
_QUEUED = re.compile(r"250 2\.0\.0 Ok: queued as ([0-9A-F]{8,11})")


@dataclass
class Told:
    """What clients know: summaries of bodies by their number, and the ids that were acknowledged."""

    sent: dict[int, bytes] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)  # ids that were given a second time
    refused: list[str] = field(default_factory=list)  # replies to a message's end that are not 250
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def body(self, chance: random.Random, size: int) -> tuple[int, bytes]:
        with self._lock:
            number = len(self.sent)
            text = b"Message-ID: <%d@example.com>\r\n\r\n" % number
            body = text + b"%070d\r\n" % chance.randrange(10**60) * (size // 72)
            self.sent[number] = summary(body)
            return number, body

    def send(self, client: Client, chance: random.Random, size: int) -> str:
        """One message in one transaction; the reply to its end, "" when the server died before."""
        number, body = self.body(chance, size)
        client.ask("MAIL FROM:<alice@example.com>", *(f"RCPT TO:<{one}>" for one in RECIPIENTS))
        if chance.random() < 0.5:
            client.send(b"BDAT %d LAST\r\n" % len(body) + body)
            reply = client.reply()
        else:
            reply = client.data(body)
        found = _QUEUED.fullmatch(reply)
        if found is None:
            self.refused.append(reply)
        else:
            with self._lock:
                if found[1] in self.acknowledged:
                    self.twice.append(found[1])
                self.acknowledged[found[1]] = number
        return reply


class Timed(list[Received]):
    """Summaries of what a sink took, and when: hundreds of rounds would not fit into memory."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[float] = []

    def append(self, one: Received) -> None:
        self.at.append(time.monotonic())
        super().append(Received(one.mail, one.rcpt, summary(after_trace(one.content))))


def summary(body: bytes) -> bytes:
    """Number and digest of a body without its trace."""
    return b"Message-ID: <%d@example.com> %s" % (number_of(body), hashlib.sha256(body).digest())


def number_of(content: bytes) -> int:
    found = re.search(rb"Message-ID: <(\d+)@example\.com>", content)
    assert found, content[:300]
    return int(found[1])


def deliveries(smarthost: Sink) -> list[tuple[int, str]]:
    """Message and recipient of everything that the smarthost took, in order."""
    return [
        (number_of(one.content), name)
        for one in list(smarthost.received)
        for name in re.findall("<(.*?)>", " ".join(one.rcpt))
    ]


def queued(spool: Path, told: Told) -> set[tuple[int, str]]:
    """Message and recipient of all that a spool holds; each message there is one that was sent, and whole."""
    found = set()
    with open_reader(spool) as reader:
        for envelope in reader.envelopes():
            content = b"".join(reader.body(envelope.id))
            assert len(content) == envelope.size
            number = number_of(content)
            assert summary(after_trace(content)) == told.sent[number], f"{envelope.queue_id} is not what was sent"
            assert told.acknowledged.get(envelope.queue_id, number) == number, f"{envelope.queue_id} is two messages"
            found |= {(number, str(recipient.address)) for recipient in envelope.recipients}
        assert not reader.skipped
        assert not list(reader.damaged())
    return found


def check(spool: Path, smarthost: Sink, told: Told) -> None:
    """With the process dead: acknowledged is delivered or queued, for each recipient; what was delivered was sent."""
    assert not told.twice, f"ids that were given twice: {told.twice}"
    there = queued(spool, told) | set(deliveries(smarthost))
    wanted = {(number, name) for number in told.acknowledged.values() for name in RECIPIENTS}
    assert not wanted - there, f"acknowledged and lost: {sorted(wanted - there)}"
    for one in list(smarthost.received):
        found = one.content if isinstance(smarthost.received, Timed) else summary(after_trace(one.content))
        assert found == told.sent[number_of(found)]
