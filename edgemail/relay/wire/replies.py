"""What the receiving side says: every reply text that the dialog or its session gives, once each, in Postfix's words.

Owns texts and nothing else: no state, no settings, no IO. Replies to ETRN carry no enhanced code (RFC 1985 knows none),
nor do 334 and 354 (RFC 2034 3 asks for them on 2xx, 4xx and 5xx only) and the reply to HELO and EHLO.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Final

from edgemail.reply import LOCAL_ERROR, SPOOL_FULL, Reply

__all__ = ["LOCAL_ERROR", "SPOOL_FULL"]  # said by other parts too, and found here with the rest

# What went well
OK: Final = Reply(250, "2.0.0", "Ok")  # RSET, NOOP
MAIL_OK: Final = Reply(250, "2.1.0", "Ok")
RCPT_OK: Final = Reply(250, "2.1.5", "Ok")
GO_AHEAD: Final = Reply(354, "", "End data with <CR><LF>.<CR><LF>")
BYE: Final = Reply(221, "2.0.0", "Bye")
HELP: Final = Reply(214, "2.0.0", "See RFC 5321")
READY_FOR_TLS: Final = Reply(220, "2.0.0", "Ready to start TLS")
AUTHENTICATED: Final = Reply(235, "2.7.0", "Authentication successful")

# Syntax: the line itself is wrong
NOT_RECOGNIZED: Final = Reply(500, "5.5.2", "Error: command not recognized")
BAD_SYNTAX: Final = Reply(500, "5.5.2", "Error: bad syntax")
BARE_LINE_END: Final = Reply(500, "5.5.2", "Error: bare <CR> or <LF> in a command")
NOT_ASCII: Final = Reply(500, "5.5.2", "Error: command contains a control or non-ASCII character")
LINE_TOO_LONG: Final = Reply(500, "5.5.2", "Error: line too long")  # RFC 5321 4.5.3.1.4
BAD_PARAMETER: Final = Reply(501, "5.5.4", "Error: invalid parameter syntax")
MAIL_SYNTAX: Final = Reply(501, "5.5.4", "Syntax: MAIL FROM:<address>")
RCPT_SYNTAX: Final = Reply(501, "5.5.4", "Syntax: RCPT TO:<address>")
DATA_SYNTAX: Final = Reply(501, "5.5.4", "Syntax: DATA")
BDAT_SYNTAX: Final = Reply(501, "5.5.4", "Syntax: BDAT count [LAST]")
RSET_SYNTAX: Final = Reply(501, "5.5.4", "Syntax: RSET")
QUIT_SYNTAX: Final = Reply(501, "5.5.4", "Syntax: QUIT")
HELO_SYNTAX: Final = Reply(501, "5.5.4", "Syntax: HELO hostname")
EHLO_SYNTAX: Final = Reply(501, "5.5.4", "Syntax: EHLO hostname")
STARTTLS_SYNTAX: Final = Reply(501, "5.5.4", "Syntax: STARTTLS")
AUTH_SYNTAX: Final = Reply(501, "5.5.4", "Syntax: AUTH mechanism [initial-response]")
VRFY_SYNTAX: Final = Reply(501, "5.5.4", "Syntax: VRFY address")
BAD_SENDER: Final = Reply(501, "5.1.7", "Bad sender address syntax")
BAD_RECIPIENT: Final = Reply(501, "5.1.3", "Bad recipient address syntax")
NEEDS_SMTPUTF8: Final = Reply(553, "5.6.7", "Must declare SMTPUTF8 to send a non-ASCII address")  # RFC 6531 3.5
BAD_SIZE: Final = Reply(501, "5.5.4", "Bad message size syntax")
UNKNOWN_BODY: Final = Reply(501, "5.5.4", "Error: unknown BODY type")
BAD_RET: Final = Reply(501, "5.5.4", "Bad RET parameter syntax")
BAD_ENVID: Final = Reply(501, "5.5.4", "Bad ENVID parameter syntax")
BAD_NOTIFY: Final = Reply(501, "5.5.4", "Bad NOTIFY parameter syntax")
BAD_ORCPT: Final = Reply(501, "5.5.4", "Bad ORCPT parameter syntax")
BAD_AUTH_SENDER: Final = Reply(501, "5.5.4", "Bad AUTH parameter syntax")  # MAIL ... AUTH=, RFC 4954 5
REPEATED_PARAMETER: Final = Reply(501, "5.5.4", "Error: parameter given twice")

# Sequence: right line, wrong moment
HELLO_FIRST: Final = Reply(503, "5.5.1", "Error: send HELO/EHLO first")
NESTED_MAIL: Final = Reply(503, "5.5.1", "Error: nested MAIL command")
NEED_MAIL: Final = Reply(503, "5.5.1", "Error: need MAIL command")
NEED_RCPT: Final = Reply(503, "5.5.1", "Error: need RCPT command")
NO_RECIPIENTS: Final = Reply(554, "5.5.1", "Error: no valid recipients")
BDAT_MIXED: Final = Reply(503, "5.5.1", "Error: DATA or RCPT after BDAT")  # RFC 3030 2
IN_TRANSACTION: Final = Reply(503, "5.5.1", "Error: MAIL transaction in progress")
TLS_ACTIVE: Final = Reply(554, "5.5.1", "Error: TLS already active")
ALREADY_AUTHENTICATED: Final = Reply(503, "5.5.1", "Error: already authenticated")
AUTH_NOT_ENABLED: Final = Reply(503, "5.5.1", "Error: authentication not enabled")

# Not here, or not like this
NOT_IMPLEMENTED: Final = Reply(502, "5.5.1", "Error: command not implemented")  # EXPN; ETRN, STARTTLS not offered
VRFY_DISABLED: Final = Reply(502, "5.5.1", "VRFY command is disabled")
UNKNOWN_PARAMETER: Final = Reply(555, "5.5.4", "Unsupported option")  # RFC 5321 4.1.1.11
TLS_UNAVAILABLE: Final = Reply(454, "4.7.0", "TLS not available due to local problem")
TLS_REQUIRED: Final = Reply(530, "5.7.0", "Must issue a STARTTLS command first")
AUTH_NEEDS_TLS: Final = Reply(538, "5.7.11", "Encryption required for requested authentication mechanism")
AUTH_UNKNOWN: Final = Reply(504, "5.5.4", "Error: unrecognized authentication type")  # RFC 4954 4
AUTH_ABORTED: Final = Reply(501, "5.7.0", "Authentication aborted")
AUTH_NOT_BASE64: Final = Reply(501, "5.5.2", "Error: cannot base64-decode response")
AUTH_REFUSED: Final = Reply(535, "5.7.8", "Error: authentication failed")
AUTH_UNAVAILABLE: Final = Reply(454, "4.7.0", "Temporary authentication failure")
AUTH_TOO_LONG: Final = Reply(500, "5.5.6", "Error: authentication exchange line too long")  # RFC 4954 4
NOT_SMTP: Final = Reply(554, "5.5.1", "Error: this port speaks SMTP")  # to HTTP on this port

# Bounds
TOO_MANY_RECIPIENTS: Final = Reply(452, "4.5.3", "Error: too many recipients")
SIZE_OVER_LIMIT: Final = Reply(552, "5.3.4", "Message size exceeds fixed limit")  # at MAIL SIZE=
MESSAGE_TOO_BIG: Final = Reply(552, "5.3.4", "Error: message file too big")  # at the end of the content

# What the content itself earned
BAD_LINE_ENDS: Final = Reply(550, "5.6.11", "Error: bare <CR>, bare <LF> or <NUL> in the message")
TOO_MANY_HOPS: Final = Reply(554, "5.4.0", "Error: too many hops")

# ETRN (RFC 1985), without enhanced codes
ETRN_STARTED: Final = Reply(250, "", "Queuing started")
ETRN_UNABLE: Final = Reply(458, "", "Unable to queue messages")
ETRN_BAD_NAME: Final = Reply(501, "", "Error: invalid parameter syntax")
ETRN_SYNTAX: Final = Reply(500, "", "Syntax: ETRN domain")
ETRN_HELLO_FIRST: Final = Reply(503, "", "Error: send HELO/EHLO first")
ETRN_IN_TRANSACTION: Final = Reply(503, "", "Error: MAIL transaction in progress")

# ATRN (RFC 2645 5.2.1)
ATRN_TURNING: Final = Reply(250, "2.0.0", "Ok, now reversing the connection")
ATRN_REFUSED: Final = Reply(450, "4.7.1", "ATRN request refused")
ATRN_UNABLE: Final = Reply(451, "4.3.2", "Unable to process ATRN request now")
ATRN_NO_MAIL: Final = Reply(453, "4.0.0", "You have no mail")
ATRN_SYNTAX: Final = Reply(501, "5.5.4", "Syntax: ATRN [domain[,domain...]]")
ATRN_PIPELINED: Final = Reply(503, "5.5.1", "Error: nothing may follow ATRN before its reply")
AUTHENTICATION_REQUIRED: Final = Reply(530, "5.7.0", "Authentication required")

# Access, said by the session's checks
UNKNOWN_LOCAL: Final = "Recipient address rejected: User unknown in local recipient table"
UNKNOWN_RELAY: Final = "Recipient address rejected: User unknown in relay recipient table"


def etrn_denied(domain: str) -> Reply:
    """smtpd_etrn_restrictions."""
    return Reply(554, "", f"<{domain}>: Etrn command rejected: Access denied")


def etrn_not_eligible(domain: str) -> Reply:
    """Not in fast_flush_domains."""
    return Reply(459, "", f"<{domain}>: service unavailable")


def queued(queue_id: str) -> Reply:
    """The 250 after a commit."""
    return Reply(250, "2.0.0", f"Ok: queued as {queue_id}")


def chunk_ok(octets: int) -> Reply:
    """To a BDAT that is not the last (RFC 3030 2)."""
    return Reply(250, "2.0.0", f"Ok: {octets} bytes")


def challenge(data: bytes) -> Reply:
    """A 334 of a SASL exchange; empty data make the "334 " that an absent initial response calls for (RFC 4954 4)."""
    return Reply(334, "", b64encode(data).decode("ascii"))


def verified(address: str) -> Reply:
    return Reply(252, "2.0.0", address)


def relay_denied(recipient: str) -> Reply:
    return Reply(554, "5.7.1", f"<{recipient}>: Relay access denied")


def unknown_recipient(recipient: str, text: str) -> Reply:
    """`text` is UNKNOWN_LOCAL or UNKNOWN_RELAY."""
    return Reply(550, "5.1.1", f"<{recipient}>: {text}")


# 421: the host's name first (RFC 5321 4.2.3), and the connection is closed after it
def timed_out(host: str) -> Reply:
    return Reply(421, "4.4.2", f"{host} Error: timeout exceeded")


def too_many_errors(host: str) -> Reply:
    return Reply(421, "4.7.0", f"{host} Error: too many errors")


def too_many_connections(host: str, client: str) -> Reply:
    return Reply(421, "4.7.0", f"{host} Error: too many connections from {client}")


def too_many_handshakes(host: str, client: str) -> Reply:
    """smtpd_client_new_tls_session_rate_limit."""
    return Reply(421, "4.7.0", f"{host} Error: too many new TLS sessions from {client}")


def too_busy(host: str) -> Reply:
    """`default_process_limit` sessions are open."""
    return Reply(421, "4.3.2", f"{host} Error: all server ports are busy")


def too_much_mail(client: str) -> Reply:
    return Reply(450, "4.7.1", f"Error: too much mail from {client}")


def too_many_recipients_from(client: str) -> Reply:
    """smtpd_client_recipient_rate_limit."""
    return Reply(450, "4.7.1", f"Error: too many recipients from {client}")


def shutting_down(host: str) -> Reply:
    return Reply(421, "4.3.2", f"{host} Service shutting down")


def encoded(reply: Reply) -> bytes:
    """`reply` on the wire; of those that nearly every session is given it is kept."""
    return _ENCODED.get(id(reply)) or reply.encode()


_ENCODED: Final = {id(reply): reply.encode() for reply in (OK, MAIL_OK, RCPT_OK, GO_AHEAD, BYE)}  # they live as long
