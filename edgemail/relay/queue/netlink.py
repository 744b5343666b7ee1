"""What the kernel says of its interfaces, addresses and routes, as it happens. Linux's rtnetlink over a plain socket.

Owns the socket and the bytes (rtnetlink(7)); knows nothing of mail or of links as configured. Sets nothing, needs no
privilege.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from edgemail.value import value

log = logging.getLogger("edgemail.link")

# linux/rtnetlink.h, linux/netlink.h, linux/if.h, linux/if_addr.h
NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE = 24, 25
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP = 0x001, 0x300
GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
IFF_UP, IFF_LOWER_UP = 0x1, 0x10000
IFLA_IFNAME = 3
IFLA_OPERSTATE = 16
IF_OPER_UNKNOWN, IF_OPER_UP = 0, 6
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE = 0x08, 0x20, 0x40
RT_SCOPE_UNIVERSE, RT_SCOPE_SITE = 0, 200

RECEIVE: Final = 65_536  # limit: bytes of one read from the kernel
EVENTS_PER_TURN: Final = 64  # limit: reads in one turn of the loop; a storm of events must not stop the mail
AGAIN_SECONDS: Final = 1.0  # until the kernel is asked again that had no answer

_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_IFINFO: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDR: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ATTRIBUTE: Final = struct.Struct("=HH")


@value
class Interface:
    """One interface as the kernel has it. `carrier`: it is switched on and the other end of the cable is there."""

    name: str
    carrier: bool
    addresses: frozenset[str] = frozenset()  # those that reach beyond the link, and are ready for use


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of a message, type and value; a torn one ends it."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            return
        yield kind & 0x3FFF, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The messages of one read, type and content; a torn one ends it."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


class Table:
    """The interfaces by index, kept by what the kernel says. No IO."""

    def __init__(self) -> None:
        self._interfaces: dict[int, Interface] = {}
        self._addresses: dict[int, set[str]] = {}

    def take(self, kind: int, content: bytes) -> bool:
        """One message; whether it may matter to somebody."""
        if kind in (NEWLINK, DELLINK) and len(content) >= _IFINFO.size:
            return self._link(kind, content)
        if kind in (NEWADDR, DELADDR) and len(content) >= _IFADDR.size:
            return self._address(kind, content)
        return kind in (NEWROUTE, DELROUTE)

    def _link(self, kind: int, content: bytes) -> bool:
        _, _, index, flags, _ = _IFINFO.unpack_from(content)
        found = dict(attributes(content[_IFINFO.size :]))
        if kind == DELLINK:
            self._addresses.pop(index, None)
            return self._interfaces.pop(index, None) is not None
        name = found.get(IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace")
        state = found.get(IFLA_OPERSTATE, b"\0")[0]
        carrier = flags & IFF_UP and flags & IFF_LOWER_UP and state in (IF_OPER_UNKNOWN, IF_OPER_UP)
        before = self._interfaces.get(index)
        self._interfaces[index] = Interface(name, bool(carrier))
        return self._interfaces[index] != before

    def _address(self, kind: int, content: bytes) -> bool:
        family, _, flags, scope, index = _IFADDR.unpack_from(content)
        found = dict(attributes(content[_IFADDR.size :]))
        raw = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS) or b""
        if family not in (socket.AF_INET, socket.AF_INET6) or len(raw) not in (4, 16):
            return False
        address = str(ipaddress.ip_address(raw))
        if IFA_FLAGS in found and len(found[IFA_FLAGS]) == 4:
            flags = struct.unpack("=I", found[IFA_FLAGS])[0]
        unready = flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED | IFA_F_DEPRECATED)
        known = self._addresses.setdefault(index, set())
        if kind == DELADDR or unready or scope not in (RT_SCOPE_UNIVERSE, RT_SCOPE_SITE):
            if address not in known:
                return False
            known.discard(address)
        elif address in known:
            return False
        else:
            known.add(address)
        return True

    def interface(self, name: str) -> Interface | None:
        """The interface of that name; None when there is none now."""
        for index, interface in self._interfaces.items():
            if interface.name == name:
                return replace(interface, addresses=frozenset(self._addresses.get(index, ())))
        return None


class Netlink:
    """The kernel's news. `changed` is called on the loop after each batch that may matter; `table` is up to date."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.table = Table()
        self._changed = changed
        self._socket: socket.socket | None = None
        self._lost = False  # there was more news than the socket holds

    def start(self) -> None:
        """Ask what there is, wait for what comes. Raises OSError where the kernel has no rtnetlink for us."""
        self.table = self._dumped()
        listening = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        try:
            listening.setblocking(False)
            listening.bind((0, GROUPS))
        except OSError:
            listening.close()
            raise
        self._socket = listening
        self.table = self._dumped()  # again: what changed before the socket listened is in it
        asyncio.get_running_loop().add_reader(listening.fileno(), self._readable)

    def close(self) -> None:
        """Safe to call twice."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _readable(self) -> None:
        news = False
        for _ in range(EVENTS_PER_TURN):
            try:
                data = self._socket.recv(RECEIVE) if self._socket is not None else b""
            except BlockingIOError:
                news = self._made_up() or news
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    log.warning("warning: netlink: %s; links are looked at no more", error)
                    self.close()
                    break
                self._lost = True
                continue
            if not data:
                break
            for kind, content in messages(data):
                news = self.table.take(kind, content) or news
        if news:
            self._changed()

    def _made_up(self) -> bool:
        """What was lost is asked for anew; whether it was. Only when nothing is left to read: until then the kernel
        drops more, and says so no second time, and what is older would count for more than its answer.
        """
        if not self._lost:
            return False
        try:
            self.table = self._dumped()
        except OSError as error:
            log.warning("warning: netlink: %s; asked again in a moment", error)
            asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._readable)
            return False
        self._lost = False
        return True

    def _dumped(self) -> Table:
        table = Table()
        for kind in (GETLINK, GETADDR):
            for each, content in _dump(kind):
                table.take(each, content)
        return table


def _dump(kind: int) -> Iterator[tuple[int, bytes]]:
    """Everything of one kind; the kernel answers at once."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as asking:
        asking.settimeout(2.0)
        asking.bind((0, 0))
        body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        asking.send(_HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body)
        while True:
            for each, content in messages(asking.recv(RECEIVE)):
                if each == NLMSG_DONE:
                    return
                if each == NLMSG_ERROR:
                    raise OSError(errno.EIO, "the kernel refused to list its interfaces")
                yield each, content


def source_towards(address: str) -> str | None:
    """Our address on the way to `address`, None where the kernel has no route to it. Sends nothing.

    Raises OSError where there is no descriptor to ask with.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        try:
            asking.connect((address, 9))  # a UDP socket: the kernel looks for a route, and that is all
        except OSError:
            return None
        return str(asking.getsockname()[0]).partition("%")[0]
