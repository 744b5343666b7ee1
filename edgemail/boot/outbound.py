"""What sends, put together when the first message is to go: an idle relay has none of it in memory.

Owns courier, resolver and logins, the calls to providers and the sessions of ATRN, and their reload. Nothing here
touches a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from edgemail.boot.calls import Calls, Heard
from edgemail.boot.control import Verb
from edgemail.boot.odmr import Find, Provider, Queue
from edgemail.clock import Clock
from edgemail.relay.receive.listen import Server
from edgemail.relay.send.call import Caller
from edgemail.relay.send.credentials import Credentials
from edgemail.relay.send.deliver import Courier
from edgemail.relay.send.resolve import Resolver
from edgemail.settings import Configuration
from edgemail.spool.verbs import Spool


class Outbound:
    """The parts that make connections, for one relay."""

    def __init__(
        self,
        configuration: Callable[[], Configuration],
        clock: Clock,
        spool: Spool,
        queue: Queue,
        server: Server,
        *,
        credentials: Credentials,
        find: Find,
        own: Callable[[], frozenset[str]],
        notice: Callable[[str, str, str], None],
        stopping: asyncio.Event,
        heard: Heard,
    ) -> None:
        """`find`: the router's; `own`: this machine's addresses; `heard`: see `Calls`. Raises TableError."""
        now = configuration()
        self.resolver = Resolver(now, clock, own)
        self.courier = Courier(spool, clock, now, resolver=self.resolver, credentials=credentials, notice=notice)
        self._caller = Caller(clock, now, self.resolver, credentials)
        self.provider = Provider(clock, now, self.courier, find, stopping)
        self.provider.queue = queue
        self.calls = Calls(self._caller, server, clock, configuration, send_up=self.provider.send_up, heard=heard)

    def verbs(self) -> Mapping[str, Verb]:
        """What may be asked of it over the control socket."""
        return self.calls.verbs()

    def reload(self, fresh: Configuration) -> None:
        """Take new settings. Raises EdgemailError, and then the old ones are to be given again."""
        self.resolver.reload(fresh)
        self.courier.reload(fresh)
        self._caller.reload(fresh)
        self.provider.reload(fresh)
