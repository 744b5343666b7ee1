"""Where a session stands, and what may be said there: the transition table of the server dialog, as data.

Everything that depends on the state alone is a row here; what also depends on settings, TLS or login is a test in the
dialog's handler of that verb. A refused command leaves the state as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from edgemail.relay.wire import replies
from edgemail.reply import Reply


class State(IntEnum):
    """Between two commands."""

    START = 0  # neither HELO nor EHLO was taken (again, after STARTTLS)
    READY = 1  # no transaction
    SENDER = 2  # MAIL was taken
    RECIPIENT = 3  # a RCPT was taken too
    CHUNKS = 4  # a BDAT was taken, or refused, and it was not the last


Row = tuple[Reply | None, Reply | None, Reply | None, Reply | None, Reply | None]

_ALWAYS: Final[Row] = (None, None, None, None, None)

# The reply to a verb that may not be said in a state, in the order of State; None where it may.
TRANSITIONS: Final[Mapping[str, Row]] = {
    "HELO": _ALWAYS,  # RFC 5321 4.1.4: it ends a transaction, as RSET does
    "EHLO": _ALWAYS,
    "MAIL": (None, None, replies.NESTED_MAIL, replies.NESTED_MAIL, replies.NESTED_MAIL),
    "RCPT": (replies.NEED_MAIL, replies.NEED_MAIL, None, None, replies.BDAT_MIXED),
    "DATA": (replies.NEED_RCPT, replies.NEED_RCPT, replies.NO_RECIPIENTS, None, replies.BDAT_MIXED),
    "BDAT": (replies.NEED_RCPT, replies.NEED_RCPT, replies.NO_RECIPIENTS, None, None),
    "RSET": _ALWAYS,
    "NOOP": _ALWAYS,
    "HELP": _ALWAYS,
    "QUIT": _ALWAYS,
    "VRFY": _ALWAYS,
    "EXPN": _ALWAYS,
    "STARTTLS": (None, None, replies.IN_TRANSACTION, replies.IN_TRANSACTION, replies.IN_TRANSACTION),
    "AUTH": (replies.HELLO_FIRST, None, replies.IN_TRANSACTION, replies.IN_TRANSACTION, replies.IN_TRANSACTION),
    "ATRN": (replies.HELLO_FIRST, None, replies.IN_TRANSACTION, replies.IN_TRANSACTION, replies.IN_TRANSACTION),
    "ETRN": (
        replies.ETRN_HELLO_FIRST,
        None,
        replies.ETRN_IN_TRANSACTION,
        replies.ETRN_IN_TRANSACTION,
        replies.ETRN_IN_TRANSACTION,
    ),
}

# What may be said before TLS where TLS is required (RFC 3207 4, and what does no harm).
BEFORE_TLS: Final = frozenset({"EHLO", "HELO", "STARTTLS", "NOOP", "RSET", "HELP", "QUIT"})

# Requests of HTTP: a browser, or a page in it, that was sent here to speak SMTP by an attacker's form.
HTTP: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PRI"})
