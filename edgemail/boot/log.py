"""The log: one line an event on stderr, in syslog's form, with priorities where journald reads them.

Owns the form of a line: time, host, service, process, severity word; and that nothing in a message can make a second
line or move a terminal's cursor. What is logged is said where it happens.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TextIO

MAX_LINE: Final = 2000  # limit: characters of a log line's message, as Postfix's
MAX_FRAMES: Final = 40  # limit: lines of a traceback, the outermost left out

# syslog(3) priorities, which sd-daemon(3) reads as "<6>"
PRIORITY: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
WORDS: Final = {logging.WARNING: "warning: ", logging.ERROR: "error: ", logging.CRITICAL: "fatal: "}
PANIC: Final = "panic: "  # what nobody expected: a line with an exception
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# C0, DEL, C1, the line and paragraph separators, bidirectional overrides, lone surrogates
_HARMFUL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Of other packages: aiosmtpd ("mail.log") logs each line of a session, asyncio each transport.
_LEVELS: Final = {"mail": logging.CRITICAL, "asyncio": logging.WARNING}


_process: Final = [os.getpid()]  # asked of the kernel once, not for each line


def _forked() -> None:
    _process[0] = os.getpid()


os.register_at_fork(after_in_child=_forked)


class Formatter(logging.Formatter):
    """`Nov 21 10:22:29 host edgemail/smtpd[123]: warning: text`, or `<4>edgemail/smtpd[123]: warning: text`.

    The service is the logger's name; a record's `syslog_name` stands for "edgemail". A traceback becomes a line for
    each frame, each with the same beginning.
    """

    def __init__(self, name: str = "edgemail", *, host: str = "", journal: bool = False) -> None:
        super().__init__()
        self.name = name
        self.host = host or os.uname().nodename.partition(".")[0] or "localhost"
        self.journal = journal
        self._second = -1  # the one that `_moment` says
        self._moment = ""
        self._services: dict[tuple[str, str], str] = {}  # "edgemail/smtpd" by logger and syslog_name: a handful

    def line(self, name: str, syslog_name: str, level: int, at: float, text: str) -> str:
        """What nothing is special about, which is nearly all."""
        return self._head(name, syslog_name, level, at, _process[0]) + harmless(text)

    def format(self, record: logging.LogRecord) -> str:
        start = self._start(record)
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit: a slip of ours must not cost the line
            message = f"{record.msg} {record.args!r}"
        if record.levelno <= logging.INFO and not record.exc_info:  # nearly all are
            return start + harmless(message)
        word = PANIC if record.exc_info else WORDS.get(record.levelno, "")
        if message.startswith(("warning: ", "error: ", "fatal: ", "panic: ")):
            word = ""  # said already
        lines = [word + message, *_traceback(record)]
        return "\n".join(start + harmless(line) for line in lines)

    def _start(self, record: logging.LogRecord) -> str:
        syslog_name = getattr(record, "syslog_name", "")
        return self._head(record.name, syslog_name, record.levelno, record.created, record.process or _process[0])

    def _head(self, name: str, syslog_name: str, level: int, at: float, process: int) -> str:
        key = name, syslog_name or self.name
        head = self._services.get(key)
        if head is None:
            service = name.removeprefix("edgemail").lstrip(".").partition(".")[0] or "master"
            head = self._services[key] = f"{key[1]}/{service}"
        if self.journal:
            return f"<{PRIORITY.get(level, 6)}>{head}[{process}]: "
        second = int(at)
        if second != self._second:
            now = time.localtime(second)
            self._moment = f"{MONTHS[now.tm_mon - 1]} {now.tm_mday:2} {now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02}"
            self._second = second
        return f"{self._moment} {self.host} {head}[{process}]: "


def harmless(text: str) -> str:
    """`text` on one line, of bounded length, without anything that a terminal or a log reader would act on."""
    if len(text) > MAX_LINE:
        text = text[: MAX_LINE - 3] + "..."
    if text.isprintable():  # then nothing in it is harmful
        return text
    return _HARMFUL.sub("?", text)


def _traceback(record: logging.LogRecord) -> Iterator[str]:
    """The frames of a record's exception, innermost last, and the exceptions that caused it."""
    if not record.exc_info or record.exc_info[1] is None:
        return
    lines: list[str] = []
    seen: set[int] = set()
    error: BaseException | None = record.exc_info[1]
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        frames = [f"traceback: {f.filename}:{f.lineno} in {f.name}" for f in traceback.extract_tb(error.__traceback__)]
        lines = [*frames, f"traceback: {type(error).__name__}: {error}", *lines]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    yield from lines[-MAX_FRAMES:]


class Record(logging.LogRecord):
    """What is logged, without what no line of ours says (the place in the source, the thread): half its cost."""

    def __init__(  # noqa: PLR0917 - logging's own order
        self,
        name: str,
        level: int,
        pathname: str,
        lineno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        sinfo: str | None = None,
        **rest: Any,
    ) -> None:
        created = time.time()
        if len(args) == 1 and isinstance(args[0], Mapping) and args[0]:  # "%(name)s", as logging has it
            args = args[0]
        # In one stroke, not by attributes; what other formatters may ask for is among it.
        self.__dict__ = {
            "name": name,
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "msg": msg,
            "args": args,
            "exc_info": exc_info,
            "exc_text": None,
            "stack_info": sinfo,
            "created": created,
            "msecs": int((created - int(created)) * 1000),
            "relativeCreated": 0.0,
            "pathname": pathname,
            "filename": pathname,
            "module": "",
            "lineno": lineno,
            "funcName": func,
            "process": None,
            "processName": None,
            "thread": None,
            "threadName": None,
        }


class Handler(logging.StreamHandler[TextIO]):
    """One write a record; a stream that is gone is no reason to stop relaying."""

    def handle(self, record: logging.LogRecord) -> bool:
        """As the standard class, which asks filters first: there are none."""
        self.acquire()
        try:
            self.emit(record)
        finally:
            self.release()
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.put(self.format(record))
        except Exception:
            self.handleError(record)

    def put(self, line: str) -> None:
        """The line and its end in one write(2), at once: what was logged is there whatever becomes of the process."""
        self.stream.write(line + "\n")
        self.stream.flush()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Nobody is left to be told."""


class Logger(logging.Logger):
    """A logger whose plain lines go to our handler without a record, where nobody else listens.

    A message that is relayed makes seven of them, for half of what the standard class takes.
    """

    alone: Sequence[Handler] = ()  # what the root logger has when ours is the only one, as a list
    form: Formatter

    def info(self, msg: object, *args: object, **more: Any) -> None:
        self.log(logging.INFO, msg, *args, **more)

    def log(self, level: int, msg: object, *args: object, extra: Any = None, **more: Any) -> None:
        if not self.isEnabledFor(level):
            return
        if level != logging.INFO or more or not self._unheard():
            self._log(level, msg, args, extra=extra, **more)
            return
        try:
            text = msg % args  # type: ignore[operator]
        except (TypeError, ValueError):  # a slip of ours, which has its own words in a record's line
            self._log(level, msg, args, extra=extra)
            return
        target = self.alone[0]
        target.acquire()
        try:
            syslog_name = extra.get("syslog_name", "") if extra else ""
            target.put(self.form.line(self.name, syslog_name, level, time.time(), text))
        except Exception:  # nobody is left to be told
            pass
        finally:
            target.release()

    def _unheard(self) -> bool:
        """Whether our handler is the only one that hears this logger."""
        logger: logging.Logger = self
        while logger.parent is not None:
            if logger.handlers:
                return False
            logger = logger.parent
        return logger.handlers == self.alone


def to_journal(stream: Any) -> bool:
    """Whether `stream` is the one that journald gave us (systemd.exec(5), $JOURNAL_STREAM)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def start(syslog_name: str = "edgemail", *, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send everything that is logged to stderr (or `stream`). Called again, it replaces what it did before."""
    target = stream or sys.stderr
    if target is sys.stderr:
        sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    handler, form = Handler(target), Formatter(syslog_name, journal=to_journal(target))
    handler.setFormatter(form)
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    logging._srcfile = None  # nobody asks where a line comes from (logging's HOWTO)
    logging.setLogRecordFactory(Record)
    Logger.alone, Logger.form = [handler], form
    logging.setLoggerClass(Logger)
    for name, each in root.manager.loggerDict.items():  # those that modules have made already
        if type(each) is logging.Logger and name.partition(".")[0] == "edgemail":
            each.__class__ = Logger
    for name, least in _LEVELS.items():
        logging.getLogger(name).setLevel(least)
