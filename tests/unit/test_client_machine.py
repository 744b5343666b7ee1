"""The client's exchange as a machine: any answer at any time, against a model of a server that reads strictly.

The model: a reply is owed for each command and for the end of each message, in order; behind a 354 stands content up to
CRLF.CRLF, behind BDAT as many octets as it says; what is in neither is a command of ours on a line of its own. Who is
told "delivered" is exactly who was accepted with a message that arrived whole.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgemail.envelope import Address, Envelope, Recipient, Target
from edgemail.relay.wire.answers import MalformedReply
from edgemail.relay.wire.client import Client, Phase
from edgemail.relay.wire.transaction import BDAT_SIZE, Burden, Transaction
from edgemail.reply import Reply

KEPT = 65_536
NAMES = "bcd"
LOST = Reply(421, "4.4.2", "lost connection")
COMMAND = re.compile(rb"(EHLO|MAIL|RCPT|DATA|RSET|QUIT|BDAT)(?: ([ -~]+))?")
LINE_END = re.compile(rb"\r?\r?\n|\r")
SAID = (
    *(
        b"Subject: x\r\n",
        b".\r\n",
        b"\r\n.\r\n",
        b"RCPT TO:<evil@example.net>\r\n",
        b"QUIT\r\n",
        b"\n.\n",
        b"\r",
        b"\n",
    ),
    *(b".", b"BDAT 3 LAST\r\n", b"x" * 20_000, b"lone\rcr", b""),
)
PIECES = st.lists(st.sampled_from(SAID), max_size=5).map(b"".join)
KEYWORDS = ("PIPELINING", "CHUNKING", "SIZE 10000000", "DSN")


@dataclass
class Hearing:
    """A server's ear: what it makes of the octets, and what it owes an answer to."""

    heard: bytes = b""
    owed: deque[str] = field(default_factory=deque)
    waits: bool = False  # behind DATA nothing is read until it is answered
    content: bool = False
    chunk: int = -1  # octets of a BDAT that are still to come
    last: bool = False
    body: bytes = b""
    bodies: deque[bytes] = field(default_factory=deque)  # whole ones, whose end waits for its answer
    mail: bool = False
    recipients: list[str] = field(default_factory=list)
    asked: deque[str] = field(default_factory=deque)  # recipients that wait for their answer
    taken: list[tuple[list[str], bytes]] = field(default_factory=list)

    def hear(self, data: bytes) -> None:
        self.heard += data
        while self.heard and not self.waits:
            if not (self._chunk() if self.chunk >= 0 else self._content() if self.content else self._command()):
                return

    def _chunk(self) -> bool:
        piece, self.heard = self.heard[: self.chunk], self.heard[self.chunk :]
        self.body += piece
        self.chunk -= len(piece)
        if self.chunk:
            return False
        self._chunk_over()
        return True

    def _chunk_over(self) -> None:
        self.owed.append("END" if self.last else "CONTENT")
        self.chunk = -1
        if self.last:
            self._body_over(self.body)

    def _body_over(self, body: bytes) -> None:
        self.bodies.append(body)
        self.body = b""

    def _content(self) -> bool:
        inner, end, rest = (b"\r\n" + self.heard).partition(b"\r\n.\r\n")
        if not end:
            return False
        self.heard, self.content = rest, False
        self._body_over((inner + b"\r\n").replace(b"\r\n.", b"\r\n")[2:])
        self.owed.append("END")
        return True

    def _command(self) -> bool:
        line, end, self.heard = self.heard.partition(b"\r\n")
        found = COMMAND.fullmatch(line)
        assert end and found, f"no command of ours: {line[:100]!r}"
        verb, rest = found[1].decode(), (found[2] or b"").decode()
        if verb == "BDAT":
            count, _, last = rest.partition(" ")
            self.chunk, self.last = int(count), last == "LAST"
            if not self.chunk:
                self._chunk_over()
            return True
        self.owed.append(verb)
        if verb in ("MAIL", "RSET"):
            self.body = b""
        if verb == "RCPT":
            self.asked.append(rest[len("TO:<")])
        if verb == "DATA":
            self.waits, self.last = True, False
        return True

    def answered(self, code: int) -> str:
        """The oldest of what is owed, answered with this code."""
        what = self.owed.popleft()
        good = code // 100 == 2
        if what == "DATA":
            self.waits, self.content = False, code == 354
        elif what == "RSET":
            self.mail, self.recipients = False, []
        elif what == "MAIL":
            assert not self.mail, "MAIL within a transaction"
            self.mail, self.recipients = good, []
        elif what == "RCPT":
            name = self.asked.popleft()
            if good and self.mail:
                self.recipients.append(name)
        elif what == "END":
            body = self.bodies.popleft()
            if good and self.recipients:
                self.taken.append((self.recipients, body))
            # After BDAT LAST some servers stay in a transaction that they refused.
            self.mail = self.mail and self.last and not good
            self.recipients = []
        self.hear(b"")
        return what


@dataclass
class Message:
    """One that the client was given."""

    transaction: Transaction
    content: bytes = b""

    @property
    def arrives(self) -> bytes:
        whole = LINE_END.sub(b"\r\n", self.content)
        return whole + (b"" if whole.endswith(b"\r\n") or not whole else b"\r\n")


class Exchange(RuleBasedStateMachine):
    """A client that is driven as the sender drives it, and a server that answers as it likes."""

    @initialize(offered=st.sets(st.sampled_from(KEYWORDS)))
    def connects(self, offered: set[str]) -> None:
        self.offered = offered
        self.client = Client("gw.example.com")
        self.ear = Hearing()
        self.messages: list[Message] = []
        self.over = False
        self.tell(b"220 mx.example\r\n", [])
        self.client.hello()
        self.flushes()
        self.ear.answered(250)
        self.tell(
            b"250-mx.example\r\n"
            + b"".join(b"250-%s\r\n" % word.encode() for word in sorted(offered))
            + b"250 HELP\r\n",
            [],
        )

    @precondition(lambda self: self.over)
    @rule(offered=st.sets(st.sampled_from(KEYWORDS)))
    def connects_again(self, offered: set[str]) -> None:
        self.connects(offered)

    def tell(self, data: bytes, cuts: list[int]) -> list[Phase]:
        """The server says something, cut in pieces; what the client takes it for."""
        places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
        found = []
        for begin, end in pairwise(places):
            self.client.receive_data(data[begin:end])
            while (answer := self.client.next_answer()) is not None:
                found.append(answer.phase)
        return found

    def ends(self) -> None:
        """The connection is gone."""
        for message in self.messages:
            if not message.transaction.done or None in message.transaction.results:
                message.transaction.lost(LOST)
        self.over = True

    @property
    def open(self) -> bool:
        return not self.over and not self.client.closing

    @property
    def ready(self) -> bool:
        if not self.open or "QUIT" in self.ear.owed:
            return False
        if not self.messages:
            return True
        last = self.messages[-1].transaction
        if last.done:
            return self.client.awaiting is None
        return last.written and "PIPELINING" in self.offered

    @property
    def writing(self) -> Message | None:
        last = self.messages[-1] if self.messages and self.open else None
        return last if last is not None and last.transaction.wants_content else None

    @precondition(lambda self: self.ready)
    @rule(count=st.integers(1, 3), large=st.booleans())
    def begins(self, count: int, large: bool) -> None:
        targets = tuple(
            Target(place, Recipient(Address(name, "example.net")), Address(name, "example.net"))
            for place, name in enumerate(NAMES[:count])
        )
        burden = Burden(2 * BDAT_SIZE if large else 100)
        sender = Address("a", "example.com")
        envelope = Envelope(1, sender, ())
        self.messages.append(Message(Transaction(self.client, sender, targets, envelope, burden)))

    @precondition(lambda self: self.writing)
    @rule(content=PIECES)
    def writes(self, content: bytes) -> None:
        message = self.writing
        assert message is not None
        message.content += content
        message.transaction.write(content)
        self.flushes()

    @precondition(lambda self: self.writing)
    @rule()
    def finishes(self) -> None:
        message = self.writing
        assert message is not None
        message.transaction.finish()

    @precondition(lambda self: not self.over)
    @rule()
    def flushes(self) -> None:
        sent = self.client.data_to_send()
        assert sent.count(b"\r\n") == sent.count(b"\r") == sent.count(b"\n")
        self.ear.hear(sent)

    @precondition(lambda self: not self.over and self.ear.owed)
    @rule(
        kind=st.sampled_from((0, 0, 0, 0, 4, 5)), cuts=st.lists(st.integers(0, 40), max_size=3), lines=st.integers(0, 3)
    )
    def answers(self, kind: int, cuts: list[int], lines: int) -> None:
        self.flushes()
        if not self.open:
            return
        code = {0: 354 if self.ear.owed[0] == "DATA" else 250, 4: 450, 5: 550}[kind]
        what = self.ear.answered(code)
        try:
            phases = self.tell(b"%d-more\r\n" % code * lines + b"%d said\r\n" % code, cuts)
        except MalformedReply:
            assert what == "RSET" and code != 250  # the one refusal that ends a connection
            self.ends()
            return
        assert [phase.name for phase in phases] == [what]
        if what == "QUIT":
            self.ends()

    @precondition(lambda self: self.open and self.ear.owed)
    @rule()
    def says_goodbye(self) -> None:
        self.flushes()
        self.ear.owed.clear()
        self.tell(b"421 4.3.2 closing\r\n", [])
        assert self.client.closing
        self.ends()

    @precondition(lambda self: self.open)
    @rule(
        data=st.sampled_from(
            (
                b"999 x\r\n",
                b"\r\n",
                b"abc\r\n",
                b"25\r\n",
                b"250 x\r\n",
                b"354 go\r\n",
                b"250-x\r\n" * 200,
                b"y" * 70_000,
            )
        )
    )
    def says_what_nobody_asked(self, data: bytes) -> None:
        self.flushes()
        if self.ear.owed:
            return
        try:
            assert not self.tell(data, [])
        except MalformedReply:
            pass
        else:
            raise AssertionError(f"{data[:10]!r} to nothing was taken")
        self.ends()

    @precondition(lambda self: self.writing and not self.ear.owed)
    @rule()
    def refuses_in_the_midst(self) -> None:
        self.flushes()
        if self.ear.owed:
            return
        assert self.tell(b"452 4.3.1 full\r\n", []) == [Phase.CONTENT]
        self.ends()

    @precondition(lambda self: self.ready and (not self.messages or self.messages[-1].transaction.done))
    @rule()
    def quits(self) -> None:
        self.client.quit()

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        if hasattr(self, "client"):
            assert self.client.unread <= KEPT
            assert self.client.pending <= KEPT + 1000  # one chunk of BDAT and its commands

    @invariant()
    def the_next_answer_is_to_the_oldest_command(self) -> None:
        if hasattr(self, "client") and self.open and self.ear.owed and not self.client.pending:
            assert self.client.awaiting is not None
            assert self.client.awaiting.name == {"EHLO": "HELLO"}.get(self.ear.owed[0], self.ear.owed[0])

    @invariant()
    def nobody_is_told_what_is_not_so(self) -> None:
        if not hasattr(self, "client"):
            return
        told = [
            ([NAMES[place] for place, result in enumerate(one.transaction.results) if result and result.reply.positive])
            for one in self.messages
        ]
        taken = [(names, one.arrives) for names, one in zip(told, self.messages, strict=True) if names]
        assert taken == self.ear.taken


TestExchange = Exchange.TestCase
TestExchange.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, derandomize=True)
