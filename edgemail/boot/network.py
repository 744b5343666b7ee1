"""The box's network as `[network]` has it: one interface, DHCP or fixed addresses, perhaps a VLAN, IPv6, name servers.

Runs the system's own programs (ip, udhcpc); starting it again changes nothing that is as it should be. Also says which
addresses the box has.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from edgemail.boot.places import Places, Run
from edgemail.settings import Network

WAIT_SECONDS: Final = 8.0  # limit: for a network interface to appear at boot; those on USB take their time
DHCP_TRIES: Final = 3  # limit: questions to DHCP at boot, a second each, before it goes on in the background
DHCP_SECONDS: Final = 20.0  # limit: for udhcpc to have an address or go into the background
SCRIPT: Final = "/usr/share/udhcpc/default.script"
KEEP: Final = "EDGEMAIL_NAMESERVERS"  # tells the script to leave the resolver's file alone

_SIOCGIFADDR: Final = 0x8915
_ETHERNET: Final = "1"


def wired(sys: Path) -> list[str]:
    """The wired interfaces, by name: hardware that speaks Ethernet and is no radio."""
    found = []
    for path in sorted(sys.glob("*")):
        try:
            kind = (path / "type").read_text().strip()
        except OSError:
            continue
        if kind == _ETHERNET and (path / "device").exists() and not (path / "wireless").exists():
            found.append(path.name)
    return found


def bring_up(places: Places, network: Network, hostname: str, run: Run, pause: Callable[[float], None]) -> list[str]:
    """Do what `[network]` says. Returns what went wrong, a sentence each; the rest was done."""
    trouble: list[str] = []

    def ip(*words: str) -> None:
        ran = run(["ip", *words], 10.0)
        if ran.code != 0:
            trouble.append(f"ip {' '.join(words)}: {ran.said.splitlines()[-1] if ran.said else ran.code}")

    name = _appeared(places.sys, network.interface, pause)
    if not name:
        return [f"There is no network interface {network.interface or ''}".rstrip()]
    if network.vlan:
        ip("link", "set", name, "up")
        tagged = f"{name}.{network.vlan}"
        if not (places.sys / tagged).exists():
            ip("link", "add", "link", name, "name", tagged, "type", "vlan", "id", str(network.vlan))
        name = tagged
    for key, value in _ipv6(network).items():
        try:
            (places.proc / "ipv6" / "conf" / name / key).write_text(value)
        except OSError as error:
            if network.ipv6 != "auto":
                trouble.append(f"IPv6 cannot be set: {key}: {error.strerror}")
    ip("link", "set", name, "up")
    for address in network.address:
        if address != "dhcp":
            ip("-6" if ":" in address else "-4", "addr", "replace", address, "dev", name)
    for gateway in network.gateway:
        ip("-6" if ":" in gateway else "-4", "route", "replace", "default", "via", gateway, "dev", name)
    if network.nameservers:
        places.resolver.write_text("".join(f"nameserver {each}\n" for each in network.nameservers))
    if "dhcp" in network.address:
        trouble += _dhcp(places, network, name, hostname, run)
    return trouble


def _appeared(sys: Path, wanted: str, pause: Callable[[float], None]) -> str:
    """The interface, once it is there; "" when it does not come."""
    waited = 0.0
    while True:
        found = [wanted] if wanted and (sys / wanted).exists() else [] if wanted else wired(sys)
        if found or waited >= WAIT_SECONDS:
            return found[0] if found else ""
        pause(0.1)
        waited += 0.1


def _ipv6(network: Network) -> Mapping[str, str]:
    fixed = any(":" in address for address in network.address)
    if network.ipv6 == "off" and not fixed:
        return {"disable_ipv6": "1"}
    advertised = "0" if network.ipv6 == "off" else "1"
    return {"disable_ipv6": "0", "accept_ra": advertised, "autoconf": advertised}


def _dhcp(places: Places, network: Network, name: str, hostname: str, run: Run) -> list[str]:
    pidfile = places.run / f"udhcpc.{name}.pid"
    _end(pidfile)
    if network.nameservers:
        os.environ[KEEP] = " ".join(network.nameservers)
    command = ["udhcpc", "-b", "-i", name, "-p", str(pidfile), "-s", SCRIPT]
    command += ["-x", f"hostname:{hostname.partition('.')[0]}", "-t", str(DHCP_TRIES), "-T", "1", "-A", "15"]
    ran = run(command, DHCP_SECONDS)
    os.environ.pop(KEEP, None)
    return [] if ran.code == 0 else [f"udhcpc: {ran.said.splitlines()[-1] if ran.said else ran.code}"]


def _end(pidfile: Path) -> None:
    """End the client that an earlier run left in the background."""
    try:
        os.kill(int(pidfile.read_text()), signal.SIGTERM)
    except (OSError, ValueError):
        return
    time.sleep(0.2)


def addresses(sys: Path = Path("/sys/class/net"), inet6: Path = Path("/proc/net/if_inet6")) -> list[str]:
    """The addresses at which the box can be asked: IPv4 first, no loopback, no link-local ones."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asked:
        for path in sorted(sys.glob("*")):
            if path.name == "lo":
                continue
            try:
                answer = fcntl.ioctl(asked, _SIOCGIFADDR, struct.pack("256s", path.name.encode()[:15]))
            except OSError:
                continue
            found.append(socket.inet_ntoa(answer[20:24]))
    try:
        lines = inet6.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        digits, _, _, scope, _, name = line.split()
        if scope == "00" and name != "lo":
            found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return found
