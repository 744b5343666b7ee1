"""The file that a release comes in: what is refused, and that it is refused before anything is given out."""

from __future__ import annotations

import io
import json
import struct

import pytest

from edgemail.boot.bundle import CHUNK, MAGIC, Bundle, BundleRefused, Manifest, public_keys
from tests.cards import KEYS, PUBLIC, release


def opened(data: bytes, keys: tuple[bytes, ...] = PUBLIC) -> Bundle:
    return Bundle.open(io.BytesIO(data), keys)


def test_what_was_written_is_read() -> None:
    content = bytes(range(256)) * 4096 * 2 + b"tail"
    data = release("1.1", payload=content, min_from=3, spool_format=2, built=7)
    found = opened(data)
    assert found.manifest == Manifest("1.1", "arm64", 11, len(content), found.manifest.sha256, 3, 2, 7)
    pieces = list(found.payload())
    assert [len(piece) for piece in pieces] == [CHUNK, CHUNK, 4]
    assert b"".join(pieces) == content


def test_either_of_two_keys_will_do_and_no_third() -> None:
    assert opened(release(keys=KEYS[1:])).manifest.version == "1.1"
    assert opened(release(keys=KEYS), PUBLIC[1:]).manifest.version == "1.1"
    assert opened(release(keys=(b"x" * 32, KEYS[1]))).manifest.version == "1.1"
    for data in (release(keys=(b"x" * 32,)), release(keys=())):
        with pytest.raises(BundleRefused, match="signature"):
            opened(data)
    with pytest.raises(BundleRefused, match="no good signature"):
        opened(release(), ())


def test_every_bit_before_the_payload_counts() -> None:
    data = release(payload=b"x")
    for at in range(len(data) - 1):
        for bit in (1, 128):
            changed = bytearray(data)
            changed[at] ^= bit
            with pytest.raises(BundleRefused):
                opened(bytes(changed))


def test_every_bit_of_the_payload_counts() -> None:
    data = bytearray(release(payload=b"0123456789"))
    data[-3] ^= 4
    with pytest.raises(BundleRefused, match="not what was signed"):
        list(opened(bytes(data)).payload())


@pytest.mark.parametrize("where", ["head", "payload"])
def test_cut_short(where: str) -> None:
    data = release(payload=b"x" * 100)
    ends = range(len(data) - 100) if where == "head" else range(len(data) - 100, len(data), 7)
    for end in ends:
        with pytest.raises(BundleRefused, match="too early"):
            list(opened(data[:end]).payload())


def test_too_long() -> None:
    with pytest.raises(BundleRefused, match="longer"):
        list(opened(release(payload=b"x") + b"y").payload())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format"),
        ({"version": 1}, "version"),
        ({"version": "1.1\nx"}, "version"),
        ({"serial": -1}, "serial"),
        ({"serial": True}, "serial"),
        ({"size": 0}, "size"),
        ({"size": 1 << 40}, "size"),
        ({"sha256": "0" * 63}, "sha256"),
        ({"board": None}, "board"),
    ],
)
def test_manifests_that_are_none(change: dict[str, object], said: str) -> None:
    values = {**json.loads(Manifest("1", "arm64", 1, 1, "0" * 64).document()), **change}
    with pytest.raises(BundleRefused, match=said):
        Manifest.of(json.dumps(values).encode())


def test_a_later_release_may_say_more() -> None:
    values = {**json.loads(Manifest("1", "arm64", 1, 1, "0" * 64).document()), "colour": "red"}
    assert Manifest.of(json.dumps(values).encode()).version == "1"
    for text in (b"[]", b"{", b"\xff"):
        with pytest.raises(BundleRefused):
            Manifest.of(text)


def test_a_manifest_without_end_is_not_read() -> None:
    with pytest.raises(BundleRefused, match="too long"):
        opened(MAGIC + struct.pack(">I", 1 << 30))
    with pytest.raises(BundleRefused, match="not an edgemail bundle"):
        opened(b"PK\x03\x04" + b"\0" * 100)


def test_the_file_of_keys() -> None:
    text = f"# release\n{PUBLIC[0].hex()}\n\n{PUBLIC[1].hex().upper()}  # spare\n"
    assert public_keys(text) == PUBLIC
    with pytest.raises(BundleRefused, match="not a key"):
        public_keys("abc")
