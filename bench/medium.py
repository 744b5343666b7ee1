"""Where a spool lies while it is measured: an ext4 file system of its own, whose device counts what is written to it.

The slow one costs about what an SD card costs: 1 ms for each write request, 5 ms for each flush, 20 MB/s; its requests
go one at a time through slow.c, a FUSE server, which is compiled on first use. Needs root.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SIZE = 12 << 30  # bytes of the file, which is sparse
BUSY_SECONDS = 10.0  # limit: until the last process has let go
WRITE_US, FLUSH_US, BYTES_PER_SECOND = 1000, 5000, 20_000_000
SECTOR = 512


@dataclass(frozen=True)
class Written:
    """What the device has taken since it was made."""

    bytes: int
    flushes: int

    def __sub__(self, before: Written) -> Written:
        return Written(self.bytes - before.bytes, self.flushes - before.flushes)


@dataclass(frozen=True)
class Medium:
    """A mounted file system: `place` is where a spool may lie."""

    place: Path
    device: str

    def written(self) -> Written:
        """Documentation/block/stat.rst of the kernel."""
        words = Path(f"/sys/block/{Path(self.device).name}/stat").read_text().split()
        return Written(int(words[6]) * SECTOR, int(words[15]))

    def settle(self) -> None:
        """Let what is only in the page cache reach the device."""
        subprocess.run(["sync", "-f", str(self.place)], check=True)


@contextlib.contextmanager
def medium(*, slow: bool = False) -> Iterator[Medium]:
    """A fresh one, for one run of one system."""
    with contextlib.ExitStack() as undo:
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="medium-")))
        directory.chmod(0o755)
        image, place = directory / "image", directory / "fs"
        place.mkdir()
        with image.open("wb") as file:
            file.truncate(SIZE)
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-N", "400000", str(image))
        if slow:
            shown = directory / "slow"
            shown.mkdir()
            costs = (str(WRITE_US), str(FLUSH_US), str(BYTES_PER_SECOND))
            run(str(server()), str(image), str(shown), *costs)
            undo.callback(unmount, shown)
            image = shown / "image"
        device = run("losetup", "--show", "--find", str(image)).strip()
        undo.callback(run, "losetup", "--detach", device)
        run("mount", "-o", "noatime", device, str(place))
        undo.callback(unmount, place)
        place.chmod(0o755)
        yield Medium(place, device)


def unmount(place: Path) -> None:
    """Take a file system away, when the last process of a system that was stopped has let go of it."""
    until = time.monotonic() + BUSY_SECONDS
    while subprocess.run(["umount", str(place)], capture_output=True, check=False).returncode != 0:
        if time.monotonic() > until:
            run("umount", str(place))
        time.sleep(0.1)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def server() -> Path:
    """The FUSE server's program."""
    source, program = Path(__file__).with_name("slow.c"), Path("build/slow")
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(exist_ok=True)
        run("cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(source))
    return program.resolve()
