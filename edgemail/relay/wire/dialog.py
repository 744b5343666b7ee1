"""The server's half of SMTP without IO: bytes in, events out, replies in, bytes out.

Interface (`receive.session` is its only driver):

    dialog = Dialog(settings, tls=False, mechanisms=())   # settings: the listener's edgemail.settings.Settings
    dialog.greet(reply)             queue the 220 (or a 421/554, which closes)
    dialog.receive_data(data)       bytes from the socket; b"" = end of input
    dialog.next_event()             Event, or None when more input is needed (then write `data_to_send()`)
    dialog.answer(reply)            answers the event that next_event last returned (all but Content)
    dialog.ehlo_reply()             the 250 to the Hello that waits for its answer: name and keywords, or the name alone
    dialog.error_number(reply)      which error of the session it would be to give `reply` now; 0: none. Ask before
                                    `answer`: past the soft limit wait, at the hard limit give too_many_errors() instead
    dialog.fail(reply)              inside content (spool full): drop what follows; `reply` is the fault of the End that
                                    comes, unless the content itself earns a permanent one
    dialog.data_to_send()           takes what is to be written
    dialog.tls_started(mechanisms)  forget all that was said in clear (RFC 3207 4.2)
    dialog.authenticated(user)      AUTH went well (called before answer(235)); no second AUTH
    dialog.closed                   True after 221, 421 or a fatal answer: write, then close. Also when the input has
                                    ended and nothing is left to be asked of it
    dialog.unread                   octets received and not yet looked at (STARTTLS injection: close when not 0)
    dialog.in_transaction, .in_content, .hello (name or ""), .extended, .recipients (count taken), .user
    dialog.eight_bit, .long_lines   of the message that is coming in; still true to it while its End is answered
    dialog.said                     the last command line, for a transcript; of AUTH the verb alone
    dialog.errors, .junk            errors answered; NOOP, RSET, VRFY, ETRN and the like since the last message taken
    dialog.buffered                 bytes kept; at most 64 KiB plus what one receive_data brought

The session calls next_event in a loop; each event but Content must be answered before the next is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from edgemail.relay.wire import replies
from edgemail.relay.wire.commands import PARSERS, read_base64, read_bdat, read_text
from edgemail.relay.wire.events import (
    Atrn,
    Auth,
    AuthResponse,
    Bad,
    Begin,
    Command,
    Content,
    End,
    Etrn,
    Event,
    Hello,
    Mail,
    Noop,
    Quit,
    Rcpt,
    Reset,
    StartTls,
    Vrfy,
)
from edgemail.relay.wire.extensions import Extensions
from edgemail.relay.wire.grammar import Malformed, parse_rcpt
from edgemail.relay.wire.inflow import FLOOD, Inflow
from edgemail.relay.wire.lines import DROPPED_LIMIT, Lines
from edgemail.relay.wire.states import BEFORE_TLS, HTTP, TRANSITIONS, State
from edgemail.reply import Reply
from edgemail.settings import Settings

RECIPIENT_OVERSHOOT: Final = 1000  # limit: RCPTs of a message refused as too many before they count as errors, Postfix

_AGAIN: Final = Content(b"")  # said by a reader that has done its part: ask the reader in charge now
_JUNK: Final = frozenset((Noop, Reset, Vrfy, Etrn))
_TLS_HANDSHAKE: Final = b"\x16"  # the first octet of a TLS client's, RFC 8446 5.1


class Dialog:
    """One SMTP session as the server sees it. See the module for how it is driven."""

    __slots__ = (
        "_asked",
        "_atrn",
        "_chunk",
        "_ended",
        "_etrn",
        "_greeted",
        "_inflow",
        "_last",
        "_lines",
        "_noops",
        "_offer",
        "_out",
        "_overshoot",
        "_reader",
        "_refused",
        "_remaining",
        "_state",
        "_utf8",
        "closed",
        "errors",
        "extended",
        "hello",
        "junk",
        "recipients",
        "said",
        "settings",
        "tls",
        "user",
    )

    def __init__(
        self,
        settings: Settings,
        tls: bool = False,
        mechanisms: Sequence[str] = (),
        *,
        etrn: bool = False,
        atrn: bool = False,
        offer: Extensions | None = None,
    ) -> None:
        """`offer`: what these arguments come to, where that is known already."""
        self.settings = settings
        self.tls = tls
        self.hello = ""
        self.extended = False
        self.user = ""
        self.recipients = 0
        self.said = ""
        self.errors = 0
        self.junk = 0
        self.closed = False
        self._etrn = etrn
        self._atrn = atrn
        self._offer = offer or Extensions(settings, tls=tls, mechanisms=mechanisms, etrn=etrn, atrn=atrn)
        self._noops = frozenset(word.upper() for word in settings.smtpd_noop_commands)
        self._lines = Lines(settings.line_length_limit, legacy=settings.smtpd_legacy_line_ends)
        self._out: list[bytes] = []
        self._state = State.START
        self._reader: Callable[[Dialog], Event | None] = Dialog._command
        self._asked: Command | End | None = None
        self._greeted = False
        self._ended = False  # the input
        self._utf8 = False  # the transaction's MAIL said SMTPUTF8
        self._overshoot = 0  # RCPTs over the limit in this transaction
        self._inflow: Inflow | None = None
        self._chunk = 0  # octets of the BDAT in hand, and how many of them are still to come
        self._remaining = 0
        self._last = False  # it is BDAT LAST
        self._refused: Reply | None = None  # the answer to the transaction's first BDAT

    # What the session does

    def greet(self, reply: Reply) -> None:
        self._greeted = True
        self._out.append(reply.encode())
        self.closed = reply.code >= 400

    def receive_data(self, data: bytes) -> None:
        if not data:
            self._ended = True
        elif not self.closed:
            self._lines.feed(data)

    def next_event(self) -> Event | None:
        if self._asked is not None:
            raise RuntimeError(f"{type(self._asked).__name__} has not been answered")
        if self.closed or not self._greeted:
            return None
        if self._reader is Dialog._command and not len(self._lines):  # most often
            self.closed = self._ended
            return None
        event = self._reader(self)
        while event is _AGAIN:
            event = self._reader(self)
        if event is None:
            self.closed = self._ended
        elif not isinstance(event, Content):
            self._asked = event
            if type(event) in _JUNK:
                self.junk += 1
        return event

    def answer(self, reply: Reply) -> None:
        event = self._asked
        if event is None:
            raise RuntimeError("there is nothing to answer")
        self.errors = self.error_number(reply) or self.errors
        self._asked = None
        if not (isinstance(event, Begin) and event.chunking and reply.positive):
            self._out.append(replies.encoded(reply))
        self._settle(event, reply)
        if reply.code in (221, 421) or isinstance(event, Quit) or (isinstance(event, Bad) and event.fatal):
            self.closed = True
            self._lines.clear()

    def error_number(self, reply: Reply) -> int:
        if self.junk > self.settings.smtpd_junk_command_limit and type(self._asked) in _JUNK:
            return self.errors + 1
        if reply.code < 400 or (self._overshoot <= RECIPIENT_OVERSHOOT and reply == replies.TOO_MANY_RECIPIENTS):
            return 0
        return self.errors + 1

    def ehlo_reply(self) -> Reply:
        if isinstance(self._asked, Hello) and not self._asked.extended:
            return Reply(250, "", self.settings.myhostname)
        return Reply(250, "", self._offer.listing(self.settings.myhostname))

    def fail(self, reply: Reply) -> None:
        if self._inflow is not None and self._inflow.failure is None:
            self._inflow.failure = reply

    def data_to_send(self) -> bytes:
        data = b"".join(self._out)
        self._out.clear()
        return data

    def tls_started(self, mechanisms: Sequence[str] = ()) -> None:
        self.tls = True
        self.hello = ""
        self.extended = False
        self.user = ""
        self._offer = Extensions(self.settings, tls=True, mechanisms=mechanisms, etrn=self._etrn, atrn=self._atrn)
        self._lines.clear()
        self._end_transaction()
        self._reader = Dialog._command

    def authenticated(self, user: str) -> None:
        self.user = user

    @property
    def unread(self) -> int:
        return len(self._lines)

    @property
    def buffered(self) -> int:
        return len(self._lines) + sum(map(len, self._out))

    @property
    def in_transaction(self) -> bool:
        return self._state >= State.SENDER

    @property
    def in_content(self) -> bool:
        return self._reader in (Dialog._data, Dialog._chunk_data, Dialog._end)

    @property
    def eight_bit(self) -> bool:
        return self._inflow is not None and self._inflow.seen.eight_bit

    @property
    def long_lines(self) -> bool:
        return self._inflow is not None and self._inflow.seen.long_lines

    # Readers: what is made of the input in each phase. None asks for more.

    def _command(self) -> Event | None:
        if self._lines.begins_with(_TLS_HANDSHAKE):
            return Bad(replies.NOT_SMTP, fatal=True)
        line = self._lines.line()
        self.said = ""
        if line is None:
            return Bad(replies.LINE_TOO_LONG, fatal=True) if self._lines.dropped > DROPPED_LIMIT else None
        if isinstance(line, Reply):
            return Bad(line)
        text = read_text(line)
        if text is None:
            return Bad(replies.NOT_ASCII)
        verb, _, argument = text.partition(" ")
        verb, argument = verb.upper(), argument.lstrip(" ")
        self.said = text if not verb.startswith("AUTH") else "AUTH"
        try:
            event = self._parse(verb, argument)
        except Malformed as fault:
            return Bad(fault.reply)
        if isinstance(event, Reset):
            self._end_transaction()
        return event

    def _parse(self, verb: str, argument: str) -> Event:
        if verb in self._noops:
            return Noop(replies.OK)
        if verb == "BDAT":
            return self._bdat(argument)
        if verb not in TRANSITIONS:
            if verb in HTTP:
                return Bad(replies.NOT_SMTP, fatal=True)
            return Bad(replies.NOT_RECOGNIZED if verb else replies.BAD_SYNTAX)
        refusal = self._refusal(verb)
        if refusal is not None:
            return Bad(refusal)
        if verb == "RCPT":
            return self._rcpt(argument)
        return PARSERS[verb](argument, self.settings, self._offer)

    def _data(self) -> Event | None:
        assert self._inflow is not None
        data = self._lines.octets()
        if not data:
            return None
        piece, rest = self._inflow.data(data)
        if rest is not None:
            self._lines.put_back(rest)
            self._reader = Dialog._end
        return self._passed(piece)

    def _chunk_data(self) -> Event | None:
        assert self._inflow is not None
        if self._remaining:
            data = self._lines.octets(self._remaining)
            if not data:
                return None
            self._remaining -= len(data)
            return self._passed(self._inflow.chunk(data))
        if self._last:
            self._reader = Dialog._end
            return self._passed(self._inflow.finish())
        self._out.append(replies.chunk_ok(self._chunk).encode())
        self._reader = Dialog._command
        return _AGAIN

    def _passed(self, piece: bytes) -> Event:
        assert self._inflow is not None
        if self._inflow.flooded:
            return Bad(replies.MESSAGE_TOO_BIG, fatal=True)
        return Content(piece) if piece else _AGAIN

    def _end(self) -> Event:
        assert self._inflow is not None
        self._reader = Dialog._command
        return End(self._inflow.seen.size, self._inflow.fault)

    def _skipped_chunk(self) -> Event | None:
        """RFC 3030 2: the octets of a refused BDAT are on their way all the same."""
        self._remaining -= len(self._lines.octets(self._remaining))
        if self._remaining:
            return None
        self._reader = Dialog._command
        return _AGAIN

    def _exchange(self) -> Event | None:
        line = self._lines.line(auth=True)
        if line is None:
            return None
        self._reader = Dialog._command
        if isinstance(line, Reply):
            return Bad(replies.AUTH_TOO_LONG if line is replies.LINE_TOO_LONG else line)
        if line == b"*":  # RFC 4954 4
            return AuthResponse(None)
        try:
            return AuthResponse(read_base64(line))
        except Malformed as fault:
            return Bad(fault.reply)

    def _handshake(self) -> None:
        """Between the 220 to STARTTLS and `tls_started` nothing is read; nor ever again after the 250 to ATRN."""

    # Commands that cannot be read without the state

    def _refusal(self, verb: str) -> Reply | None:
        settings = self.settings
        if not self.tls and settings.smtpd_tls_security_level == "encrypt" and verb not in BEFORE_TLS:
            return replies.TLS_REQUIRED
        if verb == "MAIL" and settings.smtpd_helo_required and self._state is State.START:
            return replies.HELLO_FIRST
        if verb == "STARTTLS" and self.tls:
            return replies.TLS_ACTIVE
        if verb == "AUTH" and self.user:
            return replies.ALREADY_AUTHENTICATED
        if verb == "ETRN" and not self._offer.etrn:
            return replies.NOT_IMPLEMENTED
        if verb == "ATRN":
            if not self._offer.atrn:
                return replies.NOT_IMPLEMENTED
            if not self.user:  # RFC 2645 5.2.1
                return replies.AUTHENTICATION_REQUIRED
        return TRANSITIONS[verb][self._state]

    def _rcpt(self, argument: str) -> Rcpt | Bad:
        strict = self.settings.strict_rfc821_envelopes
        rcpt = parse_rcpt(argument, strict=strict, smtputf8=self._utf8, dsn=self._offer.dsn)
        if self.recipients >= self.settings.smtpd_recipient_limit:
            self._overshoot += 1
            return Bad(replies.TOO_MANY_RECIPIENTS)
        return rcpt

    def _bdat(self, argument: str) -> Event:
        words = read_bdat(argument)
        if words is None:
            return Bad(replies.BDAT_SYNTAX, fatal=True)  # what follows could be anything
        self._chunk, self._last = words
        self._remaining = self._chunk
        refusal = self._refusal("BDAT") or self._refused if self._offer.chunking else replies.NOT_IMPLEMENTED
        if refusal is None:
            if self._state is not State.CHUNKS:
                return Begin(chunking=True)
            self._reader = Dialog._chunk_data
            return _AGAIN
        if self._last and self._state is State.CHUNKS:
            self._end_transaction()
        self._reader = Dialog._skipped_chunk
        return Bad(refusal, fatal=0 < self.settings.message_size_limit * FLOOD < self._remaining)

    # What an answer changes

    def _settle(self, event: Command | End, reply: Reply) -> None:
        if type(event) is Mail:
            if reply.positive:
                self._state = State.SENDER
                self._utf8 = event.smtputf8
        elif type(event) is Rcpt:
            if reply.positive:
                self._state = State.RECIPIENT
                self.recipients += 1
        elif type(event) is Begin:
            self._begin(event, reply)
        elif type(event) is End:
            self._end_transaction()
            if reply.positive:
                self.junk = 0
        elif type(event) is Hello:
            if reply.positive:
                self.hello, self.extended = event.name, event.extended
                self._end_transaction()
        elif isinstance(event, Auth | AuthResponse):
            self._reader = Dialog._exchange if reply.code == 334 else Dialog._command
        elif isinstance(event, StartTls | Atrn) and reply.positive:
            self._reader = Dialog._handshake

    def _begin(self, event: Begin, reply: Reply) -> None:
        if reply.positive:
            self._inflow = Inflow(
                self.settings.message_size_limit,
                chunking=event.chunking,
                legacy=self.settings.smtpd_legacy_line_ends,
            )
            self._reader = Dialog._chunk_data if event.chunking else Dialog._data
        if event.chunking:
            self._state = State.CHUNKS
            if not reply.positive:
                self._refused = reply
                self._reader = Dialog._skipped_chunk
                if self._last:
                    self._end_transaction()

    def _end_transaction(self) -> None:
        self._state = State.READY if self.hello else State.START
        self.recipients = 0
        self._overshoot = 0
        self._refused = None
