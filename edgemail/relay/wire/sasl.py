"""The client's side of logging in: PLAIN, LOGIN and CRAM-MD5, without IO.

Owns which of the server's mechanisms may be used and what each answers. Never sees a wire, never logs.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Protocol


class Mechanism(Protocol):
    """One exchange. It is over when the server answers with something else than 334."""

    @property
    def initial(self) -> bytes | None:
        """The initial response, None for a mechanism in which the server speaks first."""

    def respond(self, challenge: bytes) -> bytes | None:
        """The answer to a challenge; None where it makes no sense: cancel the exchange."""


class _Plain:
    """RFC 4616."""

    def __init__(self, user: str, password: str) -> None:
        self.initial: bytes | None = f"\0{user}\0{password}".encode()

    def respond(self, challenge: bytes) -> bytes | None:
        """A server that wants no initial response asks for it with an empty challenge."""
        return None if challenge else self.initial


class _Login:
    """draft-murchison-sasl-login: two prompts, whatever they say."""

    initial: bytes | None = None

    def __init__(self, user: str, password: str) -> None:
        self._answers = [password.encode(), user.encode()]

    def respond(self, challenge: bytes) -> bytes | None:
        return self._answers.pop() if self._answers else None


class _CramMd5:
    """RFC 2195: the password does not cross the wire, but can be guessed from what does."""

    initial: bytes | None = None

    def __init__(self, user: str, password: str) -> None:
        self._user = user.encode()
        self._password: bytes | None = password.encode()

    def respond(self, challenge: bytes) -> bytes | None:
        if self._password is None or not challenge:
            return None
        digest = hmac.new(self._password, challenge, "md5").hexdigest()
        self._password = None
        return self._user + b" " + digest.encode()


_PLAINTEXT: Final = frozenset({"PLAIN", "LOGIN"})
_MECHANISMS: Final[Mapping[str, Callable[[str, str], Mechanism]]] = {
    "PLAIN": _Plain,
    "LOGIN": _Login,
    "CRAM-MD5": _CramMd5,
}

# What each word of smtp_sasl_security_options takes away. Nothing here is ANONYMOUS, authenticates the server, or
# makes keys for later.
_REFUSED: Final = {
    "noanonymous": frozenset[str](),
    "noplaintext": _PLAINTEXT,
    "nodictionary": frozenset(_MECHANISMS),
    "noactive": frozenset(_MECHANISMS),
    "mutual_auth": frozenset(_MECHANISMS),
    "forward_secrecy": frozenset(_MECHANISMS),
}


def usable(offered: Sequence[str], options: Collection[str]) -> tuple[str, ...]:
    """Of the mechanisms that a server offers, in its order of preference, those that we know and `options` allow.

    `options` are words of smtp_sasl_security_options; ValueError for one that is none.
    """
    refused: set[str] = set()
    for option in options:
        if option.lower() not in _REFUSED:
            raise ValueError(f'unknown security option "{option}": use {", ".join(_REFUSED)}')
        refused |= _REFUSED[option.lower()]
    return tuple(name for name in dict.fromkeys(offered) if name in _MECHANISMS and name not in refused)


def mechanism(name: str, user: str, password: str) -> Mechanism:
    """Begin an exchange. `name` is one that `usable` returned."""
    if "\0" in user or "\0" in password:
        raise ValueError("a user name or password with a NUL")
    return _MECHANISMS[name](user, password)


def another(code: int, name: str) -> bool:
    """Whether to try the next mechanism after the server answered `code` to `name`.

    504 and 534 are about the mechanism (RFC 4954 6). A 535 is about the password, and saying it once more in other
    words only brings an account nearer to its lock; but after CRAM-MD5 it often means that the server keeps no
    password that CRAM-MD5 could use. A 4xx is not about either.
    """
    return code in {500, 501, 502, 503, 504, 534} or (code == 535 and name not in _PLAINTEXT)
