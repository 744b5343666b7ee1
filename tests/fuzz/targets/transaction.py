"""The client and its transactions against a server that says anything, whole and in pieces.

Invariants: no exception but the one for a malformed reply; every recipient has a result; nobody is delivered without a
2yz to the end of a message that was written whole; a refusal is one that the server said; what is sent are commands of
ours in CRLF lines, and content in which no line can be taken for one; what is kept is bounded both ways.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from edgemail.envelope import Address, Envelope, Notify, Recipient, Ret, Target
from edgemail.relay.wire.answers import MalformedReply
from edgemail.relay.wire.client import Answer, Client, Phase
from edgemail.relay.wire.transaction import Burden, Transaction, obstacle
from edgemail.reply import Reply

WORDS: Final = (
    *(b"220 mx.example\r\n", b"250-mx.example\r\n", b"250 ok\r\n", b"250-PIPELINING\r\n", b"250-CHUNKING\r\n"),
    *(b"250-SIZE 10\r\n", b"250-8BITMIME\r\n", b"250-DSN\r\n", b"250-SMTPUTF8\r\n", b"250 STARTTLS\r\n", b"354 go\r\n"),
    *(
        b"550 5.1.1 no\r\n",
        b"450 4.2.0 later\r\n",
        b"421 4.3.2 bye\r\n",
        b"552 5.3.4 big\r\n",
        b"235 ok\r\n",
        b"334 \r\n",
    ),
    *(b"999 x\r\n", b"550-5.1.1 one\r\n", b"\r\n", b"250\r\n", b"220 ", b"\n", b"\r", b"\0", b"\xc2\x85", b"-", b" "),
)
KEPT: Final = 65_536
CONTENT: Final = (
    b"Subject: x\r\n\r\n.\r\nMAIL FROM:<evil@example.com>\r\nRCPT TO:<victim@example.com>\r\nDATA\r\nevil\r\n.\r\nx\r",
    b"\n..\r\nlone\rcr\nlf\r\n",
    b".",
)
SENDER: Final = Address("a", "example.com")
# Longer than a fuzzer makes them.
_HELLO: Final = b"220 x\r\n250 x\r\n"
LARGE: Final = (
    *(b"x" * 200_000, b"220 " + b"x" * 200_000, b"220-x\r\n" * 50_000, _HELLO + b"250-" + b"y" * 200_000),
    *(_HELLO + b"250 ok\r\n" * 20_000, _HELLO + b"550-no\r\n" * 20_000, b"\r\n" * 70_000, b"\0" * 70_000),
)
COMMAND: Final = re.compile(
    rb"(?:EHLO|HELO) gw\.example\.com|STARTTLS|MAIL FROM:<a@example\.com>[ -~]*|RCPT TO:<[bc]@example\.net>[ -~]*"
    rb"|DATA|RSET|QUIT|BDAT \d+(?: LAST)?"
)
LOST: Final = Reply(421, "4.4.2", "lost connection")


class Wire:
    """The server's octets, given out in pieces; what it hears, judged as it is written."""

    def __init__(self, client: Client, data: bytes, step: int) -> None:
        self.client = client
        self.data = data
        self.step = step
        self.at = 0
        self.answers: list[Answer] = []

    def exchange(self) -> bool:
        """Write what is to be written, read one piece; False at the end."""
        sent = self.client.data_to_send()
        assert len(sent) <= 2 * KEPT
        assert sent.count(b"\r\n") == sent.count(b"\r") == sent.count(b"\n")
        _judge_sent(sent)
        piece = self.data[self.at : self.at + self.step]
        self.at += len(piece)
        self.client.receive_data(piece)
        return bool(piece)

    def until(self, over: Callable[[], bool]) -> bool:
        """Read answers until `over`; False when the server has nothing more to say."""
        while not over():
            while not over() and (answer := self.client.next_answer()) is not None:
                self.answers.append(answer)
            assert self.client.unread <= KEPT + min(self.step, len(self.data))
            if not over() and not self.exchange():
                return False
        return True


def _judge_sent(sent: bytes) -> None:
    """Commands, and behind DATA's 354 content up to its end, and behind BDAT as many octets as it says."""
    while sent:
        line, end, rest = sent.partition(b"\r\n")
        assert end, sent[:80]
        chunk = re.fullmatch(rb"BDAT (\d+)(?: LAST)?", line)
        if chunk is not None:
            sent = rest[int(chunk[1]) :]
        elif COMMAND.fullmatch(line):
            sent = rest
        else:  # the content of DATA, or what is left of it
            inner, end, sent = (b"\r\n" + sent).partition(b"\r\n.\r\n")
            assert end, "content without its end"
            assert not re.search(rb"\r\n\.(?!\.)", inner), "a dot that was not doubled"


def targets(count: int) -> tuple[Target, ...]:
    made = []
    for place, name in enumerate("bc"[:count]):
        address = Address(name, "example.net")
        made.append(Target(place, Recipient(address, Notify.FAILURE, f"rfc822;{name}@example.net"), address))
    return tuple(made)


def converse(data: bytes, step: int, count: int, messages: int = 2) -> list[list[str]]:
    """Greeting, EHLO, some messages, QUIT; the results of each message."""
    client = Client("gw.example.com")
    wire = Wire(client, data, step)
    found: list[list[str]] = []
    if not wire.until(lambda: client.awaiting is None) or client.closing:
        return found
    client.hello()
    if not wire.until(lambda: client.awaiting is None) or client.closing:
        return found
    envelope = Envelope(1, SENDER, (), ret=Ret.HDRS, envid="x+2By")
    for _ in range(messages):
        burden = Burden(sum(map(len, CONTENT)))
        if client.closing or obstacle(client.abilities, burden, SENDER, "mx.example") is not None:
            break
        transaction = Transaction(client, SENDER, targets(count), envelope, burden)
        wire.answers.clear()
        good = _carry(wire, transaction)
        found.append(_judge_results(transaction, wire))
        if not good:
            return found
    if not client.closing:
        client.quit()
        wire.until(lambda: client.awaiting is None)
    return found


def _carry(wire: Wire, transaction: Transaction) -> bool:
    """Whether the connection is still of use."""
    pieces = list(CONTENT)
    try:
        while wire.until(lambda: transaction.done or transaction.wants_content):
            if transaction.done:
                return True
            if pieces:
                transaction.write(pieces.pop(0))
            else:
                transaction.finish()
            assert wire.client.pending <= 2 * KEPT
    except MalformedReply:
        pass
    transaction.lost(LOST)
    return False


def _judge_results(transaction: Transaction, wire: Wire) -> list[str]:
    data = wire.data
    heard = {(answer.phase, answer.reply.code // 100) for answer in wire.answers}
    said = []
    for result in transaction.results:
        assert result is not None
        if result.reply.positive:
            assert result.phase is Phase.END
            assert transaction.content_done
            assert {(Phase.MAIL, 2), (Phase.RCPT, 2), (Phase.END, 2)} <= heard
            chunked = transaction.client.abilities.offers("CHUNKING")
            assert chunked or (Phase.DATA, 3) in heard
        if result.remote:
            code = 552 if result.reply.code == 452 else result.reply.code
            assert b"%d" % result.reply.code in data or b"%d" % code in data
            if result.reply.permanent:
                assert result.phase in (Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.CONTENT, Phase.END)
        else:
            assert result.reply == LOST
        assert all(char.isprintable() for char in result.reply.text.replace("\n", ""))
        said.append(f"{result.reply} {result.phase.name}")
    return said


def judge(data: bytes) -> None:
    for count in (1, 2):
        for step in (max(1, len(data)), 1 if len(data) < 500 else 97):
            try:
                converse(data, step, count)
            except MalformedReply:
                pass  # before the first message: the connection is of no use
