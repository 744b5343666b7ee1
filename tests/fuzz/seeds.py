"""The corpora, and how they are mutated. A corpus is a folder of files; what once broke something stays in it.

Every file is replayed in each run, and a bounded number of mutations of them: EDGEMAIL_FUZZ_EXAMPLES asks for more.
"""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CORPUS = Path(__file__).with_name("corpus")
EXAMPLES = int(os.environ.get("EDGEMAIL_FUZZ_EXAMPLES", "300"))

# Octets that mean something to somebody: line ends in every spelling, NUL, quotes, routes, separators, C1, wide ones.
SPICE = (
    *(b"\r\n", b"\n", b"\r", b"\0", b"\r\n.\r\n", b"\n.\n", b".", b" ", b"\t", b'"', b"\\", b"<", b">"),
    *(b"@", b"%", b"!", b"[", b"]", b":", b",", b";", b"=", b"+0D+0A", b"-"),
    *(b"\x80", b"\xff", b"\xc2\x85", "\u2028".encode(), b"\x1b[2J"),
    *("ü".encode(), "用户".encode(), b"x" * 600, b"x" * 3000, b"0", b"99999999999999999999", b"\x16\x03\x01"),
)


def seeds(name: str) -> list[bytes]:
    """The files of one corpus, in order of their names."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def names(name: str) -> list[str]:
    return [path.name for path in sorted((CORPUS / name).iterdir())]


@st.composite
def mutations(draw: st.DrawFn, octets: list[bytes]) -> bytes:
    """One seed, or the beginning of one and the end of another, with some of it cut, doubled, replaced or spiced."""
    data = bytearray(draw(st.sampled_from(octets)))
    if draw(st.booleans()):
        other = draw(st.sampled_from(octets))
        data = data[: draw(st.integers(0, len(data)))] + other[draw(st.integers(0, len(other))) :]
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 30)))
        match draw(st.integers(0, 4)):
            case 0:
                del data[at:end]
            case 1:
                data[at:at] = data[at:end]
            case 2:
                data[at:at] = draw(st.sampled_from(SPICE))
            case 3:
                data[at:end] = draw(st.sampled_from(SPICE))
            case _:
                data[at:at] = draw(st.binary(max_size=20))
    return bytes(data)


def bounded(share: float = 1.0) -> settings:
    """So many examples, however slow each is."""
    return settings(
        max_examples=max(5, int(EXAMPLES * share)),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
