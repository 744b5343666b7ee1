"""What must hold of a finished root before it is packed: nothing missing, nothing foreign, nothing too big."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from image.definition import BUDGETS
from image.root import Root

LIBRARY_PLACES: Final = ("usr/lib/aarch64-linux-gnu", "usr/lib")
DT_NEEDED: Final = 1
DT_STRTAB: Final = 5
PT_LOAD: Final = 1
PT_DYNAMIC: Final = 2
PT_INTERP: Final = 3
AARCH64: Final = 183


def needed(path: Path) -> list[str]:
    """The libraries that an ELF file names (DT_NEEDED); none for what is no ELF file or is static."""
    data = path.read_bytes()
    if data[:4] != b"\x7fELF" or data[4] != 2:
        return []
    segments = list(_segments(data))
    dynamic = next((data[offset : offset + size] for kind, offset, _, size in segments if kind == PT_DYNAMIC), b"")
    entries = [struct.unpack_from("<QQ", dynamic, at) for at in range(0, len(dynamic) - 15, 16)]
    table = next((value for tag, value in entries if tag == DT_STRTAB), 0)
    loaded = [(offset, address, size) for kind, offset, address, size in segments if kind == PT_LOAD]
    start = next((offset + table - address for offset, address, size in loaded if 0 <= table - address < size), 0)
    places = [start + value for tag, value in entries if tag == DT_NEEDED]
    return [data[place : data.index(b"\0", place)].decode() for place in places]


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Kind, offset in the file, address, size in the file."""
    (table,) = struct.unpack_from("<Q", data, 32)
    width, count = struct.unpack_from("<HH", data, 54)
    for number in range(count):
        kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", data, table + number * width)
        yield kind, offset, address, size


def closure(root: Root) -> list[str]:
    """Libraries that some file of the root names and the root does not have."""
    missing = []
    for path in root.paths():
        place = root.tree / path[1:]
        if place.is_symlink() or place.suffix == ".ko":
            continue
        data = place.read_bytes()[:20]
        if data[:4] != b"\x7fELF":
            continue
        if struct.unpack_from("<H", data, 18)[0] != AARCH64:
            missing.append(f"{path}: for another processor")
        missing += [
            f"{path}: needs {name}"
            for name in needed(place)
            if not any((root.tree / where / name).exists() for where in LIBRARY_PLACES)
        ]
    return missing


def unowned(root: Root) -> list[str]:
    """Files that no package and no overlay brought."""
    return [f"{path}: of no package" for path in root.paths() if path not in root.owners]


def rights(root: Root) -> list[str]:
    """Files that run as somebody else, or that others may write."""
    found = []
    for path in (root.tree, *root.tree.rglob("*")):
        mode = path.lstat().st_mode
        if not path.is_symlink() and (mode & 0o6000 or mode & 0o022):
            found.append(f"/{path.relative_to(root.tree)}: mode {mode & 0o7777:o}")
    return found


def sources(root: Root) -> list[str]:
    """Python that would be compiled at each start."""
    return [f"{path}: source" for path in root.paths() if path.endswith((".py", ".opt-1.pyc", ".opt-2.pyc"))]


def sizes(root: Root) -> dict[str, int]:
    """Bytes on the root by owner."""
    found: dict[str, int] = {}
    for path in root.paths():
        place = root.tree / path[1:]
        if not place.is_symlink():
            owner = root.owners.get(path, "")
            if owner.startswith("linux-image-"):
                owner = "linux-image"  # its name has its version
            found[owner] = found.get(owner, 0) + place.stat().st_size
    return found


def budgets(path: Path = BUDGETS) -> dict[str, int]:
    """KiB that each package may take."""
    rows = [line.split() for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {name: int(limit) for name, limit, *_ in rows}


def over(root: Root) -> list[str]:
    """Packages without a budget, over it, or with one and not there."""
    allowed, found = budgets(), sizes(root)
    wrong = [f"{name}: no budget ({size >> 10} KiB)" for name, size in found.items() if name not in allowed]
    wrong += [
        f"{name}: {size >> 10} KiB, its budget is {allowed[name]}"
        for name, size in found.items()
        if name in allowed and size > allowed[name] << 10
    ]
    return wrong + [f"{name}: a budget for what is not there" for name in allowed if name not in found]


def all_wrong(root: Root) -> list[str]:
    return [*closure(root), *unowned(root), *rights(root), *sources(root), *over(root)]
