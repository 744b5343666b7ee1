"""The thin link: 600 ms of round trip and 256 kbit/s between a relay and its smarthost, over TLS.

Both systems send the same messages through the same line (tests.scenarios.thin) to a smarthost that is a Postfix and
throws away what it takes. Postfix as it comes opens a connection for each message, up to twenty at once; edgemail has
a `[[link]]` of class satellite and so one connection. Figures depend on the line more than on the machine.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.cases import Case, Figures, Row
from bench.systems import SENT
from tests.peers.certificate import Certificate, certificate
from tests.peers.postfix import postfix, smtp_source
from tests.scenarios.relay import LISTENER, relay
from tests.scenarios.thin import thin_line

DELAY = 0.3  # seconds each way
RATE = 32_000.0  # octets in a second each way
HEADER = 125  # octets that smtp-source puts before the length it is told
SECONDS = 600.0
LINK = '\n[[link]]\nname = "line"\nclass = "{kind}"\nroute = "127.0.0.1"\n'


@dataclass(frozen=True)
class Work:
    """What goes over the line. `kind`: the class of edgemail's link."""

    size: int
    messages: int
    chunking: bool = True
    kind: str = "satellite"


@contextlib.contextmanager
def smarthost(files: Certificate, *, chunking: bool) -> Iterator[int]:
    """A Postfix that offers STARTTLS and throws away what it takes; its port."""
    settings = {
        "myhostname": "smarthost.example",
        "smtpd_tls_security_level": "may",
        "smtpd_tls_cert_file": str(files.certificate),
        "smtpd_tls_key_file": str(files.key),
        "default_transport": "discard",
        **({} if chunking else {"smtpd_discard_ehlo_keywords": "chunking"}),
    }
    with postfix(settings) as found:
        yield found.port


@contextlib.contextmanager
def sender(name: str, case: Work, hop: int, directory: Path) -> Iterator[tuple[int, Path]]:
    """The system that sends; its port and its log."""
    if name == "postfix":
        with postfix({"relayhost": f"[127.0.0.1]:{hop}", "smtp_tls_security_level": "encrypt"}) as found:
            yield found.port, found.directory / "log"
        return
    settings = f'relayhost = "[127.0.0.1]:{hop}"\nsmtp_tls_security_level = "encrypt"\nsmtp_links = ["line"]\n'
    settings += 'smtpd_tls_security_level = "none"\n'
    with relay(directory, settings, LINK.format(kind=case.kind) + LISTENER) as own:
        yield own.port, own.log_path


def measure(name: str, case: Work) -> Figures:
    """One run over a fresh line, until the log says that every message is sent."""
    with tempfile.TemporaryDirectory(prefix="thin-") as directory, contextlib.ExitStack() as stack:
        here = Path(directory)
        here.chmod(0o755)  # the smarthost's daemons read the certificate
        files = certificate(here)
        files.key.chmod(0o644)
        hop = stack.enter_context(smarthost(files, chunking=case.chunking))
        line = stack.enter_context(thin_line(hop, delay=DELAY, rate=RATE))
        own = here / "own"
        own.mkdir()
        port, log = stack.enter_context(sender(name, case, line.port, own))
        started = time.monotonic()
        done = smtp_source(port, messages=case.messages, sessions=4, length=case.size - HEADER)
        assert done.returncode == 0, done.stderr
        while (sent := log.read_bytes().count(SENT)) < case.messages:
            assert time.monotonic() - started < SECONDS, f"{name}: {sent} of {case.messages} delivered"
            time.sleep(0.02)
        seconds = time.monotonic() - started
        return {
            "rate": case.messages / seconds * 60,
            "connections": line.connections,
            "octets": line.up.octets / case.messages,  # with TLS and its set-up
            "trips": line.turns / case.messages,  # how often it went up again after something had come down
            "line": line.up.octets / (RATE * seconds),
        }


def _case(name: str, work: Work, *rows: Row) -> Case:
    return Case(name, partial(_measure, work), rows, once=True)


def _measure(work: Work, name: str) -> Figures:
    return measure(name, work)


CASES = (
    _case(
        "thin link 1 KB",
        Work(1000, 200),
        Row("thin link, 1 KB, BDAT", "rate", "/min", 4.0, rate=True),
        Row("thin link, 1 KB, BDAT: octets up each", "octets", "", limit=1300),
    ),
    _case(
        "thin link 10 KB",
        Work(10_000, 200),
        Row("thin link, 10 KB, BDAT: share of the line", "line", "", limit=0.9, rate=True),
    ),
    _case(
        "thin link 1 KB, DATA",
        Work(1000, 60, chunking=False),
        Row("thin link, 1 KB, DATA, one connection", "rate", "/min", 0.6, rate=True),
    ),
    _case(
        "thin link 1 KB, DATA, lte",
        Work(1000, 60, chunking=False, kind="lte"),
        Row("thin link, 1 KB, DATA, class lte", "rate", "/min", 0.6, rate=True),
    ),
)
