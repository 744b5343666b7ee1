"""Debian packages, fetched by apt-get and unpacked by dpkg-deb, with those of their dependencies that are missing."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.peers import CACHE, Peer

SECONDS = 300


def install(peer: Peer) -> str:
    """Unpack `peer` into its tree; why it could not be done, or ""."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            return f"no {tool} here: this is not Debian or like it"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if peer.present:
            return ""
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            return _fetch(peer, Path(directory))


def _fetch(peer: Peer, directory: Path) -> str:
    print(f"fetching {peer.name} ...", flush=True)
    packages = sorted({*peer.packages, *_missing(peer.packages)})
    why = _download(packages, directory)
    if why and os.geteuid() == 0:  # the lists may be old, or not there at all
        _run(["apt-get", "update", "-q"], directory)
        packages = sorted({*peer.packages, *_missing(peer.packages)})
        why = _download(packages, directory)
    if why:
        return why
    tree = directory / "tree"
    for package in sorted(directory.glob("*.deb")):
        done = _run(["dpkg-deb", "-x", str(package), str(tree)], directory)
        if done.returncode:
            return f"{package.name}: {_last(done.stderr)}"
    shutil.rmtree(peer.tree, ignore_errors=True)
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o777 | 0o444)  # no program here is to run as somebody else
    tree.rename(peer.tree)
    return "" if peer.present else f"{peer.program} is not in {', '.join(packages)}"


def _missing(packages: tuple[str, ...]) -> list[str]:
    """What apt would install beside them. Upgrades are left out: the machine's own libraries do."""
    done = _run(["apt-get", "install", "-s", "--no-install-recommends", *packages], Path("/"))
    return re.findall(r"^Inst (\S+) \(", done.stdout, re.MULTILINE)


def _download(packages: list[str], directory: Path) -> str:
    done = _run(["apt-get", "download", "-q", *packages], directory)
    return _last(done.stderr) if done.returncode else ""


def _run(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        return subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]} took more than {SECONDS} s")


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("E:")] or text.splitlines() or ["no reason given"]
    return lines[-1]
