"""One message to one server without IO: MAIL, RCPT, DATA or BDAT, and what the server says to each recipient.

Owns the order of commands (pipelined where the server offers it, in step otherwise), the parameters that this server
may be told, and the result of every recipient. Never opens or closes a connection, never decides what a result means
for the queue.

Where the server offers PIPELINING, a message may follow another that is `written` and not answered yet. After the dot
of DATA the server's buffers are empty, whatever it answers (RFC 5321 4.1.1.4). After BDAT LAST they may not be: when
MAIL or every RCPT was refused, some servers stay in the transaction, and would take the next message's recipients
for the sender before. So RSET goes first there, in the same write: six octets and no round trip.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from edgemail.envelope import Address, Envelope, Notify, Target
from edgemail.relay.wire.answers import MalformedReply
from edgemail.relay.wire.client import Abilities, Client, Phase
from edgemail.relay.wire.dot import LineEnds, Stuffer
from edgemail.reply import Reply
from edgemail.value import value

BDAT_SIZE: Final = 65_536  # limit: octets of one BDAT chunk; a message that fits into one goes out with its envelope

_XTEXT: Final = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-Fa-f]{2})+")  # RFC 3461 4
_LOCAL: Final = re.compile(r'[^\x00-\x20\x7f<>"\\]+|"(?:[^\x00-\x1f\x7f"\\]|\\[\x20-\x7e])*"')
_DOMAIN: Final = re.compile(r'[^\x00-\x20\x7f<>"\\@]*')


@value
class Result:
    """What the server (`remote`) or the loss of it did to one recipient."""

    reply: Reply
    phase: Phase
    remote: bool = True


@value
class Burden:
    """What a message asks of the server: from the envelope, after rewriting."""

    size: int
    eight_bit: bool = False
    utf8: bool = False  # declared SMTPUTF8, and something in it may need it
    utf8_header: bool = False  # raw UTF-8 in the header: cannot go without SMTPUTF8


def speakable(address: Address) -> bool:
    """Whether an address can stand between the angle brackets of MAIL and RCPT and be nothing but an address."""
    if not address:
        return True
    return bool(_LOCAL.fullmatch(address.local) and _DOMAIN.fullmatch(address.domain))


def obstacle(able: Abilities, burden: Burden, sender: Address, server: str) -> Reply | None:
    """Why `server` cannot carry the message at all, in the form of a refusal; None when it can."""
    limit = able.size_limit
    if 0 < limit < burden.size:  # RFC 1870 6.1
        return Reply(552, "5.3.4", f"message size {burden.size} exceeds size limit {limit} of server {server}")
    if not speakable(sender):
        return Reply(553, "5.1.7", "bad sender address syntax")
    if (burden.utf8_header or not str(sender).isascii()) and not able.offers("SMTPUTF8"):  # RFC 6531 3.2, 3.5
        return Reply(550, "5.6.7", f"SMTPUTF8 is required, but was not offered by host {server}")
    if burden.eight_bit and not able.offers("8BITMIME"):  # RFC 6152 3
        return Reply(554, "5.6.3", f"the message is 8-bit, but 8BITMIME was not offered by host {server}")
    return None


def recipient_obstacle(able: Abilities, address: Address, server: str) -> Reply | None:
    """Why `server` cannot be told of one recipient; None when it can."""
    if not address or not speakable(address):
        return Reply(553, "5.1.3", "bad recipient address syntax")
    if not (str(address).isascii() or able.offers("SMTPUTF8")):
        return Reply(553, "5.6.7", f"SMTPUTF8 is required, but was not offered by host {server}")
    return None


def mail_command(able: Abilities, sender: Address, envelope: Envelope, burden: Burden, utf8: bool) -> str:
    """MAIL FROM with what the server offers to take."""
    words = [f"MAIL FROM:<{sender}>"]
    if able.offers("SIZE"):
        words.append(f"SIZE={burden.size}")
    if burden.eight_bit and able.offers("8BITMIME"):  # what is really 7-bit goes without, whatever was declared
        words.append("BODY=8BITMIME")
    if utf8 and able.offers("SMTPUTF8"):
        words.append("SMTPUTF8")
    if able.offers("DSN"):  # RFC 3461 5.2.1
        if envelope.ret is not None:
            words.append(f"RET={envelope.ret.value}")
        if _XTEXT.fullmatch(envelope.envid):
            words.append(f"ENVID={envelope.envid}")
    return " ".join(words)


def rcpt_command(able: Abilities, target: Target) -> str:
    """RCPT TO with its DSN parameters, where the server offers DSN."""
    words = [f"RCPT TO:<{target.address}>"]
    if able.offers("DSN"):
        notify = target.recipient.notify
        if notify is not None:
            names = ",".join(flag.name or "" for flag in Notify if flag & notify) or "NEVER"
            words.append(f"NOTIFY={names}")
        kind, semicolon, mailbox = target.recipient.orcpt.partition(";")
        if semicolon and kind.replace("-", "").isalnum() and _XTEXT.fullmatch(mailbox):
            words.append(f"ORCPT={target.recipient.orcpt}")
    return " ".join(words)


class Transaction:
    """The conversation about one message. Drive it until `done`:

    feed the client what comes and ask it for answers; while `wants_content`, give `write` the next piece of the message
    and `finish` after the last; write what `client.data_to_send()` returns after each step. When the connection is
    gone, say `lost`. Then `results` has an entry for each target.
    """

    def __init__(
        self, client: Client, sender: Address, targets: Sequence[Target], envelope: Envelope, burden: Burden
    ) -> None:
        """Queue the first commands. Every address must be `speakable` and the server able (`obstacle`)."""
        self.client = client
        self.results: list[Result | None] = [None] * len(targets)
        self.wants_content = False
        self.content_done = False  # the message was written to its end: a lost connection may mean a second copy
        self.heard = False  # some reply to this message has come
        able = client.abilities
        self._due = 0  # replies that are awaited for this message
        self._accepted: list[int] = []
        self._mail: Reply | None = None
        self._chunking = able.offers("CHUNKING")
        self._held = bytearray()  # BDAT: one piece is kept back, so that the last can be called LAST
        self._content: Stuffer | LineEnds = LineEnds() if self._chunking else Stuffer()
        self._ended = True  # the content so far ends with a line end
        utf8 = burden.utf8 or not all(str(a).isascii() for a in (sender, *(target.address for target in targets)))
        self._steps: deque[Callable[[], None]] = deque()  # those that wait for the replies to what was said before
        if client.in_transaction or (self._chunking and client.awaiting is not None):
            self._reset()
        mail = mail_command(able, sender, envelope, burden, utf8)
        content = self._open_chunks if self._chunking else self._say_data
        if able.offers("PIPELINING"):  # none of RFC 2920's group waits
            self._say(mail, Phase.MAIL, self._mail_answered)
            for place, target in enumerate(targets):
                self._say_rcpt(rcpt_command(able, target), place)
            # BDAT need not wait for a go-ahead. A small message does not; a large one does wait for the recipients,
            # because it would be sent in vain when none of them is taken.
            if self._chunking and burden.size > BDAT_SIZE:
                self._steps.append(content)
            else:
                content()
            return
        self._steps.append(partial(self._say, mail, Phase.MAIL, self._mail_answered))
        for place, target in enumerate(targets):
            self._steps.append(partial(self._say_rcpt, rcpt_command(able, target), place))
        self._steps.append(content)
        self._advance()

    @property
    def done(self) -> bool:
        """Every target has its result, and the connection is back in step or closing."""
        if self.client.closing:
            return None not in self.results
        return not self._due and not self.wants_content and not self._steps

    @property
    def written(self) -> bool:
        """All of it is written, and only the server's answers are missing: another message may follow."""
        return self.content_done and not self._steps

    # -- content ------------------------------------------------------------------------------------------------------

    def write(self, chunk: bytes) -> None:
        """Give the next piece of the message; only while `wants_content`."""
        octets = self._content.feed(chunk)
        if not self._chunking:
            self.client.append(octets)
            return
        if self._held and len(self._held) + len(octets) > BDAT_SIZE:
            self._say_bdat()
        self._held += octets
        self._ended = octets.endswith(b"\n") if octets else self._ended

    def finish(self) -> None:
        """The message is complete."""
        octets = self._content.finish()
        self.wants_content = False
        self.content_done = True
        self.client.interrupted = None
        if self._chunking:
            self._held += octets
            if not (self._ended or octets):
                self._held += b"\r\n"
            self._say_bdat(last=True)
        else:
            self._end(octets)

    def _end(self, octets: bytes) -> None:
        """The last of the content of DATA, with the dot."""
        self.client.append(octets)
        self.client.expect(Phase.END, self._end_answered)
        self.client.in_transaction = False  # RFC 5321 4.1.1.4: whatever the answer
        self._due += 1

    def lost(self, reply: Reply, phase: Phase | None = None) -> None:
        """The connection is of no use any more: `reply` for every target that has no result."""
        self._steps.clear()
        where = phase or (Phase.END if self.content_done else self._phase())
        self._refuse_rest(Result(reply, where, remote=phase is not None))
        self._close_content()

    def _phase(self) -> Phase:
        """What the server has not answered yet, of a message that is not written to its end."""
        if not self._due:
            return Phase.CONTENT
        if self._mail is None:
            return Phase.MAIL
        heard = self._accepted or any(result is not None for result in self.results)
        return Phase.RCPT if not heard else self.client.awaiting or Phase.CONTENT

    def _open_content(self) -> None:
        self.wants_content = True
        self.client.interrupted = self._interrupted

    def _close_content(self) -> None:
        self.wants_content = False
        self.client.interrupted = None

    def _say_bdat(self, *, last: bool = False) -> None:  # RFC 3030 2
        taker, phase = (self._end_answered, Phase.END) if last else (self._chunk_answered, Phase.CONTENT)
        self._say(f"BDAT {len(self._held)}{' LAST' if last else ''}", phase, taker)
        self.client.append(bytes(self._held))
        self._held.clear()

    # -- the order of commands ----------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Say what may be said now."""
        while self._steps and self.client.awaiting is None:
            self._steps.popleft()()

    def _say(self, line: str, phase: Phase, taker: Callable[[Reply], None]) -> None:
        self.client.say(line, phase, taker)
        self._due += 1

    def _reset(self) -> None:
        self.client.reset(self._reset_answered)
        self._due += 1

    def _say_rcpt(self, command: str, place: int) -> None:
        if self._mail is None or self._mail.positive:
            self._say(command, Phase.RCPT, partial(self._rcpt_answered, place))

    def _say_data(self) -> None:
        if self._accepted or self._due:
            self._say("DATA", Phase.DATA, self._data_answered)

    def _open_chunks(self) -> None:
        if self._accepted or self._due:
            self._open_content()

    # -- the answers --------------------------------------------------------------------------------------------------

    def _reset_answered(self, reply: Reply) -> None:
        self._due -= 1
        if self.client.closing:
            self.lost(reply, Phase.RSET)
        elif not reply.positive:
            raise MalformedReply(f'RSET refused: "{reply}"')
        self.client.in_transaction = False
        self._advance()

    def _mail_answered(self, reply: Reply) -> None:
        self._heard(reply, Phase.MAIL, positive=2)
        self._mail = reply
        if reply.positive:
            self.client.in_transaction = True
        else:
            self._refuse_rest(Result(reply, Phase.MAIL))
        self._advance()

    def _rcpt_answered(self, place: int, reply: Reply) -> None:
        self._heard(reply, Phase.RCPT, positive=2)
        if self.results[place] is None:
            if reply.positive:
                self._accepted.append(place)
            else:
                if reply.code == 552:  # RFC 5321 4.5.3.1.10: an old way to say "too many recipients"
                    reply = replace(reply.softened(), code=452)
                self.results[place] = Result(reply, Phase.RCPT)
        self._advance()

    def _data_answered(self, reply: Reply) -> None:
        self._heard(reply, Phase.DATA, positive=3)
        if not reply.positive:
            self._refuse_rest(Result(reply, Phase.DATA))
        elif self._accepted:
            self._open_content()
        else:  # RFC 2920 3.1: go-ahead though every recipient was refused; an empty message, and its fate is known
            self._end(b".\r\n")
        self._advance()

    def _chunk_answered(self, reply: Reply) -> None:
        self._heard(reply, Phase.CONTENT, positive=2)
        if not reply.positive:
            self._refuse_rest(Result(reply, Phase.CONTENT))
            self._close_content()

    def _interrupted(self, reply: Reply) -> None:
        """A refusal in the midst of the content, which nobody asked for: there is no way back into step."""
        self.client.closing = True
        self.lost(reply, Phase.CONTENT)

    def _end_answered(self, reply: Reply) -> None:
        self._heard(reply, Phase.END, positive=2)
        if reply.positive or not self._chunking:
            self.client.in_transaction = False  # a refused BDAT leaves the server in an unknown state (RFC 3030 2)
        result = Result(reply, Phase.END)
        for place in self._accepted:
            if self.results[place] is None:
                self.results[place] = result

    def _heard(self, reply: Reply, phase: Phase, *, positive: int) -> None:
        self.heard = True
        self._due -= 1
        if reply.positive and reply.code // 100 != positive:
            raise MalformedReply(f'reply "{reply}" in answer to {phase.command}')
        if self.client.closing:
            self.lost(reply, phase)

    def _refuse_rest(self, result: Result) -> None:
        self.results = [had or result for had in self.results]
