"""A connection to a server as a few verbs: connect (racing addresses), read, write, begin TLS, close.

Owns sockets and their bounds. Never knows what is said over them.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from edgemail.relay.send.tls import ResumingContext
from edgemail.via import Via, tied

WRITE_HIGH_WATER: Final = 65_536  # limit: octets waiting to be written to a server before the content is held back
READ_HIGH_WATER: Final = 16_384  # limit: octets of a server held unread; a reply has 32 KiB at most
CONNECT_STAGGER: Final = 0.25  # limit: seconds until the next address is raced against the last, RFC 8305 5
TLS_CLOSE_TIMEOUT: Final = 2.0  # limit: seconds for the peer's close_notify

Place = tuple[socket.AddressFamily, str]

# The network's own trouble, not the server's: no interface, no route.
UNREACHABLE: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL})


class Line(asyncio.Protocol):
    """One connection. What comes is kept, within bounds, until `read` or `take` takes it; one task at a time waits."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._ended = False
        self._error: Exception | None = None
        self._blocked = False  # more is waiting to be written than the high water
        self._held_back = False  # reading is paused
        self._waiter: asyncio.Future[None] | None = None
        self.news: Callable[[], None] | None = None  # called for what nobody waits for
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    def over(cls, transport: asyncio.Transport) -> Line:
        """A line over a connection that somebody else made and is done with."""
        line = cls()
        transport.set_protocol(line)
        line.connection_made(transport)
        transport.resume_reading()
        if transport.is_closing():
            line.eof_received()
        return line

    def release(self) -> asyncio.Transport:
        """The connection, for somebody else to go on with. Raises OSError when it is gone or in disorder."""
        transport, self._transport = self._transport, None
        if transport is None or transport.is_closing() or self._ended or self._received:
            if transport is not None:
                transport.abort()
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        return transport

    # -- called by the transport --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > READ_HIGH_WATER and not self._held_back and self._transport is not None:
            self._held_back = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._error = exc
        self._blocked = False
        self._wake()
        if not self._gone.done():
            self._gone.set_result(None)

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self._wake()

    def _wake(self) -> None:
        if self._waiter is None:
            if self.news is not None:
                self.news()
        elif not self._waiter.done():
            self._waiter.set_result(None)

    # -- for the session ----------------------------------------------------------------------------------------------

    @property
    def quiet(self) -> bool:
        """Open, and nothing has come that was not asked for."""
        return not self._ended and not self._received

    @property
    def blocked(self) -> bool:
        """The peer does not take what is written: `wait` before writing more."""
        return self._blocked

    @property
    def ended(self) -> bool:
        """The peer has closed, or the connection is gone: nothing more will come."""
        return self._ended

    def take(self) -> bytes:
        """What has come by now, perhaps nothing."""
        data = bytes(self._received)
        self._received.clear()
        if self._held_back and not self._ended and self._transport is not None:
            self._held_back = False
            self._transport.resume_reading()
        return data

    def write(self, data: bytes) -> None:
        """Queue octets; into a connection that is gone they vanish, which `wait` then tells."""
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def wait(self) -> None:
        """Until something has come, writing is possible again, or the connection has ended: whichever is news."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def read(self) -> bytes:
        """What has come, waiting for it; b"" at the end. Raises OSError when the connection broke."""
        while not self._received:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            await self.wait()
        return self.take()

    async def start_tls(self, context: ssl.SSLContext, name: str, seconds: float) -> ssl.SSLObject:
        """The handshake; `name` is for SNI. Raises OSError (ssl.SSLError is one), after which only `abort` is left."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        loop = asyncio.get_running_loop()
        transport = await loop.start_tls(
            self._transport,
            self,
            context,
            server_hostname=name,
            ssl_handshake_timeout=seconds,
            ssl_shutdown_timeout=TLS_CLOSE_TIMEOUT,
        )
        if transport is None:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        self._transport = transport
        self._held_back = False
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        connection = transport.get_extra_info("ssl_object")
        assert isinstance(connection, ssl.SSLObject)
        return connection

    def keep_session(self) -> None:
        """Let the next connection to this host resume this one's TLS session."""
        connection = self._transport.get_extra_info("ssl_object") if self._transport is not None else None
        if isinstance(connection, ssl.SSLObject) and isinstance(connection.context, ResumingContext):
            connection.context.keep(connection)

    def abort(self) -> None:
        """Close at once; what waits to be written is dropped."""
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Close in good order, and see it closed."""
        if self._transport is None:
            return
        self._transport.close()
        try:
            async with asyncio.timeout(TLS_CLOSE_TIMEOUT):
                await asyncio.shield(self._gone)
        except TimeoutError:
            self._transport.abort()


class Unreached(Exception):
    """No address answered: each with its error. `link`: every one of them was the network's fault."""

    def __init__(self, errors: dict[Place, OSError]) -> None:
        super().__init__(f"{len(errors)} addresses")
        self.errors = errors

    @property
    def link(self) -> bool:
        return all(error.errno in UNREACHABLE for error in self.errors.values())


def told(error: OSError) -> str:
    """Why an address could not be reached. asyncio has its own words for some of it, and we for a link's addresses."""
    if error.errno and error.errno != errno.EADDRNOTAVAIL:
        return os.strerror(error.errno)
    return error.strerror or str(error)


async def connect(places: Sequence[Place], port: int, seconds: float, via: Via | None = None) -> tuple[Line, Place]:
    """The first address of `places` that answers, each given `seconds`, the next started when the last has failed or
    after CONNECT_STAGGER (RFC 8305 5). Raises Unreached; the losers are closed. `via`: the uplink that it keeps to.
    """
    if len(places) == 1:  # there is nothing to race against
        try:
            return await _dial(places[0], port, seconds, via), places[0]
        except OSError as failure:
            raise Unreached({places[0]: failure}) from failure
    loop = asyncio.get_running_loop()
    waiting = list(places)
    errors: dict[Place, OSError] = {}
    running: dict[asyncio.Task[Line], Place] = {}
    try:
        while waiting or running:
            if waiting:
                place = waiting.pop(0)
                running[loop.create_task(_dial(place, port, seconds, via))] = place
            pause = CONNECT_STAGGER if waiting else None
            done, _ = await asyncio.wait(running, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                place = running[task]
                error = task.exception()
                if error is None:
                    del running[task]
                    return task.result(), place
                del running[task]
                errors[place] = error if isinstance(error, OSError) else OSError(errno.EIO, str(error))
        raise Unreached(errors)
    finally:
        for task in running:
            task.add_done_callback(_discard)
            task.cancel()


def _discard(task: asyncio.Task[Line]) -> None:
    """A connection that lost the race after all."""
    if not task.cancelled() and task.exception() is None:
        task.result().abort()


async def _dial(place: Place, port: int, seconds: float, via: Via | None) -> Line:
    family, address = place
    loop = asyncio.get_running_loop()
    own = tied(family, address, via)
    try:
        async with asyncio.timeout(seconds):
            if own is None:
                _, line = await loop.create_connection(Line, address, port, family=family)
            else:
                await loop.sock_connect(own, (address, port))
                _, line = await loop.create_connection(Line, sock=own)
                own = None  # the transport has it
    except TimeoutError as error:
        if error.errno is not None:  # the kernel's own ETIMEDOUT
            raise
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out") from None
    finally:
        if own is not None:
            own.close()
    return line


def interleave(places: Sequence[Place], preference: str) -> list[Place]:
    """Addresses in the order to race them: the families by turns, the preferred one first (RFC 8305 4).

    `preference` is smtp_address_preference: "ipv4", "ipv6", or "any" for the family that came first.
    """
    families = list(dict.fromkeys(family for family, _ in places))
    wanted = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}.get(preference)
    if wanted in families:
        families.sort(key=lambda family: family != wanted)
    rows = [[place for place in places if place[0] == family] for family in families]
    longest = max((len(row) for row in rows), default=0)
    return [row[turn] for turn in range(longest) for row in rows if turn < len(row)]
