"""The tables of a configuration file that are the system image's: `[network]`, `[time]`, `[update]`.

Owns their keys and what may stand in them; every mistake is reported. Applies nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

from edgemail.boot.expand import Mistake
from edgemail.boot.values import domain, near, printable, seconds, shown
from edgemail.relay.queue.window import parse_window
from edgemail.settings import Names, Network, TimeServers, Update

T = TypeVar("T")

MAX_ADDRESSES: Final = 8  # limit: entries of each list in [network] and [time]
MAX_WINDOWS: Final = 16  # limit: windows of [update]
MAX_KEYS: Final = 8  # limit: keys of [update]
CHECK_INTERVAL: Final = (3600.0, 31 * 86_400.0)  # limit: seconds between two looks for a release; 0 = never

_INTERFACE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,14}")
_KEY: Final = re.compile(r"[0-9A-Fa-f]{64}")


class Report(Protocol):
    """Who is told of mistakes."""

    def problem(self, key: str, message: str, hint: str = "") -> None: ...


def tables(report: Report, data: Mapping[str, Any], base: Path, *, files: bool) -> tuple[Network, TimeServers, Update]:
    """The three tables, each at its defaults where it does not stand in the file. Mistakes go to `report`."""

    def ca_file(raw: Any) -> str:
        path = base / _text(raw)
        if raw and files and not path.is_file():
            raise Mistake(f"{path}: no such file")
        return str(path) if raw else ""

    network = _table(report, data, "network", Network, _NETWORK)
    if network.gateway and not any("/" in each for each in network.address):
        report.problem(
            "network.gateway", "stands without an address", 'address = ["192.0.2.7/24"]; DHCP brings its own'
        )
    for gateway in network.gateway:
        if any("/" in each for each in network.address) and not any(
            "/" in each and _near(gateway, each) for each in network.address
        ):
            report.problem("network.gateway", f"{gateway} is in the network of no address", "see the prefix of address")
            break
    time = _table(report, data, "time", TimeServers, {"servers": _hosts})
    update = _table(report, data, "update", Update, {**_UPDATE, "ca_file": ca_file})
    if update.windows and not update.url:
        report.problem("update.windows", "stands without url", "where releases come from")
    return network, time, update


def _table(report: Report, data: Mapping[str, Any], name: str, kind: type[T], readers: Mapping[str, Any]) -> T:
    table = data.get(name, {})
    values: dict[str, Any] = {}
    if not isinstance(table, dict):
        report.problem(name, f"is {shown(table)}, expected a table", f"write [{name}]")
        return kind()
    for key, raw in table.items():
        if key not in readers:
            report.problem(f"{name}.{key}", "unknown parameter", near(key, readers))
            continue
        try:
            values[key] = readers[key](raw)
        except (Mistake, ValueError) as error:
            report.problem(f"{name}.{key}", str(error), error.hint if isinstance(error, Mistake) else "")
    return kind(**values)


def _near(gateway: str, address: str) -> bool:
    """Whether a gateway can be reached from an address, by what their prefix says."""
    found = ipaddress.ip_address(gateway)
    return found.is_link_local or found in ipaddress.ip_interface(address).network


# ---- values


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise Mistake(f"is {shown(raw)}, expected text")
    return printable(raw)


def _list(raw: Any, most: int = MAX_ADDRESSES) -> list[str]:
    parts = [raw] if isinstance(raw, str) else raw
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise Mistake(f"is {shown(raw)}, expected an array of text")
    if not 0 < len(parts) <= most:
        raise Mistake(f"has {len(parts)} entries", f"from 1 to {most}")
    return [printable(part.strip()) for part in parts]


def _interface(raw: Any) -> str:
    text = _text(raw)
    if text and not _INTERFACE.fullmatch(text):
        raise Mistake(f"'{text}' is not the name of an interface", 'for example "eth0"; leave it out for the first one')
    return text


def _vlan(raw: Any) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int) or not 0 <= raw <= 4094:
        raise Mistake("is not the number of a VLAN", "1 to 4094; 0 for none")
    return raw


def _addresses(raw: Any) -> Names:
    found = []
    for word in _list(raw):
        if word == "dhcp":
            found.append(word)
            continue
        try:
            if "/" not in word:
                raise Mistake(f"'{word}' has no prefix", f"{word}/24 for a network of 255.255.255.0")
            found.append(ipaddress.ip_interface(word).with_prefixlen)
        except ValueError:
            raise Mistake(
                f"'{word}' is not an address", '"dhcp", or an address and its prefix: "192.0.2.7/24"'
            ) from None
        if ipaddress.ip_interface(word).ip == ipaddress.ip_interface(word).network.network_address and _net(word):
            raise Mistake(f"'{word}' is the network itself", "the box's own address, with the prefix of the network")
    return tuple(found)


def _net(word: str) -> bool:
    """Whether the prefix leaves room for more than two addresses: then the first is the network's."""
    network = ipaddress.ip_interface(word).network
    return network.version == 4 and network.prefixlen < 31


def _literals(raw: Any) -> Names:
    found = []
    for word in _list(raw):
        try:
            found.append(str(ipaddress.ip_address(word)))
        except ValueError:
            raise Mistake(f"'{word}' is not an address", 'for example "192.0.2.1"') from None
    return tuple(found)


def _ipv6(raw: Any) -> str:
    if raw not in ("auto", "off"):
        raise Mistake(f"{raw!r} is not one of auto, off")
    return str(raw)


def _hosts(raw: Any) -> Names:
    found = _list(raw)
    for word in found:
        try:
            ipaddress.ip_address(word)
        except ValueError:
            domain(word)
    return tuple(found)


def _url(raw: Any) -> str:
    text = _text(raw)
    if not text:
        return ""
    parts = urlsplit(text)
    if parts.scheme != "https" or not parts.hostname:
        raise Mistake("is not an https URL", '"https://updates.example.com/edgemail-arm64.bundle"')
    if not text.isascii() or " " in text:
        raise Mistake("has characters that no URL has", "write them as %20 and so on")
    if parts.username is not None:
        raise Mistake("names a user", "logins in URLs are not sent")
    if parts.port == 0:
        raise Mistake("has port 0")
    return text


def _keys(raw: Any) -> Names:
    found = _list(raw, MAX_KEYS)
    for word in found:
        if not _KEY.fullmatch(word):
            raise Mistake(f"'{word[:16]}' is not a key", "the 64 hex digits of an Ed25519 public key")
    return tuple(word.lower() for word in found)


def _interval(raw: Any) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        raise Mistake(f"is {shown(raw)}, expected a duration", 'for example "1d"')
    value = seconds(raw if isinstance(raw, str) else f"{raw:.15g}", "s")
    if value and not CHECK_INTERVAL[0] <= value <= CHECK_INTERVAL[1]:
        raise Mistake(f"{value:g}s is out of bounds", "from 1h to 31d; 0 = never")
    return value


def _windows(raw: Any) -> Names:
    found = _list(raw, MAX_WINDOWS)
    for word in found:
        parse_window(word)
    return tuple(found)


_NETWORK: Final[Mapping[str, Callable[[Any], Any]]] = {
    "interface": _interface,
    "vlan": _vlan,
    "address": _addresses,
    "gateway": _literals,
    "nameservers": _literals,
    "ipv6": _ipv6,
}
_UPDATE: Final[Mapping[str, Callable[[Any], Any]]] = {
    "url": _url,
    "keys": _keys,
    "check_interval": _interval,
    "windows": _windows,
}
