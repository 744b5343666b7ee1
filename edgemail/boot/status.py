"""What the box says of itself, put together from its parts: the measuring, the endpoint, the page's data.

Owns the task that measures once a second, and the HTTP server. Everything that is asked of it answers from what was
measured; nothing here is in the way of mail, and its failure is logged and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgemail import __version__
from edgemail.boot import components
from edgemail.boot.credentials import CredentialFiles, logins
from edgemail.boot.gauges import Gauges
from edgemail.boot.probing import Prober
from edgemail.boot.survey import Survey, by_cause
from edgemail.health.board import Board
from edgemail.health.guard import KEPT_INODES, Guards
from edgemail.health.history import History
from edgemail.health.http import HttpServer
from edgemail.health.page import Sources, pages
from edgemail.reply import Reply

if TYPE_CHECKING:
    from edgemail.boot.box import Box
    from edgemail.boot.ownname import OwnName
    from edgemail.boot.serve import Relay
    from edgemail.envelope import Envelope, Recipient
    from edgemail.health.hardware import WatchdogDevice

log = logging.getLogger("edgemail.health")

MEASURE_SECONDS: Final = 1.0  # between two measurements
STALE_SECONDS: Final = 10.0  # limit: without a measurement, and with the spool's writer silent, before /livez says so
MEDIUM_SECONDS: Final = 120.0  # limit: inside one call to the medium before /livez says so
WANTED_SECONDS: Final = 120.0  # limit: how long after the last question the queue is still surveyed
HANGING_SECONDS: Final = 4.0  # limit: inside one call to the medium before new mail is answered 451


class Status:
    """The health of one relay. Made before its parts run; `start` and `close` as theirs."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        clock = relay.clock
        self.history = History(clock)
        self.guards = Guards(clock)
        self.board = Board(clock)
        self.survey = Survey(relay.store, clock, relay.scheduler.active, self._site)
        self.prober = Prober(relay)
        self.gauges = Gauges(relay, self.guards, self.survey)
        self._http: HttpServer | None = None
        self._device: WatchdogDevice | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._measured = clock.monotonic()
        self._wanted = clock.monotonic()
        self._own_name: OwnName | None = None  # once mail has gone by MX
        certificates = components.Certificates(clock)
        files = CredentialFiles(clock)
        for probe in (
            lambda: components.listeners(relay, lambda: self.prober.failing),
            lambda: components.spool(relay, self.survey),
            lambda: components.queue(relay, self.survey),
            self.guards.conditions,
            lambda: components.routes(relay.scheduler.sites(), clock.wall()),
            lambda: components.links(relay.links.snapshot()),
            lambda: components.clock(clock),
            lambda: certificates.conditions(relay.configuration),
            lambda: files.conditions(relay.configuration),
            lambda: logins(relay.credentials.verdicts, clock.monotonic()),
            lambda: self._own_name.conditions() if self._own_name else {},
        ):
            self.board.add(probe)
        self._box: Box | None = None
        if os.environ.get("EDGEMAIL_BOOT_REPORT"):  # the system image's launcher says where it is
            from edgemail.boot.box import Box

            self._box = Box(os.environ)
            self.board.add(self._box.conditions)

    # ---- running

    async def start(self) -> None:
        """Measure from now on, and serve the endpoint where there is one. Raises OSError."""
        self.measure()
        configuration = self._relay.configuration
        self._tasks = [
            asyncio.create_task(self._measuring(), name="measuring"),
            asyncio.create_task(self._surveying(), name="survey"),
        ]
        if os.environ.get("NOTIFY_SOCKET"):
            from edgemail.health.watchdog import Watchdog

            self._tasks.append(asyncio.create_task(Watchdog(self.alive, self.sentence).run(), name="watchdog"))
        if configuration.push is not None:
            from edgemail.health.push import Pusher

            pusher = Pusher(configuration.push, self._relay.clock, configuration.settings.myhostname, self.board.status)
            self._tasks.append(asyncio.create_task(pusher.run(), name="push"))
        if configuration.health is None:
            return  # and nobody asks for the probe's verdict
        self._tasks.append(asyncio.create_task(self.prober.run(), name="probing"))
        sources = Sources(
            board=self.board,
            alive=self.alive,
            ready=self.ready,
            page=self.page,
            refresh=self._refresh,
            act=self._act,
            more=self._box.pages() if self._box is not None else {},
        )
        self._http = HttpServer(configuration.health, (configuration.settings.myhostname,), pages(sources))
        await self._http.start()
        log.info("listening on %s port %d, health", configuration.health.address, self._http.port)

    async def close(self) -> None:
        """End the tasks and the endpoint. Safe to call twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._http is not None:
            await self._http.close()
            self._http = None

    def watch(self, device: str) -> None:
        """From now on the board is reset when we are not alive; "" for no device."""
        if not device:
            return
        from edgemail.health.hardware import WatchdogDevice

        self._device = WatchdogDevice(Path(device), self.alive)
        if self._device.open():
            self._tasks.append(asyncio.create_task(self._device.run(), name="watchdog-device"))

    def unwatch(self) -> None:
        """An orderly end: nothing more has to be alive."""
        if self._device is not None:
            self._device.close()

    async def _measuring(self) -> None:
        while True:
            try:
                self.measure()
                self.board.conditions()  # a change is logged, whether anybody asks or not
            except Exception:
                log.exception("measuring failed")
            await asyncio.sleep(MEASURE_SECONDS)

    async def _surveying(self) -> None:
        """While somebody wants to know. A task of its own: a long queue takes longer than a measurement may wait."""
        while True:
            try:
                if self._relay.clock.monotonic() - self._wanted < WANTED_SECONDS:
                    if self.survey.due:
                        await self.survey.take()
                    await self._look_at_own_name()
            except Exception:
                log.exception("the survey of the queue failed")
            await asyncio.sleep(MEASURE_SECONDS)

    def measure(self) -> None:
        """Read the guards. Raises OSError where /proc cannot be read."""
        self._measured = self._relay.clock.monotonic()
        self.guards.measure()
        settings = self._relay.configuration.settings
        figures = self._relay.store.figures()
        needed = max(settings.queue_minfree, settings.message_size_limit * 3 // 2) + figures.reserve
        inside = max(0, figures.allocated - figures.used)  # of the file: LMDB takes it again
        self.guards.disk.measure(figures.available + inside, needed + figures.growth, figures.disk)
        self.guards.inodes.measure(max(0, figures.inodes), KEPT_INODES, figures.all_inodes)
        self.guards.spool.measure(figures.map_size - figures.used, needed + figures.growth, figures.map_size)

    # ---- asked by the other parts

    def refusal(self, size: int) -> Reply | None:
        """At MAIL: whether the medium and the memory are good for a message of `size` octets, -1: not said."""
        vitals = self._relay.store.vitals()
        if vitals.inside > HANGING_SECONDS or not vitals.alive:
            return Reply(451, "4.3.0", "Error: the disk does not answer, try again later")
        room = self._relay.store.room()
        if 0 <= room.inodes < KEPT_INODES:
            return Reply(452, "4.3.1", "Insufficient system storage: no inodes left")
        return self.guards.message_refusal(size)

    def alive(self) -> str:
        """/livez: "" while the loop turns and the spool's writer answers, with success or not; else what is stuck.

        A full, read-only or failing medium is no reason: a restart would mend nothing.
        """
        vitals = self._relay.store.vitals()
        if not vitals.alive:
            return "the spool's writer has ended"
        if vitals.inside > MEDIUM_SECONDS:
            return f"the medium has not answered for {vitals.inside:.0f} s"
        if vitals.waiting > STALE_SECONDS:
            return f"the spool's writer has not taken up its work for {vitals.waiting:.0f} s"
        silent = self._relay.clock.monotonic() - self._measured
        return f"nothing was measured for {silent:.0f} s" if silent > STALE_SECONDS else ""

    def ready(self) -> str:
        """/readyz: "" when mail would be taken now; else why not."""
        why = self.alive()
        vitals = self._relay.store.vitals()
        if why:
            return why
        if vitals.trouble:
            return f"the spool cannot be written: {vitals.trouble}"
        if vitals.inside > STALE_SECONDS:
            return f"the medium has not answered for {vitals.inside:.0f} s"
        refusal = self._relay.refusal(-1)
        if refusal is not None:
            return str(refusal)
        return self.prober.verdict

    def summary(self) -> Mapping[str, Any]:
        """The status JSON, for the control socket."""
        self._wanted = self._relay.clock.monotonic()
        return self.board.status()

    # ---- the endpoint's data

    async def _act(self, verb: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """What a person does on the page."""
        from edgemail.boot.acting import Acting

        return await Acting(self._relay).act(verb, request)

    def page(self) -> dict[str, Any]:
        """What the page shows beside the status. Costs the same whatever is queued."""
        self._wanted = self._relay.clock.monotonic()
        now, queue = self._relay.clock.wall(), self.survey.queue
        return {
            "now": now,
            "version": __version__,
            "myhostname": self._relay.configuration.settings.myhostname,
            "sentence": self.sentence(),
            "queue": by_cause(queue, now),
            "shape": list(queue.ages),
            "shape_labels": list(queue.age_heads),
            "traffic": self.history.traffic(),
            "recent": self.history.recent(),
        }

    def sentence(self) -> str:
        """How the box is, in one sentence."""
        message = str(self.board.status()["message"])
        depth = self.survey.queue.depth
        if message:
            return message
        if not depth:
            return "Mail is taken and delivered; nothing waits."
        return f"Mail is taken and delivered; {depth} message{'s wait' if depth > 1 else ' waits'} for the next try."

    def _refresh(self) -> None:
        self._wanted = self._relay.clock.monotonic()
        self.gauges.refresh()

    async def _look_at_own_name(self) -> None:
        """Where mail goes to where its recipients' domains lead: whether the world knows us there."""
        if self._own_name is None and any(not each.configured for each in self._relay.scheduler.sites()):
            from edgemail.boot.ownname import OwnName

            self._own_name = OwnName(self._relay.clock, self._relay.outbound.resolver.peername)
        if self._own_name is not None and self._own_name.due:
            await self._own_name.look()

    def _site(self, envelope: Envelope, recipient: Recipient) -> str:
        """Where a recipient's mail goes now, as the queue is grouped; "" where no route can be told."""
        with contextlib.suppress(Exception):
            return self._relay.router.route(envelope, recipient)[0].site
        return ""
