"""Programs that nobody here wrote, to talk to: Postfix, Exim, swaks, msmtp, curl, openssl, fetchmail, promtool,
nft, Chromium.

`python -m tests.peers install` fetches the Debian packages of what this machine lacks and unpacks them under
.cache/peers; nothing is installed, so a machine's own mail system is never touched, and no root is needed for it.
A test asks `need("postfix")`: without the program it is skipped, and that is printed; with CI=true it fails.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".cache" / "peers"


@dataclass(frozen=True)
class Peer:
    """One program, or a family that comes together: its packages, and a program that shows that it is there."""

    name: str
    packages: tuple[str, ...]
    program: str
    private: bool = False  # always unpacked: a machine's own configuration must not leak into the tests

    @property
    def tree(self) -> Path:
        return CACHE / self.name

    def find(self, program: str) -> Path | None:
        """The program: the machine's own unless `private`, else the unpacked one."""
        if not self.private and (found := shutil.which(program)):
            return Path(found)
        for directory in ("usr/sbin", "usr/bin", "usr/lib/postfix/sbin", "sbin", "bin"):
            path = self.tree / directory / program
            if path.exists():
                return path
        return None

    @property
    def present(self) -> bool:
        return self.find(self.program) is not None

    def path(self, program: str = "") -> str:
        found = self.find(program or self.program)
        assert found is not None, f"{program}: not there; `python -m tests.peers install` says why"
        return str(found)

    def environment(self) -> dict[str, str]:
        """os.environ with the unpacked libraries and Perl modules."""
        places = ("usr/lib/*-linux-*", "usr/lib/*-linux-*/pulseaudio", "usr/lib/postfix")
        libraries = [str(path) for place in places for path in self.tree.glob(place)]
        perl = [str(self.tree / "usr/share/perl5"), *map(str, self.tree.glob("usr/lib/*-linux-*/perl5/*"))]
        found = dict(os.environ)
        if self.tree.exists():
            found["LD_LIBRARY_PATH"] = ":".join(libraries)
            found["PERL5LIB"] = ":".join(perl)
        return found


PEERS = {
    peer.name: peer
    for peer in (
        Peer("postfix", ("postfix", "sasl2-bin", "libsasl2-modules", "libsasl2-modules-db"), "postfix", private=True),
        Peer("exim", ("exim4-daemon-light", "exim4-base", "libnss-wrapper"), "exim4", private=True),
        Peer("swaks", ("swaks", "libnet-ssleay-perl", "perl-openssl-defaults"), "swaks"),
        Peer("msmtp", ("msmtp",), "msmtp"),
        Peer("curl", ("curl",), "curl"),
        Peer("openssl", ("openssl",), "openssl"),
        Peer("fetchmail", ("fetchmail",), "fetchmail"),
        Peer("prometheus", ("prometheus",), "promtool"),
        Peer("nftables", ("nftables",), "nft"),
        Peer("chromium", ("chromium", "chromium-driver", "fonts-dejavu-core"), "chromedriver"),
    )
}


def need(name: str, *, root: bool = False) -> Peer:
    """The peer, or the end of the test: skipped where it cannot be had, failed with CI=true."""
    peer = PEERS[name]
    why = ""
    if not peer.present:
        why = f"{name} is not there: python -m tests.peers install"
    elif root and os.geteuid() != 0:
        why = f"{name} needs root to run"
    if why and os.environ.get("CI", "").lower() == "true":
        pytest.fail(why)
    if why:
        pytest.skip(why)
    return peer
