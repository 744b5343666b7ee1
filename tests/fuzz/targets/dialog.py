"""The server's dialog, fed with anything a client may send, whole and in pieces, strict and legacy.

Invariants: no exception; one well-formed reply for each command and nothing else on the wire; content ends where
CRLF.CRLF stands first and nowhere else, so that nothing in it is read as a command; content that is taken has CRLF for
line ends and no NUL; what is kept of the input is bounded; however the input is cut, the session is the same.
"""

from __future__ import annotations

import re
from typing import Any, Final

from edgemail.relay.wire import replies
from edgemail.relay.wire.dialog import Dialog
from edgemail.relay.wire.events import (
    Auth,
    AuthResponse,
    Bad,
    Begin,
    Content,
    End,
    Event,
    Hello,
    Mail,
    Noop,
    Quit,
    Rcpt,
    StartTls,
)
from edgemail.reply import Reply
from tests.receiving import settings

WORDS: Final = (
    *(b"EHLO me\r\n", b"HELO me\r\n", b"MAIL FROM:<a@b.example>", b"RCPT TO:<c@d.example>", b"DATA\r\n", b"BDAT "),
    *(
        b" LAST",
        b"RSET\r\n",
        b"NOOP\r\n",
        b"QUIT\r\n",
        b"STARTTLS\r\n",
        b"AUTH PLAIN ",
        b"AUTH LOGIN\r\n",
        b"VRFY a\r\n",
    ),
    *(b"ETRN a.example\r\n", b"ATRN\r\n", b"GET / HTTP/1.1\r\n", b"EXPN a\r\n", b"HELP\r\n", b"\x16\x03\x01"),
    *(b" SIZE=1", b" BODY=8BITMIME", b" SMTPUTF8", b" RET=HDRS", b" ENVID=x+2B", b" NOTIFY=NEVER", b" ORCPT=rfc822;a"),
    *(b"\r\n.\r\n", b"\n.\n", b"\r.\r", b"\r\n..", b"\r\r\n", b"\0", b"\xc3\xbc", b" AUTH=<>", b"*\r\n", b"=\r\n"),
)
KEPT: Final = 65_536
LIMIT: Final = 3000  # message_size_limit: within reach of an input
SETTINGS: Final = [
    settings(
        smtpd_legacy_line_ends=legacy,
        message_size_limit=LIMIT,
        line_length_limit=100,
        smtpd_recipient_limit=3,
        smtpd_tls_security_level="may",
        smtpd_sasl_auth_enable=True,
        smtpd_tls_auth_only=False,
    )
    for legacy in (False, True)
]
# Longer than a fuzzer makes them.
LARGE: Final = (
    *(
        b"x" * 200_000,
        b"EHLO " + b"x" * 200_000 + b"\r\nNOOP\r\n",
        b"NOOP\r\n" * 20_000,
        b"\r" * 70_000,
        b"\n" * 70_000,
    ),
    *(b"AUTH PLAIN " + b"A" * 70_000 + b"\r\nNOOP\r\n", b"HELO me\r\nBDAT 99999999\r\n" + b"y" * 100_000),
    b"HELO me\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n" + b"z" * 100_000 + b"\r\n.\r\nNOOP\r\n",
)
REPLY: Final = re.compile(r"(?:([2-5][0-9][0-9])-[ -~]*\r\n)*([2-5][0-9][0-9]) [ -~]*\r\n")
CHUNK_OK: Final = re.compile(r"(?:250 2\.0\.0 Ok: \d+ bytes\r\n)*")
LEGACY_END: Final = re.compile(rb"\.\r{0,2}\n\Z")


class Counting(Dialog):
    """Counts the chunks that are to be acknowledged by the dialog alone."""

    owed = 0

    def _bdat(self, argument: str) -> Event:
        event = super()._bdat(argument)
        if not isinstance(event, Bad) and not self._last:
            self.owed += 1
        return event


def answered(dialog: Dialog, event: Any) -> Reply:
    """What a session would say: addresses at refused.example are refused, so is a login without a response."""
    match event:
        case Hello():
            return dialog.ehlo_reply()
        case Mail():
            return replies.MAIL_OK
        case Rcpt():
            return Reply(550, "5.1.1", "no") if event.recipient.local.startswith("no") else replies.RCPT_OK
        case Begin():
            return Reply(452, "4.3.1", "full") if dialog.recipients == 2 else replies.GO_AHEAD
        case End():
            return event.fault or replies.queued("1234")
        case StartTls():
            return replies.READY_FOR_TLS
        case Auth():
            return replies.challenge(b"") if event.initial is None else replies.AUTHENTICATED
        case AuthResponse():
            return replies.AUTH_ABORTED if event.data is None else replies.AUTH_REFUSED
        case Quit():
            return replies.BYE
        case Noop():
            return event.reply
    return getattr(event, "reply", replies.OK)


def play(data: bytes, legacy: bool, step: int) -> list[object]:
    """One session; every event, content put together, and where in the input each message began and ended."""
    dialog = Counting(SETTINGS[legacy], mechanisms=("PLAIN", "LOGIN"), etrn=True, atrn=True)
    dialog.owed = 0
    dialog.greet(Reply(220, "", "relay.example.com ESMTP"))
    assert dialog.data_to_send().startswith(b"220 ")
    story: list[object] = []
    content = bytearray()
    fed = began = 0
    for at in [*range(0, len(data), step), len(data)]:
        piece = data[at : at + step]
        dialog.receive_data(piece)
        fed += len(piece)
        while (event := dialog.next_event()) is not None:
            _acknowledged(dialog)
            if isinstance(event, Content):
                content += event.data
                continue
            reply = answered(dialog, event)
            if isinstance(event, End):
                assert dialog.owed == 0, "a chunk without its reply"
                _judge_content(data[began : fed - dialog.unread] if began >= 0 else b"", bytes(content), event, legacy)
                story.append((bytes(content) if event.fault is None else b"", event.fault))
                content.clear()
            dialog.answer(reply)
            if isinstance(event, Begin) and not reply.positive:
                dialog.owed = 0
            said = dialog.data_to_send().decode()
            silent = isinstance(event, Begin) and event.chunking and reply.positive
            assert said == "" if silent else REPLY.fullmatch(said), (event, said)
            story.append((event, said))
            if isinstance(event, Begin):
                began = -1 if event.chunking else fed - dialog.unread
            if isinstance(event, Auth | AuthResponse) and reply is replies.AUTHENTICATED:
                dialog.authenticated("me")
            if isinstance(event, StartTls) and reply.positive:
                story.append(("STARTTLS", dialog.unread == 0))
                return story  # the session closes where something is unread
        _acknowledged(dialog)
        assert dialog.buffered <= KEPT
        if dialog.closed:
            break
    assert dialog.closed
    return story


def _acknowledged(dialog: Counting) -> None:
    """What the dialog says by itself."""
    said = dialog.data_to_send().decode()
    assert CHUNK_OK.fullmatch(said), said
    dialog.owed -= said.count("\r\n")
    assert dialog.owed >= 0


def _judge_content(raw: bytes, content: bytes, event: End, legacy: bool) -> None:
    """`raw`: what was read between the 354 and the reply, nothing for BDAT."""
    if raw and not legacy:
        end = (b"\r\n" + raw).find(b"\r\n.\r\n")
        assert end >= 0
        assert end + 3 == len(raw), "content ended where it does not end"
        if event.fault is None:
            assert content == (b"\r\n" + raw)[: end + 2].replace(b"\r\n.", b"\r\n")[2:]
    if raw and legacy:
        assert LEGACY_END.search(raw)
    if event.fault is None:
        assert content.count(b"\r\n") == content.count(b"\r") == content.count(b"\n")
        assert b"\0" not in content
        assert len(content) <= LIMIT


def judge(data: bytes) -> None:
    for legacy in (False, True):
        whole = play(data, legacy, max(1, len(data)))
        for step in (1, 7) if len(data) < 1000 else (len(data) // 3,):
            assert alike(play(data, legacy, step)) == alike(whole), f"cut at {step}"


def alike(story: list[object]) -> list[object]:
    """What may not depend on how the input was cut: all but what stood behind STARTTLS."""
    return [each for each in story if not (isinstance(each, tuple) and each[0] == "STARTTLS")]
