"""Cuts what a client sends into command lines, and hands out raw octets of content. Owns the input buffer.

A line ends at CRLF (on a legacy listener also at LF). A line that is too long, or that holds a bare CR or LF, is
answered as soon as that is seen and then dropped up to its real end: one line, one reply, and nothing of it kept.
"""

from __future__ import annotations

from typing import Final

from edgemail.relay.wire import replies
from edgemail.reply import Reply

LINE_LIMIT_MAX: Final = 32_768  # limit: octets of a command line whatever line_length_limit says
AUTH_LINE_LIMIT: Final = 12_288  # limit: octets of an AUTH line, command or response, RFC 4954 4
DROPPED_LIMIT: Final = 1_048_576  # limit: octets of one over-long command line until the connection is closed


class Lines:
    """The input: `feed` bytes, take lines or octets. Keeps less than one line once every line has been taken."""

    __slots__ = ("_at", "_data", "_dropping", "_end", "_legacy", "_limit", "dropped")

    def __init__(self, limit: int, *, legacy: bool = False) -> None:
        self._limit = min(limit, LINE_LIMIT_MAX)
        self._legacy = legacy
        self._end = b"\n" if legacy else b"\r\n"
        self._data = b""
        self._at = 0
        self._dropping = False
        self.dropped = 0  # octets dropped of the line that is being dropped

    def __len__(self) -> int:
        return len(self._data) - self._at

    def feed(self, data: bytes) -> None:
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0

    def clear(self) -> None:
        self._data = b""
        self._at = 0
        self._dropping = False

    def begins_with(self, octet: bytes) -> bool:
        """Of the next line; the rest of a refused one is passed over first, however it came."""
        if self._dropping and not self._drop():
            return False
        return self._data.startswith(octet, self._at)

    def line(self, *, auth: bool = False) -> bytes | Reply | None:
        """The next line without its end, or what is to be answered to it; None: it is not there yet.

        `auth`: it is a response in an AUTH exchange, which may be long; so may the AUTH command itself.
        """
        if self._dropping and not self._drop():
            return None
        data, start = self._data, self._at
        if start == len(data):
            return None
        limit = AUTH_LINE_LIMIT if auth else self._limit
        end = data.find(self._end, start, start + limit + 2)
        if end < 0 and len(data) - start > limit + 1 and data[start : start + 5].upper() == b"AUTH ":
            limit = max(limit, AUTH_LINE_LIMIT)
            end = data.find(self._end, start, start + limit + 2)
        if end < 0:
            return self._unfinished(limit)
        self._at = end + len(self._end)
        line = data[start:end]
        if self._legacy:
            line = line.removesuffix(b"\r").removesuffix(b"\r")  # as LineEnds in wire.dot
        if b"\r" in line or b"\n" in line:
            return replies.BARE_LINE_END
        return line if len(line) <= limit else replies.LINE_TOO_LONG

    def octets(self, most: int = -1) -> bytes:
        """Up to `most` octets of what is there, all of it by default."""
        start = self._at
        if most < 0 or most >= len(self._data) - start:
            taken = self._data[start:]
            self._data = b""
            self._at = 0
            return taken
        self._at += most
        return self._data[start : self._at]

    def put_back(self, data: bytes) -> None:
        """What was behind the end of data; only after `octets` took everything."""
        self._data = data
        self._at = 0

    def _unfinished(self, limit: int) -> Reply | None:
        """No line end within reach: refuse the line now if it cannot come right any more."""
        seen = self._data[self._at : self._at + limit + 2]
        refusal = None
        if (b"\n" in seen and not self._legacy) or b"\r" in seen[: -2 if self._legacy else -1]:
            refusal = replies.BARE_LINE_END
        elif len(seen) == limit + 2:
            refusal = replies.LINE_TOO_LONG
        self._dropping = refusal is not None
        self.dropped = 0
        return refusal

    def _drop(self) -> bool:
        """Drop up to the end of the refused line; whether it was found."""
        end = self._data.find(self._end, self._at)
        if end >= 0:
            self._at = end + len(self._end)
            self._dropping = False
            return True
        self.dropped += len(self)
        self._data = b"\r" if self._data.endswith(b"\r") else b""
        self._at = 0
        return False
