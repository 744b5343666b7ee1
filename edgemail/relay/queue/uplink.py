"""The uplinks as they are: what the kernel says, what probes find, what has to be kept over a restart.

Owns the watching of `[[link]]`s: netlink for interfaces, addresses and routes; a TCP connection or a command every so
often for the rest; the hours; the file with the accounts. What follows from it is decided in `link`. Every probe and
every act at link-up is bounded; none of them can stop the mail.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgemail.relay.queue.link import Links
from edgemail.settings import Configuration, Link
from edgemail.via import Via, tied

if TYPE_CHECKING:
    from edgemail.relay.queue.asks import Asked, Asks
    from edgemail.relay.queue.netlink import Netlink

log = logging.getLogger("edgemail.link")

FILE_NAME: Final = "links.json"  # beside the spool: bytes carried this day and month
MAX_FILE: Final = 65_536  # limit: bytes of that file
SAVE_SECONDS: Final = 60.0  # limit: seconds of accounts that a power cut may lose
UP_PAUSE: Final = 10.0  # limit: seconds between two acts for one link that goes up and down
UP_SECONDS: Final = 120.0  # limit: seconds for what is done when a link comes up
UNPROBED: Final = "not probed yet"
KILL_SECONDS: Final = 2.0  # limit: seconds for a killed probe to be gone

Opened = Callable[[Link], Awaitable[None]]


class Uplinks:
    """Watches all links and tells `links`. `opened` is awaited when one has become usable, `asked` as `asks` has it."""

    def __init__(
        self, links: Links, configuration: Configuration, directory: Path, opened: Opened, asked: Asked | None = None
    ) -> None:
        self._links = links
        self._configuration = configuration
        self._path = directory / FILE_NAME
        self._opened = opened
        self._asked = asked
        self._asks: Asks | None = None  # where a link has a provider
        self._netlink: Netlink | None = None
        self._probes: dict[str, tuple[Link, asyncio.Task[None], asyncio.Event]] = {}
        self._found: dict[str, tuple[bool, str]] = {}  # by the probe, for each link that has one
        self._known: set[str] = set()  # those of which the state was found out since the start
        self._acts: dict[str, asyncio.Task[None]] = {}
        self._timer: asyncio.Task[None] | None = None
        self._stirred = asyncio.Event()

    def start(self) -> None:
        """Read the accounts, look once, and keep looking."""
        self._links.restore(self._read())
        self._take_up()

    def reload(self, configuration: Configuration) -> None:
        """Take new links; `links` has them already."""
        self._configuration = configuration
        self._take_up()
        self._stirred.set()

    async def close(self) -> None:
        """Stop looking; keep the accounts. Safe to call twice."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None
        if self._asks is not None:
            await self._asks.close()
        tasks = [*self._acts.values(), *(task for _, task, _ in self._probes.values())]
        if self._timer is not None:
            tasks.append(self._timer)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._acts.clear()
        self._probes.clear()
        self._timer = None
        await self._save()

    def _take_up(self) -> None:
        links = self._configuration.links
        kernel = any(link.interface or link.route for link in links)
        if kernel and self._netlink is None:
            from edgemail.relay.queue.netlink import Netlink

            netlink = Netlink(self.look)
            try:
                netlink.start()
                self._netlink = netlink
            except OSError as error:
                log.warning("warning: the kernel does not tell of its interfaces: %s", error)
        elif not kernel and self._netlink is not None:
            self._netlink.close()
            self._netlink = None
        wanted = {link.name: link for link in links if link.probe or link.command}
        for name, (link, task, _) in list(self._probes.items()):
            if wanted.get(name) != link:
                task.cancel()
                del self._probes[name]
                self._found.pop(name, None)
        for name, link in wanted.items():
            if name not in self._probes:
                wake = asyncio.Event()
                self._found[name] = (False, UNPROBED)
                self._probes[name] = (link, asyncio.create_task(self._probe(link, wake)), wake)
        if self._asked is not None and (self._asks is not None or any(link.etrn or link.atrn for link in links)):
            if self._asks is None:
                from edgemail.relay.queue.asks import Asks

                self._asks = Asks(self._asked, lambda name: self._links.times_up(name) is not None)
            self._asks.reload(links)
        if links and self._timer is None:
            self._timer = asyncio.create_task(self._keep_time())
        self.look()

    # ---- what the kernel knows

    def look(self) -> None:
        """Look at every link; probe at once where the kernel's part has become good."""
        for link in self._configuration.links:
            works, why = self._kernel(link)
            if works and link.name in self._found:
                _, _, wake = self._probes[link.name]
                works, why = self._found[link.name]
                if not works:
                    wake.set()
            elif not works and link.name in self._found:
                self._found[link.name] = (False, UNPROBED)
            self._links.observe(link.name, works, why)
            if link.name not in self._found or self._found[link.name][1] != UNPROBED:
                self._known.add(link.name)

    def _kernel(self, link: Link) -> tuple[bool, str]:
        if not link.interface and not link.route:
            return True, ""
        if self._netlink is None:
            return False, "the kernel does not tell of its interfaces"
        addresses: frozenset[str] = frozenset()
        if link.interface:
            interface = self._netlink.table.interface(link.interface)
            if interface is None:
                return False, f"there is no interface {link.interface}"
            if not interface.carrier:
                return False, f"no carrier on {link.interface}"
            if not interface.addresses:
                return False, f"no address on {link.interface}"
            addresses = interface.addresses
            self._links.addressed(link.name, addresses)
        if link.route:
            from edgemail.relay.queue.netlink import source_towards

            try:
                source = source_towards(link.route)
            except OSError as error:  # no descriptor to ask with: what was known stands
                log.warning("warning: link %s: not looked at: %s", link.name, error)
                return self._links.known(link.name)
            if source is None:
                return False, f"no route to {link.route}"
            if addresses and source not in addresses:
                return False, f"the route to {link.route} is not by {link.interface}"
        return True, ""

    # ---- what must be tried

    async def _probe(self, link: Link, wake: asyncio.Event) -> None:
        while True:
            wake.clear()
            if self._kernel(link)[0]:
                found = await self._tried(link)
                if self._kernel(link)[0]:
                    self._found[link.name] = found
                    self._links.observe(link.name, *found)
                    self._known.add(link.name)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(link.probe_interval):
                    await wake.wait()

    async def _tried(self, link: Link) -> tuple[bool, str]:
        try:
            async with asyncio.timeout(link.probe_timeout):
                if link.probe:
                    await _connect(link.probe, self._links.via(link.name))
                if link.command:
                    code = await _run(link.command)
                    if code != 0:
                        return False, f"{link.command[0]} says no: exit code {code}"
        except TimeoutError:
            return False, f"its probe had no answer in {link.probe_timeout:g} s"
        except OSError as error:
            return False, f"its probe failed: {error.strerror or error}"
        return True, ""

    # ---- what time does

    async def _keep_time(self) -> None:
        """Look at hours and budgets when they may change; keep the accounts."""
        while True:
            self._stirred.clear()
            wait = self._links.next_review()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(wait or SAVE_SECONDS, SAVE_SECONDS)):
                    await self._stirred.wait()
            self._links.review()
            await self._save()

    # ---- what is done when one comes up

    def came_up(self, link: Link) -> None:
        """It has become usable. What is to be done is done now, or when the last of it is long enough ago.

        One that was usable all the time, as far as is known, has not come up because this process was started.
        """
        fresh = link.name in self._known
        if self._asks is not None and (fresh or link.ask_interval):
            self._asks.came_up(link)
        if fresh and link.on_up and link.name not in self._acts:
            self._acts[link.name] = asyncio.create_task(self._act(link))

    async def _act(self, link: Link) -> None:
        before = self._links.times_up(link.name)
        try:
            async with asyncio.timeout(UP_SECONDS):
                await self._opened(link)
        except TimeoutError:
            log.warning(
                "warning: link %s: what is to be done when it comes up took more than %g s", link.name, UP_SECONDS
            )
        except Exception:
            log.exception("link %s: what is to be done when it comes up failed", link.name)
        await asyncio.sleep(UP_PAUSE)
        del self._acts[link.name]
        if self._links.times_up(link.name) not in (None, before):  # it went and came back meanwhile
            self.came_up(link)

    # ---- what is kept

    def _read(self) -> dict[str, object]:
        try:
            with self._path.open("rb") as file:
                import json

                found = json.loads(file.read(MAX_FILE))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("warning: %s: %s; links begin with empty accounts", self._path, error)
            return {}
        return found if isinstance(found, dict) else {}

    async def _save(self) -> None:
        if not self._links.dirty:
            return
        import json

        self._links.dirty = False
        text = json.dumps(self._links.accounts()) + "\n"
        try:
            await asyncio.to_thread(_write, self._path, text)
        except OSError as error:
            self._links.dirty = True
            log.warning("warning: %s: %s; the accounts of links are kept in memory", self._path, error)


def _write(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)  # until then a power cut may bring back any version since the start
    finally:
        os.close(directory)


async def _connect(probe: str, via: Via | None) -> None:
    """Connect as the mail would: by that uplink. Raises OSError when no address answers."""
    host, _, port = probe.rpartition(":")
    loop = asyncio.get_running_loop()
    error = OSError(f"{host} has no address")
    for family, _, _, _, place in await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM):
        try:
            with tied(family, str(place[0]), via) or _untied(family) as probing:
                await loop.sock_connect(probing, place)
                return
        except OSError as failed:
            error = failed
    raise error


def _untied(family: int) -> socket.socket:
    found = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    found.setblocking(False)
    return found


async def _run(command: tuple[str, ...]) -> int:
    """Run a program without a shell, with nothing to read and nobody to read what it says; its exit code."""
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return await child.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 9)  # its children too
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), KILL_SECONDS)
        raise
