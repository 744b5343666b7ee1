"""The data partition: made at the first start in the free space of the card, checked and mounted at every start.

Owns when it is made anew: at the first start, and when a person asks with a file on the boot partition. A partition
that is damaged is never made anew without being asked. Knows nothing of what stands in it but two directories.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgemail.boot import card
from edgemail.boot.card import BlockCard, CardRefused, Partition
from edgemail.boot.places import Places, Run
from edgemail.value import value

LABEL: Final = "edgemail-data"
INODES: Final = 8192  # limit: files on the data partition; a spool has a dozen
CHECK_SECONDS: Final = 600.0  # limit: for the check of a data partition, on a slow card
MAKE_SECONDS: Final = 600.0  # limit: for making one
RESET: Final = "edgemail-reset"  # the beginning of the file that asks for one
RESET_DONE: Final = "edgemail-was-reset.txt"
KEEP_MAIL, ERASE, REPAIR = "keep-mail", "erase", "repair"
WORDS: Final = (KEEP_MAIL, ERASE, REPAIR)
OPTIONS: Final = "noatime,lazytime,nodev,nosuid,noexec"

_BLKPG: Final = 0x1269
_ADD: Final = 1


@dataclass
class Data:
    """How the data partition is. `state`: mounted, made, erased, repaired, damaged, missing."""

    state: str
    message: str = ""  # a sentence when it cannot be used, or was made anew

    @property
    def usable(self) -> bool:
        return self.state not in ("damaged", "missing")


@value
class Reset:
    """What a file on the boot partition asks for. `word` "" = nothing that is known."""

    path: Path
    word: str


def wanted(boot: Path) -> Reset | None:
    """The file that asks for a reset, if there is one."""
    try:
        names = sorted(boot.iterdir())
    except OSError:
        return None
    for path in names:
        if path.name.lower().startswith(RESET) and path.is_file():
            try:
                raw = path.read_bytes()[:200]
            except OSError:
                raw = b""
            text = raw.replace(b"\0", b"").decode("ascii", "ignore").strip().lower()  # UTF-16 too
            word = text.split()[0] if text else ""
            return Reset(path, word if word in WORDS else "")
    return None


def done(reset: Reset) -> None:
    """The file is put out of the way, so that it does not count at the next start. Raises OSError."""
    reset.path.replace(reset.path.with_name(RESET_DONE))
    directory = os.open(reset.path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def prepare(places: Places, run: Run, word: str = "") -> Data:
    """Make, check and mount the data partition; `word`: the reset that is asked for."""
    if is_mounted(places.data):
        return Data("mounted")
    state = "mounted"
    try:
        made = _partition(places, run)
    except (OSError, CardRefused) as error:
        return Data("missing", f"The card has no data partition, and none can be made: {error}")
    if made:
        state = "made"
    elif word == ERASE:
        failed = _make(run, [places.partition])
        if failed:
            return Data("damaged", failed)
        state = "erased"
    elif word == REPAIR:
        checked = run(["e2fsck", "-f", "-y", places.partition], CHECK_SECONDS)
        if checked.code not in (0, 1, 2):
            return Data("damaged", f"The data partition cannot be repaired: {_last(checked.said)}")
        state = "repaired"
    else:
        checked = run(["e2fsck", "-p", places.partition], CHECK_SECONDS)
        if checked.code not in (0, 1, 2):  # 1: mended, 2: mended and to be read anew, which mounting does
            return Data("damaged", f"The data partition is damaged: {_last(checked.said)}")
    places.data.mkdir(parents=True, exist_ok=True)
    mounted = run(["mount", "-t", "ext4", "-o", OPTIONS, places.partition, str(places.data)], CHECK_SECONDS)
    if mounted.code != 0:
        return Data("damaged", f"The data partition cannot be mounted: {_last(mounted.said)}")
    return Data(state)


def is_mounted(directory: Path) -> bool:
    """Whether another file system begins at a directory."""
    try:
        return directory.stat().st_dev != directory.parent.stat().st_dev
    except OSError:
        return False


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given"


def _partition(places: Places, run: Run) -> bool:
    """Make the partition where there is none. True when it was made.

    The file system comes first, in free space that only the kernel knows as a partition; then one sector, the table,
    makes it one. So a partition that is there was once whole, and a start that was cut begins again. Raises OSError and
    CardRefused.
    """
    with BlockCard(places.disk) as disk:
        table = disk.read(0, card.SECTOR)
        if 4 in card.partitions(table):
            return False
        fresh, place = card.with_data(table, disk.size // card.SECTOR)
        if Path(places.disk).is_block_device():
            _announce(places.disk, place)  # mkfs refuses a disk of which other partitions are mounted
            failed = _make(run, [places.partition])
        else:
            offset, size = place.start * card.SECTOR, place.sectors * card.SECTOR
            failed = _make(run, ["-E", f"offset={offset}", places.disk, f"{size // 1024}k"])
        if failed:
            raise CardRefused(failed)
        disk.flush()
        disk.write(0, fresh)
        disk.flush()
    return True


def _make(run: Run, where: list[str]) -> str:
    """Make the file system; "" or what went wrong. Its tables are written now, not by and by: a card wears."""
    options = ["-q", "-F", "-F", "-L", LABEL, "-b", "4096", "-m", "1", "-N", str(INODES)]
    extended = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
    if where[0] == "-E":  # they are one option
        extended, where = f"{extended},{where[1]}", where[2:]
    ran = run(["mkfs.ext4", *options, "-E", extended, *where], MAKE_SECONDS)
    return "" if ran.code == 0 else f"mkfs.ext4: {_last(ran.said)}"


def _announce(disk: str, place: Partition) -> None:
    """Have the kernel know of a new partition while others of the disk are mounted: BLKPG, linux/blkpg.h.

    One that it knows already, from a start that was cut short, stays as it is.
    """
    start, length = place.start * card.SECTOR, place.sectors * card.SECTOR
    import ctypes

    with Path(disk).open("rb") as file:
        body = ctypes.create_string_buffer(struct.pack("=qqi64s64s", start, length, place.number, b"", b""), 152)
        head = struct.pack("@iiiP", _ADD, 0, 152, ctypes.addressof(body))
        try:
            fcntl.ioctl(file.fileno(), _BLKPG, head)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
