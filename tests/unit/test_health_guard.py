"""Guards: levels rise at once and fall with hysteresis; memory is read from the right places."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.clock import ManualClock
from edgemail.health.board import Board, Condition, State
from edgemail.health.guard import (
    BIG_MESSAGE,
    MEMORY_THRESHOLDS,
    Guard,
    Guards,
    Level,
    Memory,
    MemoryReader,
    RoomGuard,
    descriptor_share,
)

MIB = 1 << 20
THRESHOLDS = (0.75, 0.85, 0.92)


def test_a_level_rises_at_once_and_falls_with_hysteresis() -> None:
    clock = ManualClock()
    guard = Guard("memory", THRESHOLDS, clock)
    seen = [guard.measure(v) for v in (0.5, 0.76, 0.74, 0.71, 0.69, 0.93, 0.90, 0.86, 0.82, 0.79, 0.1)]
    assert seen == [
        Level.CALM,
        Level.FEWER_DELIVERIES,
        Level.FEWER_DELIVERIES,
        Level.FEWER_DELIVERIES,
        Level.CALM,
        Level.NO_BIG_MESSAGES,
        Level.NO_BIG_MESSAGES,
        Level.NO_SESSIONS,
        Level.NO_SESSIONS,
        Level.FEWER_DELIVERIES,
        Level.CALM,
    ]
    assert guard.trips == 2


@given(st.lists(st.floats(0, 2), min_size=1))
def test_a_level_is_never_below_what_the_value_demands(values: list[float]) -> None:
    guard = Guard("memory", THRESHOLDS, ManualClock())
    for value in values:
        assert guard.measure(value) >= sum(1 for t in THRESHOLDS if value >= t)


def make_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


BASE = {
    "proc/meminfo": "MemTotal:  524288 kB\nMemFree: 1 kB\nMemAvailable:  262144 kB\n",
    "proc/self/status": "Name:\tx\nVmRSS:\t 99999 kB\nRssAnon:\t 12288 kB\n",
    "proc/pressure/memory": "some avg10=1.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 total=0\n",
}


@pytest.mark.parametrize(
    ("files", "limit", "working"),
    [
        ({"proc/self/cgroup": "0::/\n"}, 512 * MIB, 0),
        (
            {
                "proc/self/cgroup": "0::/mail\n",
                "sys/fs/cgroup/mail/memory.current": "90000000\n",
                "sys/fs/cgroup/mail/memory.max": "100000000\n",
                "sys/fs/cgroup/mail/memory.stat": "anon 5\ninactive_file 40000000\n",
            },
            100_000_000,
            50_000_000,
        ),
        (
            {
                "proc/self/cgroup": "0::/mail\n",
                "sys/fs/cgroup/mail/memory.current": "90000000\n",
                "sys/fs/cgroup/mail/memory.max": "max\n",
            },
            512 * MIB,
            0,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "30000000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "100000000\n",
                "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 10000000\n",
            },
            100_000_000,
            20_000_000,
        ),
    ],
)
def test_memory_is_read_from_proc_and_the_cgroup(
    tmp_path: Path, files: dict[str, str], limit: int, working: int
) -> None:
    memory = MemoryReader(make_tree(tmp_path, BASE | files)).read()
    assert memory == Memory(12 * MIB, working, limit, 256 * MIB, 512 * MIB, 1.5)


def test_missing_files_are_no_alarm(tmp_path: Path) -> None:
    assert MemoryReader(tmp_path).read().share == 0.0


def test_pages_of_the_map_are_no_alarm_and_another_program_neither() -> None:
    calm = Memory(12 * MIB, 0, 512 * MIB, 200 * MIB, 512 * MIB, 0.0)
    assert calm.share < 0.1
    assert Memory(12 * MIB, 0, 512 * MIB, 20 * MIB, 512 * MIB, 0.0).share > 0.9


def test_what_each_level_holds_back() -> None:
    guards = Guards(ManualClock())
    assert guards.session_refusal("gw", 5, 50) is None
    assert guards.message_refusal(BIG_MESSAGE + 1) is None
    assert guards.deliveries(100) == 100
    guards.memory.measure(0.8)
    assert guards.deliveries(100) == 25
    assert guards.session_refusal("gw", 5, 50) is None
    guards.memory.measure(0.86)
    refusal = guards.session_refusal("gw", 5, 50)
    assert refusal is not None
    assert str(refusal).startswith("421 4.3.2 gw Error: out of memory")
    assert guards.session_refusal("gw", 0, 5) is None, "a client that holds none finds a session kept for it"
    guards.memory.measure(0.95)
    big = guards.message_refusal(BIG_MESSAGE + 1)
    assert big is not None
    assert big.code == 452
    assert guards.message_refusal(1000) is None
    assert guards.deliveries(10) == 1


def test_descriptors_are_counted() -> None:
    assert 0 < descriptor_share() < 1


def test_the_board_says_the_worst_that_counts_and_since_when() -> None:
    clock = ManualClock()
    board = Board(clock)
    now = {"spool": Condition(), "route.smtp:x": Condition(State.FAILED, "login", "refused", counts=False)}
    board.add(lambda: now)
    status = board.status()
    assert status["state"] == "ok"
    assert status["components"]["route.smtp:x"]["state"] == "failed"
    clock.advance(60)
    now = {"spool": Condition(State.FAILED, "full", "the card is full", {"free": 0})}
    status = board.status()
    assert (status["state"], status["reason"], status["message"]) == ("failed", "full", "the card is full")
    assert status["since"] == "2026-11-21T00:01:00Z"
    assert status["components"] == {
        "spool": {
            "state": "failed",
            "reason": "full",
            "message": "the card is full",
            "since": "2026-11-21T00:01:00Z",
            "free": 0,
        }
    }
    clock.advance(60)
    assert board.status()["since"] == "2026-11-21T00:01:00Z"


def test_a_probe_that_fails_is_a_condition() -> None:
    board = Board(ManualClock())

    def probe() -> dict[str, Condition]:
        raise RuntimeError

    board.add(probe)
    assert board.status()["components"]["health"]["reason"] == "probe-failed"


def test_a_change_of_a_guard_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """By the guard, with what was measured; not once more as a change of the status."""
    clock = ManualClock()
    memory = Guard("memory", MEMORY_THRESHOLDS, clock)
    disk = RoomGuard("disk", "The disk is full", clock)
    board = Board(clock)
    board.add(lambda: {"guard.memory": memory.condition(), "guard.disk": disk.condition()})
    with caplog.at_level(logging.INFO):
        for share, free in ((0.5, 500), (0.95, 50), (0.95, 50), (0.93, 101), (0.5, 500), (0.5, 500)):
            memory.measure(share)
            disk.measure(free, 100, 1000)
            board.conditions()
    assert [record.getMessage() for record in caplog.records] == [
        "guard memory: level=no_big_messages, measured=95%",
        "guard disk: level=full, free=50, needed=100",
        "guard memory: level=calm, measured=50%",
        "guard disk: level=calm, free=500, needed=100",
    ]
