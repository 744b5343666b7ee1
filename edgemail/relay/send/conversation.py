"""What was said between us and a server about one message, for a person who watches it.

Owns the lines of the deliveries that are watched, in bounded memory. Never holds a login, nor the message's content.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from contextvars import ContextVar
from typing import Final

from edgemail.reply import Reply

LINES: Final = 200  # limit: lines of a conversation that are kept
WIDTH: Final = 300  # limit: characters of each
WATCHED: Final = 8  # limit: messages whose conversations are kept

_COMMANDS: Final = re.compile(rb"(?:(?:MAIL FROM|RCPT TO|DATA|BDAT|RSET)[^\r\n]*\r\n)*", re.IGNORECASE)


class Conversation:
    """The lines so far: "> " what we said, "< " what the server said, "" before a remark."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        """Something that neither side said."""
        self._add("", text)

    def sent(self, data: bytes, *, secret: bool = False, content: bool = False) -> None:
        """What goes to the server: commands, or commands with some of the message behind them."""
        rest = 0
        if content:
            end = _COMMANDS.match(data).end()  # type: ignore[union-attr]  # it matches nothing, at least
            data, rest = data[:end], len(data) - end
        for line in data.splitlines():
            shown = line.decode("utf-8", "replace")
            if secret:
                verb = shown.split(" ")[:2] if shown[:5].upper() == "AUTH " else []
                shown = " ".join([*verb, "********"])
            self._add("> ", shown)
        if rest:
            self._add("> ", f"({rest} octets of the message)")

    def said(self, reply: Reply) -> None:
        """What the server answers."""
        for line in _lines(reply):
            self._add("< ", line)

    def _add(self, mark: str, text: str) -> None:
        if len(self.lines) < LINES:
            clean = "".join(c if c.isprintable() else "?" for c in text[:WIDTH])
            self.lines.append(mark + clean)


def _lines(reply: Reply) -> list[str]:
    lines = reply.text.split("\n")
    enhanced = f"{reply.enhanced} " if reply.enhanced else ""
    return [f"{reply.code}{' ' if n == len(lines) - 1 else '-'}{enhanced}{line}" for n, line in enumerate(lines)]


class Watch:
    """The messages that are watched, the oldest forgotten first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Conversation] = OrderedDict()

    def begin(self, id: int) -> None:
        """Watch a message from now on."""
        self._kept[id] = Conversation()
        while len(self._kept) > WATCHED:
            self._kept.popitem(last=False)

    def of(self, id: int) -> Conversation | None:
        return self._kept.get(id)


LISTENING: Final[ContextVar[Conversation | None]] = ContextVar("conversation", default=None)  # of the running delivery
