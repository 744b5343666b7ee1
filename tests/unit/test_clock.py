"""Whether the wall clock may be believed: at boot without a battery, after jumps, with NTP and without."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemail import clock as module
from edgemail.clock import MAX_JUMP, RELEASE_DATE, SystemClock, ntp_synchronised
from edgemail.spool.layout import Meta
from edgemail.spool.store import open_store
from edgemail.spool.takeup import read_meta
from edgemail.spool.verbs import Change
from tests.spools import keep, run

DAY = 86_400.0
YEAR = 365.25 * DAY
NOW = RELEASE_DATE + 100 * DAY


class Machine:
    """A board: its wall clock, the time since it was switched on, and NTP's word."""

    def __init__(self, wall: float, ntp: bool = False) -> None:
        self.wall = wall
        self.on = 5.0
        self.ntp = ntp
        self.clock = SystemClock(wall=lambda: self.wall, elapsed=lambda: self.on, synchronised=lambda: self.ntp)

    def run(self, seconds: float) -> None:
        self.wall += seconds
        self.on += seconds

    def set(self, wall: float, ntp: bool = False) -> None:
        self.wall, self.ntp = wall, ntp


@pytest.mark.parametrize(
    ("wall", "trusted"),
    [
        (0.0, False),  # 1970: no battery, no file that remembers
        (RELEASE_DATE - 1, False),
        (RELEASE_DATE, True),
        (NOW, True),
        (NOW + 10 * YEAR, True),  # nothing is known that speaks against it
    ],
)
def test_a_new_box_believes_what_is_not_before_its_release(wall: float, trusted: bool) -> None:
    assert Machine(wall).clock.trusted() is trusted


@pytest.mark.parametrize(
    ("wall", "doubt"),
    [
        (0.0, "years before a date that has passed"),
        (
            NOW - 7 * DAY,
            "it stands 7 days before a date that has passed",
        ),  # the file of the last stop, or a weak battery
        (NOW - 1, "1 seconds before a date that has passed"),
        (NOW, ""),
        (NOW + DAY, ""),
        (NOW + DAY + 1, "it is 24 hours ahead"),
        (NOW + 10 * YEAR, "it is 10 years ahead, and NTP has not confirmed that"),
    ],
)
def test_a_box_that_has_mail_believes_what_is_near_the_latest_date_in_its_spool(wall: float, doubt: str) -> None:
    board = Machine(wall)
    board.clock.passed(NOW)
    assert (doubt in board.clock.doubt()) if doubt else not board.clock.doubt()
    assert board.clock.trusted() is (not doubt)
    board.ntp = True
    assert board.clock.trusted(), "NTP's word counts before all else"


def test_a_spool_that_knows_no_date_changes_nothing() -> None:
    board = Machine(NOW)
    board.clock.passed(0.0)
    assert board.clock.trusted()


@pytest.mark.parametrize("jump", [10 * YEAR, MAX_JUMP + 1, -MAX_JUMP - 1, -NOW])
def test_a_jump_of_more_than_a_day_waits_for_ntp(jump: float) -> None:
    board = Machine(NOW)
    board.run(3 * DAY)
    assert board.clock.trusted(), "time that passes is no jump"
    board.set(board.wall + jump)
    assert not board.clock.trusted()
    board.run(40 * DAY)
    assert not board.clock.trusted(), "waiting makes it no better"
    board.ntp = True
    assert board.clock.trusted()
    board.ntp = False
    assert board.clock.trusted(), "what NTP confirmed stays so when the link goes"


def test_a_jump_that_is_taken_back_is_forgiven() -> None:
    board = Machine(NOW)
    board.set(NOW + 10 * YEAR)
    assert not board.clock.trusted()
    board.set(NOW + 60)
    assert board.clock.trusted()


@pytest.mark.parametrize("jump", [3600.0, MAX_JUMP - 60])
def test_a_small_jump_is_believed(jump: float) -> None:
    board = Machine(NOW)
    board.set(NOW + jump)
    assert board.clock.trusted()


def test_small_jumps_do_not_add_up_unseen() -> None:
    board = Machine(NOW)
    for _ in range(3):
        board.set(board.wall + 20 * 3600)
        last = board.clock.trusted()
    assert not last


def test_ntp_corrects_a_floor_that_a_wrong_clock_had_raised() -> None:
    board = Machine(NOW)
    board.clock.passed(NOW + 10 * YEAR)
    assert not board.clock.trusted()
    board.ntp = True
    assert board.clock.trusted()
    board.ntp = False
    assert board.clock.trusted()
    board.set(NOW - 7 * DAY)
    assert not board.clock.trusted()


def test_sleep_is_no_jump() -> None:
    """The machine slept for a week: CLOCK_BOOTTIME counts that, CLOCK_MONOTONIC would not."""
    board = Machine(NOW)
    board.run(7 * DAY)
    assert board.clock.trusted()
    assert module._since_boot() >= time.monotonic() - 1


# the spool's part


def with_clock(directory: Path, board: Machine, then: Callable[[], None] = lambda: None) -> Meta:
    """Open the spool, take a message, close in order; what the meta record says then."""

    async def scenario() -> None:
        store = open_store(directory, 32 << 20, board.clock, 0)
        then()
        kept = await keep(store)
        await store.apply(Change(remove=(kept.id,)))
        environment = store._environment
        await store.close()
        assert environment is not None

    run(scenario())
    from edgemail.spool.environment import Environment

    environment = Environment(directory, readonly=True)
    meta = read_meta(environment)
    environment.close()
    assert meta is not None
    return meta


@pytest.mark.parametrize("wall", [0.0, NOW - 7 * DAY, NOW + 10 * YEAR])
def test_a_wrong_clock_at_the_start_never_becomes_the_spools_date(tmp_path: Path, wall: float) -> None:
    assert with_clock(tmp_path, Machine(NOW)).wall == NOW
    wrong = Machine(wall)
    seen: list[bool] = []
    assert with_clock(tmp_path, wrong, lambda: seen.append(wrong.clock.trusted())).wall == NOW
    assert seen == [False], "opening the spool told the clock what date has passed"
    again = Machine(wall)
    assert with_clock(tmp_path, again).wall == NOW
    assert not again.clock.trusted(), "a restart does not make it right"
    right = Machine(NOW + 3600, ntp=True)
    assert with_clock(tmp_path, right).wall == NOW + 3600


# the kernel's part


def test_the_kernel_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(answer: int, status: int) -> Callable[[object], int]:
        def adjtimex(argument: object) -> int:
            state = ctypes.cast(argument, ctypes.POINTER(module._Timex)).contents  # type: ignore[arg-type]
            assert state.modes == 0, "it asks and sets nothing"
            state.status = status
            return answer

        return adjtimex

    for answer, status, wanted in ((0, 0x2001, True), (5, 0x40, False), (0, 0x40, False), (-1, 0, False)):
        monkeypatch.setattr(module, "_ADJTIMEX", kernel(answer, status))
        assert ntp_synchronised() is wanted
    monkeypatch.setattr(module, "_ADJTIMEX", None)
    assert ntp_synchronised() is False


def test_the_kernel_answers() -> None:
    assert module._ADJTIMEX is not None
    state = module._Timex()
    assert module._ADJTIMEX(ctypes.byref(state)) >= 0
    assert abs(state.time.tv_sec - time.time()) < 5, "struct timex is laid out otherwise here"
    assert ntp_synchronised() is (not state.status & module.STA_UNSYNC)
