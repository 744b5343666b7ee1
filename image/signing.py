"""Keys that releases are signed with, and the bundle that an update is. The format is `edgemail.boot.bundle`'s.

A private key never stands in the repository or the image. Without keys of your own, a pair is made under build/keys
for images that nobody else is to trust.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from edgemail.boot import bundle
from image.definition import BUILD

NAMES: Final = ("release", "spare")  # two, so that one can be replaced


def directory() -> Path:
    """Where the keys are: EDGEMAIL_KEYS, or build/keys."""
    return Path(os.environ.get("EDGEMAIL_KEYS") or BUILD / "keys")


def public() -> str:
    """The public keys, as the image carries them; made with their private halves if there are none."""
    path = directory() / "update.keys"
    if not path.exists():
        make(directory())
    text = path.read_text()
    if not bundle.public_keys(text):
        raise ValueError(f"{path} holds no key")
    return text


def make(place: Path) -> None:
    """A new pair of keys: NAME.key (32 raw bytes, mode 0600) and the public halves in update.keys."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    place.mkdir(parents=True, exist_ok=True)
    lines = []
    for name in NAMES:
        key = Ed25519PrivateKey.generate()
        private = place / f"{name}.key"
        with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key.private_bytes_raw())
        lines.append(f"{key.public_key().public_bytes_raw().hex()} # {name}\n")
    (place / "update.keys").write_text("".join(lines))


def sign(slot: Path, release: dict[str, str], target: Path, keys: list[Path], min_from: int = 0) -> None:
    """A slot's image as a signed bundle. `release`: the words of the image's release file."""
    described = {
        "version": release["VERSION"],
        "board": release["BOARD"],
        "serial": int(release["SERIAL"]),
        "min_from": min_from,
        "spool_format": int(release["SPOOL_FORMAT"]),
        "built": int(release["BUILD_DATE"]),
    }
    with slot.open("rb") as payload:
        manifest = bundle.described(payload, described)
        payload.seek(0)
        with target.open("wb") as out:
            out.write(bundle.header(manifest, [key.read_bytes() for key in keys]))
            while chunk := payload.read(1 << 20):
                out.write(chunk)


__all__ = ["directory", "make", "public", "sign"]
