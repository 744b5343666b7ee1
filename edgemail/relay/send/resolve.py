"""Where a next hop lives: MX, addresses, order. Owns `Host` and `ResolveError`; the only importer of dns here."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from edgemail.errors import EdgemailError, Kind
from edgemail.reply import Reply


@dataclass(frozen=True, slots=True)
class Host:
    """One server of a next hop: `addresses` in the order to try them, never empty; `preference` of its MX or 0."""

    name: str  # as named by the hop or its MX; an address literal without brackets
    addresses: tuple[tuple[socket.AddressFamily, str], ...]
    port: int
    preference: int = 0


class ResolveError(EdgemailError):
    """No host for a next hop. `kind` as for a recipient's own domain; the courier makes it ROUTE when configured."""

    def __init__(self, kind: Kind, reply: Reply) -> None:
        super().__init__(str(reply))
        self.kind = kind
        self.reply = reply
