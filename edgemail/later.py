"""Keeps modules out of the process that others import for things which are never called here.

aiosmtpd wants the email package's address parser, its PROXY protocol, attrs and public; inspect wants the parser of
Python: 2.9 MiB of memory for good, a sixth of what an idle relay takes. Standard library only.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Final


@contextlib.contextmanager
def imported_when_used(*names: str) -> Iterator[None]:
    """While this lasts, an import of one of these gets a stand-in, which imports the real one when it is used."""
    stand_ins = {name: _StandIn(name) for name in names if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            stand_in.in_place = False
            del sys.modules[name]


class _StandIn(ModuleType):
    """In the place of a module: while it is imported from, its attributes are stand-ins too."""

    in_place = True

    def __getattr__(self, name: str) -> Any:
        if not self.in_place:
            return getattr(importlib.import_module(self.__name__), name)
        if name.startswith("__"):
            raise AttributeError(name)
        return _ATTRIBUTES.get(self.__name__, _function)(self.__name__, name)


def _function(module: str, name: str) -> Any:
    """A function or class that is looked up when it is called."""

    def call(*arguments: Any, **named: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*arguments, **named)

    return call


def _of_ast(module: str, name: str) -> Any:
    """inspect derives a class from `ast.NodeVisitor`, for the source of classes that are asked for at a prompt."""
    return object


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
            attrs = importlib.import_module("attr")
            for name, value in fields.items():
                setattr(cls, name, attrs.ib(**value))
            fields.clear()
            attrs.s(cls, **named)
        return object.__new__(of)

    cls.__new__ = new  # type: ignore[method-assign,assignment]
    return cls


def _of_public(module: str, name: str) -> Any:
    """`@public` enters a name into `__all__`, which nobody reads here."""
    return lambda thing: thing


_ATTRIBUTES: Final[dict[str, Callable[[str, str], Any]]] = {"ast": _of_ast, "attr": _of_attrs, "public": _of_public}
