"""What the running relay asks of a provider when somebody, or a link that came up, tells it to.

Owns the verbs of the control socket for it and what their answers look like; the talking is `relay.send.call`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from edgemail.boot.control import Channel, Refused, Verb
from edgemail.boot.frames import EX_TEMPFAIL, EX_UNAVAILABLE
from edgemail.clock import Clock
from edgemail.relay.queue.link import Answer
from edgemail.relay.receive.listen import Server
from edgemail.relay.receive.policy import Policy
from edgemail.relay.receive.service import Service
from edgemail.relay.receive.stamp import cipher_words
from edgemail.relay.send.call import ATRN_PORT, ETRN_PORT, Caller, CallFailed
from edgemail.relay.send.credentials import Login
from edgemail.relay.send.exchange import Broken
from edgemail.relay.send.hop import provider
from edgemail.relay.send.session import Session
from edgemail.relay.wire.grammar import is_domain, is_literal
from edgemail.reply import Reply
from edgemail.settings import Configuration, Link, Listener
from edgemail.via import Via

log = logging.getLogger("edgemail.link")

MAX_NODES: Final = 100  # limit: domains that one command asks a provider for

ALIVE_SECONDS: Final = 60.0  # limit: seconds until a command that waits hears that the session goes on


ASK_LATER: Final = frozenset({421, 451, 458})  # RFC 2645 5.2.1, RFC 1985 5.3: the same may work later
NO_MAIL: Final = 453  # RFC 2645 5.2.1: nothing waits there

Heard = Callable[[str, str, str, Answer, str], None]  # link, verb, host, what was answered, in which words


def _nobody(link: str, verb: str, host: str, answer: Answer, words: str) -> None:
    """Nobody hears of it."""


@dataclass(slots=True)
class Asking:
    """What becomes of asking."""

    answer: Answer = Answer.OK
    words: str = ""

    def replied(self, replies: Sequence[Reply], words: str) -> None:
        """The provider has answered."""
        self.words = words
        if any(reply.code in ASK_LATER for reply in replies):
            self.answer = Answer.LATER
        elif not all(reply.positive or reply.code == NO_MAIL for reply in replies):
            self.answer = Answer.REFUSED


class Calls:
    """Calls to providers. `etrn` and `atrn` are also for links that come up."""

    def __init__(
        self,
        caller: Caller,
        server: Server,
        clock: Clock,
        configuration: Callable[[], Configuration],
        send_up: Callable[[str, Session], Awaitable[None]],
        *,
        heard: Heard = _nobody,
    ) -> None:
        """`server`: it takes the mail that ATRN brings, as it does that of its own listeners.

        `send_up`: sends what waits for that very next hop, before the sides are changed. `heard`: of each ask over a
        link.
        """
        self._caller = caller
        self._server = server
        self._clock = clock
        self._configuration = configuration
        self._send_up = send_up
        self._heard = heard

    def verbs(self) -> dict[str, Verb]:
        """For ControlServer. They make the relay connect to whatever host they name: not for everybody."""
        return {"etrn": Verb(self._etrn, owner=True), "atrn": Verb(self._atrn, owner=True)}

    async def ask(self, link: Link, via: Via | None) -> bool:
        """Ask the providers of a link for our mail; False where the same may work later. What fails is logged."""
        done = True
        if link.etrn:
            with self._asking(link, "etrn", link.etrn) as asking:
                said = await self.etrn(link.etrn, link.etrn_domains, via)
                asking.replied([reply for _, reply in said], "; ".join(f"{node}: {reply}" for node, reply in said))
            done = asking.answer is not Answer.LATER
        if link.atrn:
            with self._asking(link, "atrn", link.atrn) as asking:
                given = link.atrn_user, first_line(link.atrn_password_file), link.atrn_domains
                reply, count = await self.atrn(link.atrn, *given, via=via)
                asking.replied([reply], f"{count} messages, {reply}")
                log.info("link %s: atrn to %s: %s", link.name, link.atrn, asking.words)
            done = done and asking.answer is not Answer.LATER
        return done

    @contextlib.contextmanager
    def _asking(self, link: Link, verb: str, host: str) -> Iterator[Asking]:
        """What fails is logged; what becomes of it is told in any case, but for one that was broken off."""
        asking = Asking()
        try:
            yield asking
        except (CallFailed, ValueError, OSError) as error:
            temporary = not isinstance(error, CallFailed) or error.temporary
            asking.answer, asking.words = Answer.LATER if temporary else Answer.REFUSED, str(error)
            log.warning("warning: link %s: %s to %s: %s", link.name, verb, host, error)
        self._heard(link.name, verb, host, asking.answer, asking.words)

    async def etrn(self, host: str, nodes: Sequence[str], via: Via | None = None) -> list[tuple[str, Reply]]:
        """Ask HOST[:PORT] to start its queue for domains; its replies. Raises CallFailed, ValueError with a hint."""
        return await self._caller.etrn(provider(host, ETRN_PORT), [checked(node, "@#") for node in nodes], via)

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

    async def atrn(
        self, host: str, user: str, password: str, domains: Sequence[str], *, via: Via | None = None
    ) -> tuple[Reply, int]:
        """Take the mail of our domains from HOST[:PORT] over one connection: its reply, how many messages came.

        Returns when the connection has ended. Raises CallFailed, ValueError with a hint.
        """
        names = [checked(name).lower() for name in domains]
        if "\0" in user + password:
            raise ValueError("a user name or password with a NUL")
        hop = provider(host, ATRN_PORT)
        reply, session = await self._caller.atrn(hop, Login(user, password), names, self._send_up, via)
        return reply, 0 if session is None else await self._receive(session, tuple(names))

    async def _receive(self, session: Session, names: tuple[str, ...]) -> int:
        """Be the server on a connection that was turned round, for mail of these domains and no other."""
        configuration, peer = self._configuration(), session.peer
        settings = replace(
            configuration.settings,
            mynetworks=(),
            mydestination=(),
            relay_domains=names,
            parent_domain_matches_subdomains=(),
            fast_flush_domains=(),
            smtpd_relay_restrictions=("reject_unauth_destination",),
            smtpd_recipient_restrictions=(),
            smtpd_sasl_auth_enable=False,
            smtpd_tls_security_level="none",  # what the connection has it got before it was turned round
            smtpd_tls_wrappermode=False,
            smtpd_client_event_limit_exceptions=(),
            smtpd_client_message_rate_limit=0,
            smtpd_client_recipient_rate_limit=0,
        )
        policy = Policy(settings, Path(configuration.path).parent, monotonic=self._clock.monotonic)
        service = Service(Listener("atrn", peer.address, peer.port, "lan", settings), policy, None, None)
        found = session.tls.cipher() if session.tls is not None else None
        words = cipher_words(found[1], found[0], found[2], found[2]) if found is not None else ""
        try:
            transport = session.release()
        except Broken as broken:
            raise CallFailed(broken.reply.text) from broken
        return await self._server.serve(transport, service, peer.address, name=peer.host, tls=words)

    async def _atrn(self, request: dict[str, Any], channel: Channel) -> Mapping[str, Any]:
        host, domains = _named(request)
        user, password = request.get("user"), request.get("password")
        if not isinstance(user, str) or not isinstance(password, str) or not user:
            raise Refused("user, password: text is wanted")
        work = asyncio.ensure_future(self.atrn(host, user, password, domains))
        while not (await asyncio.wait([work], timeout=ALIVE_SECONDS))[0]:
            await channel.say({"alive": True})
        try:
            reply, count = await work
        except ValueError as error:
            raise Refused(str(error)) from error
        except CallFailed as failed:
            raise Refused(str(failed), EX_TEMPFAIL if failed.temporary else EX_UNAVAILABLE) from failed
        return {"code": reply.code, "reply": str(reply), "count": count}


def first_line(path: str) -> str:
    """The first line of a file. Raises OSError, and ValueError for what is no text."""
    with Path(path).open(encoding="utf-8") as file:
        return file.readline().rstrip("\r\n")


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
