"""The data partition of a real card: a loop device with the image's layout, real programs, real damage. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from edgemail.boot import card, data
from edgemail.boot.places import Places, Ran, run
from tests.cards import table

PROGRAMS = ("losetup", "mount", "umount", "mkfs.ext4", "e2fsck", "debugfs")
LAYOUT = (4 << 20, 28 << 20), (32 << 20, 64 << 20), (96 << 20, 64 << 20)

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(shutil.which(name) for name in PROGRAMS),
    reason=f"needs root and {', '.join(PROGRAMS)}",
)


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    image = tmp_path / "card.img"
    with image.open("wb") as file:
        file.truncate(400 << 20)
        file.write(table(*LAYOUT))
    made = subprocess.run(["losetup", "-P", "-f", "--show", str(image)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    loop = made.stdout.strip()
    (tmp_path / "boot").mkdir()
    found = Places(disk=loop, partition=card.device(loop, 4), boot=tmp_path / "boot", data=tmp_path / "data")
    try:
        yield found
    finally:
        if data.is_mounted(found.data):
            subprocess.run(["umount", str(found.data)], check=True)
        subprocess.run(["losetup", "-d", loop], check=True)


def unmount(places: Places) -> None:
    subprocess.run(["umount", str(places.data)], check=True)


def noted(ran: list[str]) -> object:
    def note(command: Sequence[str], seconds: float) -> Ran:
        ran.append(command[0])
        return run(command, seconds)

    return note


def wreck(places: Places, size: int) -> None:
    """Overwrite the beginning of the file system."""
    with Path(places.partition).open("r+b", buffering=0) as file:
        file.write(os.urandom(size))
        os.fsync(file.fileno())


def test_made_kept_damaged_and_made_anew(places: Places) -> None:
    assert data.prepare(places, run).state == "made"
    options = subprocess.run(
        ["findmnt", "-no", "OPTIONS", str(places.data)], capture_output=True, text=True, check=True
    )
    assert {"rw", "nosuid", "nodev", "noexec", "noatime"} <= set(options.stdout.strip().split(","))
    assert os.statvfs(places.data).f_blocks * 4096 > 200 << 20
    (places.data / "mail").write_text("kept")
    assert data.prepare(places, run).state == "mounted"
    unmount(places)

    ran: list[str] = []
    assert data.prepare(places, noted(ran)).state == "mounted"  # type: ignore[arg-type]
    assert ran == ["e2fsck", "mount"]
    assert (places.data / "mail").read_text() == "kept"
    unmount(places)

    wreck(places, 1 << 20)  # superblock, group descriptors, and the inodes behind them
    ran.clear()
    damaged = data.prepare(places, noted(ran))  # type: ignore[arg-type]
    assert (damaged.state, damaged.usable) == ("damaged", False)
    assert "The data partition is damaged" in damaged.message
    assert ran == ["e2fsck"]
    assert not data.is_mounted(places.data)

    assert data.prepare(places, run, data.ERASE).state == "erased"
    assert not (places.data / "mail").exists()


def test_what_fsck_mends_by_itself_is_mended(places: Places) -> None:
    assert data.prepare(places, run).state == "made"
    (places.data / "mail").write_text("kept")
    unmount(places)
    for field in ("state 0", "free_inodes_count 7"):  # not closed in order, and a count that is wrong
        edit = ["debugfs", "-w", "-R", f"set_super_value {field}", places.partition]
        subprocess.run(edit, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checked = run(["e2fsck", "-n", places.partition], 60.0)
    assert "count wrong" in checked.said  # there is something to mend
    assert data.prepare(places, run).state == "mounted"
    assert (places.data / "mail").read_text() == "kept"


def test_repair_may_do_what_fsck_does_not_dare(places: Places) -> None:
    assert data.prepare(places, run).state == "made"
    for number in range(50):
        (places.data / f"mail{number}").write_text("kept" * 2000)
    unmount(places)
    wreck(places, 4096)  # the superblock; there are others
    assert data.prepare(places, run).state == "damaged"
    assert data.prepare(places, run, data.REPAIR).state == "repaired"
    assert (places.data / "mail7").read_text() == "kept" * 2000
