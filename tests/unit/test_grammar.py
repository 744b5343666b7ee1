"""Command arguments: what is taken, what is refused and with which reply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.envelope import NULL_SENDER, Address, Body, Notify, Ret
from edgemail.relay.wire import replies
from edgemail.relay.wire.events import Mail, Rcpt
from edgemail.relay.wire.grammar import (
    Malformed,
    decode_xtext,
    encode_xtext,
    hello_name,
    is_domain,
    is_literal,
    looks_like_routing,
    parse_mail,
    parse_path,
    parse_rcpt,
)
from edgemail.reply import Reply

LABEL = "x" * 63
LONG_DOMAIN = ".".join([LABEL, LABEL, LABEL, "x" * 63])  # 255 octets

# The text behind "TO:", the address, and whether strict_rfc821_envelopes takes it.
PATHS = [
    ("<a@example.com>", Address("a", "example.com"), True),
    ("<A.b+c=d@Example.COM>", Address("A.b+c=d", "Example.COM"), True),
    ("<a@localhost>", Address("a", "localhost"), True),
    ("<postmaster>", Address("postmaster"), True),
    ("<PostMaster>", Address("PostMaster"), True),
    ("<root>", Address("root"), False),
    ("a@example.com", Address("a", "example.com"), False),
    (" a@example.com", Address("a", "example.com"), False),
    (" <a@example.com>", Address("a", "example.com"), False),
    ("   <a@example.com>", Address("a", "example.com"), False),
    ("< a@example.com >", Address("a", "example.com"), False),
    ("root", Address("root"), False),
    ("<@relay.example,@b.example:a@example.com>", Address("a", "example.com"), True),
    ("<@relay.example:postmaster>", Address("postmaster"), True),
    ('<"a b"@example.com>', Address('"a b"', "example.com"), True),
    ('<"a@b"@example.com>', Address('"a@b"', "example.com"), True),
    ('<"a\\"b>"@example.com>', Address('"a\\"b>"', "example.com"), True),
    ('<""@example.com>', Address('""', "example.com"), True),
    ("<a@[192.0.2.1]>", Address("a", "[192.0.2.1]"), True),
    ("<a@[IPv6:2001:db8::1]>", Address("a", "[IPv6:2001:db8::1]"), True),
    ("<a@[ipv6:::ffff:192.0.2.1]>", Address("a", "[ipv6:::ffff:192.0.2.1]"), True),
    ("<a%b@example.com>", Address("a%b", "example.com"), True),
    ("<a!b@example.com>", Address("a!b", "example.com"), True),
    ("<.a..b.@example.com>", Address(".a..b.", "example.com"), False),
    ("<a@example.com.>", Address("a", "example.com"), False),
    ("<a@my_host.example>", Address("a", "my_host.example"), False),
    ("<a@_dmarc.example>", Address("a", "_dmarc.example"), False),
    ("<" + "l" * 64 + "@example.com>", Address("l" * 64, "example.com"), True),
    ("<" + "l" * 65 + "@example.com>", Address("l" * 65, "example.com"), False),
    ("<a@" + LABEL + ".example>", Address("a", LABEL + ".example"), True),
    ("<a@" + LONG_DOMAIN + ">", Address("a", LONG_DOMAIN), False),  # a path of 259 octets
    ("<abc@" + LONG_DOMAIN[4:] + ">", Address("abc", LONG_DOMAIN[4:]), False),  # 257
    ("<ab@" + LONG_DOMAIN[4:] + ">", Address("ab", LONG_DOMAIN[4:]), True),  # 256
    ("<a@1and1.example>", Address("a", "1and1.example"), True),
    ("<a@4.example.163>", Address("a", "4.example.163"), True),
]

NO_PATHS = [
    "", " ", "<>", "< >", "<a@>", "<@example.com>", "<@>", "@example.com", "<a b@example.com>", "<a@b c>",
    "<a@b@example.com>", "<a@example.com", "a@example.com>", "<<a@example.com>>", "<a@example.com>SIZE=1",
    "<a@example.com>,<b@example.com>", "<a,b@example.com>", "<a@example.com,b@example.com>", "<a(c)@example.com>",
    "<a@-x.example>", "<a@x-.example>", "<a@x..example>", "<a@.example>", "<a@example..>", "<a@exa mple.com>",
    "<a@192.0.2.1>", "<a@1>", "<a@[192.0.2.256]>", "<a@[192.0.2]>", "<a@[IPv6:]>", "<a@[IPv6:2001:db8::g]>",
    "<a@[IPv6:fe80::1%eth0]>", "<a@[2001:db8::1]>", "<a@[x]>", "<a@[]>", "<a@[192.0.2.1>", "<a@192.0.2.1]>",
    '<"a@example.com>', '<"a"b@example.com>', '<a"b"@example.com>', '<"a" b@example.com>', "<.>", "<..@example.com>",
    "<a\0@example.com>", "<a@exam\0ple.com>", "<a\x7f@example.com>", '<"a\x01"@example.com>', '<"a\r\n"@example.com>',
    "<a@example.com\n>", "<a\x85@example.com>", "<a\u2028@example.com>", '<"\u2029"@example.com>', "<a@\u2028.example>",
    "<a@" + "x" * 64 + ".example>", "<a@" + LONG_DOMAIN + "x>", "<@relay.example a@example.com>", "<@:a@example.com>",
    "<relay.example:a@example.com>", "<a@exam/ple.com>", "<a@exa_mple.com/>",
]  # fmt: skip


@pytest.mark.parametrize(("text", "address", "strict"), PATHS)
def test_paths(text: str, address: Address, strict: bool) -> None:
    assert parse_path(text, replies.BAD_RECIPIENT) == (address, "")
    assert parse_path(text + " ", replies.BAD_RECIPIENT) == (address, "")
    assert parse_path(text + " A=b  C ", replies.BAD_RECIPIENT)[1].split() == ["A=b", "C"]
    if strict:
        assert parse_path(text, replies.BAD_RECIPIENT, strict=True) == (address, "")
    else:
        with pytest.raises(Malformed):
            parse_path(text, replies.BAD_RECIPIENT, strict=True)


@pytest.mark.parametrize("text", NO_PATHS)
@pytest.mark.parametrize("strict", [False, True])
def test_no_paths(text: str, strict: bool) -> None:
    with pytest.raises(Malformed) as fault:
        parse_path(text, replies.BAD_RECIPIENT, strict=strict)
    assert fault.value.reply is replies.BAD_RECIPIENT


def test_the_null_sender_is_for_mail_alone() -> None:
    assert parse_mail("FROM:<>").sender is NULL_SENDER
    assert parse_mail("from:<> SIZE=10", strict=True) == Mail(NULL_SENDER, 10)
    assert parse_mail("FROM: <>") == Mail(NULL_SENDER)
    with pytest.raises(Malformed) as fault:
        parse_rcpt("TO:<>")
    assert fault.value.reply is replies.BAD_RECIPIENT
    with pytest.raises(Malformed):
        parse_mail("FROM:<postmaster>", strict=True)
    assert parse_mail("FROM:<root>").sender == Address("root")


MAILS = [
    ("FROM:<a@b.c>", Mail(Address("a", "b.c"))),
    ("From: a@b.c size=0", Mail(Address("a", "b.c"), 0)),
    ("FROM:<a@b.c> SIZE=12345678901234567890", Mail(Address("a", "b.c"), 12345678901234567890)),
    ("FROM:<a@b.c> BODY=7bit", Mail(Address("a", "b.c"))),
    ("FROM:<a@b.c>  BODY=8BITMIME  SIZE=5 ", Mail(Address("a", "b.c"), 5, Body.EIGHT_BIT)),
    ("FROM:<a@b.c> SMTPUTF8", Mail(Address("a", "b.c"), smtputf8=True)),
    ("FROM:<ü@b.c> SMTPUTF8", Mail(Address("ü", "b.c"), smtputf8=True)),
    ("FROM:<a@bücher.example> SMTPUTF8", Mail(Address("a", "bücher.example"), smtputf8=True)),
    ("FROM:<a@b.c> RET=hdrs", Mail(Address("a", "b.c"), ret=Ret.HDRS)),
    ("FROM:<a@b.c> RET=FULL ENVID=Ab+2Bc", Mail(Address("a", "b.c"), ret=Ret.FULL, envid="Ab+2Bc")),
    ("FROM:<a@b.c> ENVID=" + "x" * 100, Mail(Address("a", "b.c"), envid="x" * 100)),
    ("FROM:<a@b.c> AUTH=<>", Mail(Address("a", "b.c"))),
    ("FROM:<a@b.c> AUTH=a+3Db@b.c", Mail(Address("a", "b.c"))),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "mail"), MAILS)
def test_mail(argument: str, mail: Mail) -> None:
    assert parse_mail(argument) == mail


BAD_MAILS = [
    ("", replies.MAIL_SYNTAX),
    ("<a@b.c>", replies.MAIL_SYNTAX),
    ("TO:<a@b.c>", replies.MAIL_SYNTAX),
    ("FROM <a@b.c>", replies.MAIL_SYNTAX),
    ("FROM:", replies.BAD_SENDER),
    ("FROM:<a@b@c>", replies.BAD_SENDER),
    ("FROM:<ü@b.c>", replies.NEEDS_SMTPUTF8),
    ("FROM:<ü@b.c> SIZE=1", replies.NEEDS_SMTPUTF8),
    ("FROM:<a@bücher.example>", replies.NEEDS_SMTPUTF8),
    ("FROM:<a@b.c> SIZE", replies.BAD_SIZE),
    ("FROM:<a@b.c> SIZE=-1", replies.BAD_SIZE),
    ("FROM:<a@b.c> SIZE=1k", replies.BAD_SIZE),
    ("FROM:<a@b.c> SIZE=١ SMTPUTF8", replies.BAD_SIZE),
    ("FROM:<a@b.c> SIZE=123456789012345678901", replies.BAD_SIZE),
    ("FROM:<a@b.c> SIZE=1 size=1", replies.REPEATED_PARAMETER),
    ("FROM:<a@b.c> BODY", replies.UNKNOWN_BODY),
    ("FROM:<a@b.c> BODY=BINARYMIME", replies.UNKNOWN_BODY),
    ("FROM:<a@b.c> SMTPUTF8=yes", replies.BAD_PARAMETER),
    ("FROM:<a@b.c> RET=SOME", replies.BAD_RET),
    ("FROM:<a@b.c> RET", replies.BAD_RET),
    ("FROM:<a@b.c> ENVID", replies.BAD_ENVID),
    ("FROM:<a@b.c> ENVID=a+", replies.BAD_ENVID),
    ("FROM:<a@b.c> ENVID=a+2b", replies.BAD_ENVID),
    ("FROM:<a@b.c> ENVID=a+0D+0ASubject", replies.BAD_ENVID),
    ("FROM:<a@b.c> ENVID=a+FF", replies.BAD_ENVID),
    ("FROM:<a@b.c> ENVID=" + "x" * 101, replies.BAD_ENVID),
    ("FROM:<a@b.c> AUTH", replies.BAD_AUTH_SENDER),
    ("FROM:<a@b.c> AUTH=a+3d", replies.BAD_AUTH_SENDER),
    ("FROM:<a@b.c> XVERP", replies.UNKNOWN_PARAMETER),
    ("FROM:<a@b.c> NOTIFY=NEVER", replies.UNKNOWN_PARAMETER),
    ("FROM:<a@b.c> X-a=b=c", replies.BAD_PARAMETER),
    ("FROM:<a@b.c> =1", replies.BAD_PARAMETER),
    ("FROM:<a@b.c> SIZE=", replies.BAD_PARAMETER),
    ("FROM:<a@b.c> b@c", replies.BAD_PARAMETER),
]


@pytest.mark.parametrize(("argument", "reply"), BAD_MAILS)
def test_bad_mail(argument: str, reply: Reply) -> None:
    with pytest.raises(Malformed) as fault:
        parse_mail(argument)
    assert fault.value.reply is reply


def test_what_is_not_on_offer_is_unknown() -> None:
    for argument, options in (
        ("FROM:<a@b.c> SMTPUTF8", {"smtputf8": False}),
        ("FROM:<a@b.c> RET=FULL", {"dsn": False}),
        ("FROM:<a@b.c> ENVID=x", {"dsn": False}),
    ):
        with pytest.raises(Malformed) as fault:
            parse_mail(argument, **options)
        assert fault.value.reply is replies.UNKNOWN_PARAMETER
    for argument in ("TO:<a@b.c> NOTIFY=NEVER", "TO:<a@b.c> ORCPT=rfc822;a"):
        with pytest.raises(Malformed) as fault:
            parse_rcpt(argument, dsn=False)
        assert fault.value.reply is replies.UNKNOWN_PARAMETER


RCPTS = [
    ("TO:<a@b.c>", Rcpt(Address("a", "b.c"))),
    ("to: a@b.c", Rcpt(Address("a", "b.c"))),
    ("TO:<a@b.c> NOTIFY=never", Rcpt(Address("a", "b.c"), Notify.NEVER)),
    ("TO:<a@b.c> NOTIFY=SUCCESS,delay", Rcpt(Address("a", "b.c"), Notify.SUCCESS | Notify.DELAY)),
    ("TO:<a@b.c> notify=FAILURE ORCPT=RFC822;B+2B1@c", Rcpt(Address("a", "b.c"), Notify.FAILURE, "RFC822;B+2B1@c")),
    ("TO:<a@b.c> ORCPT=utf-8;b\\x{FC}@b.c", Rcpt(Address("a", "b.c"), None, "utf-8;b\\x{FC}@b.c")),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "rcpt"), RCPTS)
def test_rcpt(argument: str, rcpt: Rcpt) -> None:
    assert parse_rcpt(argument) == rcpt


def test_rcpt_in_utf8() -> None:
    assert parse_rcpt("TO:<ü@bücher.example>", smtputf8=True) == Rcpt(Address("ü", "bücher.example"))
    rcpt = parse_rcpt("TO:<ü@b.c> ORCPT=utf-8;ü@b.c", smtputf8=True)
    assert rcpt.orcpt == "utf-8;ü@b.c"
    for domain in ("xn\u200d.example", "\u3002.example", "a.\u2028.example", "ü" * 90 + ".example"):
        with pytest.raises(Malformed):
            parse_rcpt(f"TO:<a@{domain}>", smtputf8=True)


BAD_RCPTS = [
    ("", replies.RCPT_SYNTAX),
    ("FROM:<a@b.c>", replies.RCPT_SYNTAX),
    ("TO:", replies.BAD_RECIPIENT),
    ("TO:Bob <a@b.c>", replies.BAD_PARAMETER),
    ("TO:<a@b.c> SIZE=1", replies.UNKNOWN_PARAMETER),
    ("TO:<ü@b.c>", replies.NEEDS_SMTPUTF8),
    ("TO:<a@b.c> NOTIFY", replies.BAD_NOTIFY),
    ("TO:<a@b.c> NOTIFY=NEVER,DELAY", replies.BAD_NOTIFY),
    ("TO:<a@b.c> NOTIFY=DELAY,", replies.BAD_NOTIFY),
    ("TO:<a@b.c> NOTIFY=ALWAYS", replies.BAD_NOTIFY),
    ("TO:<a@b.c> NOTIFY=DELAY NOTIFY=DELAY", replies.REPEATED_PARAMETER),
    ("TO:<a@b.c> ORCPT", replies.BAD_ORCPT),
    ("TO:<a@b.c> ORCPT=a@b.c", replies.BAD_ORCPT),
    ("TO:<a@b.c> ORCPT=rfc822;", replies.BAD_ORCPT),
    ("TO:<a@b.c> ORCPT=;a@b.c", replies.BAD_ORCPT),
    ("TO:<a@b.c> ORCPT=rfc(822;a@b.c", replies.BAD_ORCPT),
    ("TO:<a@b.c> ORCPT=rfc822;a+0A@b.c", replies.BAD_ORCPT),
    ("TO:<a@b.c> ORCPT=rfc822;a+4@b.c", replies.BAD_ORCPT),
    ("TO:<a@b.c> ORCPT=rfc822;" + "a" * 494, replies.BAD_ORCPT),
    ("TO:<a@b.c> ORCPT=utf-8;ü@b.c", replies.NEEDS_SMTPUTF8),
]


@pytest.mark.parametrize(("argument", "reply"), BAD_RCPTS)
def test_bad_rcpt(argument: str, reply: Reply) -> None:
    with pytest.raises(Malformed) as fault:
        parse_rcpt(argument)
    assert fault.value.reply is reply


GOOD_DOMAINS = ["example.com", "a", "a-b.c1", "my_host", "xn--bcher-kva.example", "bücher.example", "x" * 63]
BAD_DOMAINS = ["", ".", "a..b", "-a", "a-", "192.0.2.1", "a b", "a@b", "x" * 64, "a.\u200c.b", "é" * 90]


@pytest.mark.parametrize("name", GOOD_DOMAINS)
def test_domains(name: str) -> None:
    assert is_domain(name)


@pytest.mark.parametrize("name", BAD_DOMAINS)
def test_no_domains(name: str) -> None:
    assert not is_domain(name)


def test_domains_strictly() -> None:
    assert is_domain("example.com", strict=True)
    assert not is_domain("my_host", strict=True)


def test_hello_names() -> None:
    assert hello_name(" client.example ", replies.EHLO_SYNTAX) == "client.example"
    assert hello_name("[192.0.2.1]", replies.EHLO_SYNTAX, strict=True) == "[192.0.2.1]"
    assert hello_name("my printer", replies.EHLO_SYNTAX) == "my printer"
    assert hello_name("b\xfcro\x01\r", replies.EHLO_SYNTAX) == "b?ro?"
    assert hello_name("x" * 300, replies.EHLO_SYNTAX) == "x" * 255
    for name, strict in (("", False), (" ", False), ("my printer", True), ("[x]", True)):
        with pytest.raises(Malformed) as fault:
            hello_name(name, replies.EHLO_SYNTAX, strict=strict)
        assert fault.value.reply is replies.EHLO_SYNTAX


def test_routing_in_a_local_part() -> None:
    assert [looks_like_routing(local) for local in ("a%b", "a!b", '"a@b"', "a+b", '"a b"')] == [True] * 3 + [False] * 2


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_xtext_goes_there_and_back(text: str) -> None:
    encoded = encode_xtext(text)
    assert encoded.isascii()
    assert not set(encoded) & set(" =\r\n\0")
    assert decode_xtext(encoded) == text.encode()


def test_xtext() -> None:
    assert encode_xtext("a+b=c d") == "a+2Bb+3Dc+20d"
    for text in ("+", "+2", "+2g", "+2b", "a=b", "a b", "ü"):
        with pytest.raises(ValueError, match="xtext"):
            decode_xtext(text)


ALPHABET = st.text(
    st.sampled_from('<>@:,;."\\[]()%! \t=+-_aZ09\r\n\0\x7f\xa0ü\u2028') | st.characters(exclude_categories=["Cs"])
)


@given(ALPHABET, st.booleans(), st.booleans())
def test_anything_parses_or_is_malformed(text: str, strict: bool, smtputf8: bool) -> None:
    """No other exception, and what comes out holds no control and can be said again on the wire."""
    try:
        address = parse_rcpt("TO:" + text, strict=strict, smtputf8=smtputf8).recipient
    except Malformed:
        return
    said = str(address)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in said)
    assert parse_rcpt(f"TO:<{said}>", strict=strict, smtputf8=smtputf8).recipient == address
    assert smtputf8 or said.isascii()


LONG = [
    *("<" + "a." * 16_000, "<" + "a@" * 16_000, '<"' + '\\"' * 16_000, "<a@" + "a-" * 16_000 + ">", "<" * 32_000),
    *("<a@" + "a." * 16_000 + ">", "<@" + "a,@" * 10_000 + ":a@b>", " " * 32_000, "<a@b.c>" + " " * 32_000 + "x="),
    *("<a@[IPv6:" + ":" * 32_000 + "]>", "<a@b.c> " + "a=b " * 8_000),
]


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
@pytest.mark.parametrize("strict", [False, True])
def test_no_pattern_explodes(text: str, strict: bool) -> None:
    """Each is milliseconds of work for a linear pattern, and more than a lifetime for one that tries all ways."""
    with pytest.raises(Malformed):
        parse_mail("FROM:" + text, strict=strict)


def test_literals() -> None:
    assert is_literal("[192.0.2.1]")
    assert is_literal("[IPv6:::1]")
    assert not is_literal("[IPv6:192.0.2.1]")
    assert not is_literal("192.0.2.1")
