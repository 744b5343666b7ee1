"""The state of links as the kernel tells it, in a network of the test's own."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest

from edgemail.clock import ManualClock
from edgemail.relay.queue import netlink
from edgemail.relay.queue.link import Links, State
from edgemail.relay.queue.uplink import Uplinks
from edgemail.settings import Configuration, Link, Settings
from tests.network import cable, ip, namespace, needs_root, plug, pull

pytestmark = needs_root


class Watch:
    """One link, watched."""

    def __init__(self, link: Link, directory: Path) -> None:
        configuration = Configuration("", Settings(smtp_links=(link.name,)), (), links=(link,))
        self.opened = 0
        self.changes = 0
        self.links = Links(ManualClock(), configuration, self._changed)
        self.uplinks = Uplinks(self.links, configuration, directory, self._open)

    def _changed(self, opened: tuple[Link, ...]) -> None:
        self.changes += 1
        for link in opened:
            self.uplinks.came_up(link)

    async def _open(self, link: Link) -> None:
        self.opened += 1

    @property
    def state(self) -> State:
        return self.links.snapshot()[0].state

    @property
    def reason(self) -> str:
        return self.links.snapshot()[0].reason

    async def until(self, reason: str) -> None:
        """Until the reason is as wanted ("" = up). Events alone bring it about: nothing here looks again."""
        async with asyncio.timeout(10):
            while reason not in self.reason or (not reason and self.state is not State.UP):
                await asyncio.sleep(0.005)


def watching(link: Link, directory: Path, scenario: Callable[[Watch], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        watch = Watch(link, directory)
        watch.uplinks.start()
        try:
            await scenario(watch)
        finally:
            await watch.uplinks.close()

    with namespace():
        asyncio.run(whole())


def test_an_interface_from_nothing_to_up_and_back(tmp_path: Path) -> None:
    async def scenario(watch: Watch) -> None:
        await watch.until("there is no interface up0")
        cable("up0")
        await watch.until("no carrier on up0")
        plug("up0")
        await watch.until("no address on up0")
        ip("addr add 192.0.2.2/24 dev up0")
        await watch.until("")
        assert watch.state is State.UP
        ip("addr del 192.0.2.2/24 dev up0")
        await watch.until("no address on up0")
        ip("addr add 2001:db8::2/64 dev up0 nodad")
        await watch.until("")
        pull("up0")
        await watch.until("no carrier on up0")
        plug("up0")
        await watch.until("")
        ip("link set up0 down")
        await watch.until("no carrier on up0")
        ip("link del up0")
        await watch.until("there is no interface up0")

    watching(Link("a", interface="up0"), tmp_path, scenario)


def test_a_route_and_the_interface_that_it_takes(tmp_path: Path) -> None:
    async def scenario(watch: Watch) -> None:
        for name, net in (("up0", 2), ("up1", 3)):
            cable(name)
            plug(name)
            ip(f"addr add 192.0.{net}.2/24 dev {name}")
        await watch.until("no route to 198.51.100.1")
        ip("route add default via 192.0.3.1 dev up1")
        await watch.until("the route to 198.51.100.1 is not by up0")
        ip("route add 198.51.100.0/24 via 192.0.2.1 dev up0")
        await watch.until("")
        assert watch.state is State.UP
        ip("route del 198.51.100.0/24", "route add blackhole 198.51.100.0/24")
        await watch.until("no route to 198.51.100.1")

    watching(Link("a", interface="up0", route="198.51.100.1"), tmp_path, scenario)


def test_a_route_alone_of_the_newer_family(tmp_path: Path) -> None:
    async def scenario(watch: Watch) -> None:
        cable("up0")
        plug("up0")
        await watch.until("no route to 2001:db8:9::1")
        ip("addr add 2001:db8::2/64 dev up0 nodad", "route add 2001:db8:9::/64 via 2001:db8::1 dev up0")
        await watch.until("")
        ip("link set up0 down")
        await watch.until("no route to 2001:db8:9::1")

    watching(Link("a", route="2001:db8:9::1"), tmp_path, scenario)


def test_flapping_ends_in_the_truth_and_acts_once(tmp_path: Path) -> None:
    async def scenario(watch: Watch) -> None:
        cable("up0")
        ip("addr add 192.0.2.2/24 dev up0")
        for _ in range(15):
            plug("up0")
            await asyncio.sleep(0.01)
            pull("up0")
            await asyncio.sleep(0.01)
        await watch.until("no carrier on up0")
        plug("up0")
        await watch.until("")
        assert watch.changes > 2, "it was seen to come up several times"
        assert watch.opened == 1, "and mail was not flushed at every turn"

    watching(Link("a", interface="up0"), tmp_path, scenario)


def test_news_that_the_kernel_could_not_deliver_are_asked_for_again(tmp_path: Path) -> None:
    async def scenario(watch: Watch) -> None:
        cable("up0")
        ip("addr add 192.0.2.2/24 dev up0")
        await watch.until("no carrier")
        news = watch.uplinks._netlink
        assert news is not None
        assert news._socket is not None
        news._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        ip(*(f"addr add 10.{n // 250}.{n % 250}.1/32 dev lo" for n in range(2000)))  # the loop does not read meanwhile
        plug("up0")
        await watch.until("")

    watching(Link("a", interface="up0"), tmp_path, scenario)


def test_what_was_lost_is_asked_for_when_nothing_is_left_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then the kernel drops more without a word, and what is in the socket is older than its answer."""
    news: list[OSError | str] = [OSError(errno.ENOBUFS, "lost"), "old", OSError(errno.EIO, "no answer"), "old", "fresh"]
    order: list[str] = []

    class Socket:
        def recv(self, _: int) -> bytes:
            if not news or (isinstance(news[0], OSError) and news[0].errno == errno.EIO):
                raise BlockingIOError
            one = news.pop(0)
            if isinstance(one, OSError):
                raise one
            order.append(one)
            return one.encode()

    def dumped() -> netlink.Table:
        order.append("asked")
        if news:
            error = news.pop(0)
            assert isinstance(error, OSError)
            raise error
        return netlink.Table()

    async def scenario() -> None:
        changes: list[int] = []
        watch = netlink.Netlink(lambda: changes.append(len(order)))
        watch._socket = cast(Any, Socket())
        watch._dumped = dumped  # type: ignore[method-assign]
        watch._readable()
        assert order == ["old", "asked"]  # and the kernel had no answer
        assert not changes
        async with asyncio.timeout(10):
            while not changes:
                await asyncio.sleep(0.01)
        assert order == ["old", "asked", "old", "fresh", "asked"]
        watch._readable()
        assert order[-1] == "asked" and len(order) == 5  # once

    monkeypatch.setattr(netlink, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(netlink, "messages", lambda _: ())
    asyncio.run(scenario())


def test_a_probe_is_made_at_once_when_the_kernel_has_a_way(tmp_path: Path) -> None:
    """An interval of a day: only the kernel's news can be why it is probed."""

    async def scenario(watch: Watch) -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 4025)
        await watch.until("there is no interface up0")
        cable("up0")
        plug("up0")
        ip("addr add 192.0.2.2/24 dev up0")
        await watch.until("")
        pull("up0")
        await watch.until("no carrier")
        server.close()
        await server.wait_closed()
        plug("up0")
        await watch.until("its probe failed")

    watching(Link("a", interface="up0", probe="127.0.0.1:4025", probe_interval=86_400.0), tmp_path, scenario)
