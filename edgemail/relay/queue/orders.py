"""What a person, or a site that has come up, asks of the queue: flush, hold, release, remove, requeue.

Owns that an order and a delivery never cross: a message is out of the index while the spool is told of the order, and
one in hand is told of it under its own lock. Each verb says which messages it really acted on.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import Callable, Collection, Iterable
from typing import Final

from edgemail.clock import Clock
from edgemail.envelope import Envelope
from edgemail.errors import SpoolDamaged
from edgemail.relay.queue.active import domains, has_domain
from edgemail.relay.queue.dispatch import Dispatch
from edgemail.relay.queue.flush import Flush
from edgemail.relay.queue.ledger import Ledger
from edgemail.relay.queue.lifetime import Timeline, still_to_wait, used
from edgemail.relay.queue.waiting import Flag, Stand, Waiting
from edgemail.settings import Settings
from edgemail.spool.verbs import Change, Spool
from edgemail.value import changed

log = logging.getLogger("edgemail.qmgr")

PIECE: Final = 50  # limit: messages that an order looks at before others on the loop have their turn


class Orders:
    """The verbs. All but `flush` raise SpoolError when the spool cannot; then nothing has changed."""

    def __init__(
        self,
        spool: Spool,
        clock: Clock,
        settings: Callable[[], Settings],
        *,
        waiting: Waiting,
        dispatch: Dispatch,
        ledger: Ledger,
        timeline: Timeline,
        again: Callable[..., None],
        accepted: Callable[[Envelope], None],
    ) -> None:
        self._spool = spool
        self._clock = clock
        self._settings = settings
        self._waiting = waiting
        self._dispatch = dispatch
        self._ledger = ledger
        self._timeline = timeline
        self._again = again
        self._accepted = accepted

    def flush_domain(self, domain: str) -> int | None:
        """As `flush` of a domain, without waiting: None where envelopes have to be read to know what is meant.

        Its first messages may be looked at when this returns, the others a moment later.
        """
        found = self._known(domain)
        if found is None:
            return None
        self._dispatch.flushes += 1
        ids = self._waiting.by_rank(found)
        count = self._ask(ids[:PIECE], domain)
        if len(ids) > PIECE:
            self._dispatch.spawn(self._ask_later(ids[PIECE:], domain))
            count = len(ids)
        self._ask_active(None, domain, None)
        return count

    def _known(self, domain: str) -> array[int] | None:
        """What the index knows of a domain's mail, in order of id; None where it does not know all."""
        if self._waiting.of_many():
            return None
        if domain.startswith("@"):
            return self._waiting.below(domain[1:])
        return self._waiting.of_domain(domain)

    async def flush(
        self, ids: Collection[int] | None, domain: str | None, site: str | None, account: Flush | None
    ) -> int:
        """Try now, the dead-site list notwithstanding: everything that waits, or some. How many messages that are.

        `domain` is that of a recipient; "@example.com" stands for its subdomains too. `site` is a site's name, with or
        without its transport, a transport, or a next hop. `account` hears what becomes of each.
        """
        self._dispatch.flushes += 1
        found = await self._meant(ids, domain, site)
        if account is not None:
            account.begin(found)
            self._dispatch.accounts.open.append(account)
        count = await self._ask_all(self._waiting.by_rank(found), domain or "", account)
        self._ask_active(ids, domain, site)
        return count

    async def _ask_all(self, ids: array[int], domain: str, account: Flush | None = None) -> int:
        """Let messages be looked at as soon as there is time, a piece at a time; how many there are."""
        count = 0
        for first in range(0, len(ids), PIECE):
            if first:
                await asyncio.sleep(0)
            count += self._ask(ids[first : first + PIECE], domain, account)
        return count

    async def _ask_later(self, ids: array[int], domain: str) -> None:
        await self._ask_all(ids, domain)

    def _ask(self, ids: Iterable[int], domain: str, account: Flush | None = None) -> int:
        count = 0
        for mail in ids:
            if mail in self._waiting:
                self._again(mail, Flag.FLUSHED | self._waiting.flags(mail) & Flag.FRESH, domain)
                count += 1
            elif account is not None and mail not in self._dispatch.active:
                account.passed_over(mail)  # it is gone, or on hold
        return count

    def _ask_active(self, ids: Collection[int] | None, domain: str | None, site: str | None) -> None:
        """What is in hand and meant, and has something that is not tried, comes again at the end of its round."""
        for active in tuple(self._dispatch.active.values()):
            if active.suspended and not active.busy and (ids is None or active.id in ids):
                active.asked = active.asked or self._matches(active.id, domain, site)

    def leave(self, account: Flush) -> None:
        """Nobody waits for this account any more."""
        if account in self._dispatch.accounts.open:
            self._dispatch.accounts.open.remove(account)

    async def _meant(self, ids: Collection[int] | None, domain: str | None, site: str | None) -> array[int]:
        """The messages that wait now and are meant, in order of id. What only the envelope tells is read there."""
        found: Iterable[int] = self._waiting.ids() if ids is None else list(ids)
        if ids is None and domain is not None and site is None:
            known = self._known(domain)
            if known is not None:
                return known
            if not domain.startswith("@"):
                found = self._candidates(domain)
        meant = array("Q")
        for number, mail in enumerate(found, 1):
            if number % PIECE == 0:
                await asyncio.sleep(0)
            if mail in self._waiting and self._matches(mail, domain, site):
                meant.append(mail)
        return array("Q", sorted(meant))

    def _candidates(self, domain: str) -> array[int]:
        """Messages that may have a recipient in a domain."""
        return self._waiting.of_domain(domain) + self._waiting.of_many()

    def waits(self, names: Collection[str]) -> bool:
        """Whether there is mail for one of these domains that a flush would try."""
        if self._in_hand(names):
            return True
        found = ((mail, name) for name in names for mail in self._candidates(name))
        return any(mail in self._waiting and self._matches(mail, name, None) for mail, name in found)

    def pressing(self, names: Collection[str]) -> bool:
        """Whether mail for one of these domains is under way, or waits for its turn and nothing else."""
        soon = (Stand.LANE, Stand.PARKED)
        found = (mail for name in names for mail in self._candidates(name))
        return self._in_hand(names) or any(self._waiting.stand(mail) in soon for mail in found)

    def _in_hand(self, names: Collection[str]) -> bool:
        wanted = {name.lower() for name in names}
        found = (name for active in self._dispatch.active.values() for name in domains(active.envelope))
        return any(name.lower() in wanted for name in found)

    async def hold(self, ids: Collection[int], reason: str) -> list[int]:
        """No further attempt until they are released; one that is under way is finished."""
        in_hand, out = self._parted(ids)
        acted = set(await self._hold([each for mail in out if (each := self._envelope(mail)) is not None], reason))
        for mail in in_hand:
            active = self._dispatch.active.get(mail)
            if active is None:  # its round has ended meanwhile
                envelope = self._envelope(mail)
                acted.update(await self._hold([envelope] if envelope is not None else [], reason))
            elif active.hold is None and not active.removed:
                active.hold = reason
                try:
                    await self._ledger.hold(active)
                except BaseException:
                    active.hold = None
                    if mail not in self._dispatch.active and active.current().recipients:
                        self._put_back(active.current())  # its round ended in between: it was thought on hold
                    raise
                if active.current().recipients and not active.removed:
                    acted.add(mail)
                self._dispatch.hold_back(active)
        return [mail for mail in ids if mail in acted]

    async def _hold(self, envelopes: list[Envelope], reason: str) -> list[int]:
        """Hold what waits. Between reading an envelope and taking it out of the index nothing may happen."""
        held = [
            changed(each, hold=True, hold_reason=reason, waited=used(each, self._timeline))
            for each in envelopes
            if not each.hold
        ]  # its clock stands still from now on
        await self._apply(held, Change(update=tuple(held)))
        return [each.id for each in held]

    async def release(self, ids: Collection[int]) -> list[int]:
        """Try those again that are on hold, as soon as there is time."""
        acted, found = [], []
        for mail in ids:
            active = self._dispatch.active.get(mail)
            if active is None:
                envelope = self._envelope(mail)
                if envelope is not None and envelope.hold:
                    found.append(envelope)
            elif active.hold is not None and not active.removed:
                reason, active.hold = active.hold, None
                try:
                    await self._ledger.hold(active)
                except BaseException:
                    active.hold = reason
                    raise
                acted.append(mail)
        now = self._clock.wall()
        free = [
            changed(each, hold=False, hold_reason="", next_attempt=0.0, last_attempt=now) for each in found
        ]  # its clock runs again from now on
        try:
            if free:
                await self._spool.apply(Change(update=tuple(free)))
        finally:  # even when nobody waits for the answer any more; one that is still on hold is passed over
            for each in free:
                self._put_back(each)
                self._again(each.id, Flag.NONE)
        return acted + [each.id for each in free]

    async def remove(self, ids: Collection[int]) -> list[int]:
        """Delete them, without a word to anybody. One that is under way is delivered or not, and gone."""
        in_hand, out = self._parted(ids)
        acted = set(await self._remove(out))
        for mail in in_hand:
            active = self._dispatch.active.get(mail)
            if active is None:  # its round has ended meanwhile
                acted.update(await self._remove([mail]))
            elif await self._ledger.remove(active):
                self._dispatch.hold_back(active)
                self._waiting.drop(mail)
                acted.add(mail)
        return [mail for mail in ids if mail in acted]

    async def _remove(self, ids: list[int]) -> list[int]:
        """Remove what waits, and what cannot be read. As in `_hold`, nothing may happen between."""
        found, damaged = [], []
        for mail in ids:
            try:
                envelope = self._spool.envelope(mail)
            except SpoolDamaged:
                damaged.append(mail)
                continue
            if envelope is not None:
                found.append(envelope)
        gone = [*(each.id for each in found), *damaged]
        await self._apply(found, Change(remove=tuple(gone)))
        return gone

    def _parted(self, ids: Collection[int]) -> tuple[list[int], list[int]]:
        """Those of which something is under way, and the others."""
        in_hand = [mail for mail in ids if mail in self._dispatch.active]
        return in_hand, [mail for mail in ids if mail not in self._dispatch.active]

    async def requeue(self, ids: Collection[int]) -> list[tuple[int, int]]:
        """Take each in again under a new id, its route and its time worked out anew; those in hand are left alone."""
        pairs: list[tuple[int, int]] = []
        for mail in ids:
            envelope = None if mail in self._dispatch.active else self._envelope(mail)
            if envelope is not None:
                # What has begun is finished, even when nobody waits for the answer any more.
                known = self._waiting.drop(mail)  # at once: before the task runs it might be looked at
                self._dispatch.accounts.passed_over(mail)
                task = asyncio.get_running_loop().create_task(self._requeue(envelope, known))
                self._dispatch.keep_task(task)
                fresh = await asyncio.shield(task)
                if fresh is not None:
                    pairs.append((mail, fresh.id))
        return pairs

    async def _requeue(self, envelope: Envelope, known: bool) -> Envelope | None:
        try:
            from edgemail.relay.queue.requeue import requeue

            fresh = await requeue(self._spool, self._clock, self._settings(), envelope)
        except (SpoolDamaged, KeyError) as error:
            log.error("error: %s: not requeued: %s", envelope.queue_id, error)
            if known:
                self._put_back(envelope)
            return None
        except BaseException:
            if known:
                self._put_back(envelope)
            raise
        self._accepted(fresh)
        return fresh

    async def _apply(self, found: list[Envelope], change: Change) -> None:
        """Tell the spool, with those messages out of the index; put them back when it cannot."""
        if not change.update and not change.remove:
            return
        known = [each for each in found if self._waiting.drop(each.id)]
        try:
            await self._spool.apply(change)
        except BaseException:
            for each in known:
                self._put_back(each)
            raise
        for each in known:
            self._dispatch.accounts.passed_over(each.id)

    def _put_back(self, envelope: Envelope) -> None:
        due = self._clock.monotonic() + still_to_wait(envelope, self._settings(), self._clock)
        self._waiting.add(envelope.id, domains(envelope), due=due)

    def _envelope(self, mail: int) -> Envelope | None:
        try:
            return self._spool.envelope(mail)
        except SpoolDamaged:
            return None

    def _matches(self, mail: int, domain: str | None, site: str | None) -> bool:
        if domain is None and site is None:
            return True
        envelope = self._envelope(mail)
        if envelope is None:
            return False
        if site is not None:
            return self._dispatch.goes_to(envelope, site.lower())
        return has_domain(envelope, domain or "")
