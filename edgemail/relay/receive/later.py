"""Keeps out of the process, until somebody calls it, what aiosmtpd imports for things that no session of ours does.

That is the email package's address parser, its PROXY protocol and the attrs package: 2.6 MiB of memory for good, an
eighth of what an idle relay takes.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final

PARSER: Final = "email._header_value_parser"
PROXY: Final = "aiosmtpd.proxy_protocol"
ATTRS: Final = "attr"


@contextlib.contextmanager
def imported_when_called() -> Iterator[None]:
    """While this lasts, an import of one of these gets a stand-in, which imports the real one when it is used."""
    missing = {name: attribute for name, attribute in _ATTRIBUTES.items() if name not in sys.modules}
    stand_ins = {name: _stand_in(name, attribute) for name, attribute in missing.items()}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _stand_in(module: str, attribute: Callable[[str, str], Any]) -> ModuleType:
    def found(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return attribute(module, name)

    stand_in = ModuleType(module)
    stand_in.__getattr__ = found  # type: ignore[method-assign]
    return stand_in


def _function(module: str, name: str) -> Any:
    """A function or class that is looked up when it is called."""

    def call(*arguments: Any, **named: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*arguments, **named)

    return call


def _of_attrs(module: str, name: str) -> Any:
    """`attr.ib` and `attr.s`: a class that attrs makes when its first instance is."""
    return {"ib": _Field, "attrib": _Field, "s": _decorated, "attrs": _decorated}[name]


class _Field:
    """What `attr.ib` was called with."""

    def __init__(self, **named: Any) -> None:
        self.named = named


def _decorated(cls: type | None = None, **named: Any) -> Any:
    """The class as it is; its first instance makes attrs finish it."""
    if cls is None:
        return lambda cls: _decorated(cls, **named)
    fields = {name: value.named for name, value in vars(cls).items() if isinstance(value, _Field)}

    def new(of: type, *_arguments: Any, **_values: Any) -> Any:
        if fields:
            attrs = importlib.import_module(ATTRS)
            for name, value in fields.items():
                setattr(cls, name, attrs.ib(**value))
            fields.clear()
            attrs.s(cls, **named)
        return object.__new__(of)

    cls.__new__ = new  # type: ignore[method-assign,assignment]
    return cls


_ATTRIBUTES: Final = {PARSER: _function, PROXY: _function, ATTRS: _of_attrs}
