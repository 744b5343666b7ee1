"""Decoders of DATA and BDAT and the encoders of the sending side, against a few lines that say the same slowly.

Invariants: however it is cut, what comes out is the same; the strict decoder ends at the first CRLF.CRLF; what a legacy
decoder or an encoder gives holds no bare CR or LF; what was stuffed is decoded to itself; each keeps a few octets.
"""

from __future__ import annotations

import re
from typing import Any, Final

from edgemail.relay.wire.dot import (
    LONG_LINE,
    ChunkDecoder,
    Decoder,
    LegacyChunkDecoder,
    LegacyDecoder,
    LineEnds,
    Stuffer,
)

WORDS: Final = (
    *(b"\r\n.\r\n", b"\n.\n", b"\r.\r", b"\r\n.\n", b"\n.\r\n", b"\r\r\n.\r\r\n", b"\r\n..", b"\r\n", b"\r", b"\n"),
    *(b".", b"\0", b"\x80", b"x" * LONG_LINE, b"\r\n" + b"y" * (LONG_LINE + 1)),
)
STEPS: Final = (1, 2, 3, 5)


def pieces(data: bytes, step: int) -> list[bytes]:
    return [data[at : at + step] for at in range(0, len(data), step)]


def traits(decoder: Any) -> tuple[object, ...]:
    return decoder.size, decoder.bare, decoder.nul, decoder.eight_bit, decoder.long_lines


def through(decoder: Any, data: bytes, step: int) -> tuple[bytes, bytes | None, tuple[object, ...]]:
    """Content, what stands behind its end, and what is known of it, of DATA in pieces."""
    out = b""
    for number, piece in enumerate(pieces(data, step)):
        content, rest = decoder.feed(piece)
        out += content
        assert len(decoder._tail) <= 6
        if rest is not None:
            return out, rest + data[(number + 1) * step :], traits(decoder)
    return out, None, traits(decoder)


def whole(made: Any, data: bytes, step: int) -> tuple[bytes, tuple[object, ...]]:
    """What comes out of a decoder or encoder that has `finish`."""
    out = b"".join(made.feed(piece) for piece in pieces(data, step)) + made.finish()
    return out, traits(made) if hasattr(made, "bare") else ()


def crlf_only(data: bytes) -> bool:
    return data.count(b"\r\n") == data.count(b"\r") == data.count(b"\n")


def long_lines(content: bytes) -> bool:
    return any(len(line) > LONG_LINE for line in re.split(rb"\r\n", content))


def judge_strict(data: bytes) -> None:
    content, rest, seen = through(Decoder(), data, len(data) or 1)
    end = (b"\r\n" + data).find(b"\r\n.\r\n")
    if end < 0:
        assert rest is None
    else:
        raw = (b"\r\n" + data)[: end + 2]
        assert rest == data[end + 3 :]
        assert content == raw.replace(b"\r\n.", b"\r\n")[2:]
        assert seen[0] == len(content)
        assert seen[1] is not crlf_only(raw)
        assert seen[2] is (b"\0" in content)
        assert seen[3] is not content.isascii()
        if crlf_only(raw):
            assert seen[4] is long_lines(content)
    for step in STEPS:
        cut, left, found = through(Decoder(), data, step)
        if rest is not None:
            assert (cut, left, found) == (content, rest, seen)
        else:
            assert left is None
            assert cut == content


def judge_legacy(data: bytes) -> None:
    content, rest, seen = through(LegacyDecoder(), data, len(data) or 1)
    assert b"\0" not in content
    assert crlf_only(content)
    for step in STEPS:
        cut, left, found = through(LegacyDecoder(), data, step)
        assert (cut, left) == (content, rest), step
        if rest is not None:
            assert found == seen


def judge_chunks(data: bytes) -> None:
    for step in (len(data) or 1, *STEPS):
        out, seen = whole(ChunkDecoder(), data, step)
        assert out == data
        assert seen[:4] == (len(data), not crlf_only(data), b"\0" in data, not data.isascii())
        if crlf_only(data):
            assert seen[4] is long_lines(data)
        out, seen = whole(LegacyChunkDecoder(), data, step)
        assert out == LEGACY_END.sub(b"\r\n", data).replace(b"\0", b"")
        assert crlf_only(out)
        assert seen[0] == len(out)


LEGACY_END: Final = re.compile(rb"\r?\r?\n|\r")


def judge_sent(data: bytes) -> None:
    for step in (len(data) or 1, *STEPS):
        ends = whole(LineEnds(), data, step)[0]
        assert ends == LEGACY_END.sub(b"\r\n", data)
        stuffed = whole(Stuffer(), data, step)[0]
        assert crlf_only(stuffed)
        content, rest, seen = through(Decoder(), stuffed, step)
        assert rest == b""
        assert content == ends + (b"" if ends.endswith(b"\r\n") or not ends else b"\r\n")
        assert seen[1] is False


def judge(data: bytes) -> None:
    judge_strict(data)
    judge_legacy(data)
    judge_chunks(data)
    judge_sent(data)
