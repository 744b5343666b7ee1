"""What may be asked of the running relay: the table of verbs and what each does with spool and scheduler.

Works in batches with a breath between them, so that a queue of thousands never holds up a session. Formats nothing.
`boot.serve` puts it together: `ControlServer(directory / SOCKET_NAME, Desk(spool, scheduler, ...).verbs())`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from edgemail import __version__
from edgemail.boot.control import Channel, Refused, Verb
from edgemail.boot.entries import STATES, Entry, Selection, Site, entry, parse_id
from edgemail.boot.flushing import MAX_WAIT
from edgemail.boot.frames import EX_CONFIG, EX_DATAERR, EX_TEMPFAIL, EX_UNAVAILABLE
from edgemail.boot.listing import Causes, Shape
from edgemail.boot.submit import Submission, accept
from edgemail.clock import Clock
from edgemail.envelope import Address, Envelope, Recipient, Route, queue_id
from edgemail.errors import ConfigurationError, EdgemailError, SpoolDamaged, SpoolError, TableError
from edgemail.relay.queue.flush import Flush
from edgemail.reply import Reply
from edgemail.settings import Configuration
from edgemail.spool.verbs import Spool
from edgemail.tables import DomainList

log = logging.getLogger("edgemail.control")

BATCH: Final = 50  # limit: messages that a queue command looks at before others have their turn
ALIVE_SECONDS: Final = 10.0  # limit: seconds until a command that waits for a flush hears how far it is
MAX_BUCKETS: Final = 40  # limit: columns of ages that qshape may ask for


Find = Callable[[Envelope, Recipient], tuple[Route, Address]]


class Queue(Protocol):
    """The scheduler, as far as queue commands need it. Each verb returns the ids it really acted on."""

    def accepted(self, envelope: Envelope) -> None: ...

    def active(self, id: int) -> bool: ...

    def flow(self) -> float: ...

    async def flush(
        self,
        ids: Collection[int] | None = None,
        domain: str | None = None,
        site: str | None = None,
        account: Flush | None = None,
    ) -> int: ...

    def leave(self, account: Flush) -> None: ...

    async def hold(self, ids: Collection[int], reason: str = "") -> Iterable[int]: ...

    async def release(self, ids: Collection[int]) -> Iterable[int]: ...

    async def remove(self, ids: Collection[int]) -> Iterable[int]: ...

    async def requeue(self, ids: Collection[int]) -> Iterable[tuple[int, int]]: ...


class Desk:
    """The verbs over one spool and one scheduler. `verbs()` is the table for ControlServer."""

    def __init__(
        self,
        spool: Spool,
        queue: Queue,
        clock: Clock,
        configuration: Callable[[], Configuration],
        *,
        reload: Callable[[], Awaitable[None]],
        refusal: Callable[[int], Reply | None],
        route: Find | None = None,
        status: Callable[[], Mapping[str, Any]] = dict,
        routes: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        """`configuration` is asked each time; `reload` raises ConfigurationError; `status` adds its own members.

        `route` is the router's: with it, what waits is told by the site that it goes to now.
        """
        self.spool = spool
        self.queue = queue
        self.clock = clock
        self.configuration = configuration
        self.refusal = refusal
        self._reload = reload
        self._site = None if route is None else _site_of(route)
        self._status = status
        self._routes = routes

    def verbs(self) -> dict[str, Verb]:
        """Name to what it does, and whether it is for the owner alone."""
        return {
            "status": Verb(self.status),
            "routes": Verb(self.routes),
            "queue.list": Verb(self.list),
            "queue.show": Verb(self.list),
            "queue.why": Verb(self.why),
            "queue.damaged": Verb(self.damaged),
            "queue.flush": Verb(self.flush),
            "queue.hold": Verb(self.hold, owner=True),
            "queue.release": Verb(self.release, owner=True),
            "queue.requeue": Verb(self.requeue, owner=True),
            "queue.delete": Verb(self.delete, owner=True),
            "queue.cat": Verb(self.cat, owner=True),
            "shape": Verb(self.shape),
            "reload": Verb(self.reload, owner=True),
            "submit": Verb(self.submit),
        }

    # looking

    async def status(self, request: dict[str, Any], channel: Channel) -> Mapping[str, Any]:
        """Version and numbers of the queue."""
        counts = dict.fromkeys(STATES, 0)
        size = 0
        async for one in self.entries(Selection()):
            counts[one.queue_name] += 1
            size += one.message_size
        room = self.spool.room()
        queue = {**counts, "messages": sum(counts.values()), "bytes": size, "damaged": len(list(self.spool.damaged()))}
        return {"version": __version__, "queue": queue, "room": room.bytes, **self._status()}

    async def routes(self, request: dict[str, Any], channel: Channel) -> Mapping[str, Any]:
        """Destinations and links."""
        return {"now": self.clock.wall(), **self._routes()}

    async def list(self, request: dict[str, Any], channel: Channel) -> Mapping[str, Any]:
        """Each message that fits, on a line of its own, in order of arrival."""
        count = 0
        async for one in self.entries(_selection(request)):
            await channel.say({"entry": one.as_json()})
            count += 1
        return {"count": count}

    async def why(self, request: dict[str, Any], channel: Channel) -> Mapping[str, Any]:
        """Destinations and reasons with their counts."""
        causes = Causes()
        async for one in self.entries(_selection(request)):
            causes.add(one)
        for cause in causes.found():
            await channel.say({"cause": cause.as_json()})
        return {"count": causes.messages}

    async def damaged(self, request: dict[str, Any], channel: Channel) -> Mapping[str, Any]:
        """What the spool has set aside."""
        count = 0
        for one in list(self.spool.damaged()):
            await channel.say({"damaged": {"queue_id": queue_id(one.id), "at": one.at, "why": one.why}})
            count += 1
        return {"count": count}

    async def shape(self, request: dict[str, Any], channel: Channel) -> Mapping[str, Any]:
        """Counts by domain and age."""
        shape = Shape(
            now=self.clock.wall(),
            senders=request.get("senders") is True,
            parents=request.get("parents") is True,
            linear=request.get("linear") is True,
            buckets=_number(request, "buckets", 10, 1, MAX_BUCKETS),
            minutes=_number(request, "minutes", 5, 1, 1_000_000),
        )
        async for one in self.entries(_selection(request)):
            shape.add(one)
        for domain, counts in shape.counts.items():
            await channel.say({"domain": domain, "counts": counts, "below": shape.below.get(domain, 0)})
        return {"count": len(shape.counts)}

    async def cat(self, request: dict[str, Any], channel: Channel) -> Mapping[str, Any]:
        """One message, envelope and content."""
        number = _id(request.get("id"))
        try:
            one = self._entry(number)
            if one is None:
                raise Refused(f"{queue_id(number)}: no such message in the queue", EX_DATAERR)
            await channel.say({"entry": one.as_json()})
            for chunk in self.spool.body(number):
                for start in range(0, len(chunk), 32_768):
                    await channel.send(chunk[start : start + 32_768])
        except KeyError:
            raise Refused(f"{queue_id(number)}: the message left the queue", EX_DATAERR) from None
        except SpoolDamaged as damaged:
            raise Refused(f"{queue_id(number)}: damaged: {damaged.why}", EX_DATAERR) from damaged
        return {}

    # acting

    async def flush(self, request: dict[str, Any], channel: Channel) -> Mapping[str, Any]:
        """Try now: everything, some messages, or those for one domain or site; with `wait`, what came of it.

        By `domain`, only the domains of fast_flush_domains, as postqueue -s; with `any`, every domain.
        """
        domain, site = _text(request, "domain"), _text(request, "site")
        wait = request.get("wait", 0)
        if not isinstance(wait, int | float) or not 0 <= wait <= MAX_WAIT:
            raise Refused(f"wait: seconds from 0 to {MAX_WAIT:g} are wanted")
        if domain and request.get("any") is not True:
            self._eligible(domain)
        chosen = request.get("select", request)
        ids = None
        if "select" in request or "ids" in request:
            ids = [one async for one in self._chosen(_selection(chosen if isinstance(chosen, dict) else {}))]
        account = Flush() if wait else None
        try:
            count = await self.queue.flush(ids, domain.lower() or None, site or None, account)
            log.info("flush from userid=%d: %s, %d messages", channel.peer.uid, domain or site or "queue", count)
            if account is None:
                return {"count": count}
            await _follow(account, wait, channel)
            found = account.as_json()
        finally:
            if account is not None:
                self.queue.leave(account)
        log.info(
            "flush from userid=%d: %d sent, %d returned, %d waiting, %d not tried yet",
            *(channel.peer.uid, *(found[name] for name in ("sent", "returned", "waiting", "untried"))),
        )
        return found

    def _eligible(self, domain: str) -> None:
        """Only the mail of fast_flush_domains can be asked for by domain. Raises Refused."""
        configuration = self.configuration()
        settings = configuration.settings
        parents = "fast_flush_domains" in settings.parent_domain_matches_subdomains
        try:
            if domain in DomainList(settings.fast_flush_domains, parents, Path(configuration.path).parent):
                return
        except TableError as error:
            raise Refused(f"fast_flush_domains: {error}", EX_CONFIG) from error
        # Postfix's words
        raise Refused(f'Flush service is not configured for destination "{domain}"', EX_UNAVAILABLE)

    async def hold(self, request: dict[str, Any], channel: Channel) -> Mapping[str, Any]:
        """No more attempts until it is released."""
        reason = _text(request, "because")
        return await self._act(request, channel, lambda ids: self.queue.hold(ids, reason), "placed on hold")

    async def release(self, request: dict[str, Any], channel: Channel) -> Mapping[str, Any]:
        """Normal schedule again."""
        return await self._act(request, channel, self.queue.release, "released from hold")

    async def delete(self, request: dict[str, Any], channel: Channel) -> Mapping[str, Any]:
        """Gone, without a notice to anybody."""
        return await self._act(request, channel, self.queue.remove, "removed")

    async def requeue(self, request: dict[str, Any], channel: Channel) -> Mapping[str, Any]:
        """As if it had just come in: a new id and one more Received line."""
        count = 0
        async for ids in self._batches(request):
            pairs = [(old, new) for old, new in await self.queue.requeue(ids)]
            for old, new in pairs:
                log.info("%s: requeued as %s by userid=%d", queue_id(old), queue_id(new), channel.peer.uid)
            count += len(pairs)
            await channel.say({"acted": [[queue_id(old), queue_id(new)] for old, new in pairs]})
        return {"count": count}

    async def reload(self, request: dict[str, Any], channel: Channel) -> Mapping[str, Any]:
        """Read the configuration again; refused with its problems when it has any."""
        try:
            await self._reload()
        except ConfigurationError as error:
            lines = [f"{error.path}:{p.line}: {p.key}: {p.message}" for p in error.problems]
            raise Refused("\n".join(lines) or str(error), EX_CONFIG) from error
        except TableError as error:
            raise Refused(str(error), EX_CONFIG) from error
        return {}

    async def submit(self, request: dict[str, Any], channel: Channel) -> Mapping[str, Any]:
        """Mail from this box: sendmail's envelope, then the content. Taken when, and only when, it is durable."""
        settings = self.configuration().settings
        submission = Submission.of_json(request, settings)
        refusal = self.refusal(settings.message_size_limit)
        if refusal is not None:
            raise Refused(str(refusal), EX_TEMPFAIL if refusal.temporary else EX_UNAVAILABLE)
        pause = self.queue.flow()
        if pause > 0:
            await asyncio.sleep(pause)
        await channel.say({"go": True})
        try:
            envelope = await accept(
                submission, channel.content(), self.spool, self.clock, settings=settings, uid=channel.peer.uid
            )
        except SpoolError as error:
            raise Refused(str(error.reply), EX_TEMPFAIL) from error
        self.queue.accepted(envelope)
        return {"queue_id": envelope.queue_id}

    # choosing

    async def entries(self, selection: Selection) -> AsyncIterator[Entry]:
        """The messages that fit, in order of id; others have their turn after every few."""
        if selection.ids is not None:
            found = (self._entry(one) for one in sorted(selection.ids))
        else:
            found = (self._of(envelope) for envelope in self.spool.envelopes())
        while batch := list(itertools.islice(found, BATCH)):
            for one in batch:
                if one is not None and one in selection:
                    yield one
            await asyncio.sleep(0)

    def _of(self, envelope: Envelope) -> Entry:
        return entry(envelope, self.queue.active(envelope.id), self._site)

    def _entry(self, id: int) -> Entry | None:
        try:
            envelope = self.spool.envelope(id)
        except SpoolDamaged:
            return None
        return None if envelope is None else self._of(envelope)

    async def _chosen(self, selection: Selection) -> AsyncIterator[int]:
        async for one in self.entries(selection):
            yield one.id

    async def _batches(self, request: dict[str, Any]) -> AsyncIterator[Sequence[int]]:
        """The ids that a changing verb is about. Everything only when it says so."""
        selection = _selection(request)
        if selection == Selection() and request.get("all") is not True:
            raise Refused("say which messages, or ALL")
        ids = [one async for one in self._chosen(selection)]  # first, so that what arrives meanwhile is not touched
        for start in range(0, len(ids), BATCH):
            yield ids[start : start + BATCH]

    async def _act(
        self,
        request: dict[str, Any],
        channel: Channel,
        act: Callable[[Collection[int]], Awaitable[Iterable[int]]],
        done: str,
    ) -> Mapping[str, Any]:
        count = 0
        async for ids in self._batches(request):
            acted = list(await act(ids))
            for one in acted:
                log.info("%s: %s by userid=%d", queue_id(one), done, channel.peer.uid)
            count += len(acted)
            await channel.say({"acted": [queue_id(one) for one in acted]})
        return {"count": count}


async def _follow(account: Flush, seconds: float, channel: Channel) -> None:
    """Wait for the end of a flush; now and then say how far it is, which also tells whether anybody still listens."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while (left := until - loop.time()) > 0 and not await account.end(min(left, ALIVE_SECONDS)):
        await channel.say({"untried": account.untried})


def _site_of(route: Find) -> Site:
    def site(envelope: Envelope, recipient: Recipient) -> str:
        try:
            return route(envelope, recipient)[0].site
        except EdgemailError:  # a table that cannot be read now: the log says so where mail is sent
            return ""

    return site


def _selection(request: dict[str, Any]) -> Selection:
    try:
        return Selection.of_json(request)
    except ValueError as error:
        raise Refused(str(error)) from error


def _text(request: dict[str, Any], name: str) -> str:
    value = request.get(name, "")
    if not isinstance(value, str) or len(value) > 1000:
        raise Refused(f"{name}: text of at most 1000 characters is wanted")
    return value


def _number(request: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = request.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise Refused(f"{name}: a number from {low} to {high} is wanted")
    return value


def _id(value: object) -> int:
    try:
        return parse_id(str(value))
    except ValueError as error:
        raise Refused(str(error)) from error
