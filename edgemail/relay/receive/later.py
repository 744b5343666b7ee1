"""Keeps the email package's address parser out of the process until somebody calls it.

aiosmtpd takes two functions of it for verbs that no session of ours runs, and importing it costs 1.7 MiB of memory for
good: a tenth of what an idle relay takes.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

PARSER: Final = "email._header_value_parser"


@contextlib.contextmanager
def parser_when_called() -> Iterator[None]:
    """While this lasts, an import of the parser's functions gets ones that import it at their first call."""
    if PARSER in sys.modules:
        yield
        return
    stand_in = ModuleType(PARSER)
    stand_in.__getattr__ = _when_called  # type: ignore[method-assign]
    sys.modules[PARSER] = stand_in
    try:
        yield
    finally:
        del sys.modules[PARSER]


def _when_called(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def call(*arguments: Any, **named: Any) -> Any:
        return getattr(importlib.import_module(PARSER), name)(*arguments, **named)

    return call
