"""Notices about mail whose sender, recipients, parameters, content and servers are what the octets say.

Invariants: the standard library's parser finds the three parts and no defect; line ends are CRLF, no line is longer
than 998 octets but those of the original, nothing outside it holds a control; what comes back is what was sent; a
notice that says it is 7-bit is.
"""

from __future__ import annotations

import re
from typing import Final

from edgemail.envelope import Address, Notify, Recipient, Ret
from edgemail.relay.queue.settle import Reported
from edgemail.reply import Reply
from tests.fuzz.notices import FORMS, judge_notice

WORDS: Final = (
    *(b"\r\n.\r\n", b"\r\nBcc: all@example.com\r\n", b"\n", b"\r", b"\0", "\u2028".encode(), b"\xc2\x85", b"\x1b[2J"),
    *(
        b"--",
        b"x" * 999,
        "用".encode() * 300,
        b"+0D+0A",
        b"rfc822;",
        b"utf-8;\\x{D800}",
        b"utf-8;",
        b"Content-Type: ",
    ),
    *(b"From: x", b'"', b"<>", b"%s", b"{until}", b"\xff", b";", b"=?utf-8?q?x?=", b"\x1f", b"\\x{41}"),
)


class Octets:
    """Takes values from octets; texts end at octet 31, which no text may hold."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def number(self, below: int) -> int:
        first, self.data = self.data[:1], self.data[1:]
        return first[0] % below if first else 0

    def text(self) -> str:
        found, _, self.data = self.data.partition(b"\x1f")
        return found.decode("utf-8", "surrogatepass" if self.number(2) else "replace") if _whole(found) else repr(found)

    def address(self) -> Address:
        return Address(self.text(), self.text())


def _whole(text: bytes) -> bool:
    try:
        text.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def _reported(octets: Octets) -> Reported:
    notify = (None, *map(Notify, range(8)))[octets.number(9)]
    recipient = Recipient(octets.address(), notify, orcpt=octets.text())
    reply = None
    if octets.number(2):
        code, enhanced = ((550, "5.1.1"), (450, "4.2.0"), (250, "2.0.0"), (550, ""))[octets.number(4)]
        reply = Reply(code, enhanced, octets.text())
    status = ("5.1.1", "4.4.1", "2.0.0")[octets.number(3)]
    return Reported(recipient, status, octets.text(), reply, octets.text(), bool(octets.number(2)))


def judge(data: bytes) -> None:
    octets = Octets(data)
    form = FORMS[octets.number(len(FORMS))]
    limit = (0, 10, 50_000)[octets.number(3)]
    ret = (None, *Ret)[octets.number(3)]
    smtputf8 = bool(octets.number(2))
    sender, envid = octets.address(), octets.text()
    reported = [_reported(octets) for _ in range(1 + octets.number(3))]
    lines = re.split(rb"[\r\n]+", octets.data)
    content = b"".join(line + b"\r\n" for line in lines[:20])
    judge_notice(form, sender, reported, content, envid, smtputf8, ret, limit)
