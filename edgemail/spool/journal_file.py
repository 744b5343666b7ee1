"""The journal as a file of fixed size beside the LMDB one: made, opened, written, read, set aside.

Owns the system calls and their errors; knows nothing of records. The file is filled with zeros once and never grows:
on blocks that were written before, a flush is one barrier, where new ones would cost the file system's own journal too
(fallocate alone is not enough: its blocks count as unwritten).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edgemail.errors import SpoolError, SpoolFull
from edgemail.spool import journal_layout
from edgemail.spool.environment import flush

log = logging.getLogger("edgemail.spool")

NAME: Final = "journal"
DRAFT: Final = "journal.new"  # in which it comes to be
ASIDE: Final = "journal.aside"  # a damaged one, kept for whoever wants to look at it
MAX_ASIDE: Final = 4  # limit: damaged journals that are kept; what comes after them is said in the log alone
FILL_BYTES: Final = 1 << 20  # limit: bytes written at once while the file is filled


class JournalFile:
    """The open file. Every method raises SpoolError."""

    def __init__(self, directory: Path, size: int) -> None:
        """Open it, or make it anew where there is none of this size."""
        self.directory = directory
        self.size = size
        with self._errors():
            self._make()
            self._file = os.open(directory / NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kind = SpoolFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else SpoolError
            raise kind(f"{self.directory / NAME}: {error.strerror}") from error

    def _make(self) -> None:
        path = self.directory / NAME
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            if found.st_size == self.size and found.st_nlink == 1 and path.is_file():
                return  # with a second name it was set aside, and is not to be written again
        draft = self.directory / DRAFT
        draft.unlink(missing_ok=True)
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for at in range(0, self.size, FILL_BYTES):
                self._put(file, bytes(min(FILL_BYTES, self.size - at)), at)
            os.fsync(file)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        draft.rename(path)
        flush(self.directory)

    @staticmethod
    def _put(file: int, data: bytes, at: int) -> None:
        rest = memoryview(data)
        while rest:
            count = os.pwrite(file, rest, at)
            if count == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            rest = rest[count:]
            at += count

    def write(self, at: int, data: bytes) -> None:
        """Returns when it is on the medium. After an error nobody knows what is: do not write there again."""
        with self._errors():
            self._put(self._file, data, at)
            os.fdatasync(self._file)

    def begin(self, identity: bytes) -> None:
        """Write the header: what stands in the file belongs to nobody any more."""
        self.write(0, journal_layout.write_header(self.size, identity))

    def forget(self) -> None:
        """No header: the file holds nothing. Needs no barrier; where it is lost, the header is of a finished life."""
        with self._errors():
            self._put(self._file, bytes(journal_layout.BLOCK), 0)

    def close(self) -> None:
        """Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Found:
    """A journal that is there, to be read alone. Use as a context manager."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError."""
        self._file = os.open(directory / NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def read(self, at: int, count: int) -> bytes:
        """Up to so many bytes; b"" where the medium does not give them: that is damage, as any other."""
        try:
            return os.pread(self._file, count, at)
        except OSError as error:
            log.error("error: the journal cannot be read at %d: %s", at, error.strerror)
            return b""

    def whose(self) -> tuple[int, bytes] | None:
        """The size that its header names, and the identity; None where there is no header, or the size is not so."""
        found = journal_layout.read_header(self.read(0, journal_layout.BLOCK))
        return found if found is not None and os.fstat(self._file).st_size == found[0] else None

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Found:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def aside(directory: Path) -> list[Path]:
    """The journals that were set aside, oldest first."""
    names = (directory / f"{ASIDE}.{number}" for number in range(1, MAX_ASIDE + 1))
    return [path for path in names if path.exists()]


def set_aside(directory: Path) -> Path | None:
    """Give the journal another name beside its own, so that `remove` leaves it; None where that cannot be."""
    path = directory / NAME
    for known in aside(directory):
        with contextlib.suppress(OSError):
            if known.samefile(path):
                return known  # by a start that was cut
    for number in range(1, MAX_ASIDE + 1):
        other = directory / f"{ASIDE}.{number}"
        try:
            os.link(path, other, follow_symlinks=False)
            flush(directory)
        except FileExistsError:
            continue
        except OSError as error:
            log.warning("warning: %s: not kept: %s", path, error.strerror)
            return None
        return other
    return None


def remove(directory: Path) -> None:
    """Forget the journal: nothing stands in it. What was set aside stays."""
    for name in (NAME, DRAFT):
        with contextlib.suppress(OSError):
            (directory / name).unlink(missing_ok=True)
