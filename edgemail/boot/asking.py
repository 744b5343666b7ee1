"""`edgemail etrn` and `edgemail atrn`: ask a provider for our mail, through the running relay.

Owns what is printed of the answer, and the exit code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from edgemail.boot.client import Failure, Office
from edgemail.boot.frames import EX_NOINPUT, EX_OK, EX_TEMPFAIL, EX_UNAVAILABLE

NO_MAIL: Final = 453  # RFC 2645 5.2.1: all is well, and there is nothing
REFUSED: Final = 450  # that these domains are not the user's
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


def atrn(
    path: str | None, host: str, user: str, password_file: str, domains: Sequence[str], *, as_json: bool = False
) -> int:
    """What came, or why nothing did; 0 also when there was nothing, 75 when another time may be better, else 69."""
    try:
        with Path(password_file).open(encoding="utf-8") as file:
            password = file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"{password_file}: {getattr(error, 'strerror', None) or error}", EX_NOINPUT) from error
    wanted = {"host": host, "user": user, "password": password, "domains": list(domains)}
    found = Office.of(path).ask({"verb": "atrn", **wanted}, lambda _: None)
    code, count = int(found["code"]), found["count"]
    if as_json:
        sys.stdout.write(json.dumps({"code": code, "reply": found["reply"], "count": count}) + "\n")
    else:
        sys.stdout.write(f"{found['reply']}\n{count} message{'' if count == 1 else 's'} received\n")
    if code // 100 == 2 or code == NO_MAIL:
        return EX_OK
    return EX_UNAVAILABLE if code >= 500 or code == REFUSED else EX_TEMPFAIL
