"""The paths of the endpoint: the page and its data, /livez, /readyz, /healthz, /metrics, and acting on the queue.

Owns what each path answers; the values come from callables that boot.serve passes in. Nothing secret goes through here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import field
from functools import cache
from pathlib import Path
from typing import Any, Final

from edgemail.health.board import Board
from edgemail.health.http import Answer, Page, Request, as_json
from edgemail.value import value

# Everything from this box and nothing from elsewhere; the page's own style stands in it.
POLICY: Final = (
    "Content-Security-Policy",
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)
VERBS: Final = ("flush", "hold", "release", "delete", "test", "conversation")

Act = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]  # verb, request -> what was done


@value
class Sources:
    """Where the answers come from. `alive` and `ready` return "" when well, else the sentence that says why not."""

    board: Board
    alive: Callable[[], str]
    ready: Callable[[], str]
    page: Callable[[], dict[str, Any]]  # what page.js shows, but for the status
    refresh: Callable[[], None]  # bring gauges up to date, before /metrics
    act: Act
    more: Mapping[str, Page] = field(default_factory=dict)  # further paths, where the box has something to say there


@cache
def asset(name: str) -> bytes:
    return Path(__file__).with_name(name).read_bytes()


def pages(sources: Sources) -> dict[str, Page]:
    """The endpoint's paths."""

    def well(why: str) -> Answer:
        return Answer(503 if why else 200, (why or "ok").encode() + b"\n")

    def healthz(request: Request) -> Answer:
        status = sources.board.status()
        return as_json(503 if status["state"] == "failed" else 200, status)

    def exposition(request: Request) -> Answer:
        sources.refresh()
        from edgemail.health import metrics

        kind, text = metrics.render("application/openmetrics-text" in request.headers.get("accept", ""))
        return Answer(200, text, kind)

    found = {
        "/": Page(lambda request: Answer(200, asset("page.html"), "text/html; charset=utf-8", (POLICY,))),
        "/page.js": Page(lambda request: Answer(200, asset("page.js"), "text/javascript; charset=utf-8")),
        "/page.json": Page(lambda request: as_json(200, {"status": sources.board.status(), **sources.page()})),
        "/livez": Page(lambda request: well(sources.alive())),
        "/readyz": Page(lambda request: well(sources.ready())),
        "/healthz": Page(healthz),
        "/metrics": Page(exposition),
    }
    for verb in VERBS:
        found[f"/queue/{verb}"] = Page(_action(sources.act, verb), ("POST",), token=True)
    return {**found, **sources.more}


def foreign(request: Request) -> Answer | None:
    """The answer to what another site's page sends through somebody's browser; None for all else."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != request.headers["host"].lower():
        return Answer(403, b"another site's page may not act here\n")
    return None


def _action(act: Act, verb: str) -> Callable[[Request], Awaitable[Answer]]:
    async def answer(request: Request) -> Answer:
        if (refused := foreign(request)) is not None:
            return refused
        try:
            import json

            value = json.loads(request.content or b"{}")
        except ValueError:
            value = None
        if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
            return Answer(400, b'send {"id": "QUEUE ID"} or {}\n')
        which = value.get("id", "")
        if which and not (which.isascii() and which.isalnum() and len(which) <= 16):
            return Answer(400, b"this is not a queue id\n")
        return as_json(200, await act(verb, value))

    return answer
