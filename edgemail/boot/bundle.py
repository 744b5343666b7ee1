"""A release as one signed file: magic, manifest, signatures, then the image of a slot. Owns the format; writes no slot.

    "EDGEMAIL"  8 bytes
    length      4 bytes, big-endian: of the manifest
    manifest    JSON, UTF-8
    count       1 byte: of the signatures
    count times 8 bytes: the key's id, the beginning of the SHA-256 of the public key; 64 bytes: Ed25519 over all before
                count, magic and length included
    payload     `size` bytes, to the end of the file

All that decides is signed and stands in front of the payload: what is not for this box is refused before a byte of it
is written. One good signature of a key that the box trusts is enough, so that one of two keys can be replaced.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from edgemail.errors import EdgemailError
from edgemail.value import value

MAGIC: Final = b"EDGEMAIL"
FORMAT: Final = 1  # of the manifest
MAX_MANIFEST: Final = 65_536  # limit: bytes of a bundle's manifest
MAX_SIGNATURES: Final = 8  # limit: signatures of a bundle
MAX_PAYLOAD: Final = 1 << 30  # limit: bytes of the slot in a bundle
CHUNK: Final = 1 << 20  # limit: bytes of a bundle in memory at once
KEY_ID: Final = 8
SIGNATURE: Final = 64

_LENGTH: Final = struct.Struct(">I")
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}")


class BundleRefused(EdgemailError):
    """This is no bundle for this box; the message says why, for a person. Nothing was changed."""


class Stream(Protocol):
    """Where a bundle comes from: a file, a connection."""

    def read(self, size: int, /) -> bytes: ...


@value
class Manifest:
    """What a release says of itself. `serial` rises with each release; `size` and `sha256` are the payload's."""

    version: str
    board: str
    serial: int
    size: int
    sha256: str
    min_from: int = 0  # the serial that a box must have to go to this release without a stop between
    spool_format: int = 1  # the newest that it writes
    built: int = 0  # seconds since 1970

    def document(self) -> bytes:
        """As JSON, always the same for the same values."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, sort_keys=True, indent=1).encode() + b"\n"

    @classmethod
    def of(cls, document: bytes) -> Manifest:
        """Raises BundleRefused for what is none, or one of a later format. Keys that are not known are left alone."""
        try:
            values = json.loads(document)
        except ValueError:
            raise BundleRefused("the bundle's manifest does not parse") from None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise BundleRefused("the bundle is of a format that this release does not know")
        chosen: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            required = field.default is dataclasses.MISSING
            value = values.get(field.name) if required else values.get(field.name, field.default)
            wanted = str if field.name in ("version", "board", "sha256") else int
            if type(value) is not wanted or (isinstance(value, int) and value < 0):
                raise BundleRefused(f"the bundle's manifest has no good {field.name}")
            chosen[field.name] = value
        found = cls(**chosen)
        if not _HEX.fullmatch(found.sha256) or not 0 < found.size <= MAX_PAYLOAD:
            raise BundleRefused("the bundle's manifest has no good size or sha256")
        if not _WORD.fullmatch(found.version) or not _WORD.fullmatch(found.board):
            raise BundleRefused("the bundle's manifest has no good version or board")
        return found


def key_id(public: bytes) -> bytes:
    """The id of a public key (32 raw bytes)."""
    return hashlib.sha256(public).digest()[:KEY_ID]


def public_keys(text: str) -> tuple[bytes, ...]:
    """The keys of a file: 64 hex digits a line; # begins a comment. Raises BundleRefused for anything else."""
    found = []
    for line in text.splitlines():
        word = line.partition("#")[0].strip().lower()
        if word:
            if not _HEX.fullmatch(word):
                raise BundleRefused(f"{word[:16]}... is not a key: 64 hex digits")
            found.append(bytes.fromhex(word))
    return tuple(found)


# ---- writing


def public_of(private: bytes) -> bytes:
    """The public key of a private one, both 32 raw bytes."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def header(manifest: Manifest, private: Sequence[bytes]) -> bytes:
    """All of a bundle before its payload, signed with each of the `private` keys (32 raw bytes)."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    document = manifest.document()
    signed = MAGIC + _LENGTH.pack(len(document)) + document
    out = [signed, bytes([len(private)])]
    for key in private:
        out += [key_id(public_of(key)), Ed25519PrivateKey.from_private_bytes(key).sign(signed)]
    return b"".join(out)


def described(payload: Stream, about: Mapping[str, Any]) -> Manifest:
    """The manifest of a payload, which is read to its end: `about` has version, board, serial, and what is known."""
    digest, size = hashlib.sha256(), 0
    while chunk := payload.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return Manifest(**about, size=size, sha256=digest.hexdigest())


# ---- reading


class Bundle:
    """A bundle that is being read. `open` verifies all that stands before the payload."""

    def __init__(self, manifest: Manifest, stream: Stream) -> None:
        self.manifest = manifest
        self._stream = stream

    @classmethod
    def open(cls, stream: Stream, keys: Iterable[bytes]) -> Bundle:
        """Read up to the payload. `keys`: the public keys that are trusted. Raises BundleRefused and OSError."""
        start = _exactly(stream, len(MAGIC) + _LENGTH.size)
        if not start.startswith(MAGIC):
            raise BundleRefused("this is not an edgemail bundle")
        (length,) = _LENGTH.unpack(start[len(MAGIC) :])
        if not 0 < length <= MAX_MANIFEST:
            raise BundleRefused("the bundle's manifest is too long")
        signed = start + _exactly(stream, length)
        count = _exactly(stream, 1)[0]
        if not 0 < count <= MAX_SIGNATURES:
            raise BundleRefused(f"the bundle has {count} signatures")
        signatures = [(_exactly(stream, KEY_ID), _exactly(stream, SIGNATURE)) for _ in range(count)]
        if not _signed(signed, signatures, keys):
            raise BundleRefused("the bundle bears no good signature of a key that this box trusts")
        return cls(Manifest.of(signed[len(start) :]), stream)

    def payload(self) -> Iterator[bytes]:
        """The slot, piece by piece; each but the last has CHUNK bytes. Raises BundleRefused when it ends otherwise
        than the manifest says: what was given out before is worth nothing then."""
        digest, left = hashlib.sha256(), self.manifest.size
        while left:
            piece = _exactly(self._stream, min(CHUNK, left))
            digest.update(piece)
            left -= len(piece)
            yield piece
        if self._stream.read(1):
            raise BundleRefused("the bundle is longer than its manifest says")
        if digest.hexdigest() != self.manifest.sha256:
            raise BundleRefused("the bundle's content is not what was signed")


def _signed(signed: bytes, signatures: Sequence[tuple[bytes, bytes]], keys: Iterable[bytes]) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    trusted = {key_id(key): key for key in keys}
    for name, signature in signatures:
        if name in trusted:
            try:
                Ed25519PublicKey.from_public_bytes(trusted[name]).verify(signature, signed)
                return True
            except InvalidSignature:
                continue
    return False


def _exactly(stream: Stream, size: int) -> bytes:
    parts = []
    while size:
        part = stream.read(min(size, CHUNK))
        if not part:
            raise BundleRefused("the bundle ends too early")
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
