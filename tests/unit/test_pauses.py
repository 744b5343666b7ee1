"""Routes that pause, over a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from edgemail.relay.queue.pauses import FILE_NAME, MAX_NAME, MAX_PAUSES, Pauses


def play(directory: Path, *steps: tuple[str, float]) -> dict[str, float]:
    """Tell of routes (0.0: it is over), let it be written, and see what the next start knows."""

    async def whole() -> None:
        tasks: list[asyncio.Task[None]] = []

        def spawn(work: Coroutine[Any, Any, None]) -> None:
            tasks.append(asyncio.ensure_future(work))

        pauses = Pauses(directory, spawn)
        for name, since in steps:
            pauses.told(name, since) if since else pauses.over(name)
        await asyncio.gather(*tasks)

    asyncio.run(whole())
    return Pauses(directory, lambda work: work.close())._since


def test_what_was_told_is_known_after_a_restart_until_it_is_over(tmp_path: Path) -> None:
    assert play(tmp_path, ("smtp:[a]", 5.0), ("smtp:[b]", 6.0)) == {"smtp:[a]": 5.0, "smtp:[b]": 6.0}
    assert play(tmp_path, ("smtp:[a]", 0.0), ("smtp:[c]", 0.0)) == {"smtp:[b]": 6.0}
    assert play(tmp_path, ("smtp:[b]", 0.0)) == {}


def test_it_is_bounded(tmp_path: Path) -> None:
    found = play(tmp_path, *((f"smtp:[{n}]", 1.0 + n) for n in range(MAX_PAUSES + 5)), ("x" * (MAX_NAME + 1), 1e9))
    assert len(found) == MAX_PAUSES
    assert min(found.values()) == 6.0


@pytest.mark.parametrize("nonsense", ["", "[]", "{", '{"a": "b", "c": null, "d": NaN}', '{"a": {}}', "\xff"])
def test_a_file_that_makes_no_sense_costs_a_notice_at_most(tmp_path: Path, nonsense: str) -> None:
    (tmp_path / FILE_NAME).write_bytes(nonsense.encode("latin-1"))
    assert play(tmp_path) == {}


def test_a_medium_that_refuses_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert play(tmp_path / "nowhere", ("smtp:[a]", 5.0)) == {}
    assert "after a restart somebody is told anew" in caplog.text


def test_in_memory_alone() -> None:
    pauses = Pauses(None, lambda _: pytest.fail("nothing is written"))
    pauses.told("a", 5.0)
    assert (pauses.since("a"), pauses.since("b")) == (5.0, 0.0)
