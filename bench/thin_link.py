"""The thin link: 600 ms of round trip and 256 kbit/s between a relay and its smarthost, over TLS.

Both systems send the same messages through the same line (tests.scenarios.thin) to a smarthost that is a Postfix and
throws away what it takes. Postfix as it comes opens a connection for each message, up to twenty at once; edgemail has
a `[[link]]` of class satellite and so one connection. Figures depend on the line more than on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.systems import SENT
from tests.peers.certificate import Certificate, certificate
from tests.peers.postfix import postfix, smtp_source
from tests.scenarios.relay import LISTENER, relay
from tests.scenarios.thin import ThinLine, thin_line

DELAY = 0.3  # seconds each way
RATE = 32_000.0  # octets in a second each way
HEADER = 125  # octets that smtp-source puts before the length it is told
SECONDS = 600.0
LINK = '\n[[link]]\nname = "line"\nclass = "{kind}"\nroute = "127.0.0.1"\n'


@dataclass(frozen=True)
class Case:
    """`what` is compared with `target`: rate (to Postfix), line (share of its octets used), octets (up per message)."""

    name: str
    size: int
    messages: int
    what: str
    target: float
    chunking: bool = True
    kind: str = "satellite"


@dataclass(frozen=True)
class Figure:
    """One system over the line."""

    per_minute: float
    connections: int
    at_once: int
    octets: float  # up, per message, with TLS and its set-up
    trips: float  # per message: how often it went up again after something had come down
    line: float  # share of the octets that the line could have carried up in the time


CASES = [
    Case("thin link 1 KB, BDAT", 1000, 200, "rate", 4.0),
    Case("thin link 1 KB, BDAT, octets up", 1000, 200, "octets", 1300),
    Case("thin link 10 KB, BDAT, share of the line", 10_000, 200, "line", 0.9),
    Case("thin link 1 KB, DATA, one connection", 1000, 60, "rate", 0.6, chunking=False),
    Case("thin link 1 KB, DATA, class lte", 1000, 60, "rate", 0.6, chunking=False, kind="lte"),
]

HEAD = (
    "| case | system | messages a minute | connections | at once | octets up each | round trips each | line used "
    "| figure | target | met |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


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
def sender(name: str, case: Case, hop: int, directory: Path) -> Iterator[tuple[int, Path]]:
    """The system that sends; its port and its log."""
    if name == "postfix":
        with postfix({"relayhost": f"[127.0.0.1]:{hop}", "smtp_tls_security_level": "encrypt"}) as found:
            yield found.port, found.directory / "log"
        return
    settings = f'relayhost = "[127.0.0.1]:{hop}"\nsmtp_tls_security_level = "encrypt"\nsmtp_links = ["line"]\n'
    settings += 'smtpd_tls_security_level = "none"\n'
    with relay(directory, settings, LINK.format(kind=case.kind) + LISTENER) as own:
        yield own.port, own.log_path


def measure(name: str, case: Case) -> Figure:
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
        return figure(case, line, time.monotonic() - started)


def figure(case: Case, line: ThinLine, seconds: float) -> Figure:
    return Figure(
        per_minute=case.messages / seconds * 60,
        connections=line.connections,
        at_once=line.most_open,
        octets=line.up.octets / case.messages,
        trips=line.turns / case.messages,
        line=line.up.octets / (RATE * seconds),
    )


def judged(case: Case, ours: list[Figure], theirs: list[Figure]) -> tuple[float, bool]:
    """The figure that has a target, and whether it is met."""
    if case.what == "rate":
        pairs = zip(ours, theirs, strict=True)
        value = statistics.median(our.per_minute / their.per_minute for our, their in pairs)
        return value, value >= case.target
    if case.what == "line":
        value = statistics.median(our.line for our in ours)
        return value, value >= case.target
    value = statistics.median(our.octets for our in ours)
    return value, value <= case.target


def lines(case: Case, found: dict[str, list[Figure]]) -> Iterator[str]:
    """The rows of a case, one for each system."""
    value, met = judged(case, found["edgemail"], found["postfix"])
    for name, each in found.items():
        middle = sorted(each, key=lambda one: one.per_minute)[len(each) // 2]
        end = f"{value:.4g} | {case.target:g} | {'yes' if met else 'no'}" if name == "edgemail" else "| |"
        yield (
            f"| {case.name} | {name} | {middle.per_minute:.0f} | {middle.connections} | {middle.at_once} "
            f"| {middle.octets:.0f} | {middle.trips:.2f} | {middle.line:.0%} | {end} |"
        )


def run(only: str = "", rounds: int = 1) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Print the cases whose name holds `only`; their figures. Cases of the same work share their runs."""
    cases = [case for case in CASES if only in case.name]
    if cases:
        print(HEAD, flush=True)
    known: dict[tuple[int, int, bool, str], dict[str, list[Figure]]] = {}
    figures = {}
    for case in cases:
        key = case.size, case.messages, case.chunking, case.kind
        if key not in known:
            known[key] = {name: [measure(name, case) for _ in range(rounds)] for name in ("edgemail", "postfix")}
        for row in lines(case, known[key]):
            print(row, flush=True)
        figures[case.name] = {name: [asdict(one) for one in each] for name, each in known[key].items()}
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.thin_link")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each case on each system (default: 1)")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--json", type=Path, default=Path("build/thin-link.json"), help="where the figures go")
    arguments = parser.parse_args()
    figures = run(arguments.only, arguments.rounds)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
