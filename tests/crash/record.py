"""Runs a program under the recorder and reads what it asked of the medium.

The recorder is a preloaded library (recorder.c) and not strace: it sees the data of every write without decoding text,
costs microseconds instead of two context switches a call, and can make a barrier a no-op below the program.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

WRITE, SYNC, TRUNCATE, ALLOCATE, MARK, MMAP_SHARED, RENAME, FAILED = range(1, 9)
HEADER = struct.Struct("<BBBxIQQQ")
SOURCE = Path(__file__).with_name("recorder.c")


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. `file` is the index into the recorded names; `size` the new size of a truncation.

    Of a rename `file` is the old name and `offset` one more than the index of the new one; -1 and 0 are other names.
    """

    kind: int
    file: int
    dsync: bool
    offset: int
    size: int
    data: bytes


def build(directory: Path) -> Path:
    """Compile the recorder; `cc` is part of what the tests install."""
    library = directory / "recorder.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(SOURCE), "-ldl", "-pthread"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def run(
    command: Sequence[str], directory: Path, files: Sequence[str], *, skip: str = "", seconds: float = 120
) -> list[Op]:
    """Run `command` recorded; raises CalledProcessError when it fails. `skip` names a barrier to leave out."""
    log = directory / "record.bin"
    log.unlink(missing_ok=True)
    environment = os.environ | {
        "LD_PRELOAD": str(build(directory)),
        "EDGEMAIL_RECORD": str(log),
        "EDGEMAIL_RECORD_FILES": ":".join(files),
        "EDGEMAIL_RECORD_SKIP": skip,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    subprocess.run(command, env=environment, check=True, timeout=seconds, capture_output=True, text=True)
    return list(read(log))


def read(log: Path) -> Iterator[Op]:
    """The operations of a record, in order."""
    data = log.read_bytes()
    at = 0
    while at < len(data):
        kind, file, dsync, length, offset, size, _ = HEADER.unpack_from(data, at)
        at += HEADER.size
        yield Op(kind, file - 1, bool(dsync), offset, size, data[at : at + length])
        at += length
