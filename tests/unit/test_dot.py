"""Content on the wire: every case whole, octet by octet and with a trailer; an oracle that works line by line."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.relay.wire.dot import (
    ChunkDecoder,
    Decoder,
    LegacyChunkDecoder,
    LegacyDecoder,
    LineEnds,
    Stuffer,
)

HOSTILE = st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"a", b"\0", b"\r\n.\r\n", b"xyz", b"\xe9"])).map(
    b"".join
)
BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
TRAILER = b"QUIT\r\n.\r\n"


def splits(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def feed(decoder: Decoder | LegacyDecoder, pieces: list[bytes]) -> tuple[bytes, bytes | None]:
    """All content, and what stood behind the end of data."""
    out, rest = b"", None
    for piece in pieces:
        if rest is not None:
            rest += piece
        else:
            content, rest = decoder.feed(piece)
            if rest is None:
                assert not (decoder.clean and content.endswith(b"\r"))  # a piece never ends inside a line end
            out += content
    return out, rest


def ways(data: bytes) -> list[tuple[list[bytes], bytes]]:
    """Whole, octet by octet, and with what follows in the same piece."""
    octets = [data[i : i + 1] for i in range(len(data))]
    return [([data], b""), (octets, b""), ([data + TRAILER], TRAILER), ([*octets, TRAILER], TRAILER)]


STRICT = [
    (b".\r\n", b""),
    (b"\r\n.\r\n", b"\r\n"),
    (b"a\r\n.\r\n", b"a\r\n"),
    (b"a\r\n\r\n.\r\n", b"a\r\n\r\n"),
    (b"..\r\n.\r\n", b".\r\n"),
    (b"...\r\n.\r\n", b"..\r\n"),
    (b".a\r\n.\r\n", b"a\r\n"),
    (b"a\r\n..\r\n.\r\n", b"a\r\n.\r\n"),
    (b"a\r\n..b\r\n..c\r\n.\r\n", b"a\r\n.b\r\n.c\r\n"),
    (b"a.\r\n.\r\n", b"a.\r\n"),
    (b"a\r\n. \r\n.\r\n", b"a\r\n \r\n"),
    (b"\r\n\r\n\r\n.\r\n", b"\r\n\r\n\r\n"),
    (b"Subject: x\r\n\r\nbody\r\n.\r\n", b"Subject: x\r\n\r\nbody\r\n"),
]


@pytest.mark.parametrize(("wire", "content"), STRICT)
@pytest.mark.parametrize("cls", [Decoder, LegacyDecoder])
def test_clean_content(cls: type[Decoder] | type[LegacyDecoder], wire: bytes, content: bytes) -> None:
    for pieces, behind in ways(wire):
        decoder = cls()
        assert feed(decoder, pieces) == (content, behind)
        assert decoder.size == len(content)
        assert decoder.clean


# What lenient receivers take for an end of data, and what hides one from them.
SMUGGLING = [
    *(r"\n.\n", r"\r\n.\n", r"\n.\r\n", r"\r.\r", r"\r\n.\r", r"\r.\r\n", r"\r.\n", r"\n.\r", r"\n\n.\n", r"\n.\n\r\n"),
    *(r"\r\n.\r\r\n", r"\r\r\n.", r"\r\n\0.\r\n", r"\r\n.\0\r\n", r"\0\r\n\0.\r\0\n", r"\r\0\n.\r\n", r"\r\n.\r\0\n"),
]


@pytest.mark.parametrize("end", [end.encode().decode("unicode_escape").encode() for end in SMUGGLING], ids=SMUGGLING)
def test_nothing_else_ends_a_message(end: bytes) -> None:
    wire = b"a" + end + b"b"
    for pieces in ([wire], [wire[i : i + 1] for i in range(len(wire))]):
        decoder = Decoder()
        _, rest = feed(decoder, pieces)
        assert rest is None
        assert not decoder.clean
        _, rest = decoder.feed(b"\r\n.\r\nNEXT")  # and the session stays in step
        assert rest == b"NEXT"


@given(HOSTILE, st.lists(st.integers(0, 200), max_size=12))
def test_decoder_against_lines(data: bytes, cuts: list[int]) -> None:
    end = (b"\r\n" + data).find(b"\r\n.\r\n")
    raw, behind = (data, None) if end < 0 else (data[:end], data[end + 3 :])
    expected = b"\r\n".join(line.removeprefix(b".") for line in raw.split(b"\r\n"))
    decoder = Decoder()
    content, rest = feed(decoder, splits(data, cuts))
    assert rest == behind
    if rest is not None:
        assert content == expected
        assert decoder.bare == bool(BARE.search(raw))
        assert decoder.nul == (b"\0" in raw)
        assert decoder.eight_bit == (b"\xe9" in raw)
        assert decoder.size == len(content)
    else:
        assert expected.startswith(content)
        assert len(expected) - len(content) <= 4


LEGACY = [
    # the first line end is LF: the client does not know CRLF
    (b"a\nb\n.\n", b"a\r\nb\r\n"),
    (b".\n", b""),
    (b"\n.\n", b"\r\n"),
    (b"a\n.\r\n", b"a\r\n"),
    (b"a\nb\r\n.\n", b"a\r\nb\r\n"),
    (b"a\nb\r\n.\r\n", b"a\r\nb\r\n"),
    (b"a\n..b\n.\n", b"a\r\n.b\r\n"),
    (b"a\nb\rc\n.\n", b"a\r\nb\r\nc\r\n"),
    # what a text-mode stream makes of CRLF
    (b"a\r\r\nb\r\r\n.\r\r\n", b"a\r\nb\r\n"),
    (b"a\r\r\nb\r\r\n.\r\n", b"a\r\nb\r\n"),
    # the first line end is CRLF: only CRLF.CRLF ends it, odd ends inside are mended
    (b"a\r\nb\nc\r\n.\r\n", b"a\r\nb\r\nc\r\n"),
    (b"a\r\nb\n.\nc\r\n.\r\n", b"a\r\nb\r\n\r\nc\r\n"),
    (b"a\r\nb\r\n.\nc\r\n.\r\n", b"a\r\nb\r\n\r\nc\r\n"),
    (b"a\r\nb\n.\r\nc\r\n.\r\n", b"a\r\nb\r\n\r\nc\r\n"),
    (b"a\r\nb\rc\r\n.\r\n", b"a\r\nb\r\nc\r\n"),
    (b"a\r\nb\r.\rc\r\n.\r\n", b"a\r\nb\r\n\r\nc\r\n"),
    (b"a\r\nb\r\r\r\nc\r\n.\r\n", b"a\r\nb\r\n\r\nc\r\n"),
    # NUL is dropped, and hides nothing: it does not make an end of data
    (b"a\0b\r\n.\r\n", b"ab\r\n"),
    (b"a\r\n.\0\r\nb\r\n.\r\n", b"a\r\n\r\nb\r\n"),
    (b"a\n\0.\nb\n.\n", b"a\r\n.\r\nb\r\n"),
]


@pytest.mark.parametrize(("wire", "content"), LEGACY)
def test_legacy_content(wire: bytes, content: bytes) -> None:
    for pieces, behind in ways(wire):
        decoder = LegacyDecoder()
        assert feed(decoder, pieces) == (content, behind)
        assert decoder.size == len(content)
        assert decoder.clean


@given(HOSTILE, st.lists(st.integers(0, 200), max_size=12))
def test_legacy_content_has_good_line_ends_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    whole = feed(LegacyDecoder(), [data])
    decoder = LegacyDecoder()
    content, rest = feed(decoder, splits(data, cuts))
    assert (content, rest) == whole
    assert not BARE.search(content)
    assert b"\0" not in content
    assert decoder.size == len(content)


@given(HOSTILE)
def test_legacy_after_a_crlf_only_crlf_ends(data: bytes) -> None:
    strict = feed(Decoder(), [b"Subject: x\r\n" + data])
    legacy = feed(LegacyDecoder(), [b"Subject: x\r\n" + data])
    assert strict[1] == legacy[1]


CHUNKS = [
    ([b"a\r\n"], b"a\r\n", True),
    ([b""], b"", True),
    ([b"a\r", b"\nb"], b"a\r\nb", True),
    ([b".\r\n", b".\r\n"], b".\r\n.\r\n", True),
    ([b"a\r"], b"a\r", False),
    ([b"a\r", b"b"], b"a\rb", False),
    ([b"a", b"\nb"], b"a\nb", False),
    ([b"a\r", b"\r\n"], b"a\r\r\n", False),
    ([b"\0"], b"\0", False),
    ([b"\r", b"\r", b"\n"], b"\r\r\n", False),
]


@pytest.mark.parametrize(("chunks", "content", "clean"), CHUNKS)
def test_chunks(chunks: list[bytes], content: bytes, clean: bool) -> None:
    for pieces in (chunks, [b"".join(chunks)], [c[i : i + 1] for c in chunks for i in range(len(c))]):
        decoder = ChunkDecoder()
        out = b"".join(decoder.feed(piece) for piece in pieces) + decoder.finish()
        assert (out, decoder.clean, decoder.size) == (content, clean, len(content))


@given(HOSTILE, st.lists(st.integers(0, 200), max_size=12))
def test_chunks_against_a_pattern(data: bytes, cuts: list[int]) -> None:
    decoder, legacy = ChunkDecoder(), LegacyChunkDecoder()
    pieces = splits(data, cuts)
    assert b"".join(map(decoder.feed, pieces)) + decoder.finish() == data
    assert decoder.bare == bool(BARE.search(data))
    mended = b"".join(map(legacy.feed, pieces)) + legacy.finish()
    assert mended == re.sub(rb"\r?\r?\n|\r", b"\r\n", data).replace(b"\0", b"")
    assert legacy.clean
    assert legacy.size == len(mended)


LINES = st.lists(
    st.tuples(st.sampled_from([0, 1, 77, 996, 997, 998, 999, 1000, 1001, 2500]), st.integers(1, 3)), max_size=6
)


@given(LINES, st.lists(st.integers(0, 10_000), max_size=8))
def test_long_lines_and_size(lines: list[tuple[int, int]], cuts: list[int]) -> None:
    content = b"".join((b"x" * length + b"\r\n") * times for length, times in lines)
    decoder = Decoder()
    assert feed(decoder, splits(content + b".\r\n", cuts)) == (content, b"")
    assert decoder.size == len(content)
    assert decoder.long_lines == any(length > 998 for length, _ in lines)
    chunks = ChunkDecoder()
    for piece in splits(content, cuts):
        chunks.feed(piece)
    chunks.finish()
    assert chunks.long_lines == decoder.long_lines


@pytest.mark.parametrize(("length", "long"), [(998, False), (999, True)])
@pytest.mark.parametrize("cls", [ChunkDecoder, LegacyChunkDecoder])
def test_a_long_last_line_without_an_end(cls: type[ChunkDecoder | LegacyChunkDecoder], length: int, long: bool) -> None:
    decoder = cls()
    decoder.feed(b"x" * length)
    decoder.finish()
    assert decoder.long_lines is long


STUFFED = [
    (b"", b".\r\n"),
    (b"a\r\n", b"a\r\n.\r\n"),
    (b"a", b"a\r\n.\r\n"),
    (b".", b"..\r\n.\r\n"),
    (b".\r\n", b"..\r\n.\r\n"),
    (b"a\r\n.\r\n.b\r\n", b"a\r\n..\r\n..b\r\n.\r\n"),
    (b"a.b", b"a.b\r\n.\r\n"),
    (b"a\n.\nb", b"a\r\n..\r\nb\r\n.\r\n"),
    (b"a\r.b\r", b"a\r\n..b\r\n.\r\n"),
    (b"a\r\r\nb", b"a\r\nb\r\n.\r\n"),
]


@pytest.mark.parametrize(("content", "wire"), STUFFED)
def test_stuffing(content: bytes, wire: bytes) -> None:
    for pieces in ([content], [content[i : i + 1] for i in range(len(content))]):
        stuffer = Stuffer()
        assert b"".join(map(stuffer.feed, pieces)) + stuffer.finish() == wire


@given(HOSTILE, st.lists(st.integers(0, 200), max_size=12), st.lists(st.integers(0, 200), max_size=12))
def test_what_is_stuffed_comes_out_again(data: bytes, cuts: list[int], other: list[int]) -> None:
    stuffer, ends = Stuffer(), LineEnds()
    wire = b"".join(map(stuffer.feed, splits(data, cuts))) + stuffer.finish()
    plain = b"".join(map(ends.feed, splits(data, cuts))) + ends.finish()
    assert not BARE.search(wire)
    assert not BARE.search(plain)
    assert (b"\r\n" + wire).count(b"\r\n.\r\n") == 1
    decoder = Decoder()
    content, rest = feed(decoder, splits(wire, other))
    assert rest == b""
    assert content == plain + (b"" if not plain or plain.endswith(b"\r\n") else b"\r\n")
