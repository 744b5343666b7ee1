"""Mail that is due and yet not tried: its transport is on demand, or no link that it may use takes it now.

Owns the sentence that says so and whose doing it is. Pure and synchronous. While mail is kept so, its lifetime stands
still, except for mail on demand where `lifetime_counts = "wall"`: then what nobody asks for goes back in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from edgemail.envelope import Envelope, Outcome
from edgemail.errors import Kind
from edgemail.relay.queue.link import Links, State, Uplink
from edgemail.relay.queue.priority import Priorities
from edgemail.relay.queue.sites import Site, SiteStatus
from edgemail.settings import Configuration
from edgemail.value import value

ON_DEMAND = "deferred transport"  # Postfix's words


@value
class Kept:
    """Why a part of a message is not tried."""

    reason: str
    kind: Kind


class Keep:
    """The rules of one configuration and the links as they are."""

    def __init__(self, configuration: Configuration, links: Links | None) -> None:
        self._configuration = configuration
        self._links = links
        self.priorities = Priorities(configuration.priorities)

    def reload(self, configuration: Configuration) -> None:
        """Take new rules; the links hear of them by themselves."""
        self._configuration = configuration
        self.priorities = Priorities(configuration.priorities)

    def rank(self, envelope: Envelope, header: Callable[[], bytes] = bytes) -> int:
        """How soon a message goes, the lowest first; without its header, as far as that can be told."""
        return self.priorities.rank(envelope, header) if self.priorities else self.priorities.normal

    def on_demand(self, transport: str) -> bool:
        """Whether mail of a transport waits until somebody asks."""
        return transport in self._configuration.settings.defer_transports

    def shut(self, transport: str) -> str:
        """Why none of its links takes mail of a transport, "" when one does or it names none."""
        return self._links.shut(transport) if self._links is not None else ""

    def kept(self, transport: str, size: int, *, asked: bool) -> Kept | None:
        """Why a message is not tried now; None when it may be. `asked`: somebody flushed it, or a link came up."""
        if self._links is not None:
            why = self._links.shut(transport) or self._links.too_large(transport, size)
            if why:
                return Kept(why, Kind.LINK)
        if self.on_demand(transport) and not asked:
            wall = self._configuration.settings.lifetime_counts == "wall"
            return Kept(ON_DEMAND, Kind.MESSAGE_TEMPORARY if wall else Kind.LINK)
        return None

    def begin(self, site: Site, size: int) -> Uplink | None:
        """A delivery begins; the link that is charged for it, None where none is named."""
        return self._links.begin(site.transport, size, site.name) if self._links is not None else None

    def end(self, uplink: Uplink | None, site: Site, size: int, outcomes: Iterable[Outcome]) -> None:
        """It has ended. Charged is what went out, and what may have when the connection broke."""
        if self._links is not None:
            sent = any(each.delivered or (each.transfer_delay > 0 and not each.remote) for each in outcomes)
            self._links.end(uplink, size if sent else 0, size, site.name)

    def shown(self, sites: tuple[SiteStatus, ...]) -> tuple[SiteStatus, ...]:
        """Destinations as the status shows them: what keeps their mail goes before what they did when last tried."""
        words = {transport: self._words(transport) for transport in {site.transport for site in sites}}
        if not any(words.values()) and not self._configuration.settings.defer_transports:
            return sites
        return tuple(self._shown(site, words[site.transport]) for site in sites)

    def _shown(self, site: SiteStatus, words: dict[str, Any]) -> SiteStatus:
        if words:
            return replace(site, status="4.4.1", kind=Kind.LINK, next_probe=0.0, **words)
        if site.state in ("new", "up") and self.on_demand(site.transport):
            return replace(site, state="on-demand")
        return site

    def _words(self, transport: str) -> dict[str, Any]:
        """State, reason and since of a transport without a usable link; nothing for the others."""
        found = self._links.shutters(transport) if self._links is not None else ()
        if not found:
            return {}
        down = any(one.state is State.DOWN for one in found)
        since = max(one.since for one in found)
        return {"state": "paused" if down else "closed", "reason": self.shut(transport), "since": since}

    def messages(self, site: Site) -> int:
        """How many messages to a site may be on their way over one connection."""
        return self._links.messages(site.transport) if self._links is not None else 1

    def busy(self, site: Site) -> bool:
        """Whether the links to a site have all the connections they may, with all the mail that these may carry."""
        return self._links is not None and self._links.busy(site.transport, site.name)

    def limited(self, transport: str) -> bool:
        """Whether the links of a transport that are up have so many connections and no more."""
        return self._links is not None and self._links.limited(transport)
