"""For all tests: how long an example of hypothesis takes says something of the machine, not of the code."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("edgemail", deadline=None)
settings.load_profile("edgemail")
