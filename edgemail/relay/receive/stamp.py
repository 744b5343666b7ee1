"""The trace header that a message gets on its way in (RFC 5321 4.4), the only line that edgemail adds to it.

Owns its form and makes harmless what a client had put into it. Never looks at the message.
"""

from __future__ import annotations

import re
from typing import Final

from edgemail.dates import date
from edgemail.envelope import Address, Origin, queue_id

MAX_FOR: Final = 900  # limit: octets of a recipient that is named in Received, so that the line keeps within 998
MAX_NAME: Final = 255  # limit: characters of a client's name or HELO in Received, RFC 5321 4.5.3.1.2

# What a name must not hold inside Received: controls, blanks, comments, quotes, what ends a clause. Postfix's neuter().
_HARMFUL: Final = re.compile(r"[^!-~]|[<>()\\\";@]")


def received(
    origin: Origin,
    *,
    myhostname: str,
    mail_name: str,
    id: int,
    at: float,
    recipient: Address | None = None,
    tls: str = "",
) -> bytes:
    """The header with line ends. `at`: wall clock; `recipient`: when there is exactly one; `tls`: see cipher_words."""
    helo = harmless(origin.helo) or harmless(origin.client_name)
    lines = [f"Received: from {helo} ({harmless(origin.client_name)} [{literal(origin.client_address)}])"]
    if tls:
        lines.append(f"(using {tls})")
    by = f"by {myhostname} ({mail_name}) with {origin.protocol or 'SMTP'} id {queue_id(id)}"
    clause = f"for <{recipient}>" if recipient else ""
    if clause and len(clause.encode()) <= MAX_FOR:
        lines += [by, f"{clause}; {date(at)}"]
    else:
        lines.append(f"{by}; {date(at)}")
    return "\r\n\t".join(lines).encode("utf-8", "replace") + b"\r\n"


def protocol(*, extended: bool, tls: bool, authenticated: bool, smtputf8: bool = False) -> str:
    """The name behind "with": RFC 3848 2, RFC 6531 4.3. HELO has no names for TLS and AUTH."""
    if not (extended or smtputf8):
        return "SMTP"
    return ("UTF8SMTP" if smtputf8 else "ESMTP") + ("S" if tls else "") + ("A" if authenticated else "")


def cipher_words(version: str, name: str, secret_bits: int, algorithm_bits: int) -> str:
    """What TLS is in use, for Received and the log: "TLSv1.3 with cipher X (256/256 bits)"."""
    return f"{version} with cipher {name} ({secret_bits}/{algorithm_bits} bits)"


def literal(address: str) -> str:
    """An address as it stands between brackets, RFC 5321 4.1.3."""
    bare = harmless(address.partition("%")[0]) or "unknown"
    return f"IPv6:{bare}" if ":" in bare else bare


def harmless(name: str) -> str:
    """A name from outside that can say nothing but a name."""
    return _HARMFUL.sub("?", name[:MAX_NAME])
