"""Make durable what has become of a message: one transaction for a message's end, its bounce, its next attempt.

Owns the order of those transactions and their repetition when the spool cannot do them now: an outcome is never
forgotten while the process lives. Never decides what an outcome means.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from edgemail.envelope import Envelope, Notify, queue_id
from edgemail.errors import SpoolDamaged, SpoolError, SpoolFull
from edgemail.relay.queue.active import Active
from edgemail.relay.queue.notices import Notices
from edgemail.relay.queue.settle import Reported, Settlement, Settling, reported, wants
from edgemail.spool.verbs import Change, Spool
from edgemail.value import changed

if TYPE_CHECKING:
    from edgemail.relay.queue.bounce import Bounces

log = logging.getLogger("edgemail.qmgr")
bounce_log = logging.getLogger("edgemail.bounce")

FIRST_RETRY: Final = 1.0  # limit: seconds until the spool is asked again after it failed; doubles
LAST_RETRY: Final = 60.0  # limit: up to this

Sleep = Callable[[float], Awaitable[None]]


class Ledger:
    """The way of results into the spool. `stalled`: the spool takes no results, so nothing more should be sent."""

    def __init__(
        self,
        spool: Spool,
        bounces: Callable[[], Bounces],
        notices: Notices,
        *,
        settling: Callable[[], Settling],
        accepted: Callable[[Envelope], None],
        sleep: Sleep,
    ) -> None:
        self._spool = spool
        self._bounces = bounces
        self._notices = notices
        self._settling = settling
        self._accepted = accepted
        self._sleep = sleep
        self._failing = 0

    @property
    def stalled(self) -> bool:
        return self._failing > 0

    async def deliveries(self, active: Active) -> None:
        """Make the deliveries so far durable, while the rest of the message is still under way."""
        await self._insist(active, lambda: self._deliveries(active))

    async def settle(self, active: Active) -> Settlement | None:
        """Make the end of a round durable; None when the message is gone. Raises only what nobody expected."""
        result: Settlement | None = None

        async def step() -> None:
            nonlocal result
            if result is None:
                result = self._settling().settle(active)
            await self._settle(active, result)
            active.settled = result.envelope

        try:
            await self._insist(active, step)
        except (SpoolDamaged, KeyError) as error:
            active.removed = True  # it could not be read when it was to be returned
            if isinstance(error, SpoolDamaged):
                await self.set_aside(error)
        return None if active.removed else result

    async def salvage(self, active: Active, wait: float) -> Settlement:
        """A round that cannot be settled as it should: keep what is delivered; the rest waits so many seconds."""
        try:
            await self.deliveries(active)
        except Exception:
            log.exception("%s: error: what was delivered of it is not kept", active.envelope.queue_id)
        return Settlement(active.current(), wait, again=False)

    async def hold(self, active: Active) -> None:
        """Make the hold, or its end, of a message in hand durable. Raises SpoolError."""
        async with active.lock:
            if not active.removed and active.current().recipients:
                await self._spool.apply(Change(update=(active.current(),)))

    async def remove(self, active: Active) -> bool:
        """Remove a message in hand; False when it was gone. Raises SpoolError."""
        async with active.lock:
            if active.removed or not active.current().recipients:
                return False
            await self._spool.apply(Change(remove=(active.id,)))
            active.removed = True
            return True

    async def _insist(self, active: Active, step: Callable[[], Awaitable[None]]) -> None:
        """Do a step until the spool has done it; nothing else is done to the message meanwhile."""
        wait, failing = FIRST_RETRY, False
        try:
            while True:
                async with active.lock:
                    if active.removed:
                        return
                    try:
                        await step()
                        return
                    except SpoolError as error:
                        log.warning("warning: %s: result not stored yet: %s", active.envelope.queue_id, error)
                        # A full spool still takes the end of a message; only what would add to it has to wait.
                        if not failing and not isinstance(error, SpoolFull):
                            failing = True
                            self._failing += 1
                await self._sleep(wait)
                wait = min(wait * 2, LAST_RETRY)
        finally:
            self._failing -= failing

    async def _deliveries(self, active: Active) -> None:
        """Take who is delivered out of the envelope, with the report that somebody asked for."""
        done = active.delivered
        if not done:
            return
        rest = active.current(without=done)
        change = Change(update=(rest,)) if rest.recipients else Change(remove=(active.id,))
        settling = self._settling()
        relayed = [
            reported(active.envelope.recipients[index], active.outcomes[index])
            for index in sorted(done)
            if settling.reports(active.envelope.recipients[index], active.outcomes[index])
        ]
        if relayed and active.envelope.sender:
            try:
                from edgemail.relay.queue import dsn

                self._accepted(await self._bounces().report(dsn.RELAYED, active.envelope, relayed, change))
            except (SpoolFull, SpoolDamaged, KeyError) as error:  # that it went out has to be kept all the same
                log.warning("warning: %s: no report of success: %s", active.envelope.queue_id, error)
                await self._spool.apply(change, lazy=True)
            except SpoolError:
                raise
            except Exception:  # nor does a mistake of ours send it twice
                log.exception("%s: error: no report of success", active.envelope.queue_id)
                await self._spool.apply(change, lazy=True)
        else:
            await self._spool.apply(change, lazy=True)
        active.recorded |= done

    async def _settle(self, active: Active, result: Settlement) -> None:
        """The end of a round. Each transaction leaves the spool with what is true."""
        envelope = active.envelope
        if result.relayed:
            await self._deliveries(active)
        if result.finished and len(active.recorded) == len(envelope.recipients):
            return  # all of it was recorded before
        final = result.envelope
        if active.hold is not None:
            final = changed(final, hold=True, hold_reason=active.hold)
        failed = [one for one in result.failed if wants(one.recipient, Notify.FAILURE)]
        try:
            if result.failed and not active.returned:
                await self._returned(active, result, failed, _change(final))
                active.returned = True
            elif not result.late:
                await self._spool.apply(_change(final), lazy=True)
            if result.late:
                await self._warn(envelope, result, final)
        except SpoolError:
            await self._deliveries(active)  # what is delivered must not wait for room for a bounce
            raise

    async def _warn(self, envelope: Envelope, result: Settlement, final: Envelope) -> None:
        """Keep what stays, and say that it is late to those who want to hear it."""
        if result.delayed:
            try:
                from edgemail.relay.queue import dsn

                made = await self._bounces().report(
                    dsn.DELAYED, envelope, result.delayed, _change(final), until=result.until
                )
            except (SpoolDamaged, KeyError) as error:
                log.warning("warning: %s: no warning of its delay: %s", envelope.queue_id, error)
            else:
                self._accepted(made)
                await self._notices.copies("delay", dsn.DELAY_COPY, envelope, result.delayed, result.until)
                return
        await self._spool.apply(_change(final), lazy=True)

    async def _returned(self, active: Active, result: Settlement, failed: list[Reported], change: Change) -> None:
        """Finish recipients that have failed, and tell who is to be told in the same transaction."""
        from edgemail.relay.queue import dsn

        envelope = active.envelope
        if result.expired:
            log.info("%s: from=<%s>, status=expired, returned to sender", envelope.queue_id, envelope.sender)
        if self._notices.is_notice(envelope):
            bounce_log.warning("warning: %s: undeliverable notice to the postmaster is dropped", envelope.queue_id)
        elif not envelope.sender:
            to = self._notices.doubles()
            bounce_log.info("%s: undeliverable, and has no sender to return to", envelope.queue_id)
            if to:
                made = await self._bounces().copy(dsn.COPY, envelope, result.failed, change, recipient=to)
                self._accepted(made)
                return
        elif failed:
            if not active.copied:  # before, for afterwards there may be nothing left to copy from
                active.copied = True
                await self._notices.copies("bounce", dsn.COPY, envelope, failed)
            self._accepted(await self._bounces().report(dsn.FAILED, envelope, failed, change))
            return
        await self._spool.apply(change, lazy=True)

    async def set_aside(self, error: SpoolDamaged) -> None:
        """A message cannot be read."""
        log.error("error: %s: damaged, set aside: %s", queue_id(error.id), error.why)
        self._notices.post("resource", "a damaged message was set aside", str(error))
        try:
            await self._spool.quarantine(error.id, error.why)
        except SpoolError as failure:
            log.error("error: %s: not set aside yet: %s", queue_id(error.id), failure)


def _change(envelope: Envelope) -> Change:
    return Change(update=(envelope,)) if envelope.recipients else Change(remove=(envelope.id,))
