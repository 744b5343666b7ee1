"""Power cuts over a tree of files: what a run made of names and contents, and every tree that a cut can leave of it.

The strictest reading of POSIX: a content is sure once its file was flushed, a name once its directory was; until then
each may be as before or as after, by itself, and a content torn. A rename is there or not. Recorded inside the process,
for code that runs in Python alone: audit events say when something is about to change, and the tree is looked at then.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

SECTOR = 512
EVENTS = frozenset(
    ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
)

Names = dict[tuple[int, str], int]  # directory and name -> inode
Contents = dict[int, bytes | str | None]  # inode -> content, target of a link, None for a directory


@dataclass
class Look:
    """The tree at one moment, as the process sees it; `flushed`: inode that was flushed then."""

    names: Names
    contents: Contents
    flushed: int = 0


@dataclass
class Watch:
    """Looks at `root` whenever something in the process is about to change a file, and at each flush."""

    root: Path
    looks: list[Look] = field(default_factory=list)
    _on: bool = False

    def look(self, flushed: int = 0) -> None:
        names: Names = {}
        contents: Contents = {self.root.stat().st_ino: None}

        def enter(path: Path, inode: int) -> None:
            for entry in sorted(path.iterdir()):
                number = entry.lstat().st_ino
                names[inode, entry.name] = number
                if entry.is_symlink():
                    contents[number] = str(entry.readlink())
                elif entry.is_dir():
                    contents[number] = None
                    enter(entry, number)
                else:
                    contents[number] = entry.read_bytes()

        enter(self.root, self.root.stat().st_ino)
        if flushed or not self.looks or (names, contents) != (self.looks[-1].names, self.looks[-1].contents):
            self.looks.append(Look(names, contents, flushed))

    def _heard(self, event: str, _: object) -> None:
        if self._on and event in EVENTS:
            self._quietly(self.look)

    def _quietly(self, act: Callable[[], None]) -> None:
        self._on = False
        try:
            act()
        finally:
            self._on = True

    def run(self, act: Callable[[], None], *, flushes: bool = True) -> list[Look]:
        """Every look while `act` runs. Without `flushes` no flush does anything: the negative control."""

        def fsync(descriptor: int) -> None:
            inode = os.fstat(descriptor).st_ino
            if flushes:
                self._quietly(lambda: self.look(inode))

        sys.addaudithook(self._heard)
        self.look()
        with mock.patch.object(os, "fsync", fsync):
            self._on = True
            try:
                act()
            finally:
                self._on = False
        self.look()
        return self.looks


Change = dict[str, int | None]  # names of one directory that change together; None: gone


@dataclass
class Tree:
    """What is surely on the medium, and what may be."""

    names: Names
    contents: Contents
    pending: dict[int, list[Change]] = field(default_factory=dict)  # of a directory
    versions: dict[int, list[bytes]] = field(default_factory=dict)  # of a file, since it was flushed

    def take(self, old: Look, new: Look) -> None:
        for inode in {directory for directory, _ in {**old.names, **new.names}}:
            before = {name: n for (d, name), n in old.names.items() if d == inode}
            after = {name: n for (d, name), n in new.names.items() if d == inode}
            change: Change = {n: after.get(n) for n in {**before, **after} if before.get(n) != after.get(n)}
            if change:
                self.pending.setdefault(inode, []).append(change)
        for inode, content in new.contents.items():
            if isinstance(content, bytes) and (inode not in old.contents or old.contents[inode] != content):
                self.versions.setdefault(inode, [b""] if inode not in self.contents else []).append(content)
            elif not isinstance(content, bytes):
                self.contents[inode] = content
        if new.flushed in self.versions:
            self.contents[new.flushed] = self.versions.pop(new.flushed)[-1]
        for change in self.pending.pop(new.flushed, ()):
            _apply(self.names, new.flushed, change)

    def left(self, rng: random.Random) -> tuple[Names, Contents]:
        """One of the trees that a cut can leave."""
        names, contents = dict(self.names), dict(self.contents)
        share = rng.choice((0.0, 0.3, 0.7, 1.0))
        for inode, changes in self.pending.items():
            for change in changes:
                if rng.random() < share:
                    _apply(names, inode, change)
        share = rng.choice((0.0, 0.3, 0.7, 1.0))
        for inode, versions in self.versions.items():
            base = self.contents.get(inode, b"")
            assert isinstance(base, bytes)
            contents[inode] = rng.choice(versions) if rng.random() < share else base
            if rng.random() < 0.3:
                contents[inode] = _torn(base, versions[-1], rng)
        return names, contents


def _apply(names: Names, inode: int, change: Change) -> None:
    for name, to in change.items():
        if to is None:
            names.pop((inode, name), None)
        else:
            names[inode, name] = to


def _torn(old: bytes, new: bytes, rng: random.Random) -> bytes:
    """Some sectors of each; of one that grew, a part."""
    length = len(new) if len(old) == len(new) else rng.randrange(len(new) + 1)
    parts = (
        (new if rng.random() < 0.5 else old)[at : min(at + SECTOR, length)].ljust(min(SECTOR, length - at), b"\0")
        for at in range(0, length, SECTOR)
    )
    return b"".join(parts)


def cuts(looks: list[Look], rng: random.Random, count: int) -> Iterator[tuple[int, Names, Contents]]:
    """Distinct trees after each look, `count` tries at each."""
    tree = Tree(dict(looks[0].names), dict(looks[0].contents))
    seen: set[int] = set()
    for number, (old, new) in enumerate(zip(looks, [*looks[1:], None], strict=True)):
        for _ in range(count):
            names, contents = tree.left(rng)
            key = hash((number, frozenset(names.items()), frozenset(contents.items())))
            if key not in seen:
                seen.add(key)
                yield number, names, contents
        if new is not None:
            tree.take(old, new)


def lay_out(root: Path, inode: int, names: Names, contents: Contents) -> None:
    """Make the tree under `root`, which is made anew; `inode`: that of the recorded root."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    _fill(root, inode, names, contents)


def _fill(place: Path, inode: int, names: Names, contents: Contents) -> None:
    for (directory, name), number in names.items():
        if directory != inode:
            continue
        content = contents.get(number, b"")
        if content is None:
            (place / name).mkdir()
            _fill(place / name, number, names, contents)
        elif isinstance(content, str):
            (place / name).symlink_to(content)
        else:
            (place / name).touch(0o600)
            (place / name).write_bytes(content)
