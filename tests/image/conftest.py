"""One image for all: built when it is not there or the checkout is newer than it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from image import build
from image.definition import BUILD, ROOT
from tests.image.machine import HOST, Card, Machine, present
from tests.scenarios.sink import Sink, sink

SOURCES = ("edgemail", "image", "overlays")


@pytest.fixture(scope="session")
def made() -> build.Build:
    """The build whose files are in build/."""
    if why := present():
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    found = build.Build(build.version(), build.date(), build.serial(), xz=False)
    image = found.out / f"{found.name}.img"
    sources = [path for name in SOURCES for path in (ROOT / name).rglob("*") if "__pycache__" not in path.parts]
    newest = max(path.lstat().st_mtime for path in sources if not path.is_dir())
    if not image.exists() or image.stat().st_mtime < newest or not (found.work / "root").exists():
        build.run(found)
    return found


@pytest.fixture(scope="session")
def image(made: build.Build) -> Path:
    return made.out / f"{made.name}.img"


@pytest.fixture(scope="module")
def smarthost() -> Iterator[Sink]:
    with sink() as found:
        yield found


def configuration(port: int = 0, *, name: str = "gw7.example.com", more: str = "") -> str:
    """What a person puts on the boot partition. `port`: of a smarthost on this machine."""
    relayhost = f'relayhost = "[{HOST}]:{port}"\n' if port else ""
    return (
        f'myhostname = "{name}"\nmynetworks = ["127.0.0.0/8", "10.0.2.0/24"]\n{relayhost}'
        'admin_address = "admin@example.net"\nsmtp_tls_security_level = "none"\n'
        f'{more}\n[[listener]]\naddress = "*"\nport = 25\n\n'
        '[health]\naddress = "0.0.0.0"\nport = 8025\nnetworks = ["10.0.2.0/24"]\n'
    )


@pytest.fixture(scope="module")
def box(image: Path, smarthost: Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A provisioned box that is on, for all the tests of a module."""
    card = Card.flashed(image, tmp_path_factory.mktemp("box") / "card.img")
    card.put("edgemail.toml", configuration(smarthost.port, more='relay_domains = ["site.example"]'))
    with Machine(card) as machine:
        machine.wait_ready(240)
        yield machine


__all__ = ["BUILD", "configuration"]
