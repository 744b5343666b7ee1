"""The parameters of one section of a file, before they have types: layers of raw values, and `$name` in them.

Owns which layer wins and how `$name`, `${name}` and `$(name)` are filled in, in any order. Knows nothing of types
beyond how a value looks as text; checks nothing but loops and unknown names.
"""

from __future__ import annotations

import dataclasses
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgemail.settings import PARAMETERS, Settings

LOCAL_DOMAIN: Final = "localdomain"  # completes a system's name without dots, as in Postfix

# The names that a file uses where a field of Settings cannot have them.
FILE_NAMES: Final[Mapping[str, str]] = {"double_bounce_notice_recipient": "2bounce_notice_recipient"}
FIELDS: Final[Mapping[str, str]] = {FILE_NAMES.get(name, name): name for name in PARAMETERS}
DEFAULTS: Final[Mapping[str, Any]] = {field.name: field.default for field in dataclasses.fields(Settings)}

_NAME: Final = re.compile(r"\$(?:(\$)|\{([^{}]*)\}|\(([^()]*)\)|(\w+))?")
_BRACES: Final = {"{": 1, "}": -1}


class Mistake(Exception):
    """A value that cannot be used: what is wrong with it, and what to write instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def split(text: str) -> list[str]:
    """A list as main.cf writes it: by commas and blanks, but not inside braces."""
    parts, word, depth = [], "", 0
    for char in text:
        depth += _BRACES.get(char, 0)
        if depth <= 0 and (char == "," or char.isspace()):
            parts.append(word)
            word = ""
        else:
            word += char
    return [part for part in (*parts, word) if part]


class Layer:
    """Raw values by field name. `place` says under which key of the file a value stands ("listener[1].mynetworks")."""

    __slots__ = ("place", "values")

    def __init__(self, values: Mapping[str, Any], place: Mapping[str, str]) -> None:
        self.values = dict(values)
        self.place = dict(place)

    def add(self, name: str, value: Any, place: str) -> None:
        """Take one more value."""
        self.values[name] = value
        self.place[name] = place


class Scope:
    """The layers in force for one section, the nearest first; below them all stand the defaults."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self.wrong: set[str] = set()  # names whose value could not be read; their defaults are not to be judged
        self._open: list[str] = []

    def raw(self, name: str) -> tuple[Any, bool]:
        """The value in force, and whether a file (or profile) gave it."""
        for layer in self._layers:
            if name in layer.values:
                return layer.values[name], True
        return DEFAULTS[name], False

    def place(self, name: str) -> str:
        """The key of the file that decides `name`; its plain name where the file does not speak of it."""
        for layer in self._layers:
            if name in layer.values:
                return layer.place[name]
        return FILE_NAMES.get(name, name)

    def expand(self, text: str) -> str:
        """`text` with every `$name` filled in; `$$` is a dollar. Raises Mistake."""

        def fill(match: re.Match[str]) -> str:
            if match[1]:
                return "$"
            name = match[2] or match[3] or match[4]
            if not name:
                raise Mistake(f"a lone $ in '{text}'", "write $$ for a dollar")
            if name not in FIELDS:
                raise Mistake(f"${name} is not a parameter", "write $$ for a dollar" if match[4] else "")
            return self.text(FIELDS[name])

        return _NAME.sub(fill, text)

    def text(self, name: str) -> str:
        """A parameter as text, as `$name` sees it: lists joined by commas. Raises Mistake."""
        if name in self._open:
            way = " -> ".join([*self._open[self._open.index(name) :], name])
            raise Mistake(f"$ names run in a circle: {way}")
        self._open.append(name)
        try:
            return self._text(name)
        finally:
            self._open.pop()

    def _text(self, name: str) -> str:
        value, given = self.raw(name)
        form = PARAMETERS[name].form
        if form == "maps":
            raise Mistake(f"${name} holds tables and has no value as text")
        if value == "" and name == "myhostname":
            return self._system_name()
        if value == "" and name == "mydomain":
            return self.text("myhostname").partition(".")[2]
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, (int, float)):
            unit = (PARAMETERS[name].unit if given else "s") if form == "duration" else ""
            return f"{value:.15g}{unit}"
        if isinstance(value, (list, tuple)):
            return ", ".join(self.expand(str(part)) for part in value)
        return self.expand(str(value))

    def _system_name(self) -> str:
        """The system's host name, made a fully qualified one that SMTP can say."""
        name = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()).strip("-.") or "localhost"
        if "." in name:
            return name
        domain, _ = self.raw("mydomain")
        return f"{name}.{self.expand(domain) if domain else LOCAL_DOMAIN}"
