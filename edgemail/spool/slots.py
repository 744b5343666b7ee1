"""Where LMDB's reader slots stand: in memory, and `lock.mdb` in the spool's directory is a link to them.

LMDB writes a slot through a map each time a transaction begins. On a medium that hangs, or is frozen for a snapshot,
that write waits in the kernel, and the event loop with it: a relay that could still refuse mail would say nothing.

Owns the link and the directory it leads to, both gone when the last of those who have the spool open has closed it in
good order. Where no directory in memory is to be had, `lock.mdb` is a plain file.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
from pathlib import Path
from typing import Final

from edgemail.errors import DiskFull

log = logging.getLogger("edgemail.spool")

TRIES: Final = 100  # limit: how often a file of slots that is just being given up is looked for anew
LOCK: Final = "lock.mdb"
DRAFT: Final = "lock.new"
MEMORY: Final = ("/run/edgemail", "/dev/shm")  # file systems in memory; $RUNTIME_DIRECTORY goes before them


class Slots:
    """A hold on the reader slots of a spool: while it is there, nobody takes them away. One for each who opens it.

    Made before LMDB opens its lock file and closed after: a process that closes any descriptor of that file loses the
    locks which LMDB has on it, fcntl(2).
    """

    def __init__(self, directory: Path, *, readonly: bool) -> None:
        """Raises DiskFull where there is no block for them. With `readonly`, to have none is no error."""
        self._directory = directory
        self._file = -1
        may = os.access(directory, os.W_OK)
        if may:
            _settle(directory)
        for _ in range(TRIES):
            try:
                self._file = _opened(directory / LOCK, readonly=readonly and not may)
                return
            except BlockingIOError:
                continue
            except OSError as error:
                if readonly:
                    return
                raise DiskFull(f"{directory}: {error.strerror}") from error

    def close(self) -> None:
        """Let go of them; who is the last gives the memory back. Safe to call twice; never raises."""
        if self._file < 0:
            return
        link = self._directory / LOCK
        with contextlib.suppress(OSError):
            if link.is_symlink() and _is_ours(home := link.readlink().parent, self._directory):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                link.unlink()
                (home / LOCK).unlink()
                home.rmdir()
        os.close(self._file)
        self._file = -1


def _opened(path: Path, *, readonly: bool) -> int:
    """A descriptor with a shared lock. Raises BlockingIOError where the file is just being given up."""
    file = os.open(path, os.O_CLOEXEC | (os.O_RDONLY if readonly else os.O_RDWR | os.O_CREAT), 0o660)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not _is_at(path, file):
            raise BlockingIOError
        if not readonly and os.fstat(file).st_blocks == 0:
            # LMDB writes it through a map: without a block behind it, a full file system would be SIGBUS.
            os.posix_fallocate(file, 0, 1)  # a block whatever is asked; LMDB sets the length itself
    except BaseException:
        os.close(file)
        raise
    return file


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _settle(directory: Path) -> None:
    """Have `lock.mdb` lead into memory. Never raises."""
    link = directory / LOCK
    try:
        if link.is_symlink() and _is_ours(link.readlink().parent, directory):
            return
        home = _home(directory)
        if home is None:
            return
        draft = directory / DRAFT
        draft.unlink(missing_ok=True)
        draft.symlink_to(home / LOCK)
        draft.rename(link)
    except OSError as error:
        log.warning("warning: %s stays on the medium: %s", link, error.strerror)
        if link.is_symlink():  # to where there is nothing
            with contextlib.suppress(OSError):
                link.unlink()


def _home(directory: Path) -> Path | None:
    """A directory in memory of our own for this spool, as open to others as the spool's is; None without memory."""
    own = directory.stat()
    places = (*filter(None, os.environ.get("RUNTIME_DIRECTORY", "").split(":")[:1]), *MEMORY)
    found = next((Path(each) for each in places if os.access(each, os.W_OK | os.X_OK)), None)
    if found is None:
        return None
    name = f"edgemail-{os.geteuid()}-{own.st_dev:x}-{own.st_ino:x}"
    home = found / name
    try:
        home.mkdir(mode=0o700)
    except FileExistsError:
        if not _is_ours(home, directory):  # somebody else was here first: a name that cannot be foreseen
            home = found / f"{name}-{os.urandom(4).hex()}"
            home.mkdir(mode=0o700)
    with contextlib.suppress(OSError):
        os.chown(home, -1, own.st_gid)
    home.chmod(stat.S_IMODE(own.st_mode) & 0o755)
    return home


def _is_ours(home: Path, directory: Path) -> bool:
    """Whether nobody but us and the owner of the spool may change it: what stands in it decides what readers see."""
    try:
        found = home.lstat()
        owners = os.geteuid(), directory.stat().st_uid
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid in owners
        and not found.st_mode & 0o022
        and os.access(home, os.W_OK | os.X_OK)
    )
