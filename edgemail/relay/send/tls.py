"""TLS towards next hops: what each level asks for, whose certificate is good, one context for many connections.

Owns client contexts and the names a certificate must bear. Never touches a socket; `session` does the handshake.
Levels are Postfix's: `may` takes what is offered, `encrypt` insists, `verify` and `secure` also judge the certificate.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgemail.settings import Settings
from edgemail.tls import restrict
from edgemail.value import value

TLS_SESSIONS: Final = 64  # limit: TLS sessions kept for resumption, one a host name; Postfix keeps a database
NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, for which the ssl module has no name

MANDATORY: Final = frozenset({"encrypt", "verify", "secure"})
JUDGING: Final = frozenset({"verify", "secure"})


class ResumingContext(ssl.SSLContext):
    """A client context that offers a host the session it gave last time: asyncio has no argument for that.

    The session is only good in the context that made it, so what a context demanded of a certificate still holds.
    """

    def __init__(self, protocol: int) -> None:
        self.kept: OrderedDict[str, ssl.SSLSession] = OrderedDict()  # by host name, oldest first

    def wrap_bio(self, *args: Any, **words: Any) -> ssl.SSLObject:
        """As the original, with the host's last session."""
        host = words.get("server_hostname")
        if words.get("session") is None and isinstance(host, str):
            words["session"] = self.kept.get(host)
        return super().wrap_bio(*args, **words)

    def keep(self, connection: ssl.SSLObject | None) -> None:
        """Remember the session of a connection that went well; after some traffic, for that is when tickets come."""
        if connection is None or connection.session is None or not connection.server_hostname:
            return
        self.kept[connection.server_hostname] = connection.session
        self.kept.move_to_end(connection.server_hostname)
        while len(self.kept) > TLS_SESSIONS:
            self.kept.popitem(last=False)


@value
class _Demand:
    """All that makes two contexts differ."""

    judging: bool
    dated: bool  # validity dates are judged
    protocols: str
    grade: str
    exclude: tuple[str, ...]
    ca_file: str
    ca_path: str


class Contexts:
    """The contexts in use. Roots are read once for each distinct demand; an opportunistic one needs none."""

    def __init__(self) -> None:
        self._contexts: dict[_Demand, ResumingContext] = {}

    def context(self, settings: Settings, *, dated: bool) -> ResumingContext:
        """The context for the level in `settings`. `dated` false: the clock cannot be trusted, so no certificate is
        judged by its dates. Reads files when it is the first of its kind; OSError or ValueError when that fails.
        """
        mandatory = settings.smtp_tls_security_level in MANDATORY or settings.smtp_tls_wrappermode
        judging = settings.smtp_tls_security_level in JUDGING
        exclude = settings.smtp_tls_exclude_ciphers
        demand = _Demand(
            judging=judging,
            dated=dated or not judging,
            protocols=settings.smtp_tls_mandatory_protocols if mandatory else settings.smtp_tls_protocols,
            grade=settings.smtp_tls_mandatory_ciphers if mandatory else settings.smtp_tls_ciphers,
            exclude=exclude + (settings.smtp_tls_mandatory_exclude_ciphers if mandatory else ()),
            ca_file=settings.smtp_tls_CAfile if judging else "",
            ca_path=settings.smtp_tls_CApath if judging else "",
        )
        context = self._contexts.get(demand)
        if context is None:
            context = self._contexts[demand] = _make(demand)
        return context

    def forget(self) -> None:
        """Read everything anew from now on (changed configuration, changed roots)."""
        self._contexts.clear()


def _make(demand: _Demand) -> ResumingContext:
    context = ResumingContext(ssl.PROTOCOL_TLS_CLIENT)
    restrict(context, protocols=demand.protocols, grade=demand.grade, exclude=demand.exclude)
    # Said in full, because the defaults differ between versions of Python: no strictness about how a root is written
    # (private ones seldom satisfy it); what is in smtp_tls_CAfile is trusted, be it an intermediate or a server's own.
    context.verify_flags = ssl.VerifyFlags.VERIFY_X509_TRUSTED_FIRST | ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    if not demand.dated:
        context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    context.check_hostname = False  # `matches` does it: more than one name may be right
    context.verify_mode = ssl.CERT_REQUIRED if demand.judging else ssl.CERT_NONE
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if demand.ca_file or demand.ca_path:
        context.load_verify_locations(demand.ca_file or None, demand.ca_path or None)
    elif demand.judging:
        context.set_default_verify_paths()
    return context


def wanted_names(settings: Settings, host: str, nexthop: str) -> tuple[str, ...]:
    """The names of which a certificate must bear one; a leading dot stands for any name below. () when none is judged.

    `host` is the server as resolved, `nexthop` the destination as configured or as the recipient's domain.
    """
    level = settings.smtp_tls_security_level
    if level not in JUDGING:
        return ()
    words = settings.smtp_tls_verify_cert_match if level == "verify" else settings.smtp_tls_secure_cert_match
    names = []
    for word in map(str.lower, words):
        if word == "hostname":
            names.append(host)
        elif word == "nexthop":
            names.append(nexthop)
        elif word == "dot-nexthop":
            names.append(f".{nexthop}")
        else:
            names.append(word)  # Postfix takes a literal name too
    return tuple(name.lower().rstrip(".") for name in names)


def matches(certificate: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether a verified certificate (as `getpeercert` gives it) bears one of `names`.

    RFC 6125 6.4: DNS names of the subject's alternative names, the common name only where there are none of them; a
    wildcard stands for exactly one label, the first. An address matches only an IP address.
    """
    alternatives = certificate.get("subjectAltName", ())
    dns = [value.lower() for kind, value in alternatives if kind == "DNS"]
    if not dns:
        subject = [pair for part in certificate.get("subject", ()) for pair in part]
        dns = [value.lower() for kind, value in subject if kind == "commonName"]
    addresses = {_address(value) for kind, value in alternatives if kind == "IP Address"} - {None}
    for name in names:
        address = _address(name)
        if address is not None:
            if address in addresses:
                return True
        elif any(_bears(pattern, name) for pattern in dns):
            return True
    return False


def _bears(pattern: str, name: str) -> bool:
    if name.startswith("."):
        return pattern.endswith(name) and pattern != name
    if pattern.startswith("*."):
        label, dot, parent = name.partition(".")
        return bool(label and dot) and parent == pattern[2:] and "." in parent
    return pattern == name


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip().strip("[]"))
    except ValueError:
        return None
