"""The way out of the box: the uplink that a connection goes by, and sockets that keep to it. Standard library only.

Owns how a socket is tied to an interface. Never chooses the uplink; never connects.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket

from edgemail.value import value


@value
class Via:
    """An uplink by its interface. `addresses`: those of the interface, ready for use."""

    link: str  # its name
    interface: str
    addresses: tuple[str, ...] = ()


def tied(family: socket.AddressFamily, address: str, via: Via | None) -> socket.socket | None:
    """A stream socket that reaches `address` by way of `via` alone; None where nothing is to be tied.

    What is on this box itself (a tunnel's end) is reached as ever. The socket is tied to the interface where the system
    lets us, and has the interface's address where that leaves no choice, for routing rules that go by the source.
    Raises OSError: where the interface has no address of this family, EADDRNOTAVAIL.
    """
    if via is None or ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return None
    own = [one for one in via.addresses if (":" in one) == (family == socket.AF_INET6)]
    if not own:
        kind = "IPv6" if family == socket.AF_INET6 else "IPv4"
        raise OSError(errno.EADDRNOTAVAIL, f"link {via.link} has no {kind} address")
    found = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        permitted = False
        with contextlib.suppress(PermissionError):  # Linux before 5.7 wants CAP_NET_RAW
            found.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, via.interface.encode() + b"\0")
            permitted = True
        if len(own) == 1 or not permitted:
            found.bind((own[0], 0))
    except BaseException:
        found.close()
        raise
    return found
