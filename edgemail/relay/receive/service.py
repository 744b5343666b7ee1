"""What all sessions of one listener share: its settings made ready, its policy, passwords and TLS.

A session keeps the service it began with; a reload makes new ones, for new sessions only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemail.clock import Clock
from edgemail.patterns import parse_address
from edgemail.relay.receive.policy import Policy
from edgemail.relay.receive.tls import ServerTls, key_of
from edgemail.relay.wire.extensions import CRAM_MD5, MECHANISMS, Extensions
from edgemail.settings import Configuration, Listener

if TYPE_CHECKING:
    from edgemail.relay.receive.auth import Passwords

    LoggerAdapter = logging.LoggerAdapter[logging.Logger]
else:
    LoggerAdapter = logging.LoggerAdapter

TRANSCRIPT_CLASSES = frozenset({"policy", "protocol"})  # of notify_classes: the errors that a session can make


class Log(LoggerAdapter):
    """The log of one service: its lines begin with the listener's syslog_name."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = self.extra
        return msg, kwargs


class Service:
    """One listener, ready to serve."""

    __slots__ = (
        "_offers",
        "atrn",
        "etrn",
        "listener",
        "log",
        "mechanisms",
        "notify",
        "passwords",
        "policy",
        "settings",
        "tls",
    )

    def __init__(self, listener: Listener, policy: Policy, passwords: Passwords | None, tls: ServerTls | None) -> None:
        self.listener = listener
        self.settings = listener.settings
        self.policy = policy
        self.passwords = passwords
        self.tls = tls
        self.atrn = listener.profile == "odmr"
        self.etrn = bool(listener.settings.fast_flush_domains)
        self.mechanisms: tuple[str, ...] = MECHANISMS if passwords is not None else ()
        if self.atrn and self.mechanisms:
            self.mechanisms = (*MECHANISMS, CRAM_MD5)
        self.notify = frozenset(listener.settings.notify_classes) & TRANSCRIPT_CLASSES
        self.log = Log(logging.getLogger("edgemail.smtpd"), {"syslog_name": listener.settings.syslog_name})

        self._offers: dict[tuple[bool, tuple[str, ...], bool, bool], Extensions] = {}

    @property
    def name(self) -> str:
        return self.listener.name

    def offer(self, mechanisms: tuple[str, ...], *, tls: bool, etrn: bool, atrn: bool) -> Extensions:
        """The extensions of a session: made once for each sort of session that there can be."""
        key = tls, mechanisms, etrn, atrn
        found = self._offers.get(key)
        if found is None:
            found = self._offers[key] = Extensions(self.settings, tls=tls, mechanisms=mechanisms, etrn=etrn, atrn=atrn)
        return found

    def in_clear(self, address: str) -> tuple[str, ...]:
        """The mechanisms that this client may use without TLS, where it may log in without at all."""
        if not self.atrn or not self.settings.smtpd_tls_auth_only:
            return self.mechanisms
        client = parse_address(address)
        if client is not None and client.is_loopback:
            return self.mechanisms
        return tuple(name for name in self.mechanisms if name == CRAM_MD5)


def services(
    configuration: Configuration, clock: Clock, worker: ThreadPoolExecutor, own: Callable[[], Collection[str]]
) -> dict[str, Service]:
    """The services of a configuration by `place_of` their listener. Raises TableError.

    `worker`: where passwords are checked; `own`: the addresses of this box. Listeners that agree on certificate and
    rules share a TLS context, those with one password file share what was read of it.
    """
    base = Path(configuration.path).parent
    contexts: dict[tuple[object, ...], ServerTls] = {}
    files: dict[str, Passwords] = {}
    out = {}
    for listener in configuration.listeners:
        settings = listener.settings
        path = settings.smtpd_sasl_password_file if settings.smtpd_sasl_auth_enable else ""
        if path and path not in files:
            from edgemail.relay.receive.auth import Passwords

            files[path] = Passwords(path, worker, clock.monotonic)
        tls = None
        if settings.smtpd_tls_security_level != "none":
            tls = contexts.setdefault(key_of(settings), ServerTls(settings, clock.monotonic))
        out[place_of(listener)] = Service(
            listener,
            Policy(settings, base, own=own, monotonic=clock.monotonic),
            files.get(path),
            tls,
        )
    return out


def place_of(listener: Listener) -> str:
    """What makes a listener the same one after a reload: where it listens; on a free port, which of them it is."""
    return f"{listener.address}:{listener.port}" + ("" if listener.port else f" {listener.section} {listener.name}")
