"""A message as a local program writes it, made fit to be queued: header read, recipients taken, gaps filled.

Bytes in, bytes out, no IO. Nothing but `sendmail` uses it: mail from the network keeps its header as it is.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from edgemail.dates import date
from edgemail.relay.wire.dot import LineEnds

MAX_HEADER: Final = 262_144  # limit: octets of header that sendmail reads before it gives up

_FIELD: Final = re.compile(rb"([!-9;-~]+)[ \t]*:")  # RFC 5322 2.2, obs-optional
_MBOX: Final = re.compile(rb">*From ")
_RECIPIENTS: Final = frozenset((b"to", b"cc", b"bcc", b"apparently-to"))
_RESENT: Final = frozenset((b"resent-to", b"resent-cc", b"resent-bcc"))


class HeaderTooLong(ValueError):
    """A header of more than MAX_HEADER octets."""


class MalformedAddress(ValueError):
    """A list of addresses that cannot be read; the text says where."""


class Text:
    """What comes from a program's stdin: line ends made CRLF, and the end at a lone dot where it counts."""

    def __init__(self, *, dot: bool) -> None:
        self.ended = False
        self._dot = dot
        self._ends = LineEnds()
        self._tail = b"\r\n"  # as if a line had just ended

    def feed(self, data: bytes) -> bytes:
        """The text so far; nothing more once `ended`."""
        return self._cut(self._ends.feed(data))

    def finish(self) -> bytes:
        """What was held back at the end of the input."""
        rest = self._cut(self._ends.finish())
        if self.ended or not self._dot or self._tail == b"\r\n.":
            return rest
        return rest + self._tail[2:]

    def _cut(self, text: bytes) -> bytes:
        if self.ended or not self._dot:
            return b"" if self.ended else text
        text = self._tail + text
        end = text.find(b"\r\n.\r\n")
        if end >= 0:
            self.ended = True
            return text[2 : end + 2]
        # The last two octets are remembered though they are passed on; a dot that may end it all is not passed on yet.
        keep = next((n for n in (4, 3) if text.endswith(b"\r\n.\r\n"[:n])), 2)
        self._tail = text[-keep:]
        return text[2 : len(text) - keep + 2]


@dataclass(slots=True)
class Header:
    """The header of a message, field by field, each with its CRLF."""

    fields: list[bytes] = field(default_factory=list)

    def names(self) -> list[bytes]:
        """Field names in lower case, in order."""
        return [name_of(one) for one in self.fields]

    @property
    def resent(self) -> bool:
        """Whether somebody sent it on: then only the Resent- fields say to whom (RFC 5322 3.6.6)."""
        return any(name in _RESENT for name in self.names())

    def recipients(self) -> list[str]:
        """Addresses of To, Cc and Bcc, or of their Resent- namesakes. Raises MalformedAddress."""
        wanted = _RESENT if self.resent else _RECIPIENTS
        found = []
        for one in self.fields:
            if name_of(one) in wanted:
                found += addresses(one.partition(b":")[2].decode("utf-8", "surrogateescape"))
        return found

    def without_bcc(self) -> None:
        """Take out what the other recipients must not see."""
        self.fields = [one for one in self.fields if name_of(one) not in (b"bcc", b"resent-bcc")]

    def complete(self, sender: str, full_name: str, myhostname: str, at: float, unique: str) -> None:
        """Add Message-Id, Date and From where they are missing, in the order of Postfix's cleanup."""
        names = set(self.names())
        prefix = "Resent-" if self.resent else ""
        stamp = time.strftime("%Y%m%d%H%M%S", time.gmtime(at))
        for name, value in (
            ("Message-Id", f"<{stamp}.{unique}@{myhostname}>"),
            ("Date", date(at)),
            ("From", mailbox(sender or "MAILER-DAEMON", full_name if sender else "")),
        ):
            if f"{prefix}{name}".lower().encode() not in names:
                self.fields.append(f"{prefix}{name}: {value}\r\n".encode("utf-8", "surrogateescape"))

    def __bytes__(self) -> bytes:
        return b"".join(self.fields) + b"\r\n"


def name_of(line: bytes) -> bytes:
    """The lower-case name of a field."""
    found = _FIELD.match(line)
    return found[1].lower() if found else b""


class HeaderReader:
    """Takes text until the header is complete. `rest` is the text behind it, the empty line gone."""

    def __init__(self) -> None:
        self.header = Header()
        self.rest = b""
        self.complete = False
        self._text = b""
        self._size = 0

    def feed(self, data: bytes) -> None:
        """More text. Raises HeaderTooLong."""
        if self.complete:
            self.rest += data
            return
        self._size += len(data)
        *lines, self._text = (self._text + data).split(b"\r\n")
        for number, line in enumerate(lines):
            if not self._line(line):
                behind = lines[number + 1 :] if not line else lines[number:]
                self._end(b"".join(one + b"\r\n" for one in behind) + self._text)
                return
        if self._size > MAX_HEADER:
            raise HeaderTooLong(f"the header is longer than {MAX_HEADER} octets")

    def finish(self) -> None:
        """There is no more text."""
        if self.complete:
            return
        if self._text and self._line(self._text):
            self._text = b""
        self._end(self._text)

    def _line(self, line: bytes) -> bool:
        """Whether the line belongs to the header."""
        fields = self.header.fields
        if line[:1] in (b" ", b"\t") and fields:
            fields[-1] += line + b"\r\n"
            return True
        if not fields and _MBOX.match(line):  # an mbox's From_ line
            return True
        if not _FIELD.match(line):
            return False
        fields.append(line + b"\r\n")
        return True

    def _end(self, rest: bytes) -> None:
        self.complete = True
        self.rest = rest
        self._text = b""


_TOKEN: Final = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      | (?P<quoted>"(?:[^"\\]|\\.)*")
      | (?P<literal>\[[^\[\]\\ \t]*\])
      | (?P<special>[<>,;:()@.])
      | (?P<atom>[^ \t\r\n"\[\]<>,;:()@.\\]+)""",
    re.VERBOSE | re.DOTALL,
)


def addresses(text: str) -> list[str]:
    """The mailboxes of an RFC 5322 address list, comments, groups, names and routes taken away."""
    found: list[str] = []
    words: list[str] = []  # of the mailbox at hand, without those of its name
    angle: list[str] | None = None  # what stood between < and >
    inside = False  # of them
    for token in _tokens(text):
        if token == "<":
            if angle is not None:
                raise MalformedAddress(f"two mailboxes without a comma: {text.strip()[:100]!r}")
            words, angle = [], []
            inside = True
        elif token == ">":
            words = []
            inside = False
        elif angle is not None and inside:
            angle.append(token)
        elif token in (",", ";"):
            found += _mailbox(words, angle, text)
            words, angle = [], None
        elif token == ":":  # the name of a group, RFC 5322 3.4
            words = []
        else:
            words.append(token)
    if angle is not None and inside:
        raise MalformedAddress(f"a '<' without '>': {text.strip()[:100]!r}")
    return found + _mailbox(words, angle, text)


def _tokens(text: str) -> Iterator[str]:
    """Lexical tokens, comments left out; blanks as one, for they part words."""
    position = depth = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            if depth and text[position] in '"\\[]':
                position += 2 if text[position] == "\\" else 1
                continue
            raise MalformedAddress(f"cannot read {text.strip()[:100]!r}")
        if depth and match.lastgroup in ("quoted", "literal"):  # nothing special inside a comment
            position += 1
            continue
        position = match.end()
        token = match[0]
        if token == "(":
            depth += 1
        elif token == ")":
            if depth == 0:
                raise MalformedAddress(f"a ')' without '(': {text.strip()[:100]!r}")
            depth -= 1
            if depth == 0:
                yield " "
        elif depth == 0:
            yield " " if match.lastgroup == "space" else token
    if depth:
        raise MalformedAddress(f"a '(' without ')': {text.strip()[:100]!r}")


def _mailbox(words: list[str], angle: list[str] | None, text: str) -> list[str]:
    """The one address that the words of a mailbox make, or none of an empty place between commas."""
    parts = words if angle is None else angle
    if angle is not None and ":" in parts:  # a source route, RFC 5321 F.2
        parts = parts[parts.index(":") + 1 :]
    while parts and parts[0] == " ":
        parts = parts[1:]
    while parts and parts[-1] == " ":
        parts = parts[:-1]
    if not parts:
        return []
    out = ""
    for number, part in enumerate(parts):
        if part != " ":
            out += part
        elif parts[number - 1] not in "@." and parts[number + 1] not in "@.":
            raise MalformedAddress(f"two words without a comma: {text.strip()[:100]!r}")
    if any("\ud800" <= char <= "\udfff" for char in out):  # octets that were no UTF-8
        raise MalformedAddress(f"neither ASCII nor UTF-8: {out[:100]!r}")
    return [out]


_ATOMS: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]+")


def mailbox(address: str, full_name: str) -> str:
    """A From field's value: the name quoted or encoded where it must be (RFC 5322 3.2.5, RFC 2047)."""
    name = " ".join(full_name.split())
    if not name:
        return address
    if not name.isascii():
        short = name.encode("utf-8", "replace")[:42].decode("utf-8", "ignore")  # a word of 75 characters at most
        name = f"=?utf-8?B?{base64.b64encode(short.encode()).decode()}?="
    elif not _ATOMS.fullmatch(name):
        name = '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
    return f"{name} <{address}>"
