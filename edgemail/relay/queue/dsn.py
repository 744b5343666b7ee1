"""The text of a notice: what a person reads, and what a program reads (RFC 3464, RFC 6533). Values in, lines out.

Owns the wording and the fields of message/delivery-status. Every line it gives holds no control and no bare CR or LF
and is shorter than 998 octets, whatever a peer said. No IO.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from edgemail.dates import date
from edgemail.envelope import Address, Envelope
from edgemail.relay.queue.settle import Reported
from edgemail.settings import Settings
from edgemail.value import value

WIDTH: Final = 78  # RFC 5322 2.1.1
MAX_WORD: Final = 900  # limit: octets of a word in a notice that stay on one line, RFC 5322 2.1.1
MAX_TEXT: Final = 4000  # limit: characters of one reason in a notice

_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_HEX: Final = re.compile(rb"\+([0-9A-F]{2})")
_EMBEDDED: Final = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")


@value
class Form:
    """One kind of notice."""

    action: str  # RFC 3464 2.3.3
    subject: str
    opening: tuple[str, ...]  # paragraphs
    returned: str  # what the last part is called


HELP: Final = (
    "If you need help, write to the postmaster of this host and include this report. You may leave out the text of"
    " your own message."
)
FAILED: Final = Form(
    "failed",
    "Undelivered Mail Returned to Sender",
    (
        "your message could not be delivered to the recipients below, and no further attempt will be made. The message"
        " or its header is attached.",
        HELP,
    ),
    "Undelivered Message",
)
DELAYED: Final = Form(
    "delayed",
    "Delayed Mail (still being retried)",
    (
        "THIS IS A WARNING ONLY. YOU DO NOT NEED TO SEND YOUR MESSAGE AGAIN.",
        "It could not be delivered to the recipients below yet. It is kept and will be tried again until {until}.",
        HELP,
    ),
    "Delayed Message",
)
RELAYED: Final = Form(
    "relayed",
    "Successful Mail Delivery Report",
    (
        "your message was passed on for the recipients below, to a system that sends no reports of its own. You will"
        " hear of it again only if it cannot be delivered there.",
    ),
    "Message",
)
COPY: Final = Form(
    "failed",
    "Postmaster Copy: Undelivered Mail",
    ("mail could not be delivered to the recipients below. This copy of the report is for the postmaster.",),
    "Undelivered Message",
)
DELAY_COPY: Final = Form(
    "delayed",
    "Postmaster Warning: Delayed Mail",
    ("mail is delayed; it will be tried again until {until}. This copy of the warning is for the postmaster.",),
    "Delayed Message",
)


def clean(text: str) -> str:
    """Text without anything that ends a line or obeys a terminal."""
    return _CONTROLS.sub(" ", text)[:MAX_TEXT]


def wrap(text: str, first: str = "", rest: str = "") -> Iterator[str]:
    """`text` in lines of WIDTH, broken at spaces; `first` begins the first line, `rest` all others: both are short."""
    line, empty = first, True
    for word in clean(text).split():
        while len(piece := _fitting(word)) < len(word):
            if not empty:
                yield line
            yield (first if line == first and empty else rest) + piece
            word, line, empty = word[len(piece) :], rest, True
        if not empty and len(line) + 1 + len(word) > WIDTH:
            yield line
            line, empty = rest, True
        line += word if empty else " " + word
        empty = False
    if not empty or line == first:
        yield line.rstrip()


def header(name: str, value: str) -> Iterator[str]:
    """A field of the notice's own header: on one line, unless it is longer than a line may be."""
    return iter([f"{name}: {value}"]) if len(value) * 4 <= MAX_WORD else wrap(value, f"{name}: ", " ")


def _fitting(word: str) -> str:
    """As much of a word as MAX_WORD octets hold."""
    if len(word) * 4 <= MAX_WORD:
        return word
    return word.encode("utf-8", "replace")[:MAX_WORD].decode("utf-8", "ignore")


def full_address(address: Address, settings: Settings) -> Address:
    """An address as the world knows it: a bare local part is ours."""
    return address if address.domain or not address else Address(address.local, settings.myorigin)


def human(form: Form, settings: Settings, reported: Iterable[Reported], until: str) -> Iterator[str]:
    """The part for a person."""
    yield f"This is the mail system at host {settings.myhostname}."
    for number, paragraph in enumerate(form.opening):
        text = paragraph.format(until=until)
        yield ""
        yield from wrap(text[:1].upper() + text[1:] if number == 0 else text)
    yield ""
    yield f"{'':<19}The mail system"
    for one in reported:
        yield ""
        address = f"<{clean(str(one.recipient.address))}>:"
        if len(address.encode("utf-8", "replace")) <= WIDTH:
            yield from wrap(one.text, f"{address} ", "    ")
        else:
            yield from wrap(f"{address} {one.text}", "", "    ")


def status_fields(
    form: Form, settings: Settings, envelope: Envelope, reported: Iterable[Reported], until: str, *, utf8: bool
) -> Iterator[str]:
    """The part for a program: RFC 3464 2.2 and 2.3."""
    yield f"Reporting-MTA: dns; {settings.myhostname}"
    yield f"X-Edgemail-Queue-ID: {envelope.queue_id}"
    if envelope.sender:
        yield from _field("X-Edgemail-Sender", _typed(full_address(envelope.sender, settings), utf8))
    if envelope.envid:
        yield from _field("Original-Envelope-Id", decode_xtext(envelope.envid))
    if envelope.received_at:
        yield f"Arrival-Date: {date(envelope.received_at)}"
    for one in reported:
        yield ""
        yield from _field("Final-Recipient", _typed(full_address(one.recipient.address, settings), utf8))
        if one.recipient.orcpt:
            yield from _field("Original-Recipient", original_recipient(one.recipient.orcpt, utf8=utf8))
        yield f"Action: {form.action}"
        yield f"Status: {one.status}"
        if one.remote:
            yield from _field("Remote-MTA", f"dns; {remote_name(one.relay)}")
        if one.remote and one.reply is not None:
            yield from _field("Diagnostic-Code", f"smtp; {one.reply}")
        else:
            yield from _field("Diagnostic-Code", f"X-Edgemail; {one.text}")
        if form.action == "delayed" and until:
            yield f"Will-Retry-Until: {until}"


def remote_name(relay: str) -> str:
    """The host of a relay: "mx.example.com[192.0.2.1]:25" is "mx.example.com"."""
    return relay.partition("[")[0] or relay.rpartition(":")[0] or relay


def decode_xtext(text: str) -> str:
    """RFC 3461 4: xtext as the text that it stands for."""
    raw = text.encode("utf-8", "replace")
    return _HEX.sub(lambda match: bytes.fromhex(match[1].decode()), raw).decode("utf-8", "replace")


def original_recipient(orcpt: str, *, utf8: bool) -> str:
    """ORCPT as Original-Recipient has it: type, then the address in plain."""
    kind, _, address = orcpt.partition(";")
    address = decode_xtext(address)
    if kind.lower() == "utf-8":  # RFC 6533 3
        address = _EMBEDDED.sub(lambda match: _character(int(match[1], 16)), address)
        if not utf8:
            address = _embedded(address)
    return f"{kind}; {address}"


def needs_utf8(envelope: Envelope) -> bool:
    """Whether a notice about a message is itself an SMTPUTF8 message. RFC 6533 4."""
    return envelope.smtputf8 or not str(envelope.sender).isascii()


def encoded(lines: Iterable[str], *, utf8: bool) -> bytes:
    """Lines as they are written."""
    text = "".join(f"{line}\r\n" for line in lines)
    return text.encode("utf-8", "replace") if utf8 else text.encode("ascii", "replace")


def _field(name: str, value: str) -> Iterator[str]:
    return wrap(value, f"{name}: ", "    ")


def _typed(address: Address, utf8: bool) -> str:
    """RFC 3464 2.1.2 and RFC 6533 3: an address with its type."""
    text = str(address)
    if text.isascii():
        return f"rfc822; {text}"
    return f"utf-8; {text}" if utf8 else f"utf-8; {_embedded(text)}"


def _embedded(text: str) -> str:
    return "".join(c if c.isascii() else f"\\x{{{ord(c):X}}}" for c in text)


def _character(code: int) -> str:
    return chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else "?"
