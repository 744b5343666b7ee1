"""Debian's kernel: the modules that the boards need, with what those need, and the archive that starts the root.

Modules are stored as they are loaded, since root and archive are compressed as a whole.
"""

from __future__ import annotations

import lzma
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from image import checks, debian
from image.definition import OVERLAYS
from image.root import Root
from image.tools import Tools

EARLY: Final = OVERLAYS / "initramfs.modules"  # before the root is there
LATE: Final = OVERLAYS / "root.modules"


@dataclass(frozen=True, slots=True)
class Kernel:
    """The unpacked kernel package."""

    tree: Path
    package: debian.Package

    @property
    def version(self) -> str:
        return self.package.name.removeprefix("linux-image-")

    @property
    def image(self) -> Path:
        return self.tree / "boot" / f"vmlinuz-{self.version}"

    @property
    def modules(self) -> Path:
        return self.tree / "usr/lib/modules" / self.version


def unpack(lock: debian.Lock, tools: Tools, tree: Path) -> Kernel:
    """The kernel below `tree`, with its modules' dependencies known. Kept while the lock names the same one."""
    package = next(each for each in lock.group("board") if each.name.startswith("linux-image-"))
    kernel = Kernel(tree, package)
    if not (kernel.modules / "modules.dep").exists():
        shutil.rmtree(tree, ignore_errors=True)
        debian.unpack([package], tree)
        tools.run("depmod", "-b", tree / "usr", kernel.version)
    return kernel


def wanted(path: Path) -> list[str]:
    return [line.split("#")[0].strip() for line in path.read_text().splitlines() if line.split("#")[0].strip()]


def closure(kernel: Kernel, names: Iterable[str]) -> list[str]:
    """Paths below the modules' directory of `names` and all that they need, those that come first first.

    Raises LookupError for a name that this kernel has neither as a module nor built in.
    """
    needs: dict[str, list[str]] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    soft: dict[str, list[str]] = {}
    for line in (kernel.modules / "modules.softdep").read_text().splitlines():
        words = line.split()
        if words[:1] == ["softdep"] and "pre:" in words:
            before = words[words.index("pre:") + 1 :]
            soft[words[1]] = before[: before.index("post:")] if "post:" in before else before
    by_name = {_name(path): path for path in needs}
    built_in = {_name(line) for line in (kernel.modules / "modules.builtin").read_text().split()}
    found: list[str] = []

    def add(path: str) -> None:
        if path in found:
            return
        for name in soft.get(_name(path), ()):
            if other := by_name.get(name.replace("-", "_")):
                add(other)
        for other in reversed(needs[path]):
            add(other)
        if path not in found:
            found.append(path)

    for name in names:
        if module := by_name.get(name.replace("-", "_")):
            add(module)
        elif name.replace("-", "_") not in built_in:
            raise LookupError(f"module {name}: not in {kernel.package.name}")
    return found


def _name(path: str) -> str:
    return Path(path).name.partition(".ko")[0].replace("-", "_")


def install(kernel: Kernel, tools: Tools, root: Root) -> None:
    """The modules that are loaded after the start, for the root's modprobe."""
    place = f"usr/lib/modules/{kernel.version}"
    for path in closure(kernel, [*wanted(EARLY), *wanted(LATE)]):
        root.put(f"{place}/{path.removesuffix('.xz')}", plain(kernel.modules / path), kernel.package.name)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        root.take(kernel.modules / name, f"{place}/{name}", kernel.package.name)
    tools.run("depmod", "-b", root.tree / "usr", kernel.version)
    for table in sorted((root.tree / place).iterdir()):
        if table.is_file():
            if table.name in ("modules.dep", "modules.alias", "modules.softdep"):
                root.owners[f"/{place}/{table.name}"] = kernel.package.name
            else:
                table.unlink()
                root.owners.pop(f"/{place}/{table.name}", None)


def plain(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def archive(kernel: Kernel, tools: Tools, root: Root, target: Path) -> dict[str, str]:
    """The first root: busybox, dmsetup, their libraries, modules and /init. Returns the owners of its files."""
    tree = target.with_suffix(".tree")
    shutil.rmtree(tree, ignore_errors=True)
    first = Root(tree)
    early = closure(kernel, wanted(EARLY))
    for path in early:
        first.put(f"modules/{Path(path).name.removesuffix('.xz')}", plain(kernel.modules / path), kernel.package.name)
    first.put("modules/order", "".join(f"{Path(path).name.removesuffix('.xz')}\n" for path in early))
    for name in ("usr/bin/busybox", "usr/sbin/dmsetup"):
        _with_libraries(root, first, name)
    _with_libraries(root, first, "usr/lib/ld-linux-aarch64.so.1")
    first.take(OVERLAYS / "initramfs/init", "init", "edgemail")
    for directory in ("dev", "proc", "sys", "slot", "system", "run"):
        (tree / directory).mkdir(exist_ok=True)
    for directory in ("bin", "sbin", "lib"):
        if not (tree / directory).is_symlink():
            (tree / directory).symlink_to(f"usr/{directory}")
    (tree / "usr/bin/sh").symlink_to("busybox")
    for each in tree.rglob("*"):
        if not each.is_symlink():
            each.chmod(0o755 if each.is_dir() or each.stat().st_mode & 0o100 else 0o644)
    packed = target.with_suffix(".cpio")
    packed.write_bytes(cpio(tree))
    tools.run("zstd", "-q", "-f", "-19", "--no-progress", "-o", target, packed)
    packed.unlink()
    return first.owners


def _with_libraries(root: Root, first: Root, name: str) -> None:
    """One program or library of the root, and all that it is linked with."""
    real = (root.tree / name).resolve()
    first.take(real, name, root.owners[f"/{real.relative_to(root.tree)}"])
    for library in checks.needed(real):
        path = f"usr/lib/{library}" if library.startswith("ld-linux") else f"usr/lib/aarch64-linux-gnu/{library}"
        if not (first.tree / path).exists():
            _with_libraries(root, first, path)


def cpio(tree: Path) -> bytes:
    """The tree in the kernel's archive format ("newc"), owned by root, without dates, the same every time."""
    out = bytearray()
    names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    for number, name in enumerate([*names, "TRAILER!!!"], 1):
        path = tree / name
        mode, data, links = 0, b"", 1
        if name != "TRAILER!!!":
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                mode, data = stat.S_IFLNK | 0o777, str(path.readlink()).encode()
            elif stat.S_ISREG(mode):
                data = path.read_bytes()
            else:
                links = 2
        fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08X" % value for value in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)
