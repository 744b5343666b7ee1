"""Values: slotted dataclasses that nothing assigns to, with one set of methods for them all. Standard library only.

`dataclass(frozen=True, slots=True)` compiles eight methods for each class, 10 KiB of them, and a relay has a hundred
such classes. Here a class has an `__init__` of its own and shares the rest; the type checker forbids to assign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform, overload

__all__ = ["changed", "value"]

T = TypeVar("T")


@overload
def value(cls: type[T], /) -> type[T]: ...


@overload
def value(*, kw_only: bool = False) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T] | None = None, /, *, kw_only: bool = False) -> type[T] | Callable[[type[T]], type[T]]:
    """The class as a value: compared, hashed and shown by its fields; `changed` makes another one."""
    return _made(cls, kw_only=False) if cls is not None else partial(_made, kw_only=kw_only)


def _made(cls: type[T], *, kw_only: bool) -> type[T]:
    made: Any = dataclass(slots=True, eq=False, repr=False, kw_only=kw_only)(cls)
    names = [one.name for one in fields(made)]
    made._names, made._all = names, attrgetter(*names) if len(names) > 1 else None
    compared = [one.name for one in fields(made) if one.compare]
    made._compared = attrgetter(*compared) if compared else type
    for name, method in _SHARED.items():
        if name not in vars(cls):
            setattr(made, name, method)
    return made  # type: ignore[no-any-return]


def _equal(self: Any, other: Any) -> bool:
    return bool(self._compared(self) == other._compared(other)) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(self._compared(self))


def _shown(self: Any) -> str:
    inside = ", ".join(f"{one.name}={getattr(self, one.name)!r}" for one in fields(self) if one.repr)
    return f"{type(self).__qualname__}({inside})"


if TYPE_CHECKING:
    from dataclasses import replace as changed
else:

    def changed(old, /, **changes):
        """`old` with other values for some fields: `dataclasses.replace`, at a third of its price."""
        if old._all is None:
            return replace(old, **changes)
        return type(old)(**(dict(zip(old._names, old._all(old), strict=True)) | changes))


_SHARED = {"__eq__": _equal, "__hash__": _hash, "__repr__": _shown}
