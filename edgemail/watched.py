"""A text file that is read again when it changes, and the logical lines of main.cf and its tables.

Owns the decision when to look and what to do about a file that is wrong: keep what is known and say so once. Never
writes. Standard library only.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Generic, TypeVar

from edgemail.errors import TableError

T = TypeVar("T")
Monotonic = Callable[[], float]

RECHECK: Final = 1.0  # limit: seconds between two looks at a table's file; one stat each
MAX_TABLE: Final = 16 * 1024 * 1024  # limit: bytes of one table file; a map of 250,000 recipients

log = logging.getLogger("edgemail.tables")


class Watched(Generic[T]):
    """The parsed content of a file, parsed again when its mtime, size or inode changes.

    A file that was renamed into place is taken at the next look. One that is written in place is taken once it was
    the same at two looks: half a table would refuse mail for the other half.
    """

    __slots__ = ("_complaint", "_due", "_monotonic", "_parse", "_seen", "_tried", "_value", "generation", "path")

    def __init__(self, path: Path, parse: Callable[[Path, str], T], monotonic: Monotonic) -> None:
        self.path = path
        self.generation = 0
        self._parse = parse
        self._monotonic = monotonic
        self._complaint = ""
        self._due = monotonic() + RECHECK
        self._tried, text = read_text(path)
        self._seen = self._tried
        self._value = parse(path, text)

    def current(self) -> T:
        """The content as of the last look, at most RECHECK seconds ago."""
        now = self._monotonic()
        if now >= self._due:
            self._due = now + RECHECK
            try:
                self._look()
            except TableError as error:
                self._complain(str(error))
        return self._value

    def _look(self) -> None:
        try:
            found = _signature(self.path.stat())
        except OSError as error:
            raise TableError(f"{self.path}: {error.strerror}") from None
        seen, self._seen = self._seen, found
        if found == self._tried or (found[0] == seen[0] and found != seen):
            return
        self._tried, text = read_text(self.path)  # an unreadable file is tried again, a wrong one not before it changes
        self._value = self._parse(self.path, text)
        self.generation += 1
        if self._complaint:
            self._complaint = ""
            log.info("table %s is in order again", self.path)

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            self._complaint = complaint
            log.warning("warning: %s; the table read before stays in use", complaint)


Signature = tuple[int, int, int]


def _signature(status: os.stat_result) -> Signature:
    return status.st_ino, status.st_mtime_ns, status.st_size


def read_text(path: Path) -> tuple[Signature, str]:
    """The file's text and what it looked like when it was opened. Raises TableError."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(MAX_TABLE + 1)
    except OSError as error:
        raise TableError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_TABLE:
        raise TableError(f"{path}: larger than {MAX_TABLE} bytes")
    try:
        return _signature(status), data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TableError(f"{path}:{line}: not UTF-8 text; name the source text, not a compiled map") from None


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their continuations joined, and the number of the first; comments and empty lines left out."""
    number, parts = 0, list[str]()
    for at, line in enumerate(text.split("\n"), 1):
        bare = line.strip()
        if not bare or bare.startswith("#"):
            continue
        if line[0] in " \t" and parts:
            parts.append(bare)
            continue
        if parts:
            yield number, " ".join(parts)
        number, parts = at, [bare]
    if parts:
        yield number, " ".join(parts)
