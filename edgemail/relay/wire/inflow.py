"""One message's content on its way in, for DATA and BDAT alike: decoded, bounded, judged. Keeps none of it."""

from __future__ import annotations

from typing import Final

from edgemail.relay.wire import replies
from edgemail.relay.wire.dot import ChunkDecoder, Decoder, LegacyChunkDecoder, LegacyDecoder
from edgemail.reply import Reply

FLOOD: Final = 2  # limit: times message_size_limit that are read of one message until the connection is closed


class Inflow:
    """`limit` is message_size_limit, 0 for none. What cannot be stored any more is counted and dropped."""

    __slots__ = ("_chunks", "_decoder", "_limit", "failure")

    def __init__(self, limit: int, *, chunking: bool, legacy: bool) -> None:
        self._limit = limit
        self._decoder = None if chunking else LegacyDecoder() if legacy else Decoder()
        self._chunks = None if not chunking else LegacyChunkDecoder() if legacy else ChunkDecoder()
        self.failure: Reply | None = None  # the session cannot take the rest

    def data(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Octets of DATA: what is to be kept of them, and what stands behind the end of data (None: no end yet)."""
        assert self._decoder is not None
        piece, rest = self._decoder.feed(data)
        return self._kept(piece), rest

    def chunk(self, data: bytes) -> bytes:
        """Octets of a BDAT: what is to be kept of them."""
        assert self._chunks is not None
        return self._kept(self._chunks.feed(data))

    def finish(self) -> bytes:
        """What is left to be kept after BDAT LAST."""
        assert self._chunks is not None
        return self._kept(self._chunks.finish())

    @property
    def seen(self) -> Decoder | LegacyDecoder | ChunkDecoder | LegacyChunkDecoder:
        """What is known of the content: size, eight_bit, long_lines."""
        decoder = self._decoder or self._chunks
        assert decoder is not None
        return decoder

    @property
    def flooded(self) -> bool:
        return 0 < self._limit * FLOOD < self.seen.size

    @property
    def fault(self) -> Reply | None:
        """What the content earned, or what made the session give up. A permanent refusal stands above a temporary."""
        own = None
        if not self.seen.clean:
            own = replies.BAD_LINE_ENDS
        elif 0 < self._limit < self.seen.size:
            own = replies.MESSAGE_TOO_BIG
        if self.failure is None or (own is not None and not self.failure.permanent):
            return own
        return self.failure

    def _kept(self, piece: bytes) -> bytes:
        return piece if piece and self.fault is None else b""
