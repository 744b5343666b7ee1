"""What a message looks like on its way out: bare addresses completed, over-long lines folded. Streaming.

Owns the only two changes that are made to what a device sent, both at send time, so that a changed `myorigin` applies
to mail already queued. Nothing else in a header is touched, not even its folding; a body is never looked into.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Final

from edgemail.envelope import Address, Envelope
from edgemail.settings import Settings

LONG_LINE: Final = 998  # octets without CRLF, RFC 5322 2.1.1; `Envelope.long_lines` tells of longer ones
SHORTEST_LINE: Final = 8  # limit: least effective smtp_line_length_limit; a blank and a whole UTF-8 sequence fit


def complete(address: Address, settings: Settings) -> Address:
    """A bare address with `@myorigin`; where append_dot_mydomain says so, `user@host` with `.mydomain`."""
    if not address:
        return address
    domain = address.domain or settings.myorigin
    if settings.append_dot_mydomain and settings.mydomain and "." not in domain and not domain.startswith("["):
        domain = f"{domain}.{settings.mydomain}"
    return address if domain == address.domain else Address(address.local, domain)


def rewrite(chunks: Iterable[bytes], envelope: Envelope, settings: Settings) -> Iterator[bytes]:
    """The stored message as it goes out. The very chunks that came in, where nothing is to be changed."""
    stream = iter(chunks)
    head: list[bytes] = []
    size, ended = 0, False
    tail = b""
    for chunk in stream:
        head.append(chunk)
        size += len(chunk)
        ended = b"\r\n\r\n" in tail + chunk or (size == len(chunk) and chunk.startswith(b"\r\n"))
        tail = (tail + chunk)[-3:]
        if ended or size >= settings.header_size_limit:
            break
    header = b"".join(head) if len(head) > 1 else (head[0] if head else b"")
    places = bare_addresses(header[: settings.header_size_limit])
    limit = settings.smtp_line_length_limit
    long_lines = envelope.long_lines or 0 < limit < LONG_LINE
    if places:
        origin = b"@" + settings.myorigin.encode()
        header = _insert(header, places, origin)
        head = [header]
        # completion may have made a line too long
        long_lines = long_lines or max(map(len, header.split(b"\r\n"))) > limit
    outgoing = _joined(head, stream)
    yield from fold(outgoing, max(limit, SHORTEST_LINE)) if limit > 0 and long_lines else outgoing


def _joined(head: list[bytes], stream: Iterator[bytes]) -> Iterator[bytes]:
    yield from head
    head.clear()  # not kept for as long as the body takes
    yield from stream


def _insert(header: bytes, places: list[int], text: bytes) -> bytes:
    out = bytearray()
    start = 0
    for place in places:
        out += header[start:place]
        out += text
        start = place
    out += header[start:]
    return bytes(out)


# ---- addresses in a header

FIELD = re.compile(rb"(?:from|to|cc)[ \t]*:", re.IGNORECASE)
ANY_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")  # RFC 5322 2.2
TOKEN = re.compile(
    rb"(?P<blank>[ \t\r\n]+)"
    rb'|(?P<word>"(?:[^"\\]|\\.)*"|[^\s()<>@,;:"\[\]\\]+)'
    rb"|(?P<literal>\[(?:[^\[\]\\]|\\.)*\])"
    rb"|(?P<special>[<>@,;:])",
    re.DOTALL,
)
# A header whose address lists all are of the plain kind and complete: one look tells that nothing is to be done.
_ATOM = rb'[^\s()<>@,;:"\[\]\\]++'
_MAILBOX = (
    rb"(?:"
    + _ATOM
    + rb"@"
    + _ATOM
    + rb"|(?:"
    + _ATOM
    + rb'|"[^"\\\r\n]*+"|[ \t]++)*+<'
    + _ATOM
    + rb"@"
    + _ATOM
    + rb">)"
)
_COMPLETE = rb"[ \t]*+" + _MAILBOX + rb"(?:,(?:\r\n)?+[ \t]++" + _MAILBOX + rb")*+[ \t]*+\r\n"
COMPLETE = re.compile(
    rb"(?:(?!(?:from|to|cc)[ \t]*:)[!-9;-~]++[ \t]*+:[^\r\n]*+\r\n(?:[ \t][^\r\n]*+\r\n)*+"
    rb"|(?:from|to|cc)[ \t]*+:" + _COMPLETE + rb")*+\r\n",
    re.IGNORECASE,
)
COMMENT_PART = re.compile(rb"[^()\\]+|\\.", re.DOTALL)
ENCODED_WORD = re.compile(rb"=\?[^?]*\?[^?]*\?[^?]*\?=")  # RFC 2047 2; never an address (5)


def bare_addresses(header: bytes) -> list[int]:
    """Where in a header From, To and Cc hold an address without a domain: the offset right behind it."""
    return [] if COMPLETE.match(header) else _bare_addresses(header)


def _bare_addresses(header: bytes) -> list[int]:
    places: list[int] = []
    start = 0
    while start < len(header):
        end = start
        while True:  # to the end of the field, its folded lines included
            line_end = header.find(b"\r\n", end)
            end = len(header) if line_end < 0 else line_end + 2
            if header[end : end + 1] not in (b" ", b"\t"):
                break
        if not ANY_FIELD.match(header, start, end):  # the empty line, or what is no header any more
            break
        field = FIELD.match(header, start, end)
        if field and header.endswith(b"\r\n", start, end):  # not one that the limit has cut
            places += _in_list(header, field.end(), end)
        start = end
    return places


def _in_list(header: bytes, start: int, end: int) -> list[int]:
    """The same for one address list (RFC 5322 3.4); nothing at all where the list does not parse."""
    places: list[int] = []
    words: list[tuple[int, int]] = []  # of the mailbox, or of what is inside its angle brackets
    in_group = in_angle = had_angle = had_at = False
    for kind, at, to in _tokens(header, start, end):
        special = header[at:to] if kind == "special" else b""
        if kind == "bad" or (had_angle and not in_angle and special not in (b",", b";")):
            return []
        if kind == "word":
            words.append((at, to))
        elif special == b"@" or kind == "literal":
            had_at = True
        elif special == b"<":
            if in_angle or had_at:
                return []
            words, in_angle, had_angle = [], True, True
        elif special == b">":
            if not in_angle:
                return []
            places += [] if had_at else _bare(header, words)
            in_angle = False
        elif in_angle:
            if not had_at:  # commas and a colon belong to a source route, which begins with "@"
                return []
        elif special == b":":
            if in_group or had_at or not words:
                return []
            words, in_group = [], True
        elif special in (b",", b";"):
            places += [] if had_at or had_angle else _bare(header, words)
            words, had_angle, had_at = [], False, False
            if special == b";" and not in_group:
                return []
            in_group = in_group and special == b","
    if in_angle or in_group:
        return []
    return places + ([] if had_at or had_angle else _bare(header, words))


def _bare(header: bytes, words: list[tuple[int, int]]) -> list[int]:
    """The place behind a local part; none when the words are no local part but a name, or a path to somewhere."""
    if not words or any(left[1] != right[0] for left, right in itertools.pairwise(words)):
        return []
    local = header[words[0][0] : words[-1][1]]
    unquoted = b"".join(header[at:to] for at, to in words if header[at : at + 1] != b'"')
    if not local.isascii() or b"\r" in local or b"!" in unquoted or b"%" in unquoted or ENCODED_WORD.search(unquoted):
        return []
    if local.startswith(b".") or local.endswith(b".") or b".." in unquoted or local == b'""':
        return []
    return [words[-1][1]]


def _tokens(header: bytes, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Words, literals and specials with their places; comments and blanks left out; "bad" for what does not parse."""
    at = start
    while at < end:
        if header[at] == 0x28:  # "("
            at = _comment_end(header, at, end)
            if at < 0:
                yield "bad", end, end
                return
            continue
        match = TOKEN.match(header, at, end)
        if match is None:
            yield "bad", at, end
            return
        if match.lastgroup != "blank":
            yield str(match.lastgroup), at, match.end()
        at = match.end()


def _comment_end(header: bytes, at: int, end: int) -> int:
    """Behind the comment that begins at `at`; -1 when it does not end. Comments nest (RFC 5322 3.2.2)."""
    depth = 0
    while at < end:
        part = COMMENT_PART.match(header, at, end)
        if part:
            at = part.end()
            continue
        depth += {0x28: 1, 0x29: -1}.get(header[at], 0)
        at += 1
        if depth == 0:
            return at
    return -1


# ---- long lines


def fold(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """Lines of more than `limit` octets broken by CRLF SP, never within a UTF-8 sequence. Nothing is dropped.

    Holds no more than a chunk and one line's `limit`, however long a line is.
    """
    held = b""  # the end of what came in, from the start of a line or of a fold, or a part of it already let go
    room = limit  # octets that the line under way may still have
    for chunk in chunks:
        data = held + chunk if held else chunk
        out = bytearray()
        at = 0
        while True:
            line_end = data.find(b"\r\n", at, at + room + 2)
            if line_end >= 0:
                out += data[at : line_end + 2]
                at, room = line_end + 2, limit
            elif len(data) - at >= room + 2:  # two octets more than fit, and no CRLF: the line is too long
                cut = _whole(data, at, at + room)
                out += data[at:cut]
                out += b"\r\n "
                at, room = cut, limit - 1
            else:
                break
        held = data[at:]
        if out:
            yield bytes(out)
    if len(held) > room:  # by one octet: the end of a message whose last line has no CRLF
        cut = _whole(held, 0, room)
        yield held[:cut] + b"\r\n "
        held = held[cut:]
    if held:
        yield held


def _whole(data: bytes, start: int, cut: int) -> int:
    """`cut`, or up to three octets before it, so that no UTF-8 sequence is cut; `cut` where it is no UTF-8."""
    for place in range(cut, max(cut - 4, start), -1):
        if data[place] & 0xC0 != 0x80:
            return place
    return cut
