"""The components `credential.*` of the status: files of secrets, and what servers made of the last login.

Owns the words, and how seldom the files are looked at. Never reads what is in them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgemail.boot.components import Conditions, Numbers
from edgemail.clock import Clock
from edgemail.health.board import Condition, State
from edgemail.settings import Configuration
from edgemail.tables import LITERAL_TYPES, PATTERN_TYPES

if TYPE_CHECKING:
    from edgemail.relay.send.credentials import Verdict

LOOK_SECONDS: Final = 60.0  # limit: age of what is known of a file of secrets


class CredentialFiles:
    """The files, looked at now and then: whether the relay may read them, and who else may."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._looked = float("-inf")
        self._of: Configuration | None = None
        self._found: Conditions = {}

    def conditions(self, configuration: Configuration) -> Conditions:
        now = self._clock.monotonic()
        if configuration is not self._of or now - self._looked >= LOOK_SECONDS:
            self._looked, self._of = now, configuration
            self._found = {f"credential.{path.name}": _look(path, what) for path, what in _files(configuration)}
        return self._found


def _files(configuration: Configuration) -> Iterator[tuple[Path, str]]:
    """Each file of secrets that the configuration names, with its parameter."""
    base = Path(configuration.path).parent
    for settings in (configuration.settings, *configuration.transports.values()):
        if not settings.smtp_sasl_auth_enable:
            continue
        for spec in settings.smtp_sasl_password_maps:
            kind, _, source = spec.partition(":") if isinstance(spec, str) else ("", "", "")
            if kind in (*LITERAL_TYPES, *PATTERN_TYPES):
                yield base / source, "smtp_sasl_password_maps"
    for settings in (each.settings for each in configuration.listeners):
        if settings.smtpd_sasl_auth_enable and settings.smtpd_sasl_password_file:
            yield base / settings.smtpd_sasl_password_file, "smtpd_sasl_password_file"
    if configuration.health is not None and configuration.health.token_file:
        yield base / configuration.health.token_file, "token_file"


def _look(path: Path, what: str) -> Condition:
    try:
        mode = path.stat().st_mode & 0o777
        readable = os.access(path, os.R_OK)
    except OSError as error:
        return Condition(State.DEGRADED, "credential-missing", f"{what}: {path}: {error.strerror}", {"mode": ""})
    numbers: Numbers = {"mode": f"{mode:04o}"}
    if not readable:
        message = f"{what}: {path} may not be read by the relay"
        return Condition(State.DEGRADED, "credential-unreadable", message, numbers)
    if mode & 0o027:
        message = f"{what}: {path} has mode {mode:04o}, so others may read or change it; expected 0600 or 0640"
        return Condition(State.DEGRADED, "credential-exposed", message, numbers)
    return Condition(numbers=numbers)


def logins(verdicts: Mapping[str, Verdict], now: float) -> Conditions:
    """What each next hop made of the last login. `now`: monotonic."""
    return {f"credential.{hop}": _login(hop, verdict, now) for hop, verdict in verdicts.items()}


def _login(hop: str, verdict: Verdict, now: float) -> Condition:
    numbers: Numbers = {"user": verdict.user, "tried": round(max(0.0, now - verdict.at)), "taken": not verdict.refusal}
    if not verdict.refusal:
        return Condition(numbers=numbers)
    message = f"{hop} does not let us in as {verdict.user}: {verdict.refusal}"
    return Condition(State.DEGRADED, "login-refused", message, numbers)
