r"""Message content on the wire: dot-stuffing, the end of data, line ends. Whole pieces at a time, never by octet.

Receiving, one decoder a message: `Decoder` (DATA) and `ChunkDecoder` (BDAT) pass content on and note what is wrong
with it; the message is refused at its end, so that the session stays in step. Only CRLF.CRLF ends a message (RFC 5321
4.1.1.4): who takes LF.LF for an end can be made to take the inside of one message for a second one.

`LegacyDecoder` and `LegacyChunkDecoder` are for devices that know no better: they make every line end CRLF (LF, CR, and
the CR CR LF that a text-mode stream makes of CRLF) and drop NUL. The first line end of the content tells which client
it is. If it is CRLF, then only CRLF.CRLF ends the message, and an odd line end further on cannot. If it is anything
else, the client does not know CRLF, and a dot alone between two line ends of any sort (but not bare CR) is its end of
data. So what a correct client passes on for somebody else cannot end its message there either.

Sending: `Stuffer` makes content fit for DATA, `LineEnds` for BDAT. Neither ever lets a bare CR or LF out.
"""

from __future__ import annotations

import re
from typing import Final

LONG_LINE: Final = 998  # limit: octets of a content line without CRLF before it counts as long, RFC 5321 4.5.3.1.6

END: Final = b"\r\n.\r\n"
# What a piece may end with and not yet be understood: every proper prefix of END.
PREFIXES: Final = (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r")
# The same for legacy content, where two CR may stand before the LF.
LEGACY_TAIL: Final = re.compile(rb"\r{0,2}(?:\n(?:\.\r{0,2})?)?\Z")
LEGACY_TAIL_MAX: Final = 6  # octets that LEGACY_TAIL can match
LEGACY_END: Final = re.compile(rb"\n\.\r{0,2}\n")
LINE_END: Final = re.compile(rb"\r?\r?\n|\r")
LONE_CR: Final = re.compile(rb"\r(?!\n)")
DOTTED: Final = re.compile(rb"\n\.")  # a search for one octet is several times as fast as one for two or three


def with_crlf(piece: bytes) -> bytes:
    """`piece` with every line end made CRLF. It must not end in a CR that may have an LF behind it."""
    if piece.count(b"\n") == piece.count(b"\r") and LONE_CR.search(piece) is None:
        return piece
    if b"\r" not in piece:
        return piece.replace(b"\n", b"\r\n")
    return LINE_END.sub(b"\r\n", piece)


class Inspection:
    """What is known of a message's content so far. The decoders build on it."""

    __slots__ = ("_column", "bare", "eight_bit", "long_lines", "nul", "size")

    def __init__(self) -> None:
        self.size = 0  # octets of decoded content
        self.bare = False  # a CR or LF that is not part of CRLF
        self.nul = False
        self.eight_bit = False  # an octet over 127
        self.long_lines = False  # a line of more than LONG_LINE octets
        self._column = 0  # octets since the last line end

    @property
    def clean(self) -> bool:
        """Nothing in it that would have to be refused."""
        return not (self.bare or self.nul)

    def _inspect(self, piece: bytes) -> None:
        """Note what `piece` holds. It must not end between a CR and an LF that belong together."""
        ends = piece.count(b"\r\n")
        if piece.count(b"\n") != ends or piece.count(b"\r") != ends:
            self.bare = True
        if b"\0" in piece:
            self.nul = True
        if not piece.isascii():
            self.eight_bit = True

    def _measure(self, piece: bytes) -> None:
        """Count `piece`, and look for long lines: the last line end within reach shows that none before it is long."""
        length = len(piece)
        self.size += length
        if self.long_lines:
            return
        start = -self._column
        while length - start > LONG_LINE + 2:
            found = piece.rfind(b"\n", max(start, 0), start + LONG_LINE + 2)
            if found < 0:
                self.long_lines = True
                return
            start = found + 1
        found = piece.rfind(b"\n", max(start, 0))
        self._column = length - (found + 1 if found >= 0 else start)


class Decoder(Inspection):
    """Content of DATA: finds the end, takes the stuffed dots out. Keeps at most 4 octets between two calls."""

    __slots__ = ("_began", "_tail")

    def __init__(self) -> None:
        super().__init__()
        self._tail = b"\r\n"  # as if a line had just ended: a dot at the very start is no special case
        self._began = False

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """The content in `data`, and what stands behind the end of data, or None when the end is not there yet."""
        data = self._tail + data
        rest: bytes | None = None
        # In most pieces no line begins with a dot, and in base64 there is none at all: then there is neither an end in
        # it nor anything to unstuff, and the longer searches are spared.
        dot = data.find(b"\r\n.") if b"." in data else -1
        end = data.find(END, dot) if dot >= 0 else -1
        if end >= 0:
            rest = data[end + len(END) :]
            piece = data[: end + 2]
        else:
            self._tail = next((p for p in PREFIXES if data.endswith(p)), b"")
            piece = data[: len(data) - len(self._tail)]
        if not piece:
            return b"", rest
        self._inspect(piece)
        if dot >= 0 and dot != end:
            piece = piece.replace(b"\r\n.", b"\r\n")
        if not self._began:
            self._began = True
            piece = piece[2:]
        self._measure(piece)
        return piece, rest


class LegacyDecoder(Inspection):
    """Content of DATA from a device that may not know CRLF. Never finds fault."""

    __slots__ = ("_began", "_loose", "_tail")

    def __init__(self) -> None:
        super().__init__()
        self._tail = b"\r\n"
        self._began = False
        self._loose: bool | None = None  # the first line end was not CRLF; None: there was none yet

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """As Decoder.feed."""
        data = self._tail + data
        rest: bytes | None = None
        if self._loose is None:
            first = data.find(b"\n", 0 if self._began else 2)
            if first >= 0:
                self._loose = not (data[first - 1 : first] == b"\r" and data[first - 2 : first - 1] != b"\r")
        cut, behind = self._end(data)
        if behind >= 0:
            rest = data[behind:]
        else:
            last = data[-LEGACY_TAIL_MAX:]
            tail = LEGACY_TAIL.search(last)
            self._tail = last[tail.start() :] if tail else b""
            cut = len(data) - len(self._tail)
        piece = data[:cut]
        if not piece:
            return b"", rest
        piece = with_crlf(piece).replace(b"\r\n.", b"\r\n")
        if not self._began:
            self._began = True
            piece = piece[2:]
        piece = piece.replace(b"\0", b"")
        if not piece.isascii():
            self.eight_bit = True
        self._measure(piece)
        return piece, rest

    def _end(self, data: bytes) -> tuple[int, int]:
        """Where the content ends and where what follows the end of data begins; -1 twice when it is not there."""
        if self._loose:
            found = LEGACY_END.search(data)
            return (found.start() + 1, found.end()) if found else (-1, -1)
        end = data.find(END)
        return (end + 2, end + len(END)) if end >= 0 else (-1, -1)


class ChunkDecoder(Inspection):
    """Content of BDAT: the octets are as counted, only the line ends are looked at. Keeps at most one octet."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        super().__init__()
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """The content in `data`; a CR at its end waits for the LF of the next piece, or of the next chunk."""
        if self._held:
            data = self._held + data
        self._held = b"\r" if data.endswith(b"\r") else b""
        if self._held:
            data = data[:-1]
        self._inspect(data)
        self._measure(data)
        return data

    def finish(self) -> bytes:
        """What was held back, at the end of the last chunk."""
        held, self._held = self._held, b""
        if held:
            self.bare = True
            self._measure(held)
        if self._column > LONG_LINE:  # a last line without an end
            self.long_lines = True
        return held


class LineEnds:
    """Makes every line end CRLF: CRLF, LF, CR and CR CR LF are one each. Keeps at most two octets."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        if self._held:
            data = self._held + data
        if data.endswith(b"\r"):
            self._held = b"\r\r" if data.endswith(b"\r\r") else b"\r"
            data = data[: -len(self._held)]
        else:
            self._held = b""
        return with_crlf(data)

    def finish(self) -> bytes:
        """What was held back, at the end of the content."""
        held, self._held = self._held, b""
        return b"\r\n" * len(held)


class LegacyChunkDecoder(Inspection):
    """Content of BDAT on a legacy listener: line ends made CRLF, NUL dropped. Never finds fault."""

    __slots__ = ("_ends",)

    def __init__(self) -> None:
        super().__init__()
        self._ends = LineEnds()

    def feed(self, data: bytes) -> bytes:
        return self._taken(self._ends.feed(data))

    def finish(self) -> bytes:
        last = self._taken(self._ends.finish())
        if self._column > LONG_LINE:
            self.long_lines = True
        return last

    def _taken(self, piece: bytes) -> bytes:
        piece = piece.replace(b"\0", b"")
        if not piece.isascii():
            self.eight_bit = True
        self._measure(piece)
        return piece


class Stuffer:
    """Content made fit for DATA: line ends CRLF, a dot before each dot that begins a line (RFC 5321 4.5.2)."""

    __slots__ = ("_at_start", "_ends")

    def __init__(self) -> None:
        self._ends = LineEnds()
        self._at_start = True  # of a line

    def feed(self, data: bytes) -> bytes:
        return self._stuffed(self._ends.feed(data))

    def finish(self) -> bytes:
        """The rest of the content and the end of data; ends the last line if the content did not."""
        last = self._stuffed(self._ends.finish())
        if not self._at_start:
            last += b"\r\n"
        return last + b".\r\n"

    def _stuffed(self, piece: bytes) -> bytes:
        if not piece:
            return b""
        stuffed = piece.replace(b"\r\n.", b"\r\n..") if DOTTED.search(piece) else piece
        if self._at_start and piece.startswith(b"."):
            stuffed = b"." + stuffed
        self._at_start = piece.endswith(b"\r\n")
        return stuffed
