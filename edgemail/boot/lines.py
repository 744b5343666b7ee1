"""Where in a TOML file each key stands. Owns the scan for line numbers, which tomllib does not keep; checks nothing.

The text has been read by tomllib before, so the scan may believe it: it only has to tell keys from values.
"""

from __future__ import annotations

import re
from typing import Final

_KEY: Final = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)\s*""")
_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_QUOTES: Final = ('"""', "'''", '"', "'")


def lines(text: str) -> dict[str, int]:
    """Each key with its place, as messages name it ("queue_directory", "listener[1].port"), and its line from 1 on.

    Keys inside inline tables are not told apart: they stand where their table stands.
    """
    found: dict[str, int] = {}
    counts: dict[str, int] = {}
    prefix = ""
    at = _skip(text, 0)
    while at < len(text):
        line = text.count("\n", 0, at) + 1
        if text[at] == "[":
            array = text.startswith("[[", at)
            name, at = _path(text, at + (2 if array else 1))
            if array:
                counts[name] = counts.get(name, 0) + 1
                name = f"{name}[{counts[name]}]"
            found.setdefault(name, line)
            prefix = name + "."
            at = text.find("\n", at)
            at = len(text) if at < 0 else at
        else:
            name, at = _path(text, at)
            found.setdefault(prefix + name, line)
            at = _value(text, at + 1)
        at = _skip(text, at)
    return found


def _skip(text: str, at: int) -> int:
    """Past blanks, newlines and comments."""
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _path(text: str, at: int) -> tuple[str, int]:
    """A dotted key; ends before `=` or `]`."""
    parts: list[str] = []
    while match := _KEY.match(text, at):
        parts.append(match[1].strip("\"'"))
        at = match.end()
        if at >= len(text) or text[at] != ".":
            break
        at += 1
    return ".".join(parts), max(at, 0) if parts else len(text)


def _value(text: str, at: int) -> int:
    """Past a value: to the end of the line on which its last bracket or quote closes."""
    depth = 0
    while at < len(text):
        char = text[at]
        if char in "\"'":
            at = _string(text, at)
            continue
        if char == "#":
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
            continue
        if char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "\n" and depth <= 0:
            return at
        at += 1
    return at


def _string(text: str, at: int) -> int:
    """Past a quoted string of any of the four kinds."""
    quote = next(mark for mark in _QUOTES if text.startswith(mark, at))
    at += len(quote)
    while at < len(text):
        if text[at] == "\\" and quote[0] == '"':
            at += 2
        elif text.startswith(quote, at):
            at += len(quote)
            while len(quote) == 3 and at < len(text) and text[at] == quote[0]:
                at += 1  # a quote may stand right before the closing three
            return at
        else:
            at += 1
    return at
