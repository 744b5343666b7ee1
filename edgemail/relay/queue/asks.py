"""When a provider is asked for our mail: as its link comes up, by a schedule, and again a while after it could not be.

Owns the times alone; whom to ask, and how, is `asked`'s, which says whether it is done. One ask at a time for a link.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from edgemail.settings import Link

log = logging.getLogger("edgemail.link")

ASK_PAUSE: Final = 10.0  # limit: seconds between two asks over a link that goes up and down
# Not long: routes may come a little after the link.
ASK_AGAIN: Final = 10.0  # limit: seconds until a provider is asked again who could not be; doubles
ASK_AGAIN_LAST: Final = 4000.0  # limit: up to this

Asked = Callable[[Link], Awaitable[bool]]  # whether that was all: False means that the same may work later


class Asks:
    """The providers of all links. `up` says whether a link may be used now."""

    def __init__(self, asked: Asked, up: Callable[[str], bool]) -> None:
        self._asked = asked
        self._up = up
        self._tasks: dict[str, tuple[Link, asyncio.Task[None], asyncio.Event]] = {}

    def reload(self, links: tuple[Link, ...]) -> None:
        """Ask for these from now on; what is under way for one that has changed is broken off."""
        wanted = {link.name: link for link in links if link.etrn or link.atrn}
        for name, (link, task, _) in list(self._tasks.items()):
            if wanted.get(name) != link:
                task.cancel()
                del self._tasks[name]
        for name, link in wanted.items():
            if name not in self._tasks:
                wake = asyncio.Event()
                self._tasks[name] = link, asyncio.create_task(self._keep_asking(link, wake)), wake

    def came_up(self, link: Link) -> None:
        """Ask now."""
        if link.name in self._tasks:
            self._tasks[link.name][2].set()

    async def close(self) -> None:
        """Ask no more."""
        tasks = [task for _, task, _ in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    async def _keep_asking(self, link: Link, wake: asyncio.Event) -> None:
        wait = 0.0 if link.ask_interval else None  # the start is one of the times of a schedule
        again = ASK_AGAIN
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await wake.wait()
            wake.clear()
            if not self._up(link.name):
                wait = None  # until it comes up
                continue
            if await self._done(link):
                wait, again = link.ask_interval or None, ASK_AGAIN
            else:
                wait = min(again, link.ask_interval or again)
                again = min(again * 2, ASK_AGAIN_LAST)
            await asyncio.sleep(ASK_PAUSE)

    async def _done(self, link: Link) -> bool:
        try:
            return await self._asked(link)
        except Exception:
            log.exception("link %s: asking the provider for our mail failed", link.name)
            return False
