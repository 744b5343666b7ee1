"""The named sets of parameters that a listener may take with `profile = "..."`. Data, no logic.

A listener's own keys win over its profile, its profile wins over the top of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_SUBMISSION: Final[Mapping[str, Any]] = {
    "smtpd_tls_security_level": "encrypt",
    "smtpd_sasl_auth_enable": True,
    "smtpd_relay_restrictions": ["permit_sasl_authenticated", "reject"],
    "smtpd_reject_unlisted_recipient": False,
    "disable_vrfy_command": True,
    "syslog_name": "edgemail/submission",
}

PROFILES: Final[Mapping[str, Mapping[str, Any]]] = {
    # the devices and servers of the site, port 25
    "lan": {},
    # people and their mail programs, port 587 (RFC 6409): login, under STARTTLS
    "submission": _SUBMISSION,
    # the same with TLS from the first byte, port 465 (RFC 8314)
    "submissions": {**_SUBMISSION, "smtpd_tls_wrappermode": True, "syslog_name": "edgemail/submissions"},
    # customers who come for their mail with ATRN, port 366 (RFC 2645): login; in clear by CRAM-MD5 alone
    "odmr": {
        "smtpd_sasl_auth_enable": True,
        "smtpd_relay_restrictions": ["permit_sasl_authenticated", "reject"],
        "smtpd_reject_unlisted_recipient": False,
        "disable_vrfy_command": True,
        "syslog_name": "edgemail/odmr",
    },
    # old devices: lines that end anyhow; STARTTLS is not shown, for they would try TLS 1.0 and give up
    "legacy": {
        "smtpd_legacy_line_ends": True,
        "smtpd_tls_security_level": "none",
        "syslog_name": "edgemail/legacy",
    },
}
