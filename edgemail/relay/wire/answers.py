"""Replies of a server, read from bytes without IO: complete ones out, malformed ones refused, every size bounded.

Owns the syntax of RFC 5321 4.2 as a client meets it. Never knows which command a reply answers.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from edgemail.errors import EdgemailError
from edgemail.reply import Reply

REPLY_LINE_LIMIT: Final = 2048  # limit: octets of one reply line of a server; RFC 5321 says 512, Postfix takes 2048
REPLY_SIZE_LIMIT: Final = 32_768  # limit: octets of one whole reply of a server; as aiosmtplib
REPLY_LINES_LIMIT: Final = 100  # limit: lines of one reply of a server; EHLO at a big provider has about 15

COMMON_LINES: Final = 64  # limit: replies of one line that are remembered as read: most of them come again and again
COMMON_LENGTH: Final = 80  # limit: octets of each

# RFC 5321 4.2: Reply-code = %x32-35 %x30-35 %x30-39, and real servers use more of the middle digits.
_LINE: Final = re.compile(rb"([2-5][0-9][0-9])(?:([ -])([^\n]*))?\Z", re.DOTALL)
_ENHANCED: Final = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |\Z)")  # RFC 2034 4, RFC 3463 2


class MalformedReply(EdgemailError):
    """What the server sent is no reply, or one past a limit. Nothing that follows on this connection can be trusted."""


def clean(text: bytes) -> str:
    """Foreign text as it may stand in a log: UTF-8 where it is, everything that does not print made '?'."""
    line = text.decode("utf-8", "replace")
    return line if line.isprintable() else "".join(c if c.isprintable() else "?" for c in line)


class ReplyReader:
    """Bytes in, replies out. Keeps at most one unfinished reply, plus what one `feed` brought."""

    __slots__ = ("_buffer", "_code", "_lines", "_size")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._lines: list[str] = []
        self._code = 0
        self._size = 0

    @property
    def unread(self) -> int:
        """Octets received that no reply was made of yet."""
        return len(self._buffer) + self._size

    def feed(self, data: bytes) -> None:
        """Add what came from the socket."""
        self._buffer += data

    def next_reply(self) -> Reply | None:
        """The next whole reply, or None when more input is needed. Raises MalformedReply, and then keeps nothing."""
        try:
            while (end := self._buffer.find(b"\n")) >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                reply = None
                if end <= COMMON_LENGTH and not self._lines:
                    reply = _common(line)
                if reply is None:
                    reply = self._take(line.removesuffix(b"\r"), end + 1)
                if reply is not None:
                    return reply
            if len(self._buffer) >= REPLY_LINE_LIMIT:
                raise MalformedReply(f"reply line longer than {REPLY_LINE_LIMIT} octets")
        except MalformedReply:
            self._buffer.clear()
            self._lines.clear()
            self._size = 0
            raise
        return None

    def _take(self, line: bytes, octets: int) -> Reply | None:
        """One line more; the reply when it was the last."""
        self._size += octets
        if octets > REPLY_LINE_LIMIT:
            raise MalformedReply(f"reply line longer than {REPLY_LINE_LIMIT} octets")
        if self._size > REPLY_SIZE_LIMIT or len(self._lines) >= REPLY_LINES_LIMIT:
            raise MalformedReply(f"reply longer than {REPLY_LINES_LIMIT} lines or {REPLY_SIZE_LIMIT} octets")
        parts = _LINE.match(line)
        if parts is None:
            raise MalformedReply(f'malformed reply "{clean(line[:80])}"')
        code = int(parts[1])
        if self._lines and code != self._code:
            raise MalformedReply(f"reply with two codes, {self._code} and {code}")  # RFC 5321 4.2.1
        self._code = code
        self._lines.append(clean(parts[3] or b""))
        if parts[2] == b"-":
            return None
        lines, self._lines, self._size = self._lines, [], 0
        return _reply(code, lines)


@lru_cache(maxsize=COMMON_LINES)
def _common(line: bytes) -> Reply | None:
    """The reply that is this one line; None where there is more to it."""
    parts = _LINE.match(line.removesuffix(b"\r"))
    if parts is None or parts[2] == b"-":
        return None
    return _reply(int(parts[1]), [clean(parts[3] or b"")])


def _reply(code: int, lines: list[str]) -> Reply:
    """The value of a reply: its enhanced code, if its first line has a fitting one, is taken off every line."""
    found = _ENHANCED.match(lines[0])
    if found is None or found[1][0] != str(code)[0]:
        return Reply(code, "", "\n".join(lines))
    enhanced = found[1]
    return Reply(code, enhanced, "\n".join(line.removeprefix(enhanced).removeprefix(" ") for line in lines))
