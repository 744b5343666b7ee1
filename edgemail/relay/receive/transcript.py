"""What was said in a session that went wrong, for the postmaster (notify_classes policy, protocol).

Bounded, and without secrets: of AUTH only the verb is kept, and nothing that follows an AUTH and is no command.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from edgemail.relay.wire.events import AuthResponse, Bad, Command, End
from edgemail.reply import Reply

MAX_LINES: Final = 100  # limit: lines of a session's transcript, the oldest left out
MAX_WIDTH: Final = 200  # limit: characters of a line in a transcript


class Transcript:
    """The last lines of one session."""

    __slots__ = ("_auth", "_left_out", "_lines")

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._left_out = 0
        self._auth = False  # the client has said AUTH, taken or not: what it says next may be a password

    def heard(self, event: Command | End, line: str, *, tried_auth: bool) -> None:
        """What the client said. `line`: the dialog's `said`."""
        self._auth = self._auth or tried_auth or line[:4].upper() == "AUTH"
        if isinstance(event, End):
            line = f"(message content, {event.size} octets)"
        elif isinstance(event, AuthResponse) or (self._auth and isinstance(event, Bad) and line.upper() != "AUTH"):
            line = "(not shown)"  # a password, or what may be one
        self._add(" In:  ", line or "(a line that is no command)")

    def said(self, reply: Reply) -> None:
        """What it was answered; the challenges of an exchange say nothing secret."""
        for line in reply.encode().decode("utf-8", "replace").splitlines():
            self._add(" Out: ", line)

    def text(self) -> str:
        """The notice's text."""
        start = f"({self._left_out} lines are left out)\n" if self._left_out else ""
        lines = "\n".join(self._lines)
        return f"Transcript of session follows.\n\n{start}{lines}\n\nFor other details, see the log of this box.\n"

    def _add(self, mark: str, line: str) -> None:
        self._left_out += len(self._lines) == MAX_LINES
        clean = "".join(char if char.isprintable() else "?" for char in line[: MAX_WIDTH + 1])
        self._lines.append(mark + (clean if len(clean) <= MAX_WIDTH else clean[: MAX_WIDTH - 3] + "..."))
