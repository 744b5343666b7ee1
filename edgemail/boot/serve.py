"""The composition: one process, one loop, all parts. The only place where receive, queue, send and spool meet.

Owns the order of starting and stopping, signals and reload; never touches a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import logging
import os
import random
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgemail import __version__
from edgemail.boot import certs, log, postmaster, privileges, reading
from edgemail.boot.control import ControlServer, Verb
from edgemail.boot.frames import SOCKET_NAME
from edgemail.boot.routes import survey
from edgemail.boot.status import Status
from edgemail.clock import SystemClock
from edgemail.envelope import Address, Delivery, Envelope, Outcome, Recipient, Route
from edgemail.errors import ConfigurationError, EdgemailError, SpoolBusy, SpoolError, SystemRefused
from edgemail.health.watchdog import notify
from edgemail.relay.queue.link import Links
from edgemail.relay.queue.schedule import Scheduler
from edgemail.relay.queue.uplink import Uplinks
from edgemail.relay.receive.listen import Server
from edgemail.relay.receive.reception import Reception
from edgemail.relay.send.credentials import Credentials
from edgemail.relay.send.route import Router
from edgemail.reply import Reply
from edgemail.settings import Configuration, Link
from edgemail.spool import layout
from edgemail.spool.space import admission
from edgemail.spool.store import ensure_free, open_store

if TYPE_CHECKING:
    from edgemail.boot.outbound import Outbound

logger = logging.getLogger("edgemail.master")

EX_UNAVAILABLE: Final = 69  # sysexits: another process holds the spool
EX_OSERR: Final = 71  # an address cannot be bound, a directory not be written
EX_CONFIG: Final = 78
STOP_SECONDS: Final = 19.0  # limit: SIGTERM to the end of everything but the spool's last commit
SESSION_SECONDS: Final = 8.0  # limit: of those, for sessions in flight
DELIVERY_SECONDS: Final = 6.0  # limit: of those, for deliveries in flight


def give_back() -> None:
    """Return the memory that starting took and left free: the C library keeps it otherwise, 0.7 MiB of it.

    What is left stays for good: the collector need not look at it again.
    """
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
    if trim is not None:
        trim(0)


def own_addresses() -> frozenset[str]:
    """Every address of this machine's interfaces, without scope. psutil is imported on first use: 1 MiB."""
    import psutil

    families = psutil.net_if_addrs().values()
    return frozenset(str(one.address).partition("%")[0] for each in families for one in each)


class Relay:
    """The running relay of one configuration. `heed`, `start`, then `serve_until_signal`, then `stop`."""

    def __init__(self, configuration: Configuration, clock: SystemClock) -> None:
        self.configuration = configuration
        self.clock = clock
        self.stopping = asyncio.Event()
        self._ready = asyncio.Event()
        self._reloading = asyncio.Lock()  # the file that was read last is the one that counts
        self._errands: set[asyncio.Task[None]] = set()
        self._running: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None
        self.failure: EdgemailError | OSError | None = None  # what ended it, other than a signal

    async def start(self) -> None:
        """Bind, become mail_owner, open the spool, take up the queue, serve. Raises EdgemailError and OSError."""
        settings = self.configuration.settings
        directory = Path(settings.queue_directory)
        ensure_free(directory)  # a second start is told who has the spool, not that the ports are taken
        async with contextlib.AsyncExitStack() as undo:
            self.server = Server(self.configuration.listeners)
            self.server.bind()
            undo.push_async_callback(self.server.drain, 0.0)
            privileges.drop(settings.mail_owner, directory, settings.watchdog_device)
            size, journal = settings.spool_size, settings.journal_size
            if os.environ.get("EDGEMAIL_SPOOL_FORMAT") == str(layout.FORMAT):
                journal = 0  # the system is on trial, and the release that it would go back to knows no journal
            self.store = open_store(directory, size, self.clock, settings.queue_minfree, journal)
            undo.push_async_callback(self.store.close)
            # after the spool, which tells the clock what date has passed: no certificate is judged by a wrong one
            self.configuration = reading.with_turned(certs.ensure(self.configuration, self.clock))
            self._compose()
            self.store.damage_found = lambda error: self.scheduler.notice("resource", postmaster.DAMAGED, str(error))
            await self.scheduler.open()
            self.uplinks.start()
            undo.push_async_callback(self.uplinks.close)
            self._running = asyncio.create_task(self.scheduler.run())
            self.control = ControlServer(directory / SOCKET_NAME, self._verbs)
            await self.control.start()
            undo.push_async_callback(self.control.close)
            await self.status.start()
            undo.push_async_callback(self.status.close)
            await self.server.start(self.reception)
            undo.pop_all()
        for name, host, port in self.server.addresses:
            logger.info("listening on %s port %d, listener=%s", host, port, name)
        logger.info("edgemail %s is ready, myhostname=%s", __version__, settings.myhostname)
        give_back()
        if word := postmaster.word_of(self.store.recovered):
            self.scheduler.notice("resource", postmaster.DAMAGED, word)
        self._loading = asyncio.create_task(self._load())
        self._ready.set()
        notify("READY=1")
        self.status.watch(settings.watchdog_device)

    async def _load(self) -> None:
        """Take up the queue, while mail is taken already: a hundred thousand messages take seconds."""
        try:
            held = await self.scheduler.load()
        except (EdgemailError, OSError) as error:
            self.failure = error
            self.stopping.set()
            return
        if held:
            self._release_for_postmaster()
        give_back()

    def _compose(self) -> None:
        """Make the parts and hand each what it needs of the others."""
        configuration, clock = self.configuration, self.clock
        self.router = Router(configuration, own=own_addresses)
        self.credentials = Credentials(configuration)
        self.links = Links(clock, configuration, self._links_changed)
        self.uplinks = Uplinks(
            self.links,
            configuration,
            Path(configuration.settings.queue_directory),
            self._link_is_up,
            self._ask,
        )
        self.scheduler = Scheduler(
            self.store,
            clock,
            configuration,
            self.route,
            self._deliver,
            random=random.Random(),
            links=self.links,
            directory=Path(configuration.settings.queue_directory),
        )
        self.status = Status(self)
        self.scheduler.bind_deliveries(self.status.guards.deliveries)
        self.reception = Reception(
            spool=self.store,
            clock=clock,
            configuration=configuration,
            accepted=self.accepted,
            route=self.router.route_address,
            refusal=self.refusal,
            flow=self.scheduler.flow,
            notice=self.scheduler.notice,
            peername=lambda address: self.outbound.resolver.peername(address),  # noqa: PLW0108 - made when it is called
            crowded=self.status.guards.session_refusal,
            flush=self.flush_node,
            flush_at_once=lambda node: None if node.startswith("#") else self.scheduler.flush_at_once(node),
            turn=lambda *asked: self.outbound.provider.turn(*asked),  # noqa: PLW0108
        )

    @functools.cached_property
    def outbound(self) -> Outbound:
        """What sends."""
        from edgemail.boot.outbound import Outbound

        return Outbound(
            lambda: self.configuration,
            self.clock,
            self.store,
            self.scheduler,
            self.server,
            credentials=self.credentials,
            find=self.router.route,
            own=own_addresses,
            notice=self.scheduler.notice,
            stopping=self.stopping,
            heard=self.links.heard,
        )

    def _verbs(self) -> Mapping[str, Verb]:
        """What may be asked over the control socket; put together when somebody asks."""
        from edgemail.boot.verbs import Desk

        desk = Desk(
            self.store,
            self.scheduler,
            self.clock,
            lambda: self.configuration,
            reload=self.reload,
            refusal=self.refusal,
            route=self.route,
            status=self.status.summary,
            routes=lambda: survey(self.scheduler.sites(), self.links.snapshot()),
        )
        return {**desk.verbs(), **self.outbound.verbs()}

    def route(self, envelope: Envelope, recipient: Recipient) -> tuple[Route, Address]:
        """Where a recipient's mail goes now: as the router says, or over a connection that its own side made."""
        if "outbound" in self.__dict__:
            return self.outbound.provider.route(envelope, recipient)
        return self.router.route(envelope, recipient)

    def accepted(self, envelope: Envelope) -> None:
        """A message is durable: the queue and the history hear of it."""
        self.status.history.accepted(envelope)
        self.scheduler.accepted(envelope)

    async def flush_node(self, node: str) -> int | None:
        """What ETRN asks for: a domain, "@" and a domain, or "#" and a transport that is on demand."""
        if not node.startswith("#"):
            return await self.scheduler.flush(domain=node.lower())
        if node[1:] not in self.configuration.settings.defer_transports:
            return None
        return await self.scheduler.flush(site=node[1:])

    def _links_changed(self, opened: tuple[Link, ...]) -> None:
        """Some link is in another state; `opened` have become usable."""
        self.scheduler.links_changed()
        for link in opened:
            self.uplinks.came_up(link)

    async def _link_is_up(self, link: Link) -> None:
        """What its `on_up` wants."""
        if "flush" in link.on_up:
            count = await self.scheduler.flush()
            logger.info("link %s is up: flush, %d messages", link.name, count)

    async def _ask(self, link: Link) -> bool:
        """Ask the providers of a link for our mail; see `Calls.ask`. What they send needs all parts of us."""
        await self._ready.wait()
        return await self.outbound.calls.ask(link, self.links.via(link.name))

    async def _deliver(self, delivery: Delivery) -> tuple[Outcome, ...]:
        outcomes = await self.outbound.courier.deliver(delivery)
        for target, outcome in zip(delivery.targets, outcomes, strict=True):
            self.status.history.outcome(delivery.envelope, target.recipient, outcome)
        return outcomes

    def refusal(self, size: int) -> Reply | None:
        """At MAIL: whether a message of `size` octets (-1: not announced) may come now."""
        settings = self.configuration.settings
        short = admission(self.store.room(), size, settings.message_size_limit, settings.queue_minfree)
        return short or self.status.refusal(size)

    async def reload(self) -> None:
        """Read the configuration again. Raises EdgemailError; then the old values stay in force, in all parts."""
        async with self._reloading:
            fresh = await asyncio.to_thread(reading.read, self.configuration.path)
            for needed in reading.restart_needed(self.configuration, fresh):
                logger.warning("warning: %s", needed)
            fresh = reading.with_turned(certs.ensure(fresh, self.clock))
            try:
                self._take(fresh)
            except BaseException:
                with contextlib.suppress(EdgemailError):
                    self._take(self.configuration)
                raise
            before, self.configuration = self.configuration, fresh
            if not before.settings.admin_address:
                self._release_for_postmaster()
            logger.info("configuration %s read again", fresh.path)

    def _release_for_postmaster(self) -> None:
        """Mail that was held only because nobody was named to read it goes on its way, beside everything else."""
        if self.configuration.settings.admin_address:
            self._beside(postmaster.release(self.store, self.scheduler.release))

    def _beside(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    def _take(self, fresh: Configuration) -> None:
        """Give every part its configuration. Raises EdgemailError."""
        self.router.reload(fresh)
        if "outbound" in self.__dict__:
            self.outbound.reload(fresh)
        else:
            self.credentials.reload(fresh)
        self.links.reload(fresh)
        self.uplinks.reload(fresh)
        self.scheduler.reload(fresh)
        self.server.reload(fresh)

    async def _hang_up(self) -> None:
        await self._ready.wait()
        try:
            await self.reload()
        except ConfigurationError as error:
            for line in reading.report(error.path, error.problems).splitlines():
                logger.error("error: %s", line)
            logger.error("error: the configuration before it stays in force")
        except EdgemailError as error:
            logger.error("error: %s; the configuration before it stays in force", error)
        except Exception:
            logger.exception("reload; the configuration before it stays in force")

    def heed(self) -> None:
        """From now on SIGTERM and SIGINT stop, and SIGHUP reloads; what comes during the start is done after it."""
        loop = asyncio.get_running_loop()

        def hang_up() -> None:
            self._beside(self._hang_up())

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        loop.add_signal_handler(signal.SIGHUP, hang_up)

    async def serve_until_signal(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        await self.stopping.wait()

    async def stop(self) -> None:
        """Drain: no new sessions, those in flight finish or get 421, commits complete. 20 s at most."""
        logger.info("stopping")
        notify("STOPPING=1")
        if self._loading is not None:
            self._loading.cancel()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.gather(self.server.drain(SESSION_SECONDS), self.scheduler.stop(DELIVERY_SECONDS))
                if self._running is not None:
                    await self._running
                if "outbound" in self.__dict__:
                    await self.outbound.courier.close()
                await self.uplinks.close()
                await self.control.close()
                await self.status.close()
        except TimeoutError:
            logger.warning("warning: not everything ended in %.0f s; what is in flight is tried again", STOP_SECONDS)
        finally:
            closing = asyncio.ensure_future(self.store.close())
            # The writer wakes this loop through a socket; where that fails, nothing else would: look once a second.
            while not closing.done():
                await asyncio.wait((closing,), timeout=1.0)
            await closing
            self.status.unwatch()
        logger.info("stopped")


async def _run(configuration: Configuration, clock: SystemClock) -> int:
    relay = Relay(configuration, clock)
    relay.heed()
    await relay.start()
    await relay.serve_until_signal()
    await relay.stop()
    if relay.failure is not None:
        raise relay.failure
    return 0


def guarded(body: Callable[[], int]) -> int:
    """Run `body`; what ends it becomes a sentence in the log and the exit code that says whether to try again."""
    try:
        return body()
    except SpoolBusy as error:
        logger.critical("fatal: %s", error)
        return EX_UNAVAILABLE
    except (SystemRefused, SpoolError, OSError) as error:  # may be otherwise in a minute
        logger.critical("fatal: %s", error)
        return EX_OSERR
    except EdgemailError as error:
        logger.critical("fatal: %s", error)
        return EX_CONFIG


def run(reader: reading.Reader) -> int:
    """`edgemail run`: serve the configuration that `reader` has read until told to stop; returns the exit code."""
    try:
        configuration = reader.configuration()
    except ConfigurationError as error:
        print(reading.report(error.path, error.problems), file=sys.stderr)
        return EX_CONFIG
    log.start(configuration.settings.syslog_name)
    return guarded(lambda: asyncio.run(_run(configuration, SystemClock())))
