"""`edgemail etrn`: ask a provider for our mail, through the running relay; what it said, and the exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgemail.boot.client import Office
from edgemail.boot.frames import EX_OK, EX_TEMPFAIL, EX_UNAVAILABLE

NOT_ALLOWED: Final = 459  # RFC 1985 5.3: of all its 4yz replies the one that will be the same tomorrow


def etrn(path: str | None, host: str, nodes: Sequence[str], *, as_json: bool = False) -> int:
    """Each domain with the provider's reply; 0 when all were taken, 75 when another time may be better, else 69."""
    codes = []

    def line(data: Mapping[str, Any] | bytes) -> None:
        if not isinstance(data, bytes):
            codes.append(int(data["code"]))
            sys.stdout.write(json.dumps(data) + "\n" if as_json else f"{data['node']}: {data['reply']}\n")

    Office.of(path).ask({"verb": "etrn", "host": host, "domains": list(nodes)}, line)
    if all(200 <= code < 300 for code in codes) and len(codes) == len(nodes):
        return EX_OK
    refused = any(code >= 500 or code == NOT_ALLOWED for code in codes)
    return EX_UNAVAILABLE if refused else EX_TEMPFAIL
