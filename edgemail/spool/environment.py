"""The LMDB environment of a spool and the lock of the process that may write it.

Owns opening, transactions and the translation of LMDB's errors: no exception of lmdb leaves this module, and no other
module of the package names it. Knows nothing of what the records mean.

An LMDB environment that failed to write its meta page is of no further use and has to be closed and opened again. That
happens on the writer's thread while the loop's thread may be reading; `_gate` keeps the two apart. A medium that hangs
just then must not hold the loop: it waits for the gate once, and then not at all until it has been open again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import lmdb

from edgemail.errors import DiskFull, SpoolBusy, SpoolDamaged, SpoolError, SpoolFull
from edgemail.spool.slots import LOCK, Slots

log = logging.getLogger("edgemail.spool")

DATA: Final = "data.mdb"
DRAFT: Final = "new"  # a directory in which the file comes to be
HOLDER: Final = "holder.pid"
MAX_READERS: Final = 8  # limit: reader slots of the LMDB environment: the relay and seven tools
MIN_MAP: Final = 1 << 20  # limit: bytes of the smallest map that is made
GATE_SECONDS: Final = 0.5  # limit: for the spool to be opened anew before a reader is told that it is not there
NEARLY_FULL: Final = 1 << 20  # a short write comes back as EIO; with less than this free it was for want of room
# The binding of Debian 13 (1.4.1) has one engine and no argument for it; the formats of the two are not the same.
_ENGINE: Final[dict[str, Any]] = {"lib_version": 0} if hasattr(lmdb.Environment, "lib_version") else {}

Transaction = Any  # lmdb.Transaction, which has no types in every release


@contextlib.contextmanager
def map_errors(directory: Path, id: int | None = None) -> Iterator[None]:
    """Make the package's errors of LMDB's. With `id`: a page that cannot be right is that record's damage."""
    try:
        yield
    except lmdb.MapFullError as error:
        raise SpoolFull(f"{directory}: the spool is full (spool_size)") from error
    except (lmdb.CorruptedError, lmdb.PageNotFoundError) as error:
        if id is not None:
            raise SpoolDamaged(id, f"page of the spool is damaged: {error}") from error
        raise SpoolError(f"{directory}: {error}") from error
    except lmdb.Error as error:
        # LMDB reports a short write as EIO, by its plainest class; ENOSPC may come through as it is.
        if os.strerror(errno.ENOSPC) in str(error) or os.strerror(errno.EDQUOT) in str(error) or _no_room(directory):
            raise DiskFull(f"{directory}: no space left on the file system") from error
        raise SpoolError(f"{directory}: {error}") from error


def _no_room(directory: Path) -> bool:
    try:
        found = os.statvfs(directory)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < NEARLY_FULL


class Holder:
    """The right to write a spool: a lock on a file of its own that holds the pid. The kernel drops it with the process.

    Not LMDB's own lock file: that one admits any number of processes.
    """

    def __init__(self, directory: Path) -> None:
        self._file = os.open(directory / HOLDER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy = _busy(directory, self._file)
            os.close(self._file)
            raise busy from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give it up; safe to call twice."""
        if self._file >= 0:
            os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = -1


def _busy(directory: Path, file: int) -> SpoolBusy:
    pid = os.pread(file, 32, 0).decode("ascii", "replace").strip()
    return SpoolBusy(f"{directory} is in use by process {pid or '(starting)'}")


def holder_of(directory: Path) -> SpoolBusy | None:
    """What to say of the process that holds the spool now; None when it is free."""
    try:
        file = os.open(directory / HOLDER, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _busy(directory, file)
    finally:
        os.close(file)
    return None


def flush(path: Path) -> None:
    """Wait until a file, or a directory's names, are on the medium."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


class Environment:
    """One LMDB environment with one unnamed table. `size` 0: as large as the file says."""

    def __init__(self, directory: Path, size: int = 0, *, readonly: bool = False, lock: bool = True) -> None:
        self.directory = directory
        self._size = size // 65536 * 65536  # a multiple of every page size
        self._readonly = readonly
        self._lock = lock
        self._gate = threading.Lock()
        self._shut_out = False  # the gate was waited for in vain
        self._env: Any = None
        self._file = -1
        self._slots = Slots(directory, readonly=readonly) if lock else None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        if not self._readonly:
            self._make()
        with map_errors(self.directory):
            self._env = self._lmdb(self.directory, self._lock)
            info = self._env.info()
            self.map_size: int = info["map_size"]
            self.page: int = self._env.stat()["psize"]
        if not self._readonly:
            with contextlib.suppress(OSError):  # not ours: then whoever made it gave it the mode
                (self.directory / LOCK).chmod(0o660)  # a reader of the group needs a slot in it
            self._file = os.open(self.directory / DATA, os.O_RDWR | os.O_CLOEXEC)
            self._lengthen()

    def _lmdb(self, directory: Path, lock: bool) -> Any:
        return lmdb.open(
            str(directory),
            map_size=self._size,
            readonly=self._readonly,
            create=not self._readonly,
            lock=lock,
            mode=0o640,
            writemap=False,  # a full disk under a writable map is SIGBUS, and no more relay
            sync=True,
            metasync=True,  # without it the commit behind the last 250 may be gone
            readahead=False,
            meminit=True,
            max_dbs=0,
            max_readers=MAX_READERS,
            **_ENGINE,
        )

    def _make(self) -> None:
        """Where there is no file yet, make one whole and flushed before it has its name.

        LMDB writes the first two pages of a file without a barrier: a power cut then leaves what it refuses to open.
        """
        data = self.directory / DATA
        if data.exists() and data.stat().st_size > 0:
            return
        import shutil  # with bz2 and lzma: the daemon does without, but for its first start

        draft = self.directory / DRAFT
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o750)
        with map_errors(self.directory):
            self._lmdb(draft, lock=False).close()
        flush(draft / DATA)
        (draft / DATA).rename(data)
        flush(self.directory)
        shutil.rmtree(draft, ignore_errors=True)

    def _lengthen(self) -> None:
        """A file that lost its end would be SIGBUS where it is read. Zeros there are damage that can be told."""
        info = self._env.info()
        end = (info["last_pgno"] + 1) * self.page
        size = os.fstat(self._file).st_size
        if size < end:
            log.error("error: %s: %s lost its last %d bytes", self.directory, DATA, end - size)
            os.ftruncate(self._file, end)

    @contextlib.contextmanager
    def read(self, id: int | None = None) -> Iterator[Transaction]:
        """A read transaction: short, never held across a yield or an await. `id` names the record that is sought."""
        with self._opened(id) as env, env.begin() as transaction:
            yield transaction

    @contextlib.contextmanager
    def write(self) -> Iterator[Transaction]:
        """A write transaction, committed at the end and aborted by any exception. For the writer's thread only."""
        with map_errors(self.directory):
            transaction = self._begin()
            try:
                yield transaction
            except BaseException:
                transaction.abort()
                raise
            self.commit(transaction)

    def commit(self, transaction: Transaction) -> None:
        """Returns when what the transaction wrote is on the medium."""
        transaction.commit()

    def _begin(self) -> Transaction:
        if self._env is not None:
            try:
                return self._env.begin(write=True)
            except lmdb.MapFullError:
                raise
            except lmdb.Error as error:  # MDB_PANIC after a failed meta page, above all
                log.warning("warning: %s: %s; opening the spool anew", self.directory, error)
        self.reopen()
        return self._env.begin(write=True)

    def reopen(self) -> None:
        """Close and open again. Raises SpoolError; the next transaction then tries again."""
        with self._gate:
            self._shut()
            self._open()

    def close(self) -> None:
        """Every read and write after it raises SpoolError."""
        with self._gate:
            self._shut()
            if self._slots is not None:
                self._slots.close()

    def _shut(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._env is not None:
            self._env.close()
            self._env = None

    @contextlib.contextmanager
    def _opened(self, id: int | None = None) -> Iterator[Any]:
        if not self._gate.acquire(timeout=0 if self._shut_out else GATE_SECONDS):
            self._shut_out = True
            raise SpoolError(f"{self.directory}: the spool is being opened anew, and the medium does not answer")
        try:
            self._shut_out = False
            with map_errors(self.directory, id):
                if self._env is None:
                    raise SpoolError(f"{self.directory}: the spool is closed")
                yield self._env
        finally:
            self._gate.release()

    def reader_check(self) -> None:
        """Free the slots of readers that died: their snapshots would make the file grow."""
        with self._opened() as env:
            env.reader_check()

    def used(self) -> tuple[int, int]:
        """Pages that hold something, and records. With one table its figures are the whole truth."""
        with self._opened() as env:
            found = env.stat()
        return found["branch_pages"] + found["leaf_pages"] + found["overflow_pages"], found["entries"]

    def end(self) -> int:
        """Bytes from the file's start to the end of the last page that was ever used."""
        with self._opened() as env:
            last: int = env.info()["last_pgno"]
        return (last + 1) * self.page

    def allocated(self) -> int:
        """Bytes of the file system that the file holds, whether LMDB uses them yet or not. Raises OSError too."""
        with self._opened():
            return os.fstat(self._file).st_blocks * 512

    def allocate(self, end: int) -> None:
        """Have the file system set aside the file's bytes up to `end`. Raises OSError; for the writer's thread."""
        os.posix_fallocate(self._file, 0, min(end, self.map_size))
