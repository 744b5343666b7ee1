"""Which ESMTP extensions a session is offered, and the lines of EHLO that say so. Made anew under TLS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgemail.settings import Settings

MECHANISMS: Final = ("PLAIN", "LOGIN")  # of AUTH, where there are passwords
CRAM_MD5: Final = "CRAM-MD5"  # for ATRN alone, whose clients know nothing else
ALWAYS: Final = frozenset({"PIPELINING", "SIZE", "ENHANCEDSTATUSCODES", "8BITMIME", "DSN", "LIMITS", "CHUNKING"})


class Extensions:
    """What `settings` offer to a client with or without TLS. A keyword that is discarded is not served either."""

    __slots__ = (
        "_keywords",
        "atrn",
        "auth",
        "auth_needs_tls",
        "chunking",
        "dsn",
        "etrn",
        "mechanisms",
        "smtputf8",
        "starttls",
    )

    def __init__(
        self, settings: Settings, *, tls: bool, mechanisms: Sequence[str], etrn: bool, atrn: bool = False
    ) -> None:
        """`mechanisms`: those that may be used now. `atrn`: they may also in clear, though smtpd_tls_auth_only."""
        discarded = {word.upper() for word in settings.smtpd_discard_ehlo_keywords}
        encrypt = settings.smtpd_tls_security_level == "encrypt"
        self.mechanisms = tuple(mechanisms)
        self.auth = settings.smtpd_sasl_auth_enable and "AUTH" not in discarded  # the verb exists
        self.auth_needs_tls = not tls and (encrypt or (settings.smtpd_tls_auth_only and not atrn))
        offered = set(ALWAYS)
        if not settings.disable_vrfy_command:
            offered.add("VRFY")
        if etrn:
            offered.add("ETRN")
        if atrn:
            offered.add("ATRN")
        if not tls and settings.smtpd_tls_security_level != "none":
            offered.add("STARTTLS")
        if self.auth and self.mechanisms and not self.auth_needs_tls:
            offered.add("AUTH")
        if settings.smtputf8_enable:
            offered.add("SMTPUTF8")
        offered -= discarded
        self.starttls = "STARTTLS" in offered
        self.smtputf8 = "SMTPUTF8" in offered
        self.dsn = "DSN" in offered
        self.etrn = "ETRN" in offered
        self.atrn = "ATRN" in offered
        self.chunking = "CHUNKING" in offered
        names = " ".join(self.mechanisms)
        lines = {
            "PIPELINING": "PIPELINING",
            "SIZE": f"SIZE {settings.message_size_limit}" if settings.message_size_limit else "SIZE",
            "VRFY": "VRFY",
            "ETRN": "ETRN",
            "ATRN": "ATRN",
            "STARTTLS": "STARTTLS",
            "AUTH": f"AUTH {names}" + (f"\nAUTH={names}" if settings.broken_sasl_auth_clients else ""),
            "ENHANCEDSTATUSCODES": "ENHANCEDSTATUSCODES",
            "8BITMIME": "8BITMIME",
            "DSN": "DSN",
            "SMTPUTF8": "SMTPUTF8",
            "LIMITS": f"LIMITS RCPTMAX={settings.smtpd_recipient_limit}",  # RFC 9422
            "CHUNKING": "CHUNKING",
        }
        self._keywords = "\n".join(line for keyword, line in lines.items() if keyword in offered)

    def listing(self, host: str) -> str:
        """The text of the reply to EHLO, a line for each keyword."""
        return f"{host}\n{self._keywords}" if self._keywords else host
