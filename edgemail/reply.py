"""An SMTP reply: what a peer may read. Owns the value and the texts that more than one part says; never does IO.

Reply codes: RFC 5321 4.2. Enhanced status codes: RFC 3463, RFC 2034. Replies to ETRN carry none (RFC 1985).
"""

from __future__ import annotations

from dataclasses import replace

from edgemail.value import value

MAX_REPLY_LINE = 512  # octets with CRLF, RFC 5321 4.5.3.1.5


@value
class Reply:
    """One reply. `text` may hold several lines, parted by a newline; `enhanced` is "x.y.z" or "" for none."""

    code: int
    enhanced: str
    text: str

    @property
    def positive(self) -> bool:
        """2xx or 3xx: the command was taken."""
        return self.code < 400

    @property
    def temporary(self) -> bool:
        """4xx: the peer may try again."""
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        """5xx: the peer must not repeat it as it is."""
        return self.code >= 500

    @property
    def status(self) -> str:
        """The enhanced code, or the one that the first digit implies ("4.0.0")."""
        return self.enhanced or f"{self.code // 100}.0.0"

    def softened(self) -> Reply:
        """The same with 4 for 5 (`soft_bounce`); unchanged when it is not a 5xx."""
        if not self.permanent:
            return self
        enhanced = "4" + self.enhanced[1:] if self.enhanced else ""
        return replace(self, code=self.code - 100, enhanced=enhanced)

    def encode(self) -> bytes:
        """The reply on the wire: code and enhanced code on every line, controls made '?', 512 octets a line at most."""
        prefix = f"{self.enhanced} " if self.enhanced else ""
        text = self.text
        if text.isascii() and text.isprintable() and len(text) < MAX_REPLY_LINE - 32:  # nearly all are
            return f"{self.code} {prefix}{text}\r\n".encode("ascii", "replace")
        lines = text.split("\n")
        out = bytearray()
        for number, line in enumerate(lines):
            mark = " " if number == len(lines) - 1 else "-"
            clean = prefix + line
            if not (clean.isascii() and clean.isprintable()):
                clean = "".join(c if c == "\t" or (c >= " " and c != "\x7f") else "?" for c in clean)
            out += f"{self.code}{mark}".encode()
            out += clean.encode("utf-8", "replace")[: MAX_REPLY_LINE - 6].decode("utf-8", "ignore").encode()
            out += b"\r\n"
        return bytes(out)

    def __str__(self) -> str:
        """One line, as in a log: "550 5.1.1 No such user"."""
        prefix = f"{self.code} {self.enhanced} " if self.enhanced else f"{self.code} "
        return prefix + self.text.replace("\n", " ")


DISK_FULL = Reply(452, "4.3.1", "Insufficient system storage: the disk is full")
SPOOL_FULL = Reply(452, "4.3.1", "Insufficient system storage: the spool is full")
LOCAL_ERROR = Reply(451, "4.3.0", "Error: queue file write error")
