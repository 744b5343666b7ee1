"""What the postmaster is told: that a route pauses, and the classes of trouble in `notify_classes`.

Owns who hears of what and how often. A notice is queued like other mail; it is never about a notice, and one that
cannot be written or sent is logged and dropped. Never raises, never waits for a delivery.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from edgemail.clock import Clock
from edgemail.envelope import Address, Disposal, Envelope, Recipient, Route
from edgemail.errors import EdgemailError
from edgemail.relay.queue.settle import Reported
from edgemail.relay.queue.sites import Site
from edgemail.settings import Settings
from edgemail.spool.verbs import Change

if TYPE_CHECKING:
    from edgemail.relay.queue.bounce import Bounces
    from edgemail.relay.queue.dsn import Form

log = logging.getLogger("edgemail.bounce")

PER_HOUR: Final = 20  # limit: notices of one class in an hour; more are only logged
REMEMBERED: Final = 1000  # limit: subjects of notices that are remembered, so that none is queued again and again
HOUR: Final = 3600.0


class Notices:
    """The notices to the postmaster. `spawn` runs what has to wait; `accepted` hears of what was queued."""

    def __init__(
        self,
        bounces: Callable[[], Bounces],
        clock: Clock,
        settings: Callable[[], Settings],
        *,
        route: Callable[[Envelope, Recipient], tuple[Route, Address]],
        accepted: Callable[[Envelope], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._bounces = bounces
        self._clock = clock
        self._settings = settings
        self._route = route
        self._accepted = accepted
        self._spawn = spawn
        self._sent: dict[str, tuple[float, int]] = {}  # class -> when its hour began, how many since
        self._unread: set[str] = set()
        self._posted: dict[tuple[str, str], float] = {}  # class and subject -> when

    def post(self, cls: str, subject: str, text: str) -> None:
        """A notice of class policy, protocol, resource or software, if the postmaster wants that class.

        One with the same subject as another of the last hour is not sent.
        """
        settings = self._settings()
        now = self._clock.monotonic()
        fresh = now - self._posted.get((cls, subject), float("-inf")) >= HOUR
        if cls in settings.notify_classes and fresh:
            if len(self._posted) >= REMEMBERED:
                self._posted.clear()
            self._posted[cls, subject] = now
            self._send(cls, settings.error_notice_recipient, f"Postmaster notice ({cls}): {subject}", text)

    def trouble(self, envelope: Envelope, why: str) -> None:
        """A message waits for this box itself (class software)."""
        if not self.is_notice(envelope):
            text = (
                f"{envelope.queue_id}: from=<{envelope.sender}>, size={envelope.size}: the message waits.\n\n    {why}"
            )
            self.post("software", "mail could not be delivered for trouble of this box", text)

    def paused(self, site: Site, probe: str, told: Callable[[], None]) -> None:
        """A route does not work. Told once, until it has worked again; `told` is called when the notice is durable."""
        settings = self._settings()
        site.told = True
        text = (
            f"This is the mail system at host {settings.myhostname}.\n\n"
            f"Mail that goes by way of {site.name} cannot leave at present:\n\n"
            f"    {site.reason}\n\n"
            f"It is kept, and nothing is returned to its senders. The next attempt is made {probe}. When the route"
            " works again, the mail leaves by itself; you will hear no more of it until then.\n\n"
            "To try at once, use `edgemail queue flush`."
        )
        self._send("route", settings.notice_recipient, f"Mail route pauses: {site.name}", text, told)

    async def copies(
        self, cls: str, form: Form, envelope: Envelope, reported: Sequence[Reported], until: float = 0.0
    ) -> None:
        """The postmaster's copy of what a sender was told (classes bounce and delay)."""
        settings = self._settings()
        to = settings.bounce_notice_recipient if cls == "bounce" else settings.delay_notice_recipient
        if cls not in settings.notify_classes or not self._may(cls, to, ""):
            return
        try:
            made = await self._bounces().copy(form, envelope, reported, Change(), recipient=to, until=until)
        except (EdgemailError, KeyError) as error:
            log.warning("warning: %s: no copy for the postmaster: %s", envelope.queue_id, error)
        else:
            self._accepted(made)

    def doubles(self) -> str:
        """Who hears of mail that cannot be returned; "" for nobody."""
        settings = self._settings()
        return settings.double_bounce_notice_recipient if "2bounce" in settings.notify_classes else ""

    def _sender(self) -> Address:
        from edgemail.relay.queue.bounce import notice_sender

        return notice_sender(self._settings())

    def is_notice(self, envelope: Envelope) -> bool:
        """Whether a message is a notice to the postmaster: nothing is ever said about it."""
        return bool(envelope.sender) and (envelope.bounce or envelope.sender.key == self._sender().key)

    def _send(self, cls: str, to: str, subject: str, text: str, told: Callable[[], None] | None = None) -> None:
        if self._may(cls, to, subject):
            self._spawn(self._write(to, subject, text, told))

    async def _write(self, to: str, subject: str, text: str, told: Callable[[], None] | None) -> None:
        try:
            made = await self._bounces().note(to, subject, text)
        except EdgemailError as error:
            log.warning("warning: no notice to <%s> (%s): %s", to, subject, error)
        else:
            log.info("%s: notice to <%s>: %s", made.queue_id, to, subject)
            self._accepted(made)
            if told is not None:
                told()

    def _may(self, cls: str, to: str, subject: str) -> bool:
        """Whether one more of a class may be queued. One that would only be held is queued once for each subject."""
        now = self._clock.monotonic()
        since, count = self._sent.get(cls, (now, 0))
        if now - since >= HOUR:
            since, count = now, 0
        self._sent[cls] = (since, count + 1)
        if count >= PER_HOUR:
            log.warning("warning: no notice to <%s>: %d of class %s within the hour", to, count, cls)
            return False
        if not self._held(to):
            return True
        key = f"{cls} {subject}"
        if key in self._unread or len(self._unread) >= REMEMBERED:
            log.warning("warning: no second notice to <%s>, whose mail is on hold: %s", to, subject or cls)
            return False
        self._unread.add(key)
        return True

    def _held(self, to: str) -> bool:
        """Whether mail for a recipient only waits for a person."""
        recipient = Recipient(Address.of(to))
        envelope = Envelope(0, self._sender(), (recipient,), bounce=True)
        try:
            return self._route(envelope, recipient)[0].disposal is Disposal.HOLD
        except Exception:  # a delivery will say what is wrong
            return False
