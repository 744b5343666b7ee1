"""Where a bundle comes from: a file, a stick, a server. Owns the connection: HTTPS, verified, and nothing else."""

from __future__ import annotations

import contextlib
import http.client
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urljoin, urlsplit

from edgemail import __version__
from edgemail.boot.bundle import Stream
from edgemail.boot.places import Places, Run
from edgemail.boot.slots import UpdateRefused

ANSWER_SECONDS: Final = 30.0  # limit: for each answer of a server that releases come from
REDIRECTS: Final = 3  # limit: times that such a server may name another address
SUFFIX: Final = ".bundle"
STICKS: Final = "sd*[0-9]"  # partitions of disks on USB
MAX_STICKS: Final = 8  # limit: partitions on USB that are looked at
MAX_BUNDLES: Final = 20  # limit: bundles on one of them


@contextlib.contextmanager
def opened(where: str, ca_file: str = "") -> Iterator[Stream]:
    """A file or an https URL. Raises UpdateRefused and OSError."""
    if "://" not in where:
        with Path(where).open("rb") as file:
            yield file
        return
    with contextlib.closing(_connected(where, ca_file)) as answer:
        yield answer


def _connected(url: str, ca_file: str) -> http.client.HTTPResponse:
    """The answer of a server, after its redirects. Only https, and only to a server that proves its name."""
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
        for _ in range(REDIRECTS + 1):
            parts = urlsplit(url)
            if parts.scheme != "https" or not parts.hostname:
                raise UpdateRefused("releases come over https only")
            connection = http.client.HTTPSConnection(
                parts.hostname, parts.port or 443, timeout=ANSWER_SECONDS, context=context
            )
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"User-Agent": f"edgemail/{__version__}", "Connection": "close"})
            answer = connection.getresponse()
            if answer.status == http.HTTPStatus.OK:
                return answer
            answer.close()
            place = answer.getheader("Location")
            if answer.status not in (301, 302, 303, 307, 308) or not place:
                raise UpdateRefused(f"{parts.hostname} answers {answer.status} {answer.reason}")
            url = urljoin(url, place)
    except (OSError, http.client.HTTPException) as error:
        raise UpdateRefused(f"{urlsplit(url).hostname} cannot be asked: {error}") from error
    raise UpdateRefused("the server names one address after the other")


@contextlib.contextmanager
def stick(places: Places, run: Run, devices: Path = Path("/dev")) -> Iterator[list[Path]]:
    """The bundles on the sticks that are in, each mounted read-only in its turn while they are used."""
    point = places.run / "usb"
    card = Path(places.disk).resolve().name
    found: list[Path] = []
    mounted: list[Path] = []
    try:
        for number, device in enumerate(sorted(devices.glob(STICKS))[:MAX_STICKS]):
            if device.name.startswith(card):
                continue
            folder = point / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            if run(["mount", "-t", "vfat", "-o", "ro,nosuid,nodev,noexec", str(device), str(folder)], 30.0).code == 0:
                mounted.append(folder)
                found += sorted(folder.glob(f"*{SUFFIX}"))[:MAX_BUNDLES]
        yield found
    finally:
        for folder in mounted:
            run(["umount", str(folder)], 30.0)
