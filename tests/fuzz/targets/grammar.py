"""The grammar of addresses, parameters, names and xtext, with what a command may hold and with what none may.

Invariants: a value, or Malformed with a 5yz; what was taken prints, holds nothing that ends a line, and is taken again
when it is said to the next server; xtext comes back as it was; strict takes nothing that lenient refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from edgemail.envelope import Address, Envelope, Notify, Recipient, Target
from edgemail.relay.wire import replies
from edgemail.relay.wire.client import Abilities
from edgemail.relay.wire.commands import read_base64, read_bdat, read_text
from edgemail.relay.wire.events import Mail, Rcpt
from edgemail.relay.wire.grammar import (
    Malformed,
    decode_xtext,
    encode_xtext,
    hello_name,
    is_domain,
    is_literal,
    parse_mail,
    parse_rcpt,
)
from edgemail.relay.wire.transaction import Burden, mail_command, rcpt_command, speakable

WORDS: Final = (
    *(b"FROM:<", b"TO:<", b">", b"@", b"<>", b'"', b"\\", b"a@b.example", b"[127.0.0.1]", b"[IPv6:::1]", b"@r,@s:"),
    *(b" SIZE=", b" BODY=8BITMIME", b" BODY=7BIT", b" SMTPUTF8", b" RET=FULL", b" RET=HDRS", b" ENVID=", b" AUTH=<>"),
    *(
        b" NOTIFY=SUCCESS,FAILURE,DELAY",
        b" NOTIFY=NEVER",
        b" ORCPT=rfc822;",
        b" ORCPT=utf-8;",
        b"+0D+0A",
        b"\\x{1F4A9}",
    ),
    *(b"postmaster", b"\xc3\xbc", b"\xe2\x80\xa8", b"\xc2\x85", b"\t", b" ", b".", b"..", b"xn--", b"\r\n", b"%", b"!"),
)
ABLE: Final = Abilities(
    "mx.example", dict.fromkeys(("SIZE", "8BITMIME", "SMTPUTF8", "DSN", "PIPELINING"), tuple[str, ...]())
)
T = TypeVar("T")


def tried(call: Callable[[], T]) -> T | None:
    try:
        return call()
    except Malformed as fault:
        assert fault.reply.permanent
        return None


def harmless(text: str) -> bool:
    return not any(ord(char) < 32 or 127 <= ord(char) < 160 or char in "\u2028\u2029" for char in text)


def judge_mail(text: str, strict: bool) -> None:
    mail = tried(lambda: parse_mail(text, strict=strict))
    if mail is None:
        return
    assert harmless(str(mail.sender))
    assert mail.smtputf8 or str(mail.sender).isascii()
    assert harmless(mail.envid)
    assert harmless(decode_xtext(mail.envid).decode("ascii"))
    if strict:
        assert tried(lambda: parse_mail(text)) is not None
    if not speakable(mail.sender):
        return
    envelope = Envelope(1, mail.sender, (), ret=mail.ret, envid=mail.envid)
    said = mail_command(ABLE, mail.sender, envelope, Burden(max(mail.size, 0)), mail.smtputf8)
    again = parse_mail(said.removeprefix("MAIL "))
    assert again == Mail(mail.sender, max(mail.size, 0), again.body, mail.smtputf8, mail.ret, mail.envid), said


def judge_rcpt(text: str, strict: bool, smtputf8: bool) -> None:
    rcpt = tried(lambda: parse_rcpt(text, strict=strict, smtputf8=smtputf8))
    if rcpt is None:
        return
    assert rcpt.recipient
    assert harmless(str(rcpt.recipient))
    assert harmless(rcpt.orcpt)
    kind, _, original = rcpt.orcpt.partition(";")
    assert kind.lower() == "utf-8" or harmless(decode_xtext(original).decode("ascii"))
    assert smtputf8 or (str(rcpt.recipient).isascii() and rcpt.orcpt.isascii())
    if strict:
        assert tried(lambda: parse_rcpt(text, smtputf8=smtputf8)) is not None
    if not speakable(rcpt.recipient):
        return
    target = Target(0, Recipient(rcpt.recipient, rcpt.notify, rcpt.orcpt), rcpt.recipient)
    said = rcpt_command(ABLE, target)
    again = parse_rcpt(said.removeprefix("RCPT "), smtputf8=True)
    orcpt = rcpt.orcpt if " ORCPT=" in said else ""
    assert again == Rcpt(rcpt.recipient, rcpt.notify, orcpt), said
    assert rcpt.notify is None or isinstance(rcpt.notify, Notify)


def judge_words(text: str) -> None:
    """Names, literals, xtext and the smaller arguments."""
    name = tried(lambda: hello_name(text, replies.HELO_SYNTAX))
    assert name is None or (name.isascii() and name.isprintable() and 0 < len(name) <= 255)
    assert not (is_domain(text, strict=True) and not is_domain(text))
    assert not is_literal(text) or text.startswith("[")
    coded = encode_xtext(text)
    assert decode_xtext(coded) == text.encode()
    assert coded.isprintable() and coded.isascii()
    try:
        decode_xtext(text)
    except ValueError:
        pass
    tried(lambda: read_base64(text.encode()))
    size = read_bdat(text)
    assert size is None or size[0] >= 0
    assert harmless(str(Address.of(text))) or not harmless(text)


def judge(data: bytes) -> None:
    line = read_text(data)
    if line is None:
        return
    for strict in (False, True):
        judge_mail(line, strict)
        judge_mail(f"FROM:{line}", strict)
        for smtputf8 in (False, True):
            judge_rcpt(line, strict, smtputf8)
            judge_rcpt(f"TO:{line}", strict, smtputf8)
    judge_words(line)
