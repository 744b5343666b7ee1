"""What the image is made of: names, sizes, places. No code but paths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
WORK: Final = (ROOT / ".cache" / "image").resolve()  # fetched and unpacked packages, shared by all builds
BUILD: Final = ROOT / "build"
OVERLAYS: Final = ROOT / "overlays"
LOCK: Final = ROOT / "image" / "packages.lock"
BUDGETS: Final = ROOT / "image" / "budgets.txt"

SUITE: Final = "trixie"
MIRROR: Final = "http://deb.debian.org"
SNAPSHOT: Final = "http://snapshot.debian.org/archive"  # what the mirror no longer has, by day
BOARD: Final = "arm64"  # Pi 3, Zero 2 W and 4, and QEMU's virt
PYTHON: Final = "python3.13"

SECTOR: Final = 512
MIB: Final = 1 << 20
BOOT_START: Final = 4 * MIB  # before it: the table, the boot state at sector 64 and its spare copy
BOOT_SIZE: Final = 28 * MIB
SLOT_SIZE: Final = 64 * MIB  # limit: one slot of the card; an update is never larger
IMAGE_XZ_LIMIT: Final = 36_000_000  # limit: what is downloaded and flashed


@dataclass(frozen=True, slots=True)
class Group:
    """Packages that are chosen together. A name that ends in -* is the real package behind a metapackage."""

    name: str
    architecture: str
    names: tuple[str, ...]
    closure: bool = True  # with all that they depend on
    without: tuple[str, ...] = ()  # what only maintainer scripts and people at a terminal need


PACKAGES: Final = (
    Group(
        "root",
        "arm64",
        (
            "base-files",
            "busybox",
            "ca-certificates",
            "dmsetup",
            "e2fsprogs",
            "openntpd",
            "python3",
            "python3-aiosmtpd",
            "python3-cryptography",
            "python3-dnspython",
            "python3-lmdb",
            "python3-psutil",
        ),
        without=(
            *("adduser", "base-passwd", "coreutils"),
            *("debconf", "dpkg", "init-system-helpers", "logsave", "lsb-base"),
            *("libacl1", "libattr1", "libaudit-common", "libaudit1"),
            *("libbsd0", "libbz2-1.0", "libcap-ng0", "libcrypt1"),
            *("libdb5.3t64", "libdebconfclient0", "libgmp10", "libmd0", "libncursesw6", "libpam-modules"),
            *("libpam-modules-bin", "libpam0g", "libreadline8t64", "libsemanage-common", "libsemanage2", "libsepol2"),
            *("libsqlite3-0", "libsystemd0", "libtinfo6", "login.defs", "mawk", "media-types"),
            *("openssl", "openssl-provider-legacy"),
            *("passwd", "perl-base", "readline-common", "sysvinit-utils", "tar", "libss2", "python3-bcrypt"),
        ),
    ),
    Group("board", "arm64", ("linux-image-arm64*", "raspi-firmware", "u-boot-rpi"), closure=False),
    Group(
        "tools",
        "amd64",
        (
            *("cryptsetup-bin", "dosfstools", "e2fsprogs", "erofs-utils", "kmod"),
            *("mtools", "python3", "u-boot-tools", "xz-utils", "zstd"),
        ),
    ),
    Group("emulator", "amd64", ("qemu-system-arm", "qemu-user", "u-boot-qemu")),
)

BOARDS: Final = ("pi", "virt")  # overlays: what one board has beside the others
EMPTY: Final = ("boot", "data", "dev", "proc", "run", "slot", "sys", "tmp", "var")  # where something is mounted
