"""Root only for as long as it takes to bind: then the relay is `mail_owner`, for good."""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import pwd
from pathlib import Path

from edgemail.errors import EdgemailError

logger = logging.getLogger("edgemail.master")


def known(owner: str) -> bool:
    """Whether the relay can become `owner`: there is such a user, or it is not started as root and need not."""
    if os.geteuid() != 0:
        return True
    try:
        pwd.getpwnam(owner)
    except KeyError:
        return False
    return True


def drop(owner: str, directory: Path, device: str = "") -> None:
    """As root: give the spool's directory, and a device if any, to `owner` and become it. As anybody else: nothing.

    Raises EdgemailError when there is no such user.
    """
    if os.geteuid() != 0:
        return
    try:
        user = pwd.getpwnam(owner)
    except KeyError:
        raise EdgemailError(
            f"mail_owner: there is no user {owner!r}; make one (useradd --system {owner}) or name another"
        ) from None
    if user.pw_uid == 0:
        logger.warning("warning: the relay runs as root, because mail_owner is %s", owner)
        return
    give(directory, user.pw_uid, user.pw_gid)
    if device:
        with contextlib.suppress(OSError):  # who opens it says what is wrong with it
            os.chown(device, user.pw_uid, -1, follow_symlinks=False)
    os.setgroups([user.pw_gid, *(group.gr_gid for group in grp.getgrall() if owner in group.gr_mem)])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


def give(directory: Path, uid: int, gid: int) -> None:
    """Make `directory` and all in it theirs. No symbolic link is followed: somebody else may have put it there."""
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    for path in (directory, *directory.rglob("*")):
        os.chown(path, uid, gid, follow_symlinks=False)
