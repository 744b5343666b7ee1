"""The root tree of the system: packages less what is left out, overlays, edgemail, bytecode only.

Every file has an owner, a package or the project; `Root.owners` is what the manifest and the tests read.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from image import debian
from image.definition import BOARDS, EMPTY, OVERLAYS, ROOT
from image.tools import Tools

LEFT_OUT: Final = ROOT / "image" / "left_out.txt"
PROJECT: Final = "edgemail"
SITE: Final = "usr/lib/python3/dist-packages"
AUTHORITIES: Final = "usr/share/ca-certificates/mozilla"

COMPILE: Final = """
import pathlib, py_compile, sys
root = pathlib.Path(sys.argv[1])
for path in sorted(root.rglob("*.py")):
    py_compile.compile(str(path), cfile=str(path) + "c", dfile="/" + str(path.relative_to(root)), doraise=True,
                       optimize=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    path.unlink()
"""


@dataclass(slots=True)
class Root:
    """A tree on this machine, and to whom each of its paths belongs."""

    tree: Path
    owners: dict[str, str] = field(default_factory=dict)

    def paths(self) -> list[str]:
        """All files and links, from the root, sorted."""
        return sorted(
            f"/{path.relative_to(self.tree)}" for path in self.tree.rglob("*") if path.is_symlink() or path.is_file()
        )

    def take(self, source: Path, target: str, owner: str) -> None:
        """Copy one file or link to `target`."""
        place = self.tree / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        shutil.copy2(source, place, follow_symlinks=False)
        self.owners[f"/{target.lstrip('/')}"] = owner

    def put(self, target: str, text: str | bytes, owner: str = PROJECT) -> None:
        place = self.tree / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text.encode() if isinstance(text, str) else text)
        self.owners[f"/{target.lstrip('/')}"] = owner


def build(lock: debian.Lock, tools: Tools, tree: Path, texts: Mapping[str, str]) -> Root:
    """The finished tree, without the kernel's modules. `texts`: files of this release, by their path."""
    shutil.rmtree(tree, ignore_errors=True)
    packages = lock.group("root")
    debian.unpack(packages, tree)
    root = Root(tree)
    for package in packages:
        for path in debian.contents(package):
            root.owners[path] = package.name
    root.owners.update(dict.fromkeys(("/bin", "/sbin", "/lib"), "base-files"))
    _licences(lock, root)
    prune(root, rules())
    _authorities(lock, root)
    for overlay in ("common", *BOARDS):
        lay(root, OVERLAYS / overlay)
    _edgemail(root)
    _applets(root, OVERLAYS / "applets.txt")
    for path, text in texts.items():
        root.put(path, text)
    _strip_sources(root, tools)
    for directory in EMPTY:
        (tree / directory).mkdir(parents=True, exist_ok=True)
    _modes(tree)
    return root


def rules(path: Path = LEFT_OUT) -> list[tuple[bool, re.Pattern[str]]]:
    """Whether to keep, and what: in the order of the file."""
    return [
        (line.startswith("!"), re.compile(fnmatch.translate(line.removeprefix("!"))))
        for line in path.read_text().splitlines()
        if line and not line.startswith("#")
    ]


def prune(root: Root, wanted: Iterable[tuple[bool, re.Pattern[str]]]) -> None:
    rows = list(wanted)
    for path in root.paths():
        keep = True
        for keeps, pattern in rows:
            if pattern.match(path):
                keep = keeps
        if not keep:
            (root.tree / path[1:]).unlink()
    _sweep(root.tree)
    here = set(root.paths())
    for path in list(root.owners):
        if path not in here:
            del root.owners[path]
    for path in sorted(here):  # links into what was left out
        place = root.tree / path[1:]
        if place.is_symlink() and not _leads(root.tree, place):
            place.unlink()
            root.owners.pop(path, None)
    _sweep(root.tree)


def _leads(tree: Path, link: Path) -> bool:
    target = str(link.readlink())
    place = tree / target.lstrip("/") if target.startswith("/") else link.parent / target
    return place.exists() or place.is_symlink() or target.startswith(("/run", "/proc", "/dev"))


def _sweep(tree: Path) -> None:
    for directory, _, _ in os.walk(tree, topdown=False):
        if directory != str(tree) and not os.listdir(directory):  # noqa: PTH208
            Path(directory).rmdir()


def lay(root: Root, overlay: Path) -> None:
    """An overlay's files at their final paths."""
    for path in sorted(overlay.rglob("*")):
        if path.is_symlink() or path.is_file():
            root.take(path, str(path.relative_to(overlay)), PROJECT)


def _authorities(lock: debian.Lock, root: Root) -> None:
    """All of Mozilla's roots in one file, as update-ca-certificates would write it."""
    package = lock.one("ca-certificates")
    fresh = root.tree.with_name("authorities")
    shutil.rmtree(fresh, ignore_errors=True)
    debian.unpack([package], fresh)
    texts = [path.read_text().strip() + "\n" for path in sorted((fresh / AUTHORITIES).glob("*.crt"))]
    root.put("etc/ssl/certs/ca-certificates.crt", "".join(texts), package.name)
    shutil.rmtree(fresh)


def _licences(lock: debian.Lock, root: Root) -> None:
    """Of what is on the card but not in the root: kernel, firmware, boot loader."""
    fresh = root.tree.with_name("board-doc")
    shutil.rmtree(fresh, ignore_errors=True)
    for package in lock.group("board"):
        debian.unpack([package], fresh, only="./usr/share/doc")
        name = f"usr/share/doc/{package.name}/copyright"
        root.take(fresh / name, name, package.name)
    shutil.rmtree(fresh)


def _edgemail(root: Root) -> None:
    """The package of this checkout: what `git` would release, not what lies about."""
    for path in sorted((ROOT / "edgemail").rglob("*")):
        if path.is_file() and path.suffix in (".py", ".html", ".js", ".svg", ".css"):
            root.take(path, f"{SITE}/{path.relative_to(ROOT)}", PROJECT)


def _applets(root: Root, listed: Path) -> None:
    """Links to busybox, for the commands that are used and no others."""
    for line in listed.read_text().splitlines():
        if line and not line.startswith("#"):
            place = root.tree / line.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to("/usr/bin/busybox")
            root.owners[line] = "busybox"


def _strip_sources(root: Root, tools: Tools) -> None:
    """Bytecode in the place of each source. A slot never changes, so nothing is compared when it is loaded."""
    tools.python(COMPILE, str(root.tree))
    for path in [path for path in root.owners if path.endswith(".py")]:
        root.owners[f"{path}c"] = root.owners.pop(path)


def _modes(tree: Path) -> None:
    """Read by everyone, written by nobody, run where it was meant to be; no bit that changes who one is."""
    for path in (tree, *tree.rglob("*")):
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        path.chmod(0o755 if path.is_dir() or mode & 0o100 else 0o644)
