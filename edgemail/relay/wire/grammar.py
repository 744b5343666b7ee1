"""The grammar of command arguments: paths, mailboxes, domains, ESMTP parameters, xtext. Owns no state and no policy.

RFC 5321 4.1.2 is the rule, and real clients are the leniency: brackets may be left out, a space may follow the colon,
a local part may have its dots anywhere, be longer than 64 octets or stand alone, a domain may hold underscores or end
in a dot. `strict` (strict_rfc821_envelopes) takes all of that back. Controls are never taken, in either mode.

Every parser raises Malformed with the reply that tells the client why; any other exception is a bug.
"""

from __future__ import annotations

import re
from typing import Final

from edgemail.domain import ascii_domain
from edgemail.envelope import NULL_SENDER, Address, Body, Notify, Ret
from edgemail.errors import EdgemailError
from edgemail.relay.wire import replies
from edgemail.relay.wire.events import Mail, Rcpt
from edgemail.reply import Reply

LOCAL_PART_LIMIT: Final = 64  # limit: octets of a local part under strict_rfc821_envelopes, RFC 5321 4.5.3.1.1
DOMAIN_LIMIT: Final = 255  # limit: octets of a domain, RFC 5321 4.5.3.1.2
LABEL_LIMIT: Final = 63  # limit: octets of a label of a domain, RFC 1035 2.3.4
PATH_LIMIT: Final = 256  # limit: octets of a path with its brackets under strict_rfc821_envelopes, RFC 5321 4.5.3.1.3
HELLO_LIMIT: Final = 255  # limit: octets of a HELO name that are kept, RFC 5321 4.5.3.1.2
ENVID_LIMIT: Final = 100  # limit: characters of ENVID, RFC 3461 4.4
ORCPT_LIMIT: Final = 500  # limit: characters of ORCPT, RFC 3461 4.2

# RFC 6531 3.3 adds UTF8-non-ascii to atext, qtextSMTP and sub-domain. C1 controls and the two line separators of
# Unicode stay out: they are non-ASCII by the letter, and a terminal or a log obeys them.
_WIDE: Final = "\u00a0-\u2027\u202a-\ud7ff\ue000-\U0010ffff"
_ATEXT: Final = rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{_WIDE}-]"  # RFC 5322 3.2.3
_DOT_STRING: Final = rf"{_ATEXT}+(?:\.{_ATEXT}+)*"
_QUOTED: Final = rf'"(?:[ !#-\[\]-~{_WIDE}]|\\[ -~])*"'  # RFC 5321 4.1.2 Quoted-string
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"  # RFC 5321 4.1.2 sub-domain
_LENIENT_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"

# What nearly every command is: one match and it is parsed.
_COMMON: Final = re.compile(
    rf" ?<([A-Za-z0-9!#$%&'*+/=?^_`{{|}}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~-]+)*)"
    rf"@((?:{_LABEL}\.)*[A-Za-z](?:[A-Za-z0-9-]*[A-Za-z0-9])?)>(?: +(.*))?\Z"
)
_BRACKETED: Final = re.compile(r'<((?:"(?:[^"\\]|\\.)*"|[^"<>])*)>(?: +(.*))?\Z')
_NAKED: Final = re.compile(r'((?:"(?:[^"\\]|\\.)*"|[^ "<>])+)(?: +(.*))?\Z')
_STRICT_LOCAL: Final = re.compile(rf"{_DOT_STRING}|{_QUOTED}")
_LENIENT_LOCAL: Final = re.compile(rf"(?:{_ATEXT}|\.)+|{_QUOTED}")
_STRICT_DOMAIN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LENIENT_DOMAIN: Final = re.compile(rf"{_LENIENT_LABEL}(?:\.{_LENIENT_LABEL})*")
_NUMERIC: Final = re.compile(r"[0-9.]+")
_LONG_LABEL: Final = re.compile(rf"[^.]{{{LABEL_LIMIT + 1}}}")
_LITERAL: Final = re.compile(r"\[(?:IPv6:([0-9A-Fa-f:.]+)|([0-9.]+))\]", re.IGNORECASE)

_PARAMETER: Final = re.compile(rf"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~{_WIDE}]+))?")  # RFC 5321 4.1.2, RFC 6531 3.4
_XTEXT: Final = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")  # RFC 3461 4
_XTEXT_HEX: Final = re.compile(rb"\+([0-9A-F]{2})")
_XTEXT_UNSAFE: Final = re.compile(rb"[^!-*,-<>-~]")
_ADDR_TYPE: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+")  # RFC 3461 4.2: an atom
_UTF8_ADDR: Final = re.compile(rf"(?:[!-*,-<>-~{_WIDE}]|\+[0-9A-F]{{2}})+")  # RFC 6533 3

_NOTIFY: Final = {"SUCCESS": Notify.SUCCESS, "FAILURE": Notify.FAILURE, "DELAY": Notify.DELAY}
_ROUTING: Final = frozenset("%!@")


class Malformed(EdgemailError):
    """An argument that cannot be taken; `reply` is for the client."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


def parse_mail(argument: str, *, strict: bool = False, smtputf8: bool = True, dsn: bool = True) -> Mail:
    """What stands behind "MAIL ". The extensions named are those that are on offer here."""
    if argument[:5].upper() != "FROM:":
        raise Malformed(replies.MAIL_SYNTAX)
    sender, rest = parse_path(argument[5:], replies.BAD_SENDER, strict=strict, reverse=True)
    if not rest:
        if not argument.isascii():
            raise Malformed(replies.NEEDS_SMTPUTF8)
        return Mail(sender)
    size, body, utf8, ret, envid = -1, Body.SEVEN_BIT, False, None, ""
    for keyword, value in _parameters(rest):
        if keyword == "SIZE":
            size = _size(value)
        elif keyword == "BODY":
            body = _body(value)
        elif keyword == "SMTPUTF8" and smtputf8:
            if value:
                raise Malformed(replies.BAD_PARAMETER)  # RFC 6531 3.4: it takes no value
            utf8 = True
        elif keyword == "RET" and dsn:
            ret = _ret(value)
        elif keyword == "ENVID" and dsn:
            envid = _envid(value)
        elif keyword == "AUTH":
            # RFC 4954 5: taken from anybody, believed from nobody. What it names is not passed on.
            if not value or not (value == "<>" or _XTEXT.fullmatch(value)):
                raise Malformed(replies.BAD_AUTH_SENDER)
        else:
            raise Malformed(replies.UNKNOWN_PARAMETER)
    if not utf8 and not argument.isascii():
        raise Malformed(replies.NEEDS_SMTPUTF8)
    return Mail(sender, size, body, utf8, ret, envid)


def parse_rcpt(argument: str, *, strict: bool = False, smtputf8: bool = False, dsn: bool = True) -> Rcpt:
    """What stands behind "RCPT ". `smtputf8`: the transaction's MAIL said so."""
    if argument[:3].upper() != "TO:":
        raise Malformed(replies.RCPT_SYNTAX)
    recipient, rest = parse_path(argument[3:], replies.BAD_RECIPIENT, strict=strict)
    if not smtputf8 and not argument.isascii():
        raise Malformed(replies.NEEDS_SMTPUTF8)
    if not rest:
        return Rcpt(recipient)
    notify, orcpt = None, ""
    for keyword, value in _parameters(rest):
        if keyword == "NOTIFY" and dsn:
            notify = _notify(value)
        elif keyword == "ORCPT" and dsn:
            orcpt = _orcpt(value)
        else:
            raise Malformed(replies.UNKNOWN_PARAMETER)
    return Rcpt(recipient, notify, orcpt)


def parse_path(text: str, refusal: Reply, *, strict: bool = False, reverse: bool = False) -> tuple[Address, str]:
    """A path and the parameters behind it, not yet parsed. `reverse`: of MAIL, where "<>" is one too."""
    common = _COMMON.match(text)
    if common is not None and not strict:
        local, domain, rest = common.groups()
        if len(domain) <= LABEL_LIMIT:  # so no label of it is longer either
            return Address(local, domain), rest or ""
    stripped = text if strict else text.lstrip(" ")
    found = _BRACKETED.match(stripped)
    if found is not None:
        if strict and found.end(1) - found.start(1) + 2 > PATH_LIMIT:
            raise Malformed(refusal)
    elif not strict:
        found = _NAKED.match(stripped)
    if found is None:
        raise Malformed(refusal)
    inner, rest = found.groups()
    if not strict:
        inner = inner.strip(" ")
    if not inner:
        if reverse:
            return NULL_SENDER, (rest or "").rstrip(" ")
        raise Malformed(refusal)
    return _mailbox(inner, refusal, strict, reverse), (rest or "").rstrip(" ")


def _mailbox(text: str, refusal: Reply, strict: bool, reverse: bool) -> Address:
    if text.startswith("@"):
        # RFC 5321 4.1.2 A-d-l: a source route must be taken, should be ignored
        route, colon, text = text.partition(":")
        if not colon or not all(hop[:1] == "@" and is_domain(hop[1:]) for hop in route.split(",")):
            raise Malformed(refusal)
    found = (_STRICT_LOCAL if strict else _LENIENT_LOCAL).match(text)
    if found is None or not found.group().strip("."):
        raise Malformed(refusal)
    local, domain = found.group(), text[found.end() :]
    if not domain:
        if strict and (reverse or local.lower() != "postmaster"):  # RFC 5321 4.5.1
            raise Malformed(refusal)
        return Address(local)
    if domain[0] != "@" or (strict and len(local.encode()) > LOCAL_PART_LIMIT):
        raise Malformed(refusal)
    domain = domain[1:]
    if domain.endswith(".") and not strict:
        domain = domain[:-1]
    if not (is_literal(domain) if domain.startswith("[") else is_domain(domain, strict=strict)):
        raise Malformed(refusal)
    return Address(local, domain)


def is_domain(text: str, *, strict: bool = False) -> bool:
    """Whether a domain name may be written so; U-labels count by their A-labels. No look at the DNS."""
    if not text.isascii():
        if text.endswith("."):  # as of any other: a caller who takes a final dot has taken it off
            return False
        try:
            text = ascii_domain(text)
        except ValueError:
            return False
    if len(text) > DOMAIN_LIMIT or _LONG_LABEL.search(text) or _NUMERIC.fullmatch(text):
        return False  # an address without brackets is no domain either
    return (_STRICT_DOMAIN if strict else _LENIENT_DOMAIN).fullmatch(text) is not None


def is_literal(text: str) -> bool:
    """Whether it is an address literal (RFC 5321 4.1.3) of a kind that anybody can reach: IPv4 or IPv6."""
    found = _LITERAL.fullmatch(text)
    if found is None:
        return False
    from ipaddress import IPv4Address, IPv6Address  # rare, and slow to load

    try:
        if found[1]:
            IPv6Address(found[1])
        else:
            IPv4Address(found[2])
    except ValueError:
        return False
    return True


def hello_name(argument: str, refusal: Reply, *, strict: bool = False) -> str:
    """The name behind HELO or EHLO, as said; what does not print becomes '?'. Devices say all sorts of names."""
    name = argument.strip()
    if not name or (strict and not (is_literal(name) if name.startswith("[") else is_domain(name))):
        raise Malformed(refusal)
    if not (name.isascii() and name.isprintable()):
        name = "".join(c if " " <= c <= "~" else "?" for c in name)
    return name[:HELLO_LIMIT]


def looks_like_routing(local: str) -> bool:
    """A '%', '!' or '@' in a local part, quoted or not: somebody may take it for a route and relay it on."""
    return not _ROUTING.isdisjoint(local)


def encode_xtext(text: str) -> str:
    """RFC 3461 4; what is not ASCII goes as the octets of its UTF-8."""
    return _XTEXT_UNSAFE.sub(lambda octet: b"+%02X" % octet.group()[0], text.encode()).decode("ascii")


def decode_xtext(text: str) -> bytes:
    """ValueError when it is none."""
    if not _XTEXT.fullmatch(text):
        raise ValueError("not xtext")
    return _XTEXT_HEX.sub(lambda pair: bytes.fromhex(pair[1].decode("ascii")), text.encode("ascii"))


def _parameters(text: str) -> list[tuple[str, str]]:
    """Keywords in upper case with their values, "" for none; each keyword once."""
    found: dict[str, str] = {}
    for word in text.split(" "):
        if not word:
            continue
        parameter = _PARAMETER.fullmatch(word)
        if parameter is None:
            raise Malformed(replies.BAD_PARAMETER)
        keyword = parameter[1].upper()
        if keyword in found:
            raise Malformed(replies.REPEATED_PARAMETER)
        found[keyword] = parameter[2] or ""
    return list(found.items())


def _size(value: str) -> int:
    if not (0 < len(value) <= 20 and value.isascii() and value.isdigit()):  # RFC 1870 3
        raise Malformed(replies.BAD_SIZE)
    return int(value)


def _body(value: str) -> Body:
    try:
        return Body(value.upper())
    except ValueError:
        raise Malformed(replies.UNKNOWN_BODY) from None  # BINARYMIME among them: it is not on offer


def _ret(value: str) -> Ret:
    try:
        return Ret(value.upper())
    except ValueError:
        raise Malformed(replies.BAD_RET) from None


def _envid(value: str) -> str:
    if not value or len(value) > ENVID_LIMIT or not _prints(value):
        raise Malformed(replies.BAD_ENVID)
    return value


def _notify(value: str) -> Notify:
    if value.upper() == "NEVER":
        return Notify.NEVER
    notify = Notify.NEVER
    for word in value.upper().split(","):
        if word not in _NOTIFY:  # NEVER among others too: RFC 3461 4.1
            raise Malformed(replies.BAD_NOTIFY)
        notify |= _NOTIFY[word]
    return notify


def _orcpt(value: str) -> str:
    kind, semicolon, address = value.partition(";")
    if not semicolon or not address or len(value) > ORCPT_LIMIT or not _ADDR_TYPE.fullmatch(kind):
        raise Malformed(replies.BAD_ORCPT)
    if not (_UTF8_ADDR.fullmatch(address) if kind.lower() == "utf-8" else _prints(address)):
        raise Malformed(replies.BAD_ORCPT)
    return value


def _prints(xtext: str) -> bool:
    """Whether it is xtext, and what it stands for is printable ASCII: no line end may come out of it in a notice."""
    try:
        plain = decode_xtext(xtext)
    except ValueError:
        return False
    return plain.isascii() and plain.decode("ascii").isprintable()
