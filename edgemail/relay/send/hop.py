"""How a next hop is written: `[host]:port`, `host` by MX, address literals. Owns the syntax; never looks a name up."""

from __future__ import annotations

import re
import socket
from typing import Final

from edgemail.domain import ascii_domain
from edgemail.patterns import parse_address
from edgemail.value import value

TURNED: Final = "(atrn)"  # the transport of mail that goes over connections which its recipients' side made
SERVICES: Final = {"smtp": 25, "smtps": 465, "submissions": 465, "submission": 587}


@value
class Hop:
    """One next hop. `host`: a name in A-labels, or an address without brackets. `mx`: by MX where there is one."""

    host: str
    mx: bool
    port: int

    @property
    def literal(self) -> bool:
        """An address: there is nothing to look up."""
        return parse_address(self.host) is not None


HOP = re.compile(r"(?:\[(?P<host>[^\[\]\s]+)\]|(?P<domain>[^\[\]:\s]+))(?::(?P<port>[^:\[\]\s]+))?")
NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*")


def parse_hop(text: str, default_port: int) -> Hop:
    """A next hop as configured or made by the router. ValueError with a hint."""
    match = HOP.fullmatch(text)
    if match is None:
        if parse_address(text) is not None:
            raise ValueError(f"'{text}': an address as next hop stands in brackets: [{text}]")
        raise ValueError(f"'{text}' is no next hop; expected [host]:port, [address], or a domain whose MX is meant")
    port = _port(text, match["port"]) if match["port"] else default_port
    if match["host"]:
        bare = match["host"]
        bare = bare[5:] if bare[:5].lower() == "ipv6:" else bare  # RFC 5321 4.1.3
        if parse_address(bare) is not None:
            return Hop(bare.lower(), False, port)
        return Hop(_name(text, bare), False, port)
    if parse_address(match["domain"]) is not None:
        raise ValueError(f"'{text}': an address as next hop stands in brackets: [{match['domain']}]")
    return Hop(_name(text, match["domain"]), True, port)


def _name(text: str, name: str) -> str:
    ascii_name = ascii_domain(name)
    if not NAME.fullmatch(ascii_name) or re.fullmatch(r"[0-9.]+", ascii_name):
        raise ValueError(f"'{text}': '{name}' is no host name")
    return ascii_name


def _port(text: str, port: str) -> int:
    if port.isascii() and port.isdigit():
        number = int(port)
        if not 1 <= number <= 65535:
            raise ValueError(f"'{text}': a port is from 1 to 65535")
        return number
    known = SERVICES.get(port.lower())
    if known is not None:
        return known
    try:
        return socket.getservbyname(port.lower(), "tcp")
    except (OSError, UnicodeError):
        raise ValueError(f"'{text}': no service '{port}' in /etc/services; write its number") from None


def provider(text: str, port: int) -> str:
    """HOST[:PORT] as a next hop: the host itself is meant, never its MX. ValueError with a hint."""
    host, colon, given = text.partition(":") if not text.startswith("[") else (text, "", "")
    hop = host if text.startswith("[") else f"[{host}]" + (f":{given}" if colon else "")
    parsed = parse_hop(hop, port)
    return f"[{parsed.host}]:{parsed.port}"
