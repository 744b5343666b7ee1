"""The log's lines: their form in both places, their severity, and that no message can forge another line."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.boot import log
from edgemail.boot.log import Formatter, harmless


def record(text: str, *args: object, name: str = "edgemail.smtpd", level: int = logging.INFO, **more: Any) -> Any:
    made = logging.LogRecord(name, level, __file__, 1, text, args, more.pop("exc_info", None))
    made.__dict__.update({"created": 1_795_256_549.0, "process": 123, **more})
    return made


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    logger = logging.getLogger()
    before, level = list(logger.handlers), logger.level
    yield logger
    logger.handlers[:] = before
    logger.setLevel(level)


def test_a_line_as_syslog_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    line = Formatter(host="gw7").format(record("%s: client=%s[%s]", "0000002A", "unknown", "192.0.2.1"))
    assert re.fullmatch(
        r"[A-Z][a-z]{2} [ 0-9]\d \d\d:\d\d:\d\d gw7 edgemail/smtpd\[123\]: 0000002A: client=unknown\[192\.0\.2\.1\]",
        line,
    )


@pytest.mark.parametrize(
    ("name", "level", "priority", "word"),
    [
        ("edgemail.qmgr", logging.DEBUG, 7, ""),
        ("edgemail.qmgr", logging.INFO, 6, ""),
        ("edgemail.qmgr", logging.WARNING, 4, "warning: "),
        ("edgemail.qmgr", logging.ERROR, 3, "error: "),
        ("edgemail.qmgr", logging.CRITICAL, 2, "fatal: "),
    ],
)
def test_severity_for_journald_and_for_people(name: str, level: int, priority: int, word: str) -> None:
    made = record("text", name=name, level=level)
    assert Formatter(journal=True).format(made) == f"<{priority}>edgemail/qmgr[123]: {word}text"
    assert Formatter(host="h").format(made).endswith(f" h edgemail/qmgr[123]: {word}text")


def test_a_severity_that_is_said_already_is_not_said_twice() -> None:
    assert Formatter(journal=True).format(record("warning: x", level=logging.WARNING)).endswith("]: warning: x")


@pytest.mark.parametrize(
    ("name", "more", "expected"),
    [
        ("edgemail.smtpd", {"syslog_name": "edgemail/submission"}, "edgemail/submission/smtpd[123]: x"),
        ("edgemail.smtpd", {"syslog_name": ""}, "relay/smtpd[123]: x"),
        ("edgemail.smtp.pool", {}, "relay/smtp[123]: x"),
        ("edgemail", {}, "relay/master[123]: x"),
        ("asyncio", {}, "relay/asyncio[123]: x"),
    ],
)
def test_service_names(name: str, more: dict[str, Any], expected: str) -> None:
    assert Formatter("relay", journal=True).format(record("x", name=name, **more)) == "<6>" + expected


def test_a_message_cannot_forge_a_line() -> None:
    forged = "<a\r\n<2>edgemail/smtpd[1]: fatal: x\x1b[2J\x00\x85\u2028\u202e\udcff>"
    line = Formatter(journal=True).format(record("helo=%s", forged))
    assert line == "<6>edgemail/smtpd[123]: helo=<a??<2>edgemail/smtpd[1]: fatal: x?[2J?????>"


@given(st.text())
def test_whatever_is_logged_is_one_printable_line(text: str) -> None:
    line = harmless(text)
    assert len(line.splitlines()) <= 1
    assert len(line) <= log.MAX_LINE
    line.encode()
    assert "\x1b" not in line


def test_a_long_message_is_cut() -> None:
    assert harmless("x" * 10_000) == "x" * (log.MAX_LINE - 3) + "..."


def test_an_exception_is_a_panic_with_a_line_for_each_frame() -> None:
    def inner() -> None:
        raise KeyError("deep\nsecond line")

    try:
        try:
            inner()
        except KeyError as error:
            raise RuntimeError("outer") from error
    except RuntimeError:
        made = record("session ended", level=logging.ERROR, exc_info=sys.exc_info())
    lines = Formatter(journal=True).format(made).split("\n")
    assert lines[0] == "<3>edgemail/smtpd[123]: panic: session ended"
    assert all(line.startswith("<3>edgemail/smtpd[123]: traceback: ") for line in lines[1:])
    assert [line.partition("traceback: ")[2].partition(":")[0] for line in lines[1:]][2] == "KeyError"
    assert " in inner" in lines[2]
    assert lines[-1].endswith("RuntimeError: outer")


def test_an_endless_recursion_has_a_bounded_traceback() -> None:
    def again() -> None:
        again()

    try:
        again()
    except RecursionError:
        made = record("x", exc_info=sys.exc_info())
    assert len(Formatter().format(made).split("\n")) == 1 + log.MAX_FRAMES


def test_arguments_that_do_not_fit_still_make_a_line() -> None:
    assert Formatter(journal=True).format(record("%d sessions", "many")) == (
        "<6>edgemail/smtpd[123]: %d sessions ('many',)"
    )


def test_journald_is_known_by_its_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "journal").open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert log.to_journal(stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
        assert not log.to_journal(stream)
        monkeypatch.delenv("JOURNAL_STREAM")
        assert not log.to_journal(stream)
    assert not log.to_journal(io.StringIO())


def test_starting_twice_writes_each_line_once(root: logging.Logger) -> None:
    first, second = io.StringIO(), io.StringIO()
    log.start("one", stream=first)
    log.start("two", stream=second)
    logging.getLogger("edgemail.qmgr").info("x")
    logging.getLogger("edgemail.qmgr").debug("not this")
    logging.getLogger("mail.log").warning("nor what others say of each session")
    assert first.getvalue() == ""
    assert re.fullmatch(r".* two/qmgr\[\d+\]: x\n", second.getvalue())


def test_a_stream_that_is_gone_stops_nothing(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    log.start(stream=stream)
    stream.close()
    logging.getLogger("edgemail.qmgr").info("x")
    assert capsys.readouterr().err == ""


class Counting(io.StringIO):
    """A stream that knows how often it was written to."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


def test_a_line_is_one_write_and_what_others_may_ask_of_a_record_is_there(root: logging.Logger) -> None:
    stream, seen = Counting(), io.StringIO()
    log.start(stream=stream)
    other = logging.StreamHandler(seen)
    other.setFormatter(logging.Formatter("%(levelname)s %(name)s %(filename)s:%(lineno)d %(process)s %(message)s"))
    root.addHandler(other)
    logging.getLogger("edgemail.qmgr").info("to=<%s>, delay=%.1f", "you", 0.25)
    logging.getLogger("edgemail.qmgr").warning("%(a)s and %(b)d", {"a": "one", "b": 2})
    assert stream.writes == 2
    assert [line.partition("]: ")[2] for line in stream.getvalue().splitlines()] == [
        "to=<you>, delay=0.2",
        "warning: one and 2",
    ]
    assert seen.getvalue().splitlines()[-1].endswith("one and 2")


@pytest.mark.parametrize("name", ["", "edgemail", "edgemail.qmgr"])
def test_who_else_listens_hears_every_line(root: logging.Logger, name: str) -> None:
    stream, seen = io.StringIO(), io.StringIO()
    log.start(stream=stream)
    logger, other = logging.getLogger("edgemail.qmgr"), logging.StreamHandler(seen)
    logging.getLogger(name).addHandler(other)
    try:
        logger.info("%s: removed", "0000002A")
    finally:
        logging.getLogger(name).removeHandler(other)
    logger.info("heard by us alone")
    assert seen.getvalue() == "0000002A: removed\n"
    assert [line.partition("]: ")[2] for line in stream.getvalue().splitlines()] == [
        "0000002A: removed",
        "heard by us alone",
    ]


def test_the_second_that_is_kept_is_the_records_own() -> None:
    form = Formatter(host="h")
    first, second = (form.format(record("x", created=1_795_256_549.9 + late)) for late in (0.0, 0.2))
    assert first[13:15] != second[13:15]
    assert form.format(record("x", created=1_795_256_549.0)) == first


def test_a_child_logs_under_its_own_number() -> None:
    """In a process of its own: one that has threads must not fork."""
    program = (
        "import logging, os, sys; from edgemail.boot import log; log.start('x'); print(os.getpid());"
        "sys.stdout.flush(); child = os.fork(); print(child or os.getpid()) if child == 0 else os.waitpid(child, 0);"
        "logging.getLogger('edgemail.smtpd').info('hello')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    parent, child = done.stdout.split()
    assert re.findall(r"smtpd\[(\d+)\]: hello", done.stderr) == [child, parent]
