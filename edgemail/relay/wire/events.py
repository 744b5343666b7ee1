"""What a client can ask of the server dialog, as values. The dialog returns them, the session answers them.

Kept apart from the state machine so that receive names events without knowing how they are parsed.
"""

from __future__ import annotations

from typing import Final

from edgemail.envelope import Address, Body, Notify, Ret
from edgemail.reply import Reply
from edgemail.value import value


@value
class Hello:
    """HELO or EHLO (`extended`). `name` is as said, at most 255 octets."""

    extended: bool
    name: str


@value
class Mail:
    """MAIL FROM with its parameters (RFC 5321, 1870, 6152, 6531, 3461, 4954); `size` -1 when not said."""

    sender: Address
    size: int = -1
    body: Body = Body.SEVEN_BIT
    smtputf8: bool = False
    ret: Ret | None = None
    envid: str = ""


@value
class Rcpt:
    """RCPT TO with its DSN parameters, case kept."""

    recipient: Address
    notify: Notify | None = None
    orcpt: str = ""


@value
class Begin:
    """DATA, or the first BDAT of a message (`chunking`). Answer with GO_AHEAD (354) to take it, or with a refusal.

    After a refused BDAT its octets are read and dropped by the dialog and each further BDAT of the transaction gets the
    same refusal. GO_AHEAD is not written on the wire when `chunking`.
    """

    chunking: bool


@value
class Content:
    """A piece of the message: dot-unstuffed, every line end CRLF. Needs no answer: call `next_event` again."""

    data: bytes


@value
class End:
    """The message is complete: final dot or BDAT LAST. Answer with the fate of the message.

    `fault` is the refusal that the content itself earned (bare CR/LF or NUL: 550 5.6.11; over message_size_limit:
    552 5.3.4; too many hops is for the session) or None. `size`: octets of content seen, dropped ones included.
    """

    size: int
    fault: Reply | None


@value
class StartTls:
    """STARTTLS, legal here. After the 220 the session wraps the socket and calls `tls_started`."""


@value
class Auth:
    """AUTH with a mechanism in upper case and its initial response, base64-decoded; None when there was none."""

    mechanism: str
    initial: bytes | None


@value
class AuthResponse:
    """A line after a 334, base64-decoded; None: the client cancelled with '*' (answer 501 5.7.0)."""

    data: bytes | None


@value
class Vrfy:
    argument: str


@value
class Etrn:
    argument: str


@value
class Atrn:
    """ATRN by a user who has logged in; `domains` empty: all that are theirs. After a 250 the sides are changed."""

    domains: tuple[str, ...]


@value
class Reset:
    """RSET; the transaction is gone already. Answer 250."""


@value
class Noop:
    """NOOP, HELP or a verb of smtpd_noop_commands. Answer `reply`."""

    reply: Reply


@value
class Quit:
    """QUIT. Answer 221; the dialog is closed after it."""


@value
class Bad:
    """A line the dialog judged by itself: syntax, sequence, unknown verb. Answer with `reply`, or 421 past the limits.

    `fatal`: close at once after the answer (an HTTP request on the SMTP port, for instance).
    """

    reply: Reply
    fatal: bool = False


Command = Hello | Mail | Rcpt | Begin | StartTls | Auth | AuthResponse | Vrfy | Etrn | Atrn | Reset | Noop | Quit | Bad
Event = Command | Content | End


_VERBS: Final = {
    Mail: "MAIL",
    Rcpt: "RCPT",
    End: "END-OF-MESSAGE",
    Reset: "RSET",
    Noop: "NOOP",
    Quit: "QUIT",
    Auth: "AUTH",
    AuthResponse: "AUTH",
    Vrfy: "VRFY",
    Bad: "UNKNOWN",
}


def verb_of(event: Command | End) -> str:
    """The command as Postfix's log names it."""
    verb = _VERBS.get(type(event))
    if verb is not None:
        return verb
    if isinstance(event, Hello):
        return "EHLO" if event.extended else "HELO"
    if isinstance(event, Begin):
        return "BDAT" if event.chunking else "DATA"
    return type(event).__name__.upper()
