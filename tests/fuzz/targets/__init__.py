"""What is fuzzed: one module a target, the invariants on top of it, and `judge(data)`, which fails where one is broken.

The same function is driven by the replay of the corpus and by hypothesis (test_targets.py) and by atheris
(`make fuzz`, __main__.py). `WORDS` are octets that mean something to the target,
`LARGE` (of some) inputs larger than a fuzzer makes them. Adding a module here and a folder with
a seed to the corpus adds a target.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

NAMES: Final = (
    "dialog",
    "transaction",
    "content",
    "grammar",
    "notice",
    "configuration",
    "control",
    "http",
    "envelope",
    "journal",
)


def target(name: str) -> Any:
    """The module of a target: `judge`, `WORDS`."""
    return import_module(f"tests.fuzz.targets.{name}")
