"""Logging in at a listener: the exchanges of AUTH, and the file of users with their passwords.

A line of the file is `user:scrypt:N:r:p:salt:hash`, salt and hash in base64; or, for CRAM-MD5, `user:cram:password`, in
base64, which is no secret to who reads the file. Owns these forms, their editing, and the check of a password.
A password is never logged and never kept; a user who does not exist costs as much time as one who does.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import hmac
import logging
import os
import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

from edgemail.relay.wire.extensions import CRAM_MD5
from edgemail.value import value
from edgemail.watched import Watched, read_text

log = logging.getLogger("edgemail.smtpd")

MAX_NAME: Final = 255  # limit: octets of a user name
MAX_PASSWORD: Final = 4096  # limit: octets of a password
SCRYPT_MEMORY: Final = 4 * 1024 * 1024  # limit: bytes that the check of one password takes; one is checked at a time
SCRYPT_SLACK: Final = 64 * 1024  # for what scrypt needs beside its table of 128 * N * r bytes
MAX_PASSES: Final = 64  # limit: scrypt's p in a password file, so that no line can stop the others
N, R, P = 4096, 8, 5  # 4 MiB, about 40 ms on a PC and 200 ms on a small board
SALT: Final = 16
LENGTH: Final = 32


# ---- exchanges


@value
class Login:
    """What a client wants to be taken for."""

    user: str
    password: bytes

    def __repr__(self) -> str:
        return f"Login({self.user!r})"  # never the password, not in a traceback either


@value
class Digest:
    """What a client wants to be taken for, proven by CRAM-MD5 (RFC 2195): the password itself was not said."""

    user: str
    challenge: bytes
    digest: str

    def __repr__(self) -> str:
        return f"Digest({self.user!r})"  # the password could be guessed from the rest


class Exchange:
    """One AUTH, from the command to the login. Without IO."""

    __slots__ = ("_begun", "_challenge", "_user", "mechanism")

    def __init__(self, mechanism: str, host: str = "localhost") -> None:
        """`mechanism`: one of those of AUTH, or CRAM_MD5, for whose challenge `host` is."""
        self.mechanism = mechanism
        self._begun = False
        self._user: bytes | None = None
        self._challenge = f"<{secrets.token_hex(16)}@{host}>".encode() if mechanism == CRAM_MD5 else b""

    def step(self, data: bytes | None) -> bytes | Login | Digest | None:
        """Answer to the client's response (at first: the initial one, None for none).

        The next challenge, or the login; None when the response makes no sense.
        """
        if data is None:
            if self._begun:
                return None
            self._begun = True
            return self._challenge or (b"" if self.mechanism == "PLAIN" else b"Username:")
        if self.mechanism == CRAM_MD5:
            return _cram(self._challenge, data) if self._begun else None  # the server speaks first
        self._begun = True
        if self.mechanism == "PLAIN":
            return _plain(data)
        if self._user is None:
            self._user = data
            return b"Password:"
        return _login(self._user, data)


def _plain(data: bytes) -> Login | None:
    """RFC 4616 2. Nobody may act for another user here."""
    parts = data.split(b"\0")
    if len(parts) != 3 or (parts[0] and parts[0] != parts[1]):
        return None
    return _login(parts[1], parts[2])


def _login(user: bytes, password: bytes) -> Login | None:
    try:
        name = user.decode()
    except UnicodeDecodeError:
        return None
    if not name or len(user) > MAX_NAME or len(password) > MAX_PASSWORD:
        return None
    return Login(name, password)


def _cram(challenge: bytes, response: bytes) -> Digest | None:
    """RFC 2195 2: the name, a blank, 32 digits."""
    user, _, digest = response.rpartition(b" ")
    if len(digest) != 32 or not digest.isalnum():
        return None
    login = _login(user, b"")
    return Digest(login.user, challenge, digest.decode().lower()) if login is not None else None


# ---- passwords


@value
class Recoverable:
    """A password as the file keeps it for CRAM-MD5: as it is."""

    password: bytes

    def __repr__(self) -> str:
        return "Recoverable()"

    def __str__(self) -> str:
        return f"cram:{b64encode(self.password).decode('ascii')}"

    def fits(self, password: bytes) -> bool:
        return hmac.compare_digest(password, self.password)

    def answers(self, challenge: bytes, digest: str) -> bool:
        """Whether `digest` is what who knows the password makes of `challenge`."""
        return hmac.compare_digest(hmac.new(self.password, challenge, "md5").hexdigest(), digest)


@value
class Hashed:
    """A password as the file keeps it."""

    n: int
    r: int
    p: int
    salt: bytes
    hash: bytes

    @classmethod
    def of(cls, password: bytes) -> Hashed:
        return cls(N, R, P, secrets.token_bytes(SALT), b"\0" * LENGTH).made_of(password)

    @classmethod
    def parse(cls, text: str) -> Hashed:
        """What stands behind "user:". ValueError without any of the text."""
        try:
            kind, n, r, p, *octets = text.split(":")
            salt, digest = (b64decode(each, validate=True) for each in octets)
            found = cls(int(n), int(r), int(p), salt, digest)
        except ValueError:
            raise ValueError("expected user:scrypt:N:r:p:salt:hash") from None
        if kind != "scrypt":
            raise ValueError("only scrypt is known")
        if found.n < 2 or found.n & (found.n - 1) or found.r < 1 or not found.salt or len(found.hash) < SALT:
            raise ValueError("scrypt's parameters make no sense")
        if 128 * found.n * found.r > SCRYPT_MEMORY or not 1 <= found.p <= MAX_PASSES:
            raise ValueError(f"it asks for more than {SCRYPT_MEMORY >> 20} MiB or {MAX_PASSES} passes")
        return found

    def __str__(self) -> str:
        salt, digest = (b64encode(octets).decode("ascii") for octets in (self.salt, self.hash))
        return f"scrypt:{self.n}:{self.r}:{self.p}:{salt}:{digest}"

    def made_of(self, password: bytes) -> Hashed:
        """The same salt and cost with `password`. Slow on purpose: for a thread of its own."""
        n, r, p = self.n, self.r, self.p
        most = 128 * n * r + 128 * r * p + SCRYPT_SLACK
        digest = hashlib.scrypt(password, salt=self.salt, n=n, r=r, p=p, maxmem=most, dklen=len(self.hash))
        return replace(self, hash=digest)

    def fits(self, password: bytes) -> bool:
        return hmac.compare_digest(self.made_of(password).hash, self.hash)


Password = Hashed | Recoverable


def parse_password(text: str) -> Password:
    """What stands behind "user:". ValueError without any of the text."""
    kind, _, secret = text.partition(":")
    if kind != "cram":
        return Hashed.parse(text)
    try:
        return Recoverable(b64decode(secret, validate=True))
    except ValueError:
        raise ValueError("expected user:cram:password, in base64") from None


NOBODY: Final = Hashed(N, R, P, b"\0" * SALT, b"\0" * LENGTH)  # checked for users who do not exist


def parse_users(path: Path, text: str) -> Mapping[str, Password]:
    """The users of a password file. What cannot be read is passed over, with a warning that quotes none of it."""
    users: dict[str, Password] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, _, rest = line.partition(":")
        try:
            users[user] = parse_password(rest.strip())
        except ValueError as error:
            log.warning("warning: %s:%d: %s; the line is passed over", path, number, error)
    return users


class Passwords:
    """A password file in use: read again when it changes, one password checked at a time, off the loop."""

    def __init__(self, path: str, worker: ThreadPoolExecutor, monotonic: Callable[[], float]) -> None:
        """`worker`: of one thread, shared by all listeners."""
        self._path = Path(path)
        self._worker = worker
        self._monotonic = monotonic
        self._file: Watched[Mapping[str, Password]] | None = None

    def users(self) -> Mapping[str, Password]:
        """Everybody in the file. Raises TableError when it never could be read."""
        if self._file is None:
            self._file = Watched(self._path, parse_users, self._monotonic)
        return self._file.current()

    def knows(self, user: str) -> bool:
        """For the log: a name that is none may be a password that was typed in the wrong place."""
        return user in self.users()

    async def verify(self, login: Login | Digest) -> bool:
        """Whether the password is this user's. Raises TableError."""
        hashed = self.users().get(login.user)
        if isinstance(login, Digest):
            known = isinstance(hashed, Recoverable)
            secret = hashed if isinstance(hashed, Recoverable) else Recoverable(secrets.token_bytes(SALT))
            return secret.answers(login.challenge, login.digest) and known
        loop = asyncio.get_running_loop()
        fits = await loop.run_in_executor(self._worker, (hashed or NOBODY).fits, login.password)
        return fits and hashed is not None


# ---- editing


def set_password(
    path: str, user: str, password: str, *, owner: tuple[int, int] | None = None, recoverable: bool = False
) -> None:
    """Give a user a password; the file is made where there is none. Raises OSError, ValueError and TableError.

    `owner`: uid and gid of a file that is made; one that is there keeps its own. `recoverable`: for CRAM-MD5.
    """
    if not user or any(char.isspace() or char in ":#" or not char.isprintable() for char in user):
        raise ValueError("a user has a name without blanks, colons and '#'")
    if not password or len(password.encode()) > MAX_PASSWORD or len(user.encode()) > MAX_NAME:
        raise ValueError(f"a password has 1 to {MAX_PASSWORD} octets, a name up to {MAX_NAME}")
    if "\0" in password:
        raise ValueError("a password cannot hold a NUL")
    line = f"{user}:{Recoverable(password.encode()) if recoverable else Hashed.of(password.encode())}"

    def edit(lines: list[str]) -> bool:
        places = [number for number, each in enumerate(lines) if each.partition(":")[0] == user]
        if places:
            lines[places[0]] = line
            for place in reversed(places[1:]):
                del lines[place]
        else:
            lines.append(line)
        return True

    _edit(Path(path), edit, owner)


def delete_user(path: str, user: str) -> bool:
    """Take a user away; False when there is no such user. Raises OSError and TableError."""

    def edit(lines: list[str]) -> bool:
        kept = [each for each in lines if each.partition(":")[0] != user]
        found = len(kept) != len(lines)
        lines[:] = kept
        return found

    return Path(path).exists() and _edit(Path(path), edit, None)


def _edit(path: Path, edit: Callable[[list[str]], bool], owner: tuple[int, int] | None) -> bool:
    """Replace the file as a whole, mode 0600, durable before it returns; one editor at a time."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        lines: list[str] = []
        if path.exists():
            lines = read_text(path)[1].splitlines()
            status = path.stat()
            owner = status.st_uid, status.st_gid
        if not edit(lines):
            return False
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            _write(fresh, "".join(line + "\n" for line in lines), owner)
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        os.fsync(directory)
    finally:
        os.close(directory)
    return True


def _write(path: Path, text: str, owner: tuple[int, int] | None) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o600)
        if owner is not None and os.geteuid() == 0:
            os.fchown(descriptor, *owner)
        file.write(text)
        file.flush()
        os.fsync(descriptor)
