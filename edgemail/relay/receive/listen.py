"""The listening sockets and the sessions behind them: bind, accept, reload, drain.

Owns accepting and refusing connections. Any number of listeners in one loop; who is refused is told so and forgotten,
without a session and without waiting. What is said in a session is not known here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from edgemail.counters import Counter, Gauge
from edgemail.errors import EdgemailError, SystemRefused
from edgemail.patterns import parse_address
from edgemail.relay.receive import interfaces, tls
from edgemail.relay.receive.limits import Anvil, address_of
from edgemail.relay.receive.service import Service, place_of, services
from edgemail.relay.receive.session import Reception, Session
from edgemail.reply import Reply
from edgemail.settings import Configuration, Listener

log = logging.getLogger("edgemail.smtpd")

ACCEPTS: Final = 16  # limit: connections that are accepted before other work is looked at again
BACKLOG: Final = 1024  # limit: connections that wait in the kernel to be accepted, per socket
EXHAUSTED_SECONDS: Final = 1.0  # pause after accept(2) found no descriptor or memory; asyncio's own number
COMPLAINT_SECONDS: Final = 60.0  # limit: one line of log in this time about refused connections
PORT_TRIES: Final = 10  # limit: tries to find a port that is free for IPv4 and IPv6 both
STALLED_SECONDS: Final = 5.0  # limit: without a whole command or much content, when others are kept out
RELIEF_SECONDS: Final = 1.0  # between two looks at who keeps others out
CANCEL_SECONDS: Final = 2.0  # limit: from the last 421 of a drain until sessions that did not take it are cancelled
SD_LISTEN_FDS_START: Final = 3  # sd_listen_fds(3)

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NO_IPV6: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})

SESSIONS: Final = Gauge("edgemail_smtpd_sessions", "Sessions that are open")
CONNECTIONS: Final = Counter("edgemail_smtpd_connections", "Connections that were accepted", ("listener",))
TURNED_AWAY: Final = Counter("edgemail_smtpd_connections_refused", "Connections refused at a limit", ("listener",))


@dataclass(slots=True)
class Door:
    """One listening socket and whose it is."""

    listener: Listener
    socket: socket.socket
    open: bool = False  # connections are taken from it
    pause: asyncio.TimerHandle | None = None  # there was no descriptor or memory for one


class Server:
    """All listeners of the box. `bind` while still root, then `start`; `drain` ends it."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = tuple(listeners)
        self._doors: list[Door] = []
        self._services: dict[str, Service] = {}
        self._sessions: set[Session] = set()
        self._reception: Reception
        self._anvil: Anvil
        self._worker = ThreadPoolExecutor(1, "edgemail-scrypt")  # makes its thread at the first login
        self._complained = float("-inf")
        self._relief: asyncio.TimerHandle | None = None
        self._unsaid = 0  # refused connections that no line of the log was about

    def bind(self, inherited: Sequence[tuple[str, socket.socket]] | None = None) -> None:
        """Bind every listener. Raises EdgemailError, and then nothing is bound.

        `inherited`: sockets with their names, by default those that systemd passed (sd_listen_fds(3)). A listener takes
        those with its own name, or else those on its address and port, instead of binding.
        """
        given = list(inherited_sockets() if inherited is None else inherited)
        try:
            for listener in self._listeners:
                mine = [each for each in given if _meant_for(listener, *each)]
                given = [each for each in given if each not in mine]
                sockets = [each for _, each in mine] or bound(listener)
                self._doors += [Door(listener, each) for each in sockets]
            if self._listeners and not self._doors:
                raise SystemRefused("no listener could be bound: there is no IPv6 here")
        except BaseException:
            self._close_doors()
            raise
        for name, each in given:
            log.warning("warning: no listener for the inherited socket %s %s", name, each.getsockname())
            each.close()

    async def start(self, reception: Reception) -> None:
        """Serve; binds what is not bound yet. Raises EdgemailError."""
        if not self._doors:
            self.bind()
        tls.slim()
        self._reception = reception
        settings = reception.configuration.settings
        self._anvil = Anvil(reception.clock.monotonic, settings.anvil_rate_time_unit, settings.default_process_limit)
        self._services = self._made(reception.configuration)
        for door in self._doors:
            door.socket.setblocking(False)
            # Accepted sockets inherit it. asyncio sets it only where the protocol is given by number: without it Nagle
            # and a client's delayed acknowledgement (RFC 1122 4.2.3.2) make each second answer in a row 40 ms late.
            door.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            door.socket.listen(BACKLOG)
            self._open(door)

    @property
    def addresses(self) -> tuple[tuple[str, str, int], ...]:
        """Listener, host and port of every socket, the port a real one."""
        return tuple((door.listener.name, *_host_and_port(door.socket)) for door in self._doors)

    @property
    def serving(self) -> bool:
        """Whether connections are accepted."""
        return any(door.open for door in self._doors)

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    def reload(self, configuration: Configuration) -> None:
        """Take new settings, for new sessions only. Raises EdgemailError, and then everything stays as it was.

        What a listener is bound to does not change: that takes a restart, as it does with Postfix.
        """
        fresh = self._made(configuration)
        bound_now = {place_of(door.listener) for door in self._doors}
        for place in sorted(bound_now - fresh.keys()):
            log.warning("warning: listener %s stays until a restart, with its old settings", place.strip())
        for place in sorted(fresh.keys() - bound_now):
            log.warning("warning: listener %s takes a restart", place.strip())
        self._services.update(fresh)
        self._anvil.unit = configuration.settings.anvil_rate_time_unit
        self._anvil.most = configuration.settings.default_process_limit

    async def drain(self, seconds: float) -> None:
        """Stop accepting; idle sessions get 421 now, the others when their transaction is done or `seconds` are over.

        Returns when every session has ended. Commits are waited for, however long they take.
        """
        self._close_doors()
        if self._relief is not None:
            self._relief.cancel()
        for session in tuple(self._sessions):
            session.retire()
        await self._ended(seconds)
        for session in tuple(self._sessions):
            session.retire(now=True)
        await self._ended(CANCEL_SECONDS)
        while self._sessions:
            for session in tuple(self._sessions):
                if not session.committing:
                    session.task.cancel()
            await self._ended(CANCEL_SECONDS)
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _ended(self, seconds: float) -> None:
        """Until all sessions have ended, `seconds` at most."""
        tasks = [session.task for session in self._sessions]
        if tasks:
            await asyncio.wait(tasks, timeout=max(seconds, 0.0))

    def _close_doors(self) -> None:
        for door in self._doors:
            if door.pause is not None:
                door.pause.cancel()
            if door.open:  # before the descriptor can be somebody else's
                asyncio.get_running_loop().remove_reader(door.socket)
                door.open = False
            door.socket.close()
        self._doors.clear()

    def _made(self, configuration: Configuration) -> dict[str, Service]:
        return services(configuration, self._reception.clock, self._worker, interfaces.own_addresses)

    # ---- accepting

    def _open(self, door: Door) -> None:
        door.open, door.pause = True, None
        asyncio.get_running_loop().add_reader(door.socket, self._accept, door)

    def _accept(self, door: Door) -> None:
        """Somebody is at the door. What goes wrong with one connection, or with all for a while, does not shut it.

        asyncio's own servers, out of descriptors, try once for every place in the backlog and log each.
        """
        for _ in range(ACCEPTS):
            try:
                connection, peer = door.socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # of this connection: it was gone before it was accepted
                self._complain(f"accept: {error.strerror}; connections wait in the kernel")
                loop = asyncio.get_running_loop()
                loop.remove_reader(door.socket)
                door.pause = loop.call_later(EXHAUSTED_SECONDS, self._open, door)
                return
            try:
                self._admit(door, connection, peer)
            except OSError:
                connection.close()
            except Exception:
                connection.close()
                log.exception("listener=%s", door.listener.name)

    def _admit(self, door: Door, connection: socket.socket, peer: tuple[Any, ...]) -> None:
        address = address_of(str(peer[0]))
        service = self._services[place_of(door.listener)]
        CONNECTIONS.add(service.name)
        self._relieve()
        visit = self._anvil.visit(service.name, address, service.settings, exempt=service.policy.exempt(address))
        refusal = visit.at_connect(f"unknown[{address}]") or self._reception.crowded(
            service.settings.myhostname, visit.others, self._anvil.sessions - 1
        )
        if refusal is not None:
            visit.leave()
            self._turn_away(service, connection, address, refusal)
            return
        session: Session | None = None
        try:
            session = Session(self._reception, service, visit, address, self._gone)
            self._sessions.add(session)
            connection.setblocking(False)
            # What create_server does with a connection; connect_accepted_socket would take a task, a future and three
            # turns of the loop for it.
            loop: Any = asyncio.get_running_loop()
            loop._make_socket_transport(connection, session, extra={"peername": peer})
            SESSIONS.set(len(self._sessions))
        except BaseException:
            visit.leave()
            if session is not None:
                self._gone(session)
            raise

    def _relieve(self) -> None:
        """With default_process_limit sessions open, end those whose clients have long said nothing whole.

        Somebody who sends a byte a minute must not keep out those who have mail. Looked at again while it is so.
        """
        if self._anvil.sessions < self._anvil.most or self._relief is not None:
            return
        over = len(self._sessions) - self._anvil.most + 1
        stalled = sorted((each for each in self._sessions if each.stalled > STALLED_SECONDS), key=lambda s: -s.stalled)
        for session in stalled[:over]:
            session.give_up()
        self._relief = asyncio.get_running_loop().call_later(RELIEF_SECONDS, self._relieve_again)

    def _relieve_again(self) -> None:
        self._relief = None
        self._relieve()

    async def serve(self, transport: asyncio.Transport, service: Service, address: str, *, name: str, tls: str) -> int:
        """Be the server on a connection that this box made, from the greeting on (ATRN's other side).

        `name` and `address`: the peer's; `tls`: what there is to say of TLS if the connection has it. Returns, when
        the session has ended, how many messages it brought.
        """
        visit = self._anvil.visit(service.name, address, service.settings, exempt=True)
        session = Session(self._reception, service, visit, address, self._gone, tls=tls)
        session.clerk.name = name
        self._sessions.add(session)
        SESSIONS.set(len(self._sessions))
        transport.set_protocol(session)
        session.connection_made(transport)
        await asyncio.wait([session.task])  # which is not cancelled with us: it ends with the others
        return session.clerk.messages

    def _gone(self, session: Session) -> None:
        self._sessions.discard(session)
        SESSIONS.set(len(self._sessions))

    def _turn_away(self, service: Service, connection: socket.socket, address: str, refusal: Reply) -> None:
        """Say why and hang up; what does not fit into the socket's own buffer is not waited for."""
        TURNED_AWAY.add(service.name)
        self._complain(f"NOQUEUE: reject: CONNECT from unknown[{address}]: {refusal}", service)
        try:
            if not service.settings.smtpd_tls_wrappermode:  # before the handshake nothing can be said
                connection.setblocking(False)
                connection.send(refusal.encode())
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        finally:
            connection.close()

    def _complain(self, text: str, service: Service | None = None) -> None:
        """One line a minute: who is refused can come back a thousand times a second."""
        now = self._reception.clock.monotonic()
        if now - self._complained < COMPLAINT_SECONDS:
            self._unsaid += 1
            return
        more = f" ({self._unsaid} more like it were not logged)" if self._unsaid else ""
        self._complained, self._unsaid = now, 0
        (service.log if service is not None else log).warning("warning: %s%s", text, more)


# ---- sockets


def bound(listener: Listener) -> list[socket.socket]:
    """The sockets of one listener, bound and not listening yet. Raises EdgemailError."""
    if listener.address == "*":
        return _everywhere(listener)
    found, error = [], None
    try:
        for family, host, zone in _places(listener):
            try:
                found.append(_bind(family, (host, listener.port, 0, zone) if zone else (host, listener.port)))
            except OSError as failed:
                if failed.errno not in _NO_IPV6 or host != "::1":
                    raise _cannot(host, listener.port, failed) from failed
                error = failed
                log.warning("warning: no IPv6 here: not listening on [::1] port %d", listener.port)
    except BaseException:
        for each in found:
            each.close()
        raise
    if not found and error is None:
        raise EdgemailError(f"listener {listener.name}: {listener.address} has no address of inet_protocols")
    return found


def _everywhere(listener: Listener) -> list[socket.socket]:
    """All addresses: a socket for IPv6 and one for IPv4, so that an IPv4 client has an IPv4 address."""
    protocols = _families(listener)
    failed: OSError | None = None
    for _ in range(PORT_TRIES):
        found: list[socket.socket] = []
        port = listener.port
        try:
            if socket.AF_INET6 in protocols:
                try:
                    found.append(_bind(socket.AF_INET6, ("::", port)))
                    port = found[0].getsockname()[1]
                except OSError as error:
                    if error.errno not in _NO_IPV6 or socket.AF_INET not in protocols:
                        raise
            if socket.AF_INET in protocols:
                found.append(_bind(socket.AF_INET, ("0.0.0.0", port)))
        except OSError as error:
            for each in found:
                each.close()
            failed = error
            if listener.port or error.errno != errno.EADDRINUSE:
                break
        else:
            return found
    assert failed is not None
    raise _cannot("*", listener.port, failed) from failed


def _bind(family: socket.AddressFamily, address: tuple[str, int] | tuple[str, int, int, int]) -> socket.socket:
    fresh = socket.socket(family, socket.SOCK_STREAM)
    try:
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            fresh.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        fresh.bind(address)
    except BaseException:
        fresh.close()
        raise
    return fresh


def _cannot(host: str, port: int, error: OSError) -> SystemRefused:
    hint = {
        errno.EACCES: "; ports below 1024 take root or CAP_NET_BIND_SERVICE",
        errno.EADDRINUSE: "; another server has it (ss -ltnp shows which)",
        errno.EADDRNOTAVAIL: "; it is no address of this machine",
    }.get(error.errno or 0, "")
    return SystemRefused(f"cannot listen on {host} port {port}: {error.strerror}{hint}")


def _families(listener: Listener) -> frozenset[socket.AddressFamily]:
    names = listener.settings.inet_protocols
    return frozenset(
        family
        for name, family in (("ipv4", socket.AF_INET), ("ipv6", socket.AF_INET6))
        if "all" in names or name in names
    )


def _places(listener: Listener) -> list[tuple[socket.AddressFamily, str, int]]:
    """Family, host and zone of each address that a listener's address means. Raises EdgemailError."""
    address = listener.address
    families = _families(listener)
    if parse_address(address) is not None:
        literals: tuple[str, ...] = (address,)
        families = frozenset({socket.AF_INET, socket.AF_INET6})  # it was asked for by name
    elif interfaces.is_interface(address):
        literals = interfaces.addresses_of(address)
        if not literals:
            raise SystemRefused(f"listener {listener.name}: interface {address} has no address yet")
    else:
        try:
            entries = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise SystemRefused(
                f"listener {listener.name}: '{address}' is neither an address, an interface, nor a host: {error}"
            ) from error
        literals = tuple(dict.fromkeys(str(entry[4][0]) for entry in entries))
    out = []
    for literal in literals:
        host, _, zone = literal.partition("%")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        if family in families:
            out.append((family, host, socket.if_nametoindex(zone) if zone else 0))
    return out


def _host_and_port(bound_socket: socket.socket) -> tuple[str, int]:
    name = bound_socket.getsockname()
    return str(name[0]), int(name[1])


# ---- sockets from systemd


def inherited_sockets() -> list[tuple[str, socket.socket]]:
    """What the service manager passed, each with its name (FileDescriptorName=); taken once."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    out = []
    for number in range(int(count)):
        passed = socket.socket(fileno=SD_LISTEN_FDS_START + number)
        passed.set_inheritable(False)
        out.append((names[number] if number < len(names) else "", passed))
    return out


def _meant_for(listener: Listener, name: str, passed: socket.socket) -> bool:
    if name == listener.name:
        return True
    host, port = _host_and_port(passed)
    if port != listener.port:
        return False
    if listener.address == "*":
        return host in ("0.0.0.0", "::")
    return parse_address(host) == parse_address(listener.address) is not None
