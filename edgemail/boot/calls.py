"""What the running relay asks of a provider when somebody, or a link that came up, tells it to.

Owns the verbs of the control socket for it and what their answers look like; the talking is `relay.send.call`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgemail.boot.control import Channel, Refused, Verb
from edgemail.boot.frames import EX_TEMPFAIL, EX_UNAVAILABLE
from edgemail.relay.send.call import ETRN_PORT, Caller, CallFailed, provider
from edgemail.relay.wire.grammar import is_domain, is_literal
from edgemail.reply import Reply

MAX_NODES: Final = 100  # limit: domains that one command asks a provider for


class Calls:
    """Calls to providers. `etrn` is also for links that come up."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def verbs(self) -> dict[str, Verb]:
        """For ControlServer. They make the relay connect to whatever host they name: not for everybody."""
        return {"etrn": Verb(self._etrn, owner=True)}

    async def etrn(self, host: str, nodes: Sequence[str]) -> list[tuple[str, Reply]]:
        """Ask HOST[:PORT] to start its queue for domains; its replies. Raises CallFailed, ValueError with a hint."""
        return await self._caller.etrn(provider(host, ETRN_PORT), [checked(node, "@#") for node in nodes])

    async def _etrn(self, request: dict[str, Any], channel: Channel) -> Mapping[str, Any]:
        host, nodes = _named(request)
        try:
            found = await self.etrn(host, nodes)
        except ValueError as error:
            raise Refused(str(error)) from error
        except CallFailed as failed:
            raise Refused(str(failed), EX_TEMPFAIL if failed.temporary else EX_UNAVAILABLE) from failed
        for node, reply in found:
            await channel.say({"node": node, "code": reply.code, "reply": str(reply)})
        return {"count": len(found)}


def _named(request: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The host and the domains of a request. Raises Refused."""
    host, nodes = request.get("host"), request.get("domains")
    if not isinstance(host, str) or not 0 < len(host) < 300:
        raise Refused("host: HOST or HOST:PORT is wanted")
    if not isinstance(nodes, list) or not all(isinstance(one, str) for one in nodes) or not 0 < len(nodes) <= MAX_NODES:
        raise Refused(f"domains: 1 to {MAX_NODES} domains are wanted")
    return host, nodes


def checked(text: str, signs: str = "") -> str:
    """A domain as it may be asked for, one of `signs` before it or none. ValueError when it is none."""
    name = text[1:] if text[:1] and text[:1] in signs else text
    if not (is_domain(name) or is_literal(name)):
        raise ValueError(f"'{text[:100]}' is not a domain")
    return text
