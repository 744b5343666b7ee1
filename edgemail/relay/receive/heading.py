"""The header of a message as it streams by: how often it was received before, and its message-id.

Keeps one line at most, whatever the header's size. Judges nothing and changes nothing.
"""

from __future__ import annotations

import re
from typing import Final

LINE_KEPT: Final = 1000  # limit: octets of an unfinished header line that are kept until the rest of it comes

_RECEIVED: Final = re.compile(rb"\r\nreceived[ \t]*:", re.IGNORECASE)
_MESSAGE_ID: Final = re.compile(rb"\r\nmessage-id[ \t]*:(?:[ \t]|\r\n[ \t])*([^\s]+)", re.IGNORECASE)
_FOLDED_ID: Final = re.compile(
    rb"\r\nmessage-id[ \t]*:(?:[ \t]|\r\n[ \t])*\Z", re.IGNORECASE
)  # its value is yet to come


class Heading:
    """What the log and the loop stop need of a header. `feed` it the content from its start, line ends CRLF."""

    __slots__ = ("_left", "_tail", "hops", "message_id")

    def __init__(self, limit: int) -> None:
        """`limit`: header_size_limit, the octets that are looked at."""
        self.hops = 0  # Received lines
        self.message_id = ""
        self._left = limit
        self._tail = b"\r\n"  # what is not complete yet, with the line end before it

    def feed(self, data: bytes) -> None:
        if self._left <= 0 or not data:
            return
        text = self._tail + data[: self._left]
        self._left -= len(data)
        end = text.find(b"\r\n\r\n")
        if end >= 0 or self._left <= 0:
            self._left = 0
            self._look(text[: end if end >= 0 else len(text)])
            self._tail = b""
            return
        cut = text.rfind(b"\r\n")
        folded = _FOLDED_ID.search(text, max(0, cut - LINE_KEPT), cut)
        if folded:
            cut = folded.start()
        self._look(text[:cut])
        tail = text[cut:]
        # A longer line is known by its beginning; but the first half of a line end must not be cut off.
        self._tail = tail if len(tail) <= LINE_KEPT else tail[:LINE_KEPT] + (b"\r" if tail.endswith(b"\r") else b"")

    def finish(self) -> None:
        """The content is over: there was no body."""
        if self._left > 0:
            self._left = 0
            self._look(self._tail)
            self._tail = b""

    def _look(self, lines: bytes) -> None:
        """Whole lines, each with the line end before it."""
        self.hops += len(_RECEIVED.findall(lines))
        if not self.message_id:
            found = _MESSAGE_ID.search(lines)
            if found:
                self.message_id = found[1][:LINE_KEPT].decode("utf-8", "replace")
