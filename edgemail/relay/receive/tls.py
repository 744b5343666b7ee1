"""TLS of the listeners: contexts made from settings, made again when the certificate's files change or they grow old.

Owns the contexts and when to make them. A pair of files that cannot be used leaves the old one in place. Makes no
certificate (boot's task), checks no client's, and loads no roots: they would cost a megabyte.
"""

from __future__ import annotations

import asyncio.selector_events
import asyncio.sslproto
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgemail import tls
from edgemail.settings import Settings

log = logging.getLogger("edgemail.smtpd")

RECHECK: Final = 1.0  # limit: seconds between two looks at the certificate's files; two stats each
SESSIONS: Final = 1000  # limit: handshakes on one context: OpenSSL's cache for resumption would grow to 20480 sessions
TLS_BUFFER: Final = 16 * 1024  # limit: bytes of asyncio's read buffer in each TLS connection; 256 KiB by default
RECEIVE_SIZE: Final = 32 * 1024  # limit: bytes of one read from a socket; 256 KiB, and an mmap each, by default
CURVES: Final = {"strong": "prime256v1", "ultra": "secp384r1"}  # smtpd_tls_eecdh_grade

Signature = tuple[tuple[int, int, int], ...]


def slim() -> None:
    """Make asyncio's connections as small as SMTP needs them. Class attributes, set once a process."""
    asyncio.sslproto.SSLProtocol.max_size = TLS_BUFFER  # type: ignore[attr-defined,unused-ignore]
    asyncio.selector_events._SelectorSocketTransport.max_size = RECEIVE_SIZE  # type: ignore[attr-defined]


class ServerTls:
    """The context of one certificate and one set of rules; shared by the listeners that agree on both."""

    def __init__(self, settings: Settings, monotonic: Callable[[], float]) -> None:
        """Nothing is read yet, and nothing raised: a listener without a certificate still takes mail in clear."""
        self._settings = settings
        self._monotonic = monotonic
        self._context: ssl.SSLContext | None = None
        self._due = float("-inf")
        self._made = float("-inf")
        self._handshakes = 0
        self._loaded: Signature | None = None  # what the files were like that are in use
        self._tried: Signature | None = None

    def context(self) -> ssl.SSLContext | None:
        """For a new session; None when there never was a certificate that could be used."""
        now = self._monotonic()
        if now >= self._due:
            self._due = now + RECHECK
            self._look(now)
        lifetime = self._settings.smtpd_tls_session_cache_timeout
        # A context for each session where none may be resumed: OpenSSL's cache of them cannot be turned off from here.
        most = SESSIONS if lifetime > 0 else 1
        if self._context is not None and (self._handshakes >= most or 0 < lifetime <= now - self._made):
            self._make(now)  # new ticket keys: older sessions cannot be resumed any more
        self._handshakes += 1
        return self._context

    def _look(self, now: float) -> None:
        try:
            found = _signature(self._settings)
        except OSError as error:
            found = ()
            if self._tried != found:
                log.warning("warning: TLS certificate: %s%s", error, self._kept())
            self._tried = found
            return
        if found != self._tried:
            self._tried = found
            if self._make(now):
                if self._loaded is not None:
                    log.info("TLS certificate %s was read again", self._settings.smtpd_tls_cert_file)
                self._loaded = found

    def _make(self, now: float) -> bool:
        """Make a new context; where that fails, the old one stays and the log says why."""
        try:
            self._context = server_context(self._settings)
        except (OSError, ValueError) as error:  # SSLError is an OSError
            settings = self._settings
            names = f"{settings.smtpd_tls_cert_file}, {settings.smtpd_tls_key_file}"
            log.warning("warning: TLS certificate %s: %s%s", names, error, self._kept())
            self._made, self._handshakes = now, 0  # the old one, for as long again
            return False
        self._made, self._handshakes = now, 0
        return True

    def _kept(self) -> str:
        return "; TLS is not available" if self._context is None else "; the one read before stays in use"


def key_of(settings: Settings) -> tuple[object, ...]:
    """Listeners with equal keys may share a context."""
    return (
        settings.smtpd_tls_cert_file,
        settings.smtpd_tls_key_file,
        *_rules(settings),
        settings.smtpd_tls_exclude_ciphers,
        settings.smtpd_tls_eecdh_grade,
        settings.smtpd_tls_session_cache_timeout,
    )


def server_context(settings: Settings) -> ssl.SSLContext:
    """A context for one listener. Raises OSError (SSLError among them) and ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    protocols, grade = _rules(settings)
    tls.restrict(context, protocols=protocols, grade=grade, exclude=settings.smtpd_tls_exclude_ciphers)
    curve = CURVES.get(settings.smtpd_tls_eecdh_grade)
    if curve:
        context.set_ecdh_curve(curve)
    if settings.smtpd_tls_session_cache_timeout <= 0:
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0  # TLS 1.3
    # An encrypted key would ask at the terminal, and nobody is there.
    context.load_cert_chain(settings.smtpd_tls_cert_file, settings.smtpd_tls_key_file or None, password=lambda: b"")
    return context


def _rules(settings: Settings) -> tuple[str, str]:
    """Protocols and cipher grade at the listener's level."""
    if settings.smtpd_tls_security_level == "encrypt":
        return settings.smtpd_tls_mandatory_protocols, settings.smtpd_tls_mandatory_ciphers
    return settings.smtpd_tls_protocols, settings.smtpd_tls_ciphers


def _signature(settings: Settings) -> Signature:
    """What the files look like from outside. Raises OSError."""
    out = []
    for name in dict.fromkeys((settings.smtpd_tls_cert_file, settings.smtpd_tls_key_file)):
        if name:
            status = Path(name).stat()
            out.append((status.st_ino, status.st_mtime_ns, status.st_size))
    if not out:
        raise OSError("none is configured")
    return tuple(out)
