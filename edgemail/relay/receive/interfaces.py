"""The addresses of this machine's interfaces, asked of the kernel each time: they come and go.

Reads two kernel interfaces and nothing else; psutil would cost a megabyte.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

SIOCGIFCONF: Final = 0x8912  # netdevice(7)
IFREQ: Final = 40 if struct.calcsize("P") == 8 else 32  # bytes of a struct ifreq
MAX_ADDRESSES: Final = 256  # limit: IPv4 addresses of this machine that are looked at
IF_INET6: Final = Path("/proc/net/if_inet6")
LINK_LOCAL: Final = 0x20  # IPV6_ADDR_LINKLOCAL, the scope column


def addresses_of(name: str) -> tuple[str, ...]:
    """The addresses of an interface or of one of its labels ("eth0", "eth0:1"); link-local ones with their zone."""
    return tuple(address for interface, address in (*_ipv4(), *_ipv6()) if interface == name)


def is_interface(name: str) -> bool:
    return name in {known for _, known in socket.if_nameindex()} or any(name == each for each, _ in _ipv4())


def own_addresses() -> tuple[str, ...]:
    """All of them, without zones."""
    return tuple(address.partition("%")[0] for _, address in (*_ipv4(), *_ipv6()))


def _ipv4() -> list[tuple[str, str]]:
    """Interface and address."""
    room = array.array("B", bytes(IFREQ * MAX_ADDRESSES))
    where, size = room.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, SIOCGIFCONF, struct.pack("iP", size, where))
        except OSError:
            return []
    used = struct.unpack("iP", answer)[0]
    found = []
    for start in range(0, min(used, size) - IFREQ + 1, IFREQ):
        entry = room[start : start + IFREQ].tobytes()
        name = entry[:16].partition(b"\0")[0].decode("ascii", "replace")
        found.append((name, socket.inet_ntoa(entry[20:24])))  # behind family and port of a sockaddr_in
    return found


def _ipv6() -> list[tuple[str, str]]:
    """The same; proc(5): address, index, prefix length, scope, flags, name."""
    try:
        lines = IF_INET6.read_text("ascii").splitlines()
    except OSError:
        return []  # a kernel without IPv6
    found = []
    for line in lines:
        fields = line.split()
        if len(fields) == 6:
            address, zone = str(IPv6Address(int(fields[0], 16))), fields[5]
            found.append((zone, f"{address}%{zone}" if int(fields[3], 16) == LINK_LOCAL else address))
    return found
