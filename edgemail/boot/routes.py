"""`edgemail routes`: each destination with what is known of it, each link with its state and its accounts.

Owns the words of a route's state and their JSON. The daemon alone knows it: nothing of it is in the spool but the
mail that waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from edgemail.relay.queue.link import LinkStatus
    from edgemail.relay.queue.sites import SiteStatus

MAX_ROUTES: Final = 1000  # limit: destinations in one answer, configured ones and those that fail first


def survey(sites: Iterable[SiteStatus], links: Iterable[LinkStatus]) -> dict[str, Any]:
    """What the daemon answers: times are wall-clock seconds, 0.0 for none."""
    chosen = sorted(sites, key=lambda one: (one.word == "up", not one.configured, one.name))[:MAX_ROUTES]
    return {"routes": [_route(one) for one in chosen], "links": [_link(one) for one in links]}


def _route(one: SiteStatus) -> dict[str, Any]:
    return {
        "route": one.name,
        "transport": one.transport,
        "state": one.word,
        "reason": one.reason,
        "kind": one.kind.value if one.kind else "",
        "since": one.since,
        "next_probe": one.next_probe,
        "configured": one.configured,
        "running": one.running,
        "waiting": one.waiting,
    }


def _link(one: LinkStatus) -> dict[str, Any]:
    return {
        "link": one.name,
        "class": one.kind,
        "state": one.state.value,
        "reason": one.reason,
        "since": one.since,
        "running": one.running,
        "day_bytes": one.day_bytes,
        "budget_day": one.day_budget,
        "month_bytes": one.month_bytes,
        "budget_month": one.month_budget,
        "asked": [
            {"verb": verb, "host": ask.host, "at": ask.at, "result": ask.answer.value, "words": ask.words}
            for verb, ask in sorted(one.asked.items())
        ],
    }


def text(found: Mapping[str, Any]) -> str:
    """For people: a line each, what is wrong first."""
    from edgemail.boot.listing import printable, span

    now = found["now"]
    out = []
    for one in found["routes"]:
        line = f"{one['route']}: {one['state']}"
        if one["state"] != "up":
            line += f" for {_long(one['since'], now)}" if one["since"] else ""
            line += f": {printable(one['reason'])}" if one["reason"] else ""
        if one["next_probe"]:
            line += f"; next probe in {span(max(0.0, one['next_probe'] - now))}"
        if one["running"] or one["waiting"]:
            line += f" ({one['running']} under way, {one['waiting']} in line)"
        out.append(line)
    for one in found["links"]:
        line = f"link {one['link']} ({one['class']}): {one['state']}"
        line += f" for {_long(one['since'], now)}" if one["since"] else ""
        line += f": {printable(one['reason'])}" if one["reason"] else ""
        for period in ("day", "month"):
            if one[f"budget_{period}"]:
                line += f"; {one[f'{period}_bytes']} of {one[f'budget_{period}']} bytes this {period}"
        out.append(line)
        for ask in one["asked"]:
            said = f"{ask['result']}: {printable(ask['words'])}" if ask["words"] else ask["result"]
            out.append(f"  {ask['verb']} to {ask['host']} {_long(ask['at'], now)} ago: {said}")
    return "".join(line + "\n" for line in out) or "No mail has gone anywhere since the start.\n"


def _long(at: float, now: float) -> str:
    from edgemail.boot.listing import span

    return span(max(0.0, now - at))


def show(path: str | None, *, as_json: bool) -> str:
    """Ask the daemon; what to print. Raises Failure."""
    import json

    from edgemail.boot.client import Office

    found = {"now": 0.0, "routes": [], "links": [], **Office.of(path).ask({"verb": "routes"})}
    found.pop("done", None)
    return json.dumps(found, ensure_ascii=False, indent=2) + "\n" if as_json else text(found)
