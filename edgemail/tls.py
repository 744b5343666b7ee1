"""Postfix's words for TLS, made into an `ssl.SSLContext`'s settings. A leaf: standard library only, no IO.

Owns which protocols and ciphers a word stands for. Never decides who must use TLS or whose certificate is good.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Sequence
from typing import Final

# Oldest first. Below the floor a word is understood, so that a line of main.cf can be carried over, and never enabled.
VERSIONS: Final = ("SSLv2", "SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
FLOOR: Final = VERSIONS.index("TLSv1.2")  # RFC 8996: TLS 1.0 and 1.1 are not to be used

_ENABLED: Final = {
    VERSIONS.index("TLSv1.2"): ssl.TLSVersion.TLSv1_2,
    VERSIONS.index("TLSv1.3"): ssl.TLSVersion.TLSv1_3,
}
_NEVER: Final = (
    "!aNULL:!eNULL:!PSK:!SRP:!RC4:!3DES:!MD5"  # no anonymous suite, nothing broken, nothing without certificates
)
_GRADES: Final = {
    "medium": f"HIGH:MEDIUM:{_NEVER}:@STRENGTH",
    "high": f"HIGH:{_NEVER}:@STRENGTH",
}
_CIPHER_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")


def versions(protocols: str) -> tuple[ssl.TLSVersion, ssl.TLSVersion]:
    """Lowest and highest protocol that a list like ">=TLSv1.2" or "!SSLv2, !TLSv1" allows, the floor applied.

    As in Postfix: names that are listed are the only ones allowed, "!name" takes one away, ">=" and "<=" bound the
    range; parted by commas, colons or blanks. ValueError, with a hint, for an unknown name and where nothing is left.
    """
    low, high = 0, len(VERSIONS) - 1
    listed: set[int] = set()
    denied: set[int] = set()
    for word in re.split(r"[\s,:]+", protocols.strip()):
        if not word:
            continue
        sign = re.match(r">=|<=|!|", word)
        mark = sign.group() if sign else ""
        place = _place(word[len(mark) :], word)
        if mark == ">=":
            low = max(low, place)
        elif mark == "<=":
            high = min(high, place)
        elif mark == "!":
            denied.add(place)
        else:
            listed.add(place)
    allowed = (listed or set(range(len(VERSIONS)))) - denied
    left = sorted(place for place in allowed if max(low, FLOOR) <= place <= high)
    if not left:
        raise ValueError(f'"{protocols}" leaves no protocol: TLSv1.2 is the oldest that is spoken; try ">=TLSv1.2"')
    return _ENABLED[left[0]], _ENABLED[left[-1]]


def _place(name: str, word: str) -> int:
    for place, known in enumerate(VERSIONS):
        if name.lower() == known.lower():
            return place
    raise ValueError(f'unknown protocol in "{word}": the names are {", ".join(VERSIONS)}')


def ciphers(grade: str, exclude: Sequence[str] = ()) -> str:
    """The OpenSSL cipher list of a grade, without what `exclude` names. ValueError, with a hint, for a bad word.

    An element of `exclude` is a cipher or a class of ciphers ("SHA1", "kRSA", "AES128-SHA", "ECDHE+AES").
    """
    if grade not in _GRADES:
        raise ValueError(f'unknown cipher grade "{grade}": use {" or ".join(_GRADES)}')
    words = [_GRADES[grade]]
    for name in exclude:
        if name.upper().startswith("TLS_"):
            raise ValueError(f'"{name}" is a suite of TLS 1.3, which cannot be excluded; bound the protocols instead')
        if not _CIPHER_WORD.fullmatch(name):
            raise ValueError(f'"{name}" is not the name of a cipher; give OpenSSL names such as "AES128-SHA" or "kRSA"')
        words.append(f"!{name}")
    return ":".join(words)


def restrict(context: ssl.SSLContext, *, protocols: str, grade: str, exclude: Sequence[str] = ()) -> None:
    """Bound what `context` will speak. ValueError, with a hint, where a word is unknown or nothing would be left."""
    lowest, highest = versions(protocols)
    context.minimum_version = lowest
    context.maximum_version = highest
    try:
        context.set_ciphers(ciphers(grade, exclude))
    except ssl.SSLError:
        named = ", ".join(exclude)
        raise ValueError(f'no cipher of grade {grade} is left without "{named}": exclude fewer') from None
