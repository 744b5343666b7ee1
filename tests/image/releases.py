"""Releases that differ from the built one by a few files: newer ones, broken ones, ones with a probe inside."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from image import build, signing, slot, tools

Files = dict[str, str]  # path on the root: its text; a text that begins with #! can be run


def slot_of(made: build.Build, directory: Path, files: Files, *, version: str = "", serial: int = 0) -> Path:
    """The slot of a release with `files` laid over the built one's root. Packed quickly, not small."""
    directory.mkdir(parents=True, exist_ok=True)
    release = replace(made, version=version or made.version, serial=serial or made.serial, stages=[])
    tree = directory / "root"
    subprocess.run(["cp", "-a", made.work / "root", tree], check=True)
    words = "".join(f"{name}={value}\n" for name, value in release.release().items())
    for path, text in {"usr/lib/edgemail/release": words, **files}.items():
        place = tree / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.write_text(text)
        place.chmod(0o755 if text.startswith("#!") else 0o644)
    programs = tools.tools()
    values = slot.root_image(programs, tree, directory / "root.img", made.date, "ab" * 32, packing="-zlz4")
    (directory / "verity.env").write_text("".join(f"{key}={value}\n" for key, value in values.items()))
    for name in ("kernel.gz", "initrd"):
        os.link(made.work / name, directory / name)
    contents = {name: directory / name for name in ("kernel.gz", "initrd", "root.img", "verity.env")}
    about: dict[str, object] = {"version": release.version, "serial": release.serial, "date": made.date}
    target = directory / f"{release.version}.slot"
    slot.build(programs, target, contents, about, directory / "slot.json")
    shutil.rmtree(tree)
    return target


def bundle_of(
    made: build.Build, content: Path, *, version: str, serial: int, board: str = "", key: str = "release"
) -> Path:
    """A slot as a bundle, signed with one of the keys that the built image trusts, or with the file `key`."""
    words = {**made.release(), "VERSION": version, "SERIAL": str(serial)}
    if board:
        words["BOARD"] = board
    private = Path(key) if "/" in key else signing.directory() / f"{key}.key"
    target = content.with_suffix(".bundle")
    signing.sign(content, words, target, [private])
    return target
