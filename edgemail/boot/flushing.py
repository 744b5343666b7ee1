"""What `edgemail queue flush` says of what it did. Owns its words and its JSON; asks nothing itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgemail.boot.listing import printable

MAX_WAIT: Final = 3600.0  # limit: seconds that a flush waits for the tries that it caused
WAIT: Final = 60.0  # the same, where nobody says otherwise


class Report:
    """The answers to the requests of one command, added up."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(("count", "sent", "returned", "waiting", "untried"), 0)
        self._reasons: dict[str, int] = {}
        self.waited = False

    def add(self, answer: Mapping[str, Any]) -> None:
        """One answer: with `sent` and the others, where the relay waited."""
        self.waited = self.waited or "sent" in answer
        for name in self._counts:
            self._counts[name] += int(answer.get(name, 0))
        for one in answer.get("reasons", ()):
            self._reasons[one["reason"]] = self._reasons.get(one["reason"], 0) + int(one["messages"])

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        if not self.waited:
            return {"count": self._counts["count"]}
        reasons = [{"reason": reason, "messages": messages} for reason, messages in self._sorted()]
        return {**self._counts, "reasons": reasons}

    def text(self) -> str:
        """For people: how many went, how many wait, and a line for each reason."""
        found = self._counts
        if not self.waited or not found["count"]:
            return f"{_messages(found['count'])} to be tried now\n"
        still = found["waiting"] + found["untried"]
        parts = [f"{found['sent']} sent"]
        if found["returned"]:
            parts.append(f"{found['returned']} returned")
        parts.append(f"{still} still waiting")
        out = [f"{_messages(found['count'])}: {', '.join(parts)}\n"]
        rows = [(messages, printable(reason)) for reason, messages in self._sorted()]
        if found["untried"]:
            rows.append((found["untried"], "no answer yet; edgemail queue why says more later"))
        width = max((len(str(number)) for number, _ in rows), default=0)
        out += [f"  {number:>{width}}  {reason}\n" for number, reason in rows]
        return "".join(out)

    def _sorted(self) -> list[tuple[str, int]]:
        return sorted(self._reasons.items(), key=lambda one: (-one[1], one[0]))


def _messages(count: int) -> str:
    return f"{count} message{'' if count == 1 else 's'}"
