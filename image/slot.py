"""One slot: a FAT file system with kernel, first root, the checked root and what is in it. One artifact, one hash."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Final

from image.definition import SLOT_SIZE
from image.kernel import Kernel
from image.tools import Tools

BLOCK: Final = 4096
PACKING: Final = "-zzstd,9"  # 19 packs for three minutes and saves a megabyte
EROFS_UUID: Final = "ed9e3a11-0000-4000-8000-000000000001"


def root_image(
    tools: Tools, tree: Path, target: Path, date: int, salt: str, *, packing: str = PACKING
) -> dict[str, str]:
    """The root as erofs with its hash tree behind it; the words that the first root reads."""
    target.unlink(missing_ok=True)
    how = (packing, "-C65536", "-Efragments,dedupe", "--all-root")
    tools.run("mkfs.erofs", "--quiet", *how, "-T", str(date), "-U", EROFS_UUID, target, tree)
    size = -target.stat().st_size % BLOCK + target.stat().st_size
    os.truncate(target, size)
    said = tools.run(
        "veritysetup", "format", target, target, "--no-superblock", f"--hash-offset={size}", f"--salt={salt}",
        f"--data-blocks={size // BLOCK}", f"--uuid={EROFS_UUID}",
    )  # fmt: skip
    root_hash = next(line.split()[-1] for line in said.splitlines() if line.startswith("Root hash:"))
    return {"DATA_BLOCKS": str(size // BLOCK), "ROOT_HASH": root_hash, "SALT": salt}


def packed_kernel(kernel: Kernel, target: Path) -> None:
    data = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=data, compresslevel=9, mtime=0) as file:
        file.write(kernel.image.read_bytes())
    target.write_bytes(data.getvalue())


def fat(tools: Tools, target: Path, files: dict[str, Path], *, size: int, label: str, serial: str, date: int) -> None:
    """A FAT16 file system with `files` (name in it: path here), the same bytes each time."""
    target.unlink(missing_ok=True)
    with target.open("wb") as file:
        file.truncate(size)
    tools.run("mkfs.fat", "-F", "16", "-n", label, "-i", serial, "--invariant", "-s", "8", target)
    made: set[str] = set()
    for name, path in sorted(files.items()):
        for parent in [str(each) for each in Path(name).parents][-2::-1]:
            if parent not in made:
                made.add(parent)
                tools.run("mmd", "-i", target, f"::{parent}", environment={"SOURCE_DATE_EPOCH": str(date)})
        os.utime(path, (date, date))
        tools.run("mcopy", "-m", "-i", target, path, f"::{name}", environment={"SOURCE_DATE_EPOCH": str(date)})


def build(tools: Tools, target: Path, files: dict[str, Path], manifest: dict[str, object], place: Path) -> str:
    """The slot's image, without the empty clusters at its end; its SHA-256. `place`: where slot.json is written."""
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(files.items())}
    place.write_text(json.dumps({**manifest, "files": hashes}, indent=1, sort_keys=True) + "\n")
    date = int(str(manifest["date"]))
    everything = {**files, "slot.json": place}
    fat(tools, target, everything, size=SLOT_SIZE, label="EDGESLOT", serial="ed9e3a12", date=date)
    data = target.read_bytes().rstrip(b"\0")
    os.truncate(target, -(-len(data) // BLOCK) * BLOCK)
    return hashlib.sha256(target.read_bytes()).hexdigest()
