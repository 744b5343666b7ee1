"""`make image`: from the lock file and this checkout to build/edgemail-VERSION-arm64.img and what stands beside it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from image import card, checks, debian, kernel, manifest, root, signing, slot, tools
from image.definition import BOARD, BOOT_SIZE, BUILD, IMAGE_XZ_LIMIT, OVERLAYS, ROOT, WORK

FIRMWARE: Final = "usr/lib/raspi-firmware"
FIRMWARE_FILES: Final = ("bootcode.bin", "start_cd.elf", "fixup_cd.dat", "start4cd.elf", "fixup4cd.dat")
TREES: Final = (
    *("bcm2837-rpi-3-b.dtb", "bcm2837-rpi-3-b-plus.dtb", "bcm2837-rpi-3-a-plus.dtb", "bcm2837-rpi-cm3-io3.dtb"),
    *("bcm2837-rpi-zero-2-w.dtb", "bcm2711-rpi-4-b.dtb", "bcm2711-rpi-400.dtb", "bcm2711-rpi-cm4-io.dtb"),
)


class Wrong(Exception):
    """What was built must not be shipped; every reason."""


@dataclass(slots=True)
class Build:
    """What to build and where. `work` may be thrown away."""

    version: str
    date: int
    serial: int
    work: Path = BUILD / "image-work"
    out: Path = BUILD
    overlay: Path | None = None  # laid over the root: tests make releases that are broken on purpose
    xz: bool = True
    stages: list[tuple[str, float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"edgemail-{self.version}-{BOARD}"

    def release(self) -> dict[str, str]:
        """/usr/lib/edgemail/release: what runs there."""
        numbers = {"BUILD_DATE": str(self.date), "SERIAL": str(self.serial), "SPOOL_FORMAT": str(spool_format())}
        return {"VERSION": self.version, "BOARD": BOARD, **numbers}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.stages.append((name, time.monotonic() - start))
        print(f"  {name}: {self.stages[-1][1]:.1f} s", flush=True)


def version() -> str:
    from edgemail import __version__

    return __version__


def date() -> int:
    """SOURCE_DATE_EPOCH, else the last commit's, so that one commit gives one image."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    return int(done.stdout or 0) or int((ROOT / "pyproject.toml").stat().st_mtime)


def serial() -> int:
    """The number that only grows, against going back to a release that is known to be bad."""
    return int((ROOT / "image" / "serial.txt").read_text().split()[0])


def spool_format() -> int:
    from edgemail.spool import layout

    return int(layout.FORMAT_WITH_JOURNAL)


def run(build: Build) -> Path:
    """Everything; the path of the slot's image. Raises Wrong, debian.Mismatch, RuntimeError of a program."""
    lock = debian.read()
    shutil.rmtree(build.work, ignore_errors=True)
    build.work.mkdir(parents=True)
    build.out.mkdir(parents=True, exist_ok=True)
    with build.stage("packages"):
        debian.fetch(lock.group("root", "board", "tools"), lock.taken)
        programs = tools.tools()
    with build.stage("root"):
        texts = {
            "usr/lib/edgemail/release": "".join(f"{name}={value}\n" for name, value in build.release().items()),
            "usr/lib/edgemail/update.keys": signing.public(),
        }
        tree = root.build(lock, programs, build.work / "root", texts)
        linux = kernel.unpack(lock, programs, WORK / "kernel")
        kernel.install(linux, programs, tree)
        if build.overlay is not None:
            root.lay(tree, build.overlay)
    with build.stage("checks"):
        if wrong := checks.all_wrong(tree):
            raise Wrong("\n".join(wrong))
    with build.stage("root image"):
        salt = hashlib.sha256(f"{build.name} {build.serial}".encode()).hexdigest()
        words = slot.root_image(programs, tree.tree, build.work / "root.img", build.date, salt)
        (build.work / "verity.env").write_text("".join(f"{key}={value}\n" for key, value in words.items()))
    with build.stage("slot"):
        slot.packed_kernel(linux, build.work / "kernel.gz")
        first = kernel.archive(linux, programs, tree, build.work / "initrd")
        files = {name: build.work / name for name in ("kernel.gz", "initrd", "root.img", "verity.env")}
        about: dict[str, object] = {
            "version": build.version, "board": BOARD, "date": build.date, "serial": build.serial,
            "spool_format": spool_format(), "kernel": linux.version,
        }  # fmt: skip
        target = build.out / f"{build.name}.slot"
        slot.build(programs, target, files, about, build.work / "slot.json")
    with build.stage("card"):
        boot = _boot(build, lock, programs, linux)
        card.build(build.out / f"{build.name}.img", boot, target)
    with build.stage("bundle"):
        if keys := sorted(signing.directory().glob("*.key")):
            bundle(build, keys)
    with build.stage("manifest"):
        manifest.write(build.out / build.name, lock, tree, first, about)
    if build.xz:
        with build.stage("xz"):
            pack(build, programs)
    _sums(build)
    return target


def _boot(build: Build, lock: debian.Lock, programs: tools.Tools, linux: kernel.Kernel) -> Path:
    """The boot partition: the Pi's firmware, U-Boot, its script, device trees, and room for edgemail.toml."""
    board = build.work / "board"
    debian.unpack([lock.one("raspi-firmware"), lock.one("u-boot-rpi")], board)
    files = {name: board / FIRMWARE / name for name in FIRMWARE_FILES}
    files["u-boot.bin"] = board / "usr/lib/u-boot/rpi_arm64/u-boot.bin"
    trees = linux.tree / "usr/lib" / linux.package.name / "broadcom"
    files |= {name: trees / name for name in TREES}
    script = build.work / "boot.scr"
    kind = ("-A", "arm64", "-T", "script", "-C", "none", "-n", "edgemail")
    date = {"SOURCE_DATE_EPOCH": str(build.date)}
    programs.run("mkimage", *kind, "-d", OVERLAYS / "boot/boot.cmd", script, environment=date)
    files["boot.scr"] = script
    for path in sorted((OVERLAYS / "boot").iterdir()):
        if path.suffix != ".cmd":
            copy = build.work / f"boot-{path.name}"
            text = path.read_bytes()
            copy.write_bytes(text.replace(b"\n", b"\r\n") if path.suffix in (".txt", ".example") else text)
            files[path.name] = copy
    copies = build.work / "boot-files"
    copies.mkdir()
    for number, (name, path) in enumerate(sorted(files.items())):
        files[name] = Path(shutil.copy(path, copies / str(number)))
    target = build.work / "boot.fat"
    slot.fat(programs, target, files, size=BOOT_SIZE, label="EDGEMAIL", serial="ed9e3a10", date=build.date)
    return target


def bundle(build: Build, keys: list[Path], min_from: int = 0) -> Path:
    """The slot that was built, signed with `keys`."""
    about = build.release()
    target = build.out / f"{build.name}.bundle"
    signing.sign(build.out / f"{build.name}.slot", about, target, keys, min_from)
    return target


def pack(build: Build, programs: tools.Tools) -> None:
    image = build.out / f"{build.name}.img"
    packed = image.with_suffix(".img.xz")
    packed.unlink(missing_ok=True)
    programs.run("xz", "-k", "-T2", "--block-size=32MiB", "-6e", image)
    if packed.stat().st_size > IMAGE_XZ_LIMIT:
        raise Wrong(f"{packed.name}: {packed.stat().st_size} bytes, at most {IMAGE_XZ_LIMIT} are to be downloaded")


def _sums(build: Build) -> None:
    for path in sorted(build.out.glob(f"{build.name}.*")):
        if path.suffix in (".img", ".xz", ".slot", ".bundle", ".json"):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")
