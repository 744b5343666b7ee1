"""Who we are at a next hop: smtp_sasl_password_maps. Owns the lookup and the care taken of its files.

A password leaves this module only inside a `Login`, whose repr does not show it; no message here quotes a value. What
servers made of the logins is kept here too, for the status.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Final

from edgemail.errors import TableError
from edgemail.relay.send.hop import Hop, parse_hop
from edgemail.settings import Configuration, Maps
from edgemail.tables import LITERAL_TYPES, PATTERN_TYPES, Tables
from edgemail.value import value
from edgemail.watched import Monotonic

log = logging.getLogger("edgemail.smtp")


MAX_VERDICTS: Final = 50  # limit: next hops of which it is remembered what became of the last login


@value
class Verdict:
    """What a next hop said of the last login. `refusal` "": it was taken. `at`: monotonic."""

    user: str
    refusal: str
    at: float


@value
class Login:
    """A user and a password for one next hop; `record` is told what became of them."""

    user: str
    password: str = field(repr=False)
    record: Callable[[str], None] | None = field(default=None, repr=False, compare=False)

    def heard(self, refusal: str) -> None:
        """What the server made of it; "" when it took it."""
        if self.record is not None:
            self.record(refusal)


class Credentials:
    """The logins of a configuration; the files are read again when they change."""

    __slots__ = ("_base", "_monotonic", "_said", "_tables", "verdicts")

    def __init__(self, configuration: Configuration, *, monotonic: Monotonic = time.monotonic) -> None:
        """Raises TableError where a table cannot be read."""
        self._monotonic = monotonic
        self.verdicts: dict[str, Verdict] = {}  # next hop -> of its last login, the latest last
        self.reload(configuration)

    def reload(self, configuration: Configuration) -> None:
        """Take a new configuration; raises as the constructor does, and then keeps the old one."""
        base = Path(configuration.path).parent
        every = {each.smtp_sasl_password_maps for each in (configuration.settings, *configuration.transports.values())}
        self._tables = {maps: Tables.open(maps, base, monotonic=self._monotonic) for maps in every}
        self._base = base
        self._said: set[str] = set()
        self.verdicts.clear()  # of hops that may be gone, and of passwords that may be others
        for maps in every:
            for problem in exposed(maps, base):
                log.warning("warning: %s", problem)

    def login(self, maps: Maps, hop: str, host: str = "") -> Login | None:
        """The login for a next hop, by what is most its own name first; None where there is none.

        `maps`: of the transport's settings. `hop`: the next hop as configured ("[host]:port"), or the recipient's
        domain. `host`: the host connected to, by name.
        """
        tables = self._tables.get(maps)
        if tables is None:
            tables = self._tables[maps] = Tables.open(maps, self._base, monotonic=self._monotonic)
        for key in _keys(hop, host):
            value = tables.find(key)
            if value is None:
                continue
            user, colon, password = value.partition(":")
            if colon and user:
                return Login(user, password, partial(self._heard, hop or host, user))
            if key not in self._said:
                self._said.add(key)
                log.warning("warning: smtp_sasl_password_maps: the entry for %s is not user:password", key)
            return None
        return None

    def _heard(self, hop: str, user: str, refusal: str) -> None:
        self.verdicts.pop(hop, None)
        self.verdicts[hop] = Verdict(user, refusal, self._monotonic())
        if len(self.verdicts) > MAX_VERDICTS:
            del self.verdicts[next(iter(self.verdicts))]


def _keys(hop: str, host: str) -> tuple[str, ...]:
    """The hop as it is written, its domain, the host; each once."""
    try:
        parsed: Hop | None = parse_hop(hop, 25)
    except ValueError:
        parsed = None
    return tuple(dict.fromkeys(key.lower() for key in (hop, parsed.host if parsed else "", host) if key))


def exposed(maps: Maps, base: Path) -> tuple[str, ...]:
    """Files of passwords that more may read than their owner and, for a daemon that is not root, its group."""
    found = []
    for spec in maps:
        kind, _, source = spec.partition(":") if isinstance(spec, str) else ("inline", "", "")
        if kind not in (*LITERAL_TYPES, *PATTERN_TYPES):
            continue  # in the configuration itself, whose mode is its own check's matter
        path = base / source
        try:
            mode = path.stat().st_mode & 0o777
        except OSError as error:
            raise TableError(f"{path}: {error.strerror}") from None
        if mode & 0o027:
            found.append(
                f"{path} holds passwords and has mode {mode:04o}; expected 0600, or 0640 for mail_owner's group"
            )
    return tuple(found)
