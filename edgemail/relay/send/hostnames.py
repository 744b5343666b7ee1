"""The machine's own name service: hosts file, DNS, mDNS, whatever nsswitch.conf says. Asked in threads, with a limit.

Owns how a call that blocks is kept off the loop and out of the way of a stop; knows nothing of MX. A smarthost-only
box gets along with this module and never loads dnspython.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")

MAX_LOOKUPS: Final = 4  # limit: threads in getaddrinfo or getnameinfo at once

Addresses = tuple[tuple[socket.AddressFamily, str], ...]


class Hostnames:
    """Names and addresses by the C library. Its threads are daemons: one that hangs does not delay a stop."""

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(MAX_LOOKUPS)

    async def addresses(self, host: str, family: int, seconds: float) -> Addresses:
        """The addresses of a host in the library's order (RFC 6724). Raises socket.gaierror, TimeoutError, OSError."""
        found = await self._off_loop(lambda: socket.getaddrinfo(host, None, family, socket.SOCK_STREAM), seconds)
        return tuple(dict.fromkeys((kind, str(address[0])) for kind, _, _, _, address in found))

    async def name(self, address: str, seconds: float) -> str:
        """The name of an address, not confirmed. Raises as `addresses` does."""
        return await self._off_loop(lambda: socket.getnameinfo((address, 0), socket.NI_NAMEREQD)[0], seconds)

    async def _off_loop(self, call: Callable[[], T], seconds: float) -> T:
        loop = asyncio.get_running_loop()
        settled: asyncio.Future[T] = loop.create_future()

        def settle(result: Any, error: Exception | None) -> None:
            self._slots.release()  # the slot is the thread's, however long ago its asker gave up
            if settled.done():
                return
            if error is None:
                settled.set_result(result)
            else:
                settled.set_exception(error)

        def run() -> None:
            try:
                outcome: tuple[Any, Exception | None] = (call(), None)
            except Exception as error:
                outcome = (None, error)
            try:
                loop.call_soon_threadsafe(settle, *outcome)
            except RuntimeError:  # the loop is closed: nobody waits any more
                pass

        async with asyncio.timeout(seconds):
            await self._slots.acquire()
            threading.Thread(target=run, name="hostnames", daemon=True).start()
            return await settled
