"""Which mail goes first where not everything can go at once: alarms before scans. A callable gives the header."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

from edgemail.envelope import Address, Envelope
from edgemail.errors import SpoolDamaged
from edgemail.spool.verbs import Spool

FORMS: Final = ("sender", "recipient", "listener", "header")
MAX_RULES: Final = 100  # limit: entries of `urgent`

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


class Urgent:
    """The rules of one configuration. ValueError where one cannot be read."""

    def __init__(self, rules: Iterable[str]) -> None:
        found: dict[str, list[str]] = {form: [] for form in FORMS}
        for rule in rules:
            form, wanted = parse_rule(rule)
            found[form].append(wanted)
        self._addresses = {form: frozenset(found[form]) for form in ("sender", "recipient")}
        self._listeners = frozenset(found["listener"])
        self._headers = tuple(wanted.partition(":")[::2] for wanted in found["header"])

    def __bool__(self) -> bool:
        return bool(self._listeners or self._headers or any(self._addresses.values()))

    def matches(self, envelope: Envelope, header: Callable[[], bytes] = bytes) -> bool:
        """Whether a message goes first. `header` gives the beginning of its content; asked only if a rule needs it."""
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
