"""Which mail goes before which where not everything can go at once: alarms before letters before scans.

Owns the classes of `[[priority]]` and their rules; a callable gives the header where a rule asks for it. Never reorders
anything itself: a rank is a number, and the lower goes first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from edgemail.envelope import Address, Envelope
from edgemail.errors import SpoolDamaged
from edgemail.settings import Priority
from edgemail.spool.verbs import Spool

FORMS: Final = ("sender", "recipient", "listener", "header")
MAX_RULES: Final = 100  # limit: entries in the `match` of one [[priority]]
MAX_RANKS: Final = 8  # limit: ranks of mail, the one of mail that no class names among them; three bits in the index

_FIELD: Final = re.compile(rb"([!-9;-~]+)[ \t]*:[ \t]*(.*)")  # RFC 5322 2.2, obs-optional


def parse_rule(text: str) -> tuple[str, str]:
    """An entry: its form, and what it looks for in lower case. ValueError with a hint."""
    form, colon, wanted = text.partition(":")
    if not colon or form not in FORMS or not wanted:
        raise ValueError(
            f"'{text}' says nothing of mail; expected sender:ups@example.com, recipient:@example.com, listener:alarms"
            " or header:X-Priority:1"
        )
    if form in ("sender", "recipient") and "@" not in wanted:
        raise ValueError(f"'{text}': expected an address, or @ and a domain")
    return form, wanted.lower()


def beginning(spool: Spool, mail: int) -> bytes:
    """The first piece of a message, b"" where it cannot be read: a delivery will say what is wrong."""
    try:
        return next(spool.body(mail), b"")
    except (SpoolDamaged, KeyError):
        return b""


class Priorities:
    """The classes of one configuration, the most urgent first. ValueError where a rule cannot be read.

    Mail that no class names comes after all of them, or where the class without rules stands.
    """

    def __init__(self, classes: Sequence[Priority] = ()) -> None:
        self._rules = [(rank, Rules(each.match)) for rank, each in enumerate(classes) if each.match]
        others = [rank for rank, each in enumerate(classes) if not each.match]
        self.normal = others[0] if others else len(classes)  # the rank of mail that no class names
        self.names = tuple(each.name for each in classes)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def rank(self, envelope: Envelope, header: Callable[[], bytes] = bytes) -> int:
        """The first class that names a message. `header` gives the beginning of its content; asked once at most."""
        read: list[bytes] = []

        def once() -> bytes:
            if not read:
                read.append(header())
            return read[0]

        for rank, rules in self._rules:
            if rules.matches(envelope, once):
                return rank
        return self.normal


class Rules:
    """What one class names."""

    def __init__(self, rules: Iterable[str]) -> None:
        found: dict[str, list[str]] = {form: [] for form in FORMS}
        for rule in rules:
            form, wanted = parse_rule(rule)
            found[form].append(wanted)
        self._addresses = {form: frozenset(found[form]) for form in ("sender", "recipient")}
        self._listeners = frozenset(found["listener"])
        self._headers = tuple(wanted.partition(":")[::2] for wanted in found["header"])

    def matches(self, envelope: Envelope, header: Callable[[], bytes] = bytes) -> bool:
        """Whether a message is named. `header` gives the beginning of its content; asked only if a rule needs it."""
        if envelope.origin.listener.lower() in self._listeners or self._fits("sender", envelope.sender):
            return True
        if any(self._fits("recipient", recipient.address) for recipient in envelope.recipients):
            return True
        return bool(self._headers) and self._in_header(header())

    def _fits(self, form: str, address: Address) -> bool:
        wanted = self._addresses[form]
        return bool(wanted) and (address.key in wanted or "@" + address.domain.lower() in wanted)

    def _in_header(self, content: bytes) -> bool:
        for line in content.partition(b"\r\n\r\n")[0].split(b"\r\n"):
            field = _FIELD.fullmatch(line)
            if field is None:
                continue
            name, value = (part.decode("utf-8", "replace").lower() for part in field.groups())
            if any(name == wanted and value.startswith(begins) for wanted, begins in self._headers):
                return True
        return False
