"""Debian 13's programs out of unpacked packages, run by their own loader: no root, no chroot, nothing installed.

The host may be older. What is not here is not used, but for dpkg-deb, apt-get and Python itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from image import debian
from image.definition import PYTHON, WORK

LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
PROGRAMS: Final = ("usr/bin", "usr/sbin")


@dataclass(frozen=True, slots=True)
class Tools:
    """One tree of unpacked packages, and its programs."""

    tree: Path

    def command(self, program: str, *arguments: str | os.PathLike[str]) -> list[str]:
        """The command line that runs `program` with the libraries it was built with."""
        path = next((self.tree / place / program for place in PROGRAMS if (self.tree / place / program).exists()), None)
        if path is None:
            raise FileNotFoundError(f"{program} is in no package of {self.tree.name}")
        places = [self.tree / LIBRARIES, *sorted((self.tree / LIBRARIES).glob("*/"))]
        loader = self.tree / LIBRARIES / "ld-linux-x86-64.so.2"
        libraries = ":".join(str(place) for place in places if place.is_dir())
        return [
            str(loader),
            "--argv0",
            program,
            "--library-path",
            libraries,
            str(path),
            *(os.fspath(each) for each in arguments),
        ]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Nothing of the user's but the place for temporary files: builds are the same for everyone."""
        found = {
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C",
            "TZ": "UTC",
            "PYTHONHOME": str(self.tree / "usr"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "QEMU_MODULE_DIR": str(self.tree / LIBRARIES / "qemu"),
            "MTOOLS_SKIP_CHECK": "1",
            "MTOOLSRC": os.devnull,
            **({"TMPDIR": os.environ["TMPDIR"]} if "TMPDIR" in os.environ else {}),
        }
        return {**found, **(more or {})}

    def run(self, program: str, *arguments: str | os.PathLike[str], **more: Any) -> str:
        """Its standard output; an error with what it said if it fails."""
        environment = self.environment(more.pop("environment", None))
        done = subprocess.run(
            self.command(program, *arguments), env=environment, capture_output=True, text=True, check=False, **more
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip()[-2000:]
            raise RuntimeError(f"{program} ended with {done.returncode}: {said}")
        return str(done.stdout)

    def python(self, code: str, *arguments: str, path: Sequence[Path] = ()) -> str:
        """Run a program text with the image's version of Python."""
        more = {"PYTHONPATH": ":".join(map(str, path))}
        return self.run(PYTHON, "-S", "-c", code, *arguments, environment=more)


def tools(group: str = "tools") -> Tools:
    """The tree of a group of the lock file, made if it is not there or of another lock."""
    lock = debian.read()
    packages = lock.group(group)
    stamp = "".join(package.line() + "\n" for package in packages)
    tree = WORK / group
    mark = tree / ".packages"
    if mark.exists() and mark.read_text() == stamp:
        return Tools(tree)
    debian.fetch(packages, lock.taken)
    fresh = tree.with_name(f".{group}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    debian.unpack(packages, fresh)
    (fresh / ".packages").write_text(stamp)
    shutil.rmtree(tree, ignore_errors=True)
    fresh.rename(tree)
    return Tools(tree)
