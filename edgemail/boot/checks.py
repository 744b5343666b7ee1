"""What the values of a configuration mean, checked: names, networks, words, TLS, files, and what excludes what.

Owns the mistakes that make a configuration unusable; what is merely unwise is `advice`'s. Every function yields the
parameter and its Mistake, for one section's settings. Reads files where told to, never writes.
"""

from __future__ import annotations

import os
import pwd
import re
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from edgemail import tables, tls
from edgemail.boot.expand import Mistake
from edgemail.boot.values import domain, near, qualified
from edgemail.errors import TableError
from edgemail.relay.receive.policy import RESTRICTIONS, check_etrn_restrictions, check_restrictions
from edgemail.relay.send.hop import parse_hop
from edgemail.relay.send.route import parse_row
from edgemail.relay.wire.sasl import usable
from edgemail.settings import CLASSES, PARAMETERS, Settings

Found = Iterator[tuple[str, Mistake]]

DOMAIN_LISTS: Final = ("mydestination", "relay_domains", "fast_flush_domains")
NETWORK_LISTS: Final = ("mynetworks", "proxy_interfaces", "smtpd_client_event_limit_exceptions")
MAPS: Final = tuple(name for name, parameter in PARAMETERS.items() if parameter.form == "maps")
LEAST_JOURNAL: Final = 1_048_576  # limit: bytes of the smallest journal_size that is not 0: halves of a few messages
SECRET_MAPS: Final = ("smtp_sasl_password_maps",)

_EXTENSIONS: Final = (
    "pipelining",
    "size",
    "8bitmime",
    "smtputf8",
    "chunking",
    "dsn",
    "enhancedstatuscodes",
    "vrfy",
    "etrn",
    "starttls",
    "auth",
    "limits",
    "silent-discard",
)
_MATCHES: Final = ("hostname", "nexthop", "dot-nexthop")
MECHANISMS: Final = ("CRAM-MD5", "PLAIN", "LOGIN")  # of the client
WORDS: Final = {
    "inet_protocols": ("all", "ipv4", "ipv6"),
    "notify_classes": CLASSES,
    "parent_domain_matches_subdomains": (
        "debug_peer_list",
        "fast_flush_domains",
        "mynetworks",
        "permit_mx_backup_networks",
        "qmqpd_authorized_clients",
        "relay_domains",
        "smtpd_access_maps",
        "smtpd_client_event_limit_exceptions",
        "transport_maps",
    ),
    "smtp_discard_ehlo_keywords": _EXTENSIONS,
    "smtpd_discard_ehlo_keywords": _EXTENSIONS,
}
CERT_MATCHES: Final = ("smtp_tls_secure_cert_match", "smtp_tls_verify_cert_match")
_TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}")
_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\$?")


def meanings(settings: Settings) -> Found:
    """Each parameter by itself; reads no file."""
    for name in ("mydomain", "myorigin"):
        yield from _tried(name, domain, getattr(settings, name))
    yield from _tried("myhostname", qualified, settings.myhostname)
    if not settings.smtp_helo_name.startswith("["):
        yield from _tried("smtp_helo_name", domain, settings.smtp_helo_name)
    if not _TAG.fullmatch(settings.syslog_name):
        yield "syslog_name", Mistake(f"'{settings.syslog_name}' is not a word for the log", 'for example "edgemail"')
    if not _USER.fullmatch(settings.mail_owner):
        yield "mail_owner", Mistake(f"'{settings.mail_owner}' is not a user name")
    if not settings.inet_interfaces:
        yield "inet_interfaces", Mistake("is empty: nothing could be received", '"loopback-only" is the least')
    if not settings.queue_directory:
        yield "queue_directory", Mistake("is empty: mail needs a place to wait in")
    for name, words in WORDS.items():
        for word in getattr(settings, name):
            if word.lower() not in words:
                yield name, Mistake(f"'{word}' is not one of {', '.join(words)}", near(word.lower(), words))
    for name in CERT_MATCHES:
        for word in getattr(settings, name):
            yield from _tried(name, _match, word)
    for name in DOMAIN_LISTS:
        yield from _entries(name, getattr(settings, name), lambda entry: tables.DomainList((entry,), False))
    for name in NETWORK_LISTS:
        yield from _entries(name, getattr(settings, name), lambda entry: tables.NetworkList((entry,)))
    for server in settings.dns_nameservers:
        if not re.fullmatch(r"[0-9.]+|[0-9A-Fa-f:.]+|\[[0-9A-Fa-f:.]+\](:\d+)?", server):
            yield "dns_nameservers", Mistake(f"'{server}' is not a resolver's address", 'for example "192.0.2.53"')
    yield from _hops(settings)
    yield from _restrictions(settings)
    yield from _words_of_tls(settings)
    yield from _words_of_sasl(settings)


def _tried(name: str, check: Callable[[str], object], value: str) -> Found:
    try:
        check(value)
    except Mistake as mistake:
        yield name, mistake


def _match(word: str) -> None:
    """A word of Postfix's, or a name that a certificate may bear; a dot in front: any name below. Raises Mistake."""
    word = word.lower()
    if word not in _MATCHES and "." not in word.strip("."):
        raise Mistake(f"'{word}' is neither one of {', '.join(_MATCHES)} nor a full name", near(word, _MATCHES))
    if word not in _MATCHES:
        domain(word.removeprefix("."))


def _entries(name: str, entries: tuple[str, ...], check: Callable[[str], object]) -> Found:
    """The entries of a list that are not files: each by itself, so that all mistakes are found."""
    for entry in entries:
        bare = entry.lstrip("!")
        if not bare.startswith("/") and not tables.TABLE_ENTRY.match(bare):
            try:
                check(entry)
            except TableError as error:
                yield name, _told(str(error))


def networks(entries: tuple[str, ...]) -> Iterator[Mistake]:
    """Of a list of networks outside Settings."""
    yield from (mistake for _, mistake in _entries("", entries, lambda entry: tables.NetworkList((entry,))))


def secret_file(path: str) -> Iterator[Mistake]:
    """Of a file with a secret outside Settings."""
    yield from (mistake for _, mistake in (*_readable("", path), *_secret("", path)))


def _told(sentence: str) -> Mistake:
    """A sentence of another part, its hint taken apart."""
    message, _, hint = sentence.partition("; ")
    return Mistake(message, hint)


def _hops(settings: Settings) -> Found:
    hops = [(name, hop) for name in ("relayhost", "smtp_fallback_relay") for hop in getattr(settings, name)]
    rows = [(name, getattr(settings, name)) for name in ("default_transport", "relay_transport")]
    for spec in settings.transport_maps:
        rows += [("transport_maps", value) for _, value in spec] if not isinstance(spec, str) else []
    parsers: tuple[Callable[[str, int], object], ...] = (parse_hop, parse_row)
    for parse, texts in zip(parsers, (hops, rows), strict=True):
        for name, text in texts:
            try:
                parse(text, settings.smtp_tcp_port)
            except ValueError as error:
                yield name, _told(str(error))


def _restrictions(settings: Settings) -> Found:
    for name in ("smtpd_relay_restrictions", "smtpd_recipient_restrictions"):
        words = getattr(settings, name)
        if sentence := check_restrictions(words, relaying=name == "smtpd_relay_restrictions"):
            unknown = next((word for word in words if word not in RESTRICTIONS), "")
            mistake = _told(sentence)
            yield name, Mistake(mistake.message, mistake.hint or near(unknown, RESTRICTIONS))
    if sentence := check_etrn_restrictions(settings.smtpd_etrn_restrictions):
        yield "smtpd_etrn_restrictions", _told(sentence)


def _words_of_tls(settings: Settings) -> Found:
    """Protocols, grades and exclusions, each against a context of its own."""
    mandatory = settings.smtp_tls_exclude_ciphers + settings.smtp_tls_mandatory_exclude_ciphers
    for side, exclude, exclude_mandatory in (
        ("smtpd", settings.smtpd_tls_exclude_ciphers, settings.smtpd_tls_exclude_ciphers),
        ("smtp", settings.smtp_tls_exclude_ciphers, mandatory),
    ):
        for infix, names in (("", exclude), ("mandatory_", exclude_mandatory)):
            protocols = getattr(settings, f"{side}_tls_{infix}protocols")
            try:
                tls.versions(protocols)
            except ValueError as error:
                yield f"{side}_tls_{infix}protocols", _told(str(error))
                continue
            try:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if side == "smtpd" else ssl.PROTOCOL_TLS_CLIENT)
                tls.restrict(
                    context, protocols=protocols, grade=getattr(settings, f"{side}_tls_{infix}ciphers"), exclude=names
                )
            except ValueError as error:
                shared = side == "smtpd" or names == settings.smtp_tls_exclude_ciphers
                yield f"{side}_tls_{'' if shared else infix}exclude_ciphers", _told(str(error))


def _words_of_sasl(settings: Settings) -> Found:
    for infix in ("", "tls_", "tls_verified_"):
        name = f"smtp_sasl_{infix}security_options"
        try:
            if not usable(MECHANISMS, getattr(settings, name)):
                yield name, Mistake(f"leaves none of {', '.join(MECHANISMS)} to log in with")
        except ValueError as error:
            message, _, hint = str(error).partition(": ")
            yield name, Mistake(message, hint)


# ---- what excludes what


def of_box(settings: Settings) -> Found:
    """Of the file's top."""
    if settings.minimal_backoff_time > settings.maximal_backoff_time:
        yield "minimal_backoff_time", Mistake("is longer than maximal_backoff_time")
    needed = settings.message_size_limit * 3 // 2 + settings.queue_minfree
    if needed > settings.spool_size:
        hint = f"at least {needed}: 1.5 x message_size_limit and queue_minfree"
        yield "spool_size", Mistake("is too small for any message to be taken", hint)
    if 0 < settings.journal_size < LEAST_JOURNAL:
        yield "journal_size", Mistake("is too small", f"at least {LEAST_JOURNAL}, or 0 for none")


def of_listener(settings: Settings) -> Found:
    """Of one listener."""
    if settings.smtpd_tls_wrappermode and settings.smtpd_tls_security_level == "none":
        yield "smtpd_tls_wrappermode", Mistake("needs TLS", 'smtpd_tls_security_level = "encrypt"')
    if settings.smtpd_sasl_auth_enable and not settings.smtpd_sasl_password_file:
        hint = "name a file in smtpd_sasl_password_file and fill it with `edgemail passwd USER`"
        yield "smtpd_sasl_auth_enable", Mistake("needs smtpd_sasl_password_file", hint)
    if settings.smtpd_tls_key_file and not settings.smtpd_tls_cert_file:
        yield "smtpd_tls_key_file", Mistake("stands without smtpd_tls_cert_file")


def of_transport(settings: Settings) -> Found:
    """Of the client's side: the file's top, and every transport."""
    if settings.smtp_tls_wrappermode and settings.smtp_tls_security_level in ("none", "may"):
        yield "smtp_tls_wrappermode", Mistake("needs a level that demands TLS", 'smtp_tls_security_level = "encrypt"')
    if settings.smtp_sasl_auth_enable and not settings.smtp_sasl_password_maps:
        yield "smtp_sasl_auth_enable", Mistake("needs smtp_sasl_password_maps")


# ---- files


def of_files(settings: Settings) -> Found:
    """What the settings name on disk: there, readable, and secret where it must be."""
    for name in MAPS:
        for sentence in tables.check(getattr(settings, name)):
            yield name, _told(sentence)
    for name in (*DOMAIN_LISTS, *NETWORK_LISTS):
        for entry in getattr(settings, name):
            bare = entry.lstrip("!")
            if bare.startswith("/") or tables.TABLE_ENTRY.match(bare):
                try:
                    tables.DomainList((entry,), False) if name in DOMAIN_LISTS else tables.NetworkList((entry,))
                except TableError as error:
                    yield name, _told(str(error))
    for name in SECRET_MAPS:
        for spec in getattr(settings, name):
            kind, _, path = spec.partition(":") if isinstance(spec, str) else ("inline", "", "")
            if kind not in ("static", "inline"):
                yield from _secret(name, path)
    for name in ("smtp_tls_CAfile", "smtp_tls_CApath"):
        yield from _readable(name, getattr(settings, name), directory=name.endswith("path"))
    if settings.smtpd_sasl_auth_enable:
        yield from _readable("smtpd_sasl_password_file", settings.smtpd_sasl_password_file)
    yield from _secret("smtpd_sasl_password_file", settings.smtpd_sasl_password_file)
    yield from _certificate(settings)


def of_queue_directory(settings: Settings) -> Found:
    """Whether the spool can be opened, or made, by who asks."""
    path = Path(settings.queue_directory)
    if path.exists() and not path.is_dir():
        yield "queue_directory", Mistake(f"{path} is not a directory")
        return
    while not path.exists() and path != path.parent:
        path = path.parent
    if not os.access(path, os.W_OK | os.X_OK):
        yield "queue_directory", Mistake(f"{path} cannot be written by {_who()}", _remedy(path, settings.mail_owner))


def _who() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"


def _remedy(path: Path, owner: str) -> str:
    """What to do. Root may write anywhere but on some file systems; others run as who they are, not as mail_owner."""
    if os.geteuid() == 0:
        return "is its file system mounted read-only?"
    return f"ask as root or as {owner}, or chown {os.geteuid()} {path}"


def _readable(name: str, path: str, *, directory: bool = False) -> Found:
    if not path:
        return
    if not os.path.exists(path):  # noqa: PTH110 - pathlib raises where a directory on the way is closed
        hint = "`edgemail passwd USER` makes it" if name == "smtpd_sasl_password_file" else ""
        yield name, Mistake(f"{path} does not exist", hint)
    elif Path(path).is_dir() != directory:
        yield name, Mistake(f"{path} is {'not a' if directory else 'a'} directory")
    elif not os.access(path, os.R_OK):
        yield name, Mistake(f"{path} cannot be read by {_who()}")


def _secret(name: str, path: str) -> Found:
    """A file with secrets that anyone on the box could read."""
    try:
        mode = Path(path).stat().st_mode if path else 0
    except OSError:
        return  # said elsewhere
    if mode & 0o007:
        yield name, Mistake(f"{path} holds secrets and is open to every user", f"chmod 640 {path}")


def _certificate(settings: Settings) -> Found:
    cert, key = settings.smtpd_tls_cert_file, settings.smtpd_tls_key_file
    if not cert:
        return
    missing = [*_readable("smtpd_tls_cert_file", cert), *_readable("smtpd_tls_key_file", key)]
    yield from missing
    yield from _secret("smtpd_tls_key_file", key)
    if missing:
        return
    try:
        # an encrypted key would ask at the terminal: nobody is there
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: b"")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            yield "smtpd_tls_key_file", Mistake(f"{key} is not the key of {cert}")
        else:
            hint = "PEM; the certificate first, then its chain; the key without a password"
            yield "smtpd_tls_cert_file", Mistake(f"{cert} and {key} cannot be used ({error.reason or error})", hint)
    except OSError as error:
        yield "smtpd_tls_cert_file", Mistake(f"{cert} cannot be read: {error.strerror}")
