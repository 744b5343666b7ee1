"""The program: commands, configuration, composition, first start. It may know every other part."""

import importlib

from edgemail.later import imported_when_used

with imported_when_used("ast"):  # for dataclasses and asyncio, which want nothing of it
    importlib.import_module("inspect")
