"""The client's half of SMTP without IO: commands in, bytes out; bytes in, answers out.

Owns which command a reply answers, what the server said it can do, and that no argument can smuggle a second command.
Never decides what to say next: `transaction` does for a message, `relay.send.session` for the rest. Whoever drives it:

    client = Client("gw.example.com")       the greeting is awaited
    client.hello(); client.data_to_send()   what is to be written
    client.receive_data(data)               bytes from the socket
    client.next_answer()                    Answer, or None when more input is needed
    client.awaiting                         the phase that the next reply belongs to: it names the timeout
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from enum import Enum
from typing import Final

from edgemail.relay.wire.answers import MalformedReply, ReplyReader
from edgemail.reply import Reply
from edgemail.value import value

_UNSPEAKABLE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # in a command line; CR and LF above all
_KEYWORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")  # RFC 5321 4.1.1.1: ehlo-keyword


class Phase(Enum):
    """What a reply is awaited for: how the log says what was being done, and what the reply was in answer to."""

    GREETING = ("receiving the initial server greeting", "the connection")
    HELLO = ("performing the EHLO handshake", "EHLO command")
    STARTTLS = ("performing the STARTTLS handshake", "STARTTLS command")
    AUTH = ("performing the AUTH handshake", "AUTH command")
    ETRN = ("sending ETRN", "ETRN command")
    ATRN = ("sending ATRN", "ATRN command")
    RSET = ("sending RSET", "RSET command")
    MAIL = ("sending MAIL FROM", "MAIL FROM command")
    RCPT = ("sending RCPT TO", "RCPT TO command")
    DATA = ("sending DATA command", "DATA command")
    CONTENT = ("sending message body", "message body")
    END = ("sending end of data -- message may be sent more than once", "end of DATA command")
    QUIT = ("sending QUIT", "QUIT command")
    IDLE = ("waiting for mail", "nothing")

    def __init__(self, doing: str, command: str) -> None:
        self.doing = doing
        self.command = command


@value
class Answer:
    """One reply and what it answers; IDLE for a farewell that nobody asked for."""

    phase: Phase
    reply: Reply


@value
class Abilities:
    """What the server said after HELO or EHLO: its own name, its keywords in upper case with their parameters."""

    name: str = ""
    keywords: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def offers(self, keyword: str) -> bool:
        return keyword in self.keywords

    @property
    def size_limit(self) -> int:
        """RFC 1870 4: the largest message in octets, 0 where none is said."""
        words = self.keywords.get("SIZE", ())
        return int(words[0]) if words and words[0].isascii() and words[0].isdigit() and len(words[0]) <= 20 else 0

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """Of AUTH, upper case, in the server's order of preference."""
        return self.keywords.get("AUTH", ())


def abilities(reply: Reply, discard: frozenset[str] = frozenset()) -> Abilities:
    """Read the positive reply to EHLO or HELO, overlooking the keywords in `discard` (upper case)."""
    first, *rest = reply.text.split("\n")
    keywords: dict[str, tuple[str, ...]] = {}
    for line in rest:
        # "AUTH=LOGIN PLAIN" is how servers before RFC 2554 wrote it; many still say both.
        keyword, *words = line.replace("=", " ", 1).split() if line[:5].upper() == "AUTH=" else line.split() or [""]
        keyword = keyword.upper()
        if not _KEYWORD.fullmatch(keyword) or keyword in discard:
            continue
        if keyword == "AUTH":
            words = [*keywords.get("AUTH", ()), *(word.upper() for word in words)]
        keywords[keyword] = tuple(dict.fromkeys(words))
    return Abilities(first.split(" ", 1)[0], keywords)


class Client:
    """One connection to a server, seen from the sending side."""

    def __init__(self, name: str, *, discard: Iterable[str] = ()) -> None:
        """`name` is ours for EHLO; `discard` the keywords of servers to overlook (smtp_discard_ehlo_keywords)."""
        self._name = name
        self._discard = frozenset(word.upper() for word in discard)
        self._reader = ReplyReader()
        self._out = bytearray()
        self._awaiting: deque[tuple[Phase, Callable[[Reply], None] | None]] = deque([(Phase.GREETING, None)])
        self._unsent = 0  # of those awaited, the last ones: what they answer was not even handed out
        self.abilities = Abilities()
        self.in_transaction = False  # the server may hold a MAIL of ours: RSET before the next
        self.closing = False  # the server said 421: it takes nothing more
        self.interrupted: Callable[[Reply], None] | None = None  # takes a refusal that comes while content is written

    # -- the wire -----------------------------------------------------------------------------------------------------

    @property
    def awaiting(self) -> Phase | None:
        """The phase of the next reply, None when none is due."""
        return self._awaiting[0][0] if self._awaiting else None

    @property
    def unread(self) -> int:
        """Octets received and not yet made into a reply."""
        return self._reader.unread

    @property
    def pending(self) -> int:
        """Octets that wait to be written."""
        return len(self._out)

    def receive_data(self, data: bytes) -> None:
        self._reader.feed(data)

    def data_to_send(self) -> bytes:
        """What is to be written now; forgotten here."""
        data = bytes(self._out)
        self._out.clear()
        self._unsent = 0
        return data

    def next_answer(self) -> Answer | None:
        """The next reply with what it answers, after whoever asked has taken it. None: more input is needed.

        Raises MalformedReply for what is no reply, or one that nobody asked for: the connection is then of no use.
        """
        reply = self._reader.next_reply()
        if reply is None:
            return None
        if reply.code == 421:  # RFC 5321 3.8: may come at any time, and the server closes after it
            self.closing = True
        if not self._awaiting:
            return self._unasked(reply)
        if len(self._awaiting) <= self._unsent:
            self._early(reply)
        phase, taker = self._awaiting.popleft()
        if phase is Phase.HELLO and reply.code // 100 == 2:
            self.abilities = abilities(reply, self._discard)
        if taker is not None:
            taker(reply)
        return Answer(phase, reply)

    def _early(self, reply: Reply) -> None:
        """A reply to what the server cannot have read yet: a refusal of content may come so, and a farewell."""
        refusal = not reply.positive and self._awaiting[0][0] in (Phase.CONTENT, Phase.END)
        if not (self.closing or refusal):
            raise MalformedReply(f'reply "{reply}" before the {self._awaiting[0][0].command}')
        self._unsent -= 1

    def _unasked(self, reply: Reply) -> Answer:
        if self.interrupted is not None and not reply.positive:
            self.interrupted(reply)
            return Answer(Phase.CONTENT, reply)
        if self.closing:
            return Answer(Phase.IDLE, reply)
        raise MalformedReply(f'reply "{reply}" to nothing')

    # -- the commands -------------------------------------------------------------------------------------------------

    def say(self, line: str, phase: Phase, taker: Callable[[Reply], None] | None = None) -> None:
        """Queue one command. ValueError where it would be more than one line."""
        octets = line.encode()
        if _UNSPEAKABLE.search(octets):
            raise ValueError(f"a control character in a command: {line!a}")
        self._out += octets
        self._out += b"\r\n"
        self._awaiting.append((phase, taker))
        self._unsent += 1

    def append(self, octets: bytes) -> None:
        """Queue content, as it is."""
        self._out += octets

    def expect(self, phase: Phase, taker: Callable[[Reply], None]) -> None:
        """Await a reply to what `append` queued."""
        self._awaiting.append((phase, taker))
        self._unsent += 1

    def hello(self, *, extended: bool = True) -> None:
        """EHLO; with `extended` false HELO, for a server that does not know EHLO (RFC 5321 3.2)."""
        self.abilities = Abilities()
        self.say(f"{'EHLO' if extended else 'HELO'} {self._name}", Phase.HELLO)

    def starttls(self) -> None:
        self.say("STARTTLS", Phase.STARTTLS)

    def tls_started(self) -> None:
        """The handshake is done: all that was said in clear is forgotten (RFC 3207 4.2). Say EHLO next.

        Raises MalformedReply where something came behind the 220: it may be injected, and must not be read under TLS.
        """
        self.injected()
        self.abilities = Abilities()

    def injected(self) -> None:
        """Raise MalformedReply when octets came behind the last reply. To be called just before the handshake."""
        if self._reader.unread:
            raise MalformedReply("octets in clear behind the reply to STARTTLS")

    def auth(self, mechanism: str, initial: bytes | None) -> None:
        """AUTH, with an initial response where the mechanism has one (RFC 4954 4: empty is said as '=')."""
        words = ["AUTH", mechanism]
        if initial is not None:
            words.append(b64encode(initial).decode() or "=")
        self.say(" ".join(words), Phase.AUTH)

    def auth_response(self, response: bytes) -> None:
        """Answer a 334."""
        self.say(b64encode(response).decode(), Phase.AUTH)

    def auth_cancel(self) -> None:
        """Break off after a 334 that cannot be answered (RFC 4954 4)."""
        self.say("*", Phase.AUTH)

    def reset(self, taker: Callable[[Reply], None] | None = None) -> None:
        """RSET, wherever the server is."""
        self.in_transaction = False
        self.say("RSET", Phase.RSET, taker)

    def quit(self) -> None:
        self.say("QUIT", Phase.QUIT)
