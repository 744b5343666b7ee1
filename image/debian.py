"""Debian's packages: chosen by apt once (`relock`), then fetched by the lock file, checked, unpacked.

The lock file is the pin: name, version, size and hash of every archive. A mismatch ends the build. Nothing is ever
installed on this machine, and no maintainer script runs.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from image.definition import LOCK, MIRROR, PACKAGES, SNAPSHOT, SUITE, WORK, Group

DEBS: Final = WORK / "debs"
KEYRINGS: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
FETCH_SECONDS: Final = 120  # limit: one package's download, an attempt
FETCHERS: Final = 6  # limit: downloads at once


class Mismatch(Exception):
    """What was fetched is not what is locked, or cannot be had any more."""


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """One line of the lock file."""

    group: str
    name: str
    version: str
    architecture: str
    size: int
    sha256: str
    path: str  # below the mirror: debian/pool/main/...

    @property
    def archive(self) -> Path:
        return DEBS / f"{self.sha256[:16]}-{Path(self.path).name}"

    def line(self) -> str:
        words = (self.group, self.name, self.version, self.architecture, str(self.size), self.sha256, self.path)
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Lock:
    """All that is pinned, and the day on which it was."""

    taken: str  # 20261121T000000Z: the day to ask the snapshot archive for
    packages: tuple[Package, ...]

    def group(self, *names: str) -> tuple[Package, ...]:
        return tuple(package for package in self.packages if package.group in names)

    def one(self, name: str) -> Package:
        return next(package for package in self.packages if package.name == name)


def read(path: Path = LOCK) -> Lock:
    """The lock file; a line that is not understood is an error with its number."""
    taken, packages = "", []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("# taken "):
            taken = line.split()[2]
        if not line or line.startswith("#"):
            continue
        words = line.split(" ")
        if len(words) != 7 or not re.fullmatch(r"[0-9a-f]{64}", words[5]) or not words[4].isdigit():
            raise Mismatch(f"{path.name}:{number}: not a line of seven fields with a size and a SHA-256")
        group, name, version, architecture, size, sha256, where = words
        packages.append(Package(group, name, version, architecture, int(size), sha256, where))
    return Lock(taken, tuple(packages))


def write(lock: Lock, path: Path = LOCK) -> None:
    head = (
        f"# taken {lock.taken} from {SUITE}; written by `make relock`, read by `make image`\n"
        "# group package version architecture size sha256 path\n"
    )
    path.write_text(head + "".join(package.line() + "\n" for package in sorted(lock.packages)))


def fetch(packages: Iterable[Package], taken: str) -> None:
    """Every archive into the cache, each checked. Raises Mismatch with all that is wrong."""
    DEBS.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(FETCHERS) as pool:
        wrong = [text for text in pool.map(lambda package: _fetch(package, taken), packages) if text]
    if wrong:
        raise Mismatch("\n".join([*wrong, "the lock file is older than the mirror: `make relock` takes today's"]))


def _fetch(package: Package, taken: str) -> str:
    if package.archive.exists() and _fits(package, package.archive):
        return ""
    why = ""
    for base in (MIRROR, f"{SNAPSHOT}/{{archive}}/{taken}"):
        archive, _, rest = package.path.partition("/")
        url = f"{base.format(archive=archive)}/{rest}" if "{archive}" in base else f"{base}/{package.path}"
        part = package.archive.with_suffix(f".{os.getpid()}.part")
        try:
            with urllib.request.urlopen(url, timeout=FETCH_SECONDS) as answer, part.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except (OSError, urllib.error.URLError) as error:
            why = f"{package.name} {package.version}: {url}: {error}"
            part.unlink(missing_ok=True)
            continue
        if _fits(package, part):
            part.rename(package.archive)
            return ""
        part.unlink()
        return f"{package.name} {package.version}: {url} has another size or hash than the lock file"
    return why


def _fits(package: Package, path: Path) -> bool:
    if path.stat().st_size != package.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256


def unpack(packages: Iterable[Package], tree: Path, only: str = "") -> None:
    """The files of each package below `tree`, in the lock's order; `only` those below a directory."""
    tree.mkdir(parents=True, exist_ok=True)
    for directory in ("bin", "sbin", "lib"):  # as in every Debian since 12: one /usr
        (tree / "usr" / directory).mkdir(parents=True, exist_ok=True)
        if not (tree / directory).is_symlink():
            (tree / directory).symlink_to(f"usr/{directory}")
    for package in packages:
        if only:
            tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package.archive)], check=True, capture_output=True)
            subprocess.run(["tar", "-x", "-C", str(tree), "-f", "-", only], input=tar.stdout, check=True)
        else:
            subprocess.run(["dpkg-deb", "-x", str(package.archive), str(tree)], check=True)


def contents(package: Package) -> list[str]:
    """The paths that a package brings, without the leading dot: files and links, no directories."""
    done = subprocess.run(["dpkg-deb", "-c", str(package.archive)], check=True, capture_output=True, text=True)
    paths = [line.split(None, 5)[5] for line in done.stdout.splitlines() if not line.startswith("d")]
    return [_merged(path.partition(" -> ")[0].partition(" link to ")[0].removeprefix(".")) for path in paths]


def _merged(path: str) -> str:
    return f"/usr{path}" if path.split("/")[1] in ("bin", "sbin", "lib") else path


def control(package: Package) -> dict[str, str]:
    """The control fields: Source, Maintainer, Homepage, Depends."""
    done = subprocess.run(["dpkg-deb", "-f", str(package.archive)], check=True, capture_output=True, text=True)
    fields: dict[str, str] = {}
    for line in done.stdout.splitlines():
        if not line.startswith((" ", "\t")):
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    return fields


def relock() -> Lock:
    """What apt would take today, for every group of the definition."""
    import time

    packages: list[Package] = []
    for group in PACKAGES:
        apt = Apt(group.architecture)
        apt.update()
        packages += apt.choose(group)
    return Lock(time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), tuple(sorted(set(packages))))


class Apt:
    """apt-get with lists, cache and status of its own, for one architecture."""

    def __init__(self, architecture: str) -> None:
        self._home = WORK / "apt" / architecture
        for directory in ("etc/apt.conf.d", "etc/preferences.d", "state/lists/partial", "cache/archives/partial"):
            (self._home / directory).mkdir(parents=True, exist_ok=True)
        (self._home / "status").touch()
        signed = f"deb [signed-by={KEYRINGS}]"
        (self._home / "etc/sources.list").write_text(
            f"{signed} {MIRROR}/debian {SUITE} main non-free-firmware\n"
            f"{signed} {MIRROR}/debian {SUITE}-updates main non-free-firmware\n"
            f"{signed} {MIRROR}/debian-security {SUITE}-security main non-free-firmware\n"
        )
        self._configuration = self._home / "apt.conf"
        self._configuration.write_text(
            f'Dir::Etc "{self._home}/etc"; Dir::State "{self._home}/state"; Dir::Cache "{self._home}/cache";\n'
            f'Dir::State::status "{self._home}/status"; APT::Architecture "{architecture}";\n'
            f'APT::Architectures "{architecture}"; APT::Install-Recommends "false"; Acquire::Languages "none";\n'
            'APT::Sandbox::User ""; \n'
        )

    def _run(self, command: Sequence[str]) -> str:
        environment = {**os.environ, "APT_CONFIG": str(self._configuration), "LC_ALL": "C"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Mismatch(f"{' '.join(command[:3])}: {done.stderr.strip()[-400:]}")
        return done.stdout

    def update(self) -> None:
        self._run(["apt-get", "update", "-q"])

    def choose(self, group: Group) -> list[Package]:
        """The packages of a group; with `closure`, all that apt says they need."""
        names = [self._real(name) for name in group.names]
        if group.closure:
            listed = self._run(["apt-get", "install", "-qq", "-y", "--print-uris", *names])
            found = re.findall(r"^'[^']*' ([^_]+)_\S+ \d+", listed, re.MULTILINE)
            names = sorted(set(found) - set(group.without))
        printed = self._run(["apt-get", "download", "-qq", "--print-uris", *names])
        paths = {}
        for url in re.findall(r"^'([^']*)'", printed, re.MULTILINE):
            path = urllib.parse.unquote(url).removeprefix(MIRROR).lstrip("/")
            paths[Path(path).name.partition("_")[0]] = path
        shown = self._run(["apt-cache", "show", "--no-all-versions", *names])
        stanzas = [dict(re.findall(r"^([\w-]+): (.*)$", text, re.MULTILINE)) for text in shown.split("\n\n")]
        by_name = {fields["Package"]: fields for fields in stanzas if fields}
        return [
            Package(
                group.name,
                name,
                by_name[name]["Version"],
                by_name[name]["Architecture"],
                int(by_name[name]["Size"]),
                by_name[name]["SHA256"],
                paths[name],
            )
            for name in names
        ]

    def _real(self, name: str) -> str:
        """A name that ends in * stands for what the package without it depends on: the kernel of today."""
        if not name.endswith("*"):
            return name
        shown = self._run(["apt-cache", "show", "--no-all-versions", name.rstrip("*")])
        match = re.search(rf"^Depends:.*?({re.escape(name.rpartition('-')[0])}-[\w.+~-]+)", shown, re.MULTILINE)
        if match is None:
            raise Mismatch(f"{name}: depends on nothing of that name")
        return match[1]
