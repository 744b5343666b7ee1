"""A small internet for scenarios: mail hosts on 127.0.0.2 and up, all at one port, and the DNS that leads to them.

127.0.0.1 is the box's own address; a host that lived there would be the box itself.
"""

from __future__ import annotations

import re
import time
from types import TracebackType
from typing import Any

from tests.dns import FakeDns
from tests.peers.ports import free_port
from tests.scenarios.relay import Relay
from tests.scenarios.sink import Sink
from tests.servers import Received

# Tries again soon; says "not now" quickly.
HASTY = """\
minimal_backoff_time = "1s"
maximal_backoff_time = "1s"
queue_run_delay = "1s"
in_flow_delay = 0
"""


class Internet:
    """Hosts by name, domains by MX, and `home`, the MX of example.com: what the box writes itself arrives there."""

    def __init__(self) -> None:
        self.dns = FakeDns(ttl=0)
        self.port = free_port()
        self._hosts: list[Sink] = []

    def __enter__(self) -> Internet:
        self.dns.__enter__()
        self.home = self.host("mail.example.com")
        self.domain("example.com", "mail.example.com")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._hosts:
            each.end()
        self.dns.__exit__(kind, error, trace)

    @property
    def settings(self) -> str:
        """Lines of TOML for a relay that lives here."""
        return f'dns_nameservers = "{self.dns.address}"\nsmtp_tcp_port = {self.port}\n'

    def host(self, name: str, **options: Any) -> Sink:
        """A mail host that runs; `options` are fields of FakeServer."""
        address = f"127.0.0.{2 + len(self._hosts)}"
        made = Sink(**{"name": name, "host": address, "port": self.port, **options})
        self._hosts.append(made)
        made.start()
        self.dns.set(name, {"A": [address]})
        return made

    def domain(self, name: str, *hosts: str) -> None:
        """A domain with MX hosts, the best first: 10, 20, 30..."""
        self.dns.set(name, {"MX": [f"{10 * place} {host}." for place, host in enumerate(hosts, 1)]})

    def notice(self, queue_id: str, seconds: float = 20.0) -> Received:
        """The bounce about a message, once it has come home."""
        until = time.monotonic() + seconds
        while True:
            for one in list(self.home.received):
                if f"\r\nX-Edgemail-Queue-ID: {queue_id}\r\n".encode() in one.content:
                    return one
            assert time.monotonic() < until, f"no notice about {queue_id}"
            time.sleep(0.02)


def table(rows: dict[str, str]) -> str:
    """An inline table of TOML."""
    return "{ " + ", ".join(f'"{key}" = "{value}"' for key, value in rows.items()) + " }"


def tried(box: Relay, queue_id: str, status: str, count: int = 1, to: str = "") -> str:
    """The line about a try that ended with `status` (of the recipient `to`), once it was logged `count` times."""
    return box.wait_for(rf"{queue_id}: to=<{re.escape(to)}.* status={status} .*", count=count)[0]


def gone(box: Relay, queue_id: str) -> None:
    """Until a message is finished."""
    box.wait_for(rf"{queue_id}: removed")
