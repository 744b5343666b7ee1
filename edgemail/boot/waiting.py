"""The page of a box that takes no mail: why, and what to do. Needs no relay, no spool and no configuration.

Asked only from private networks: a box without a configuration does not know its own yet. `/livez` is well, for a box
that waits is not to be started again; `/readyz` is not.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any, Final

from edgemail import __version__
from edgemail.boot import words
from edgemail.boot.network import addresses
from edgemail.health.board import rfc3339
from edgemail.health.http import Answer, HttpServer, Page, as_json
from edgemail.settings import Health

PORT: Final = 80
NETWORKS: Final = (
    "127.0.0.0/8",
    "::1/128",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "fc00::/7",
    "fe80::/10",
)
POLICY: Final = ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")


def pages(report: dict[str, Any], since: float) -> dict[str, Page]:
    """The paths, as the relay itself has them."""
    component = {name: report[name] for name in ("state", "reason", "message")} | {"since": rfc3339(since)}
    status = {**component, "components": {"appliance": {**component, "provision": report["provision"]}}}
    sentence = words.headline(report)
    document = words.as_html(report).encode()
    return {
        "/": Page(lambda request: Answer(200, document, "text/html; charset=utf-8", (POLICY,))),
        "/livez": Page(lambda request: Answer(200, b"ok\n")),
        "/readyz": Page(lambda request: Answer(503, f"{sentence}\n".encode())),
        "/healthz": Page(lambda request: as_json(503, status)),
    }


async def serve(report: dict[str, Any], since: float, port: int = PORT) -> None:
    """Until SIGTERM."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = HttpServer(Health("*", port, "", NETWORKS), ("edgemail", "edgemail.local"), pages(report, since))
    await server.start()
    print(f"no mail is taken: {words.headline(report)}; the page is on port {server.port}", file=sys.stderr, flush=True)
    await stopping.wait()
    await server.close()


def read(path: Path) -> dict[str, Any]:
    """What the start said. A start that left nothing behind went wrong altogether, and the page says that."""
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
    except (OSError, ValueError):
        pass
    return {
        "state": "failed",
        "reason": "no-report",
        "message": "The start of the box left no report: something is wrong with the system or its card",
        "version": __version__,
        "configured": False,
        "data": "unknown",
        "provision": "unknown",
        "problems": [],
        "notes": [],
        "addresses": addresses(),
        "port": PORT,
    }


def main(arguments: list[str]) -> int:
    """`python -m edgemail.boot.waiting REPORT [PORT]`."""
    import time

    path = Path(arguments[0])
    asyncio.run(serve(read(path), time.time(), int(arguments[1]) if arguments[1:] else PORT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
