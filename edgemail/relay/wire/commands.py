"""Command lines made events: what each verb's argument must look like, given the settings and what is on offer.

Knows nothing of the session's state: what may be said when is the dialog's business.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Final

from edgemail.relay.wire import replies
from edgemail.relay.wire.events import Atrn, Auth, Bad, Begin, Etrn, Event, Hello, Noop, Quit, Reset, StartTls, Vrfy
from edgemail.relay.wire.extensions import Extensions
from edgemail.relay.wire.grammar import Malformed, hello_name, is_domain, is_literal, parse_mail, parse_path
from edgemail.settings import Settings

_CONTROL: Final = re.compile("[\x00-\x1f\x7f]")
_BDAT: Final = re.compile(r"([0-9]{1,20})(?: +(LAST))? *", re.IGNORECASE | re.ASCII)  # RFC 3030 2


def read_text(line: bytes) -> str | None:
    """A command line as text, without blanks around it; None when it holds what no command may."""
    if line.isascii():
        text = line.decode("ascii")
        if text.isprintable():
            return text.strip()
    name = line[:5].upper() in (b"HELO ", b"EHLO ")  # devices name themselves in any character set
    try:
        text = line.decode("latin-1" if name else "utf-8")
    except UnicodeDecodeError:
        return None
    text = text.replace("\t", " ").strip(" ")
    return text if name or not _CONTROL.search(text) else None


def read_base64(text: bytes) -> bytes:
    """RFC 4954 4. Malformed when it is none."""
    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise Malformed(replies.AUTH_NOT_BASE64) from None


def read_bdat(argument: str) -> tuple[int, bool] | None:
    """The count and whether it is the last; None when nobody can tell how many octets follow."""
    words = _BDAT.fullmatch(argument)
    return None if words is None else (int(words[1]), words[2] is not None)


def _ehlo(argument: str, settings: Settings, offer: Extensions) -> Event:
    return Hello(True, hello_name(argument, replies.EHLO_SYNTAX, strict=settings.strict_rfc821_envelopes))


def _helo(argument: str, settings: Settings, offer: Extensions) -> Event:
    return Hello(False, hello_name(argument, replies.HELO_SYNTAX, strict=settings.strict_rfc821_envelopes))


def _mail(argument: str, settings: Settings, offer: Extensions) -> Event:
    mail = parse_mail(argument, strict=settings.strict_rfc821_envelopes, smtputf8=offer.smtputf8, dsn=offer.dsn)
    if mail.size > settings.message_size_limit > 0:  # RFC 1870 6.1
        return Bad(replies.SIZE_OVER_LIMIT)
    return mail


def _data(argument: str, settings: Settings, offer: Extensions) -> Event:
    return Bad(replies.DATA_SYNTAX) if argument else Begin(chunking=False)


def _rset(argument: str, settings: Settings, offer: Extensions) -> Event:
    return Bad(replies.RSET_SYNTAX) if argument else Reset()


def _noop(argument: str, settings: Settings, offer: Extensions) -> Event:
    return Noop(replies.OK)


def _help(argument: str, settings: Settings, offer: Extensions) -> Event:
    return Noop(replies.HELP)


def _quit(argument: str, settings: Settings, offer: Extensions) -> Event:
    return Bad(replies.QUIT_SYNTAX) if argument else Quit()


def _vrfy(argument: str, settings: Settings, offer: Extensions) -> Event:
    if settings.disable_vrfy_command:
        return Bad(replies.VRFY_DISABLED)
    if not argument:
        return Bad(replies.VRFY_SYNTAX)
    _, rest = parse_path(argument, replies.BAD_RECIPIENT)
    if rest and (rest.upper() != "SMTPUTF8" or not offer.smtputf8):  # RFC 6531 3.7.4.2
        return Bad(replies.UNKNOWN_PARAMETER)
    if not rest and not argument.isascii():
        return Bad(replies.NEEDS_SMTPUTF8)
    return Vrfy(argument.removesuffix(rest).rstrip())


def _expn(argument: str, settings: Settings, offer: Extensions) -> Event:
    return Bad(replies.NOT_IMPLEMENTED)


def _starttls(argument: str, settings: Settings, offer: Extensions) -> Event:
    if not offer.starttls:
        return Bad(replies.NOT_IMPLEMENTED)
    return Bad(replies.STARTTLS_SYNTAX) if argument else StartTls()


def _auth(argument: str, settings: Settings, offer: Extensions) -> Event:
    if not offer.auth:
        return Bad(replies.AUTH_NOT_ENABLED)
    if offer.auth_needs_tls:
        return Bad(replies.AUTH_NEEDS_TLS)
    words = argument.split()
    if not 1 <= len(words) <= 2:
        return Bad(replies.AUTH_SYNTAX)
    mechanism = words[0].upper()
    if mechanism not in offer.mechanisms:
        return Bad(replies.AUTH_UNKNOWN)
    if len(words) == 1:
        return Auth(mechanism, None)
    return Auth(mechanism, b"" if words[1] == "=" else read_base64(words[1].encode()))


def _etrn(argument: str, settings: Settings, offer: Extensions) -> Event:
    words = argument.split()
    if len(words) != 1:
        return Bad(replies.ETRN_SYNTAX)
    name = words[0][1:] if words[0][0] in "@#" else words[0]  # RFC 1985 5.3
    if not (is_literal(name) or is_domain(name)):
        return Bad(replies.ETRN_BAD_NAME)
    return Etrn(words[0])


def _atrn(argument: str, settings: Settings, offer: Extensions) -> Event:
    names = [name.strip(" ") for name in argument.split(",")] if argument else []
    if not all(map(is_domain, names)):
        return Bad(replies.ATRN_SYNTAX)
    return Atrn(tuple(names))


# RCPT and BDAT are not here: they cannot be read without the transaction.
PARSERS: Final[Mapping[str, Callable[[str, Settings, Extensions], Event]]] = {
    "HELO": _helo,
    "EHLO": _ehlo,
    "MAIL": _mail,
    "DATA": _data,
    "RSET": _rset,
    "NOOP": _noop,
    "HELP": _help,
    "QUIT": _quit,
    "VRFY": _vrfy,
    "EXPN": _expn,
    "STARTTLS": _starttls,
    "AUTH": _auth,
    "ETRN": _etrn,
    "ATRN": _atrn,
}
