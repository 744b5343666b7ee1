"""What both sides of the control socket agree on: its name, the sizes of lines and frames, the exit codes.

Imports nothing heavy: every command loads it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SOCKET_NAME: Final = "control"
MAX_REQUEST: Final = 65_536  # limit: octets of a request line on the control socket
MAX_FRAME: Final = 65_536  # limit: octets of one frame of content on the control socket
MAX_SUN_PATH: Final = 107  # octets of a socket's path, unix(7)

# sysexits.h
EX_OK: Final = 0
EX_USAGE: Final = 64
EX_DATAERR: Final = 65
EX_NOINPUT: Final = 66
EX_UNAVAILABLE: Final = 69
EX_SOFTWARE: Final = 70
EX_OSERR: Final = 71
EX_CANTCREAT: Final = 73
EX_TEMPFAIL: Final = 75
EX_NOPERM: Final = 77
EX_CONFIG: Final = 78


@contextlib.contextmanager
def addressed(path: Path) -> Iterator[str]:
    """An address for a unix socket at `path`, short enough for the kernel however deep the directory lies."""
    if len(os.fsencode(path)) <= MAX_SUN_PATH:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
