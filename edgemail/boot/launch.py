"""`edgemail boot --serve`: becomes the relay, or the page of a box that takes no mail, with the least right.

Owns what is given up before: root, every capability but the one for ports below 1024, system calls. Waits before the
next start where one start follows the other too fast. No process of ours stays in between: what supervises is init.
"""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import resource
import sys
import time
from pathlib import Path
from typing import Final

from edgemail.boot import seccomp
from edgemail.boot.places import Places, owner, replace, report_of

BIND: Final = 10  # CAP_NET_BIND_SERVICE
LAST_CAPABILITY: Final = 63  # limit: numbers of capabilities that are tried; the kernel knows about 41
CALM_SECONDS: Final = 600.0  # limit: how long a start counts when the next one waits
LONGEST_WAIT: Final = 60.0  # limit: seconds between two starts
OPEN_FILES: Final = 4096  # limit: files and connections of the relay
SPARED: Final = "-900"  # oom_score_adj: everything else goes before what holds mail

PASSED: Final = ("OPENSSL_CONF", "RUNTIME_DIRECTORY")
REPORT_VARIABLE: Final = "EDGEMAIL_BOOT_REPORT"
AGENT_VARIABLE: Final = "EDGEMAIL_AGENT"
INCOMING_VARIABLE: Final = "EDGEMAIL_INCOMING"
FORMAT_VARIABLE: Final = "EDGEMAIL_SPOOL_FORMAT"

_PR_CAPBSET_DROP, _PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 24, 8, 47, 2
_VERSION_3: Final = 0x2008_0522


def wait(starts: list[float], now: float) -> float:
    """How long to wait before a start, seconds; `starts`: when it was started before."""
    lately = sum(1 for each in starts if 0 <= now - each < CALM_SECONDS)
    return 0.0 if lately < 2 else min(LONGEST_WAIT, 2.0 ** (lately - 1))


def take_turn(run: Path, now: float) -> float:
    """Write this start down; returns how long to wait before it."""
    path = run / "starts.json"
    try:
        starts = [float(each) for each in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        starts = []
    pause = wait(starts, now)
    kept = [each for each in starts if 0 <= now - each < CALM_SECONDS][-20:]
    replace(path, json.dumps([*kept, now + pause]))
    return pause


def command(places: Places, configured: bool) -> list[str]:
    """What is become."""
    python = [sys.executable, "-I"]
    if configured:
        return [*python, "-m", "edgemail.boot.cli", "run", "--config", str(places.configuration)]
    return [*python, "-m", "edgemail.boot.waiting", str(places.report)]


def spool_format(places: Places) -> int:
    """The newest format of the spool that the relay may write, so that the other slot's release can go on with it.

    As `Updates` noted it; 0 where it did not: this is no image.
    """
    try:
        return int(places.spool_format.read_text())
    except (OSError, ValueError):
        return 0


def give_watchdog(places: Places) -> None:
    """The relay feeds the board's watchdog, and opens it as who it is by then."""
    device = Path(places.watchdog)
    to = owner(places.user)
    if to is not None and device.exists():
        os.chown(device, *to)


def give_up(user: str) -> None:
    """Root and all it may do, but to bind low ports. Raises OSError and KeyError (no such user)."""
    found = pwd.getpwnam(user)
    libc = ctypes.CDLL(None, use_errno=True)

    def must(result: int, what: str) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

    def prctl(*given: int) -> int:
        return int(libc.prctl(*(ctypes.c_ulong(each) for each in (*given, 0, 0, 0, 0)[:5])))

    for number in range(LAST_CAPABILITY + 1):
        if number != BIND and prctl(_PR_CAPBSET_DROP, number) != 0:
            break  # the kernel knows no more of them
    must(prctl(_PR_SET_KEEPCAPS, 1), "keepcaps")
    os.setgroups([])
    os.setresgid(found.pw_gid, found.pw_gid, found.pw_gid)
    os.setresuid(found.pw_uid, found.pw_uid, found.pw_uid)
    head = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    # effective, permitted, inheritable, for the first 32 and for those after them
    sets = (ctypes.c_uint32 * 6)(1 << BIND, 1 << BIND, 1 << BIND, 0, 0, 0)
    must(libc.capset(head, sets), "capset")
    must(prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, BIND), "ambient capability")


def serve(places: Places) -> None:
    """Never returns: waits its turn, gives up what is not needed, and becomes what the box is to run."""
    replace(places.run / "relay.pid", f"{os.getpid()}\n")
    pause = take_turn(places.run, time.monotonic())
    if pause:
        print(f"the last starts did not last: the next one is in {pause:.0f} s", file=sys.stderr, flush=True)
        time.sleep(pause)
    report = report_of(places)
    become = command(places, bool(report and report["configured"]))
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/",
        "LANG": "C.UTF-8",
        "CRYPTOGRAPHY_OPENSSL_NO_LEGACY": "1",
        REPORT_VARIABLE: str(places.report),
        AGENT_VARIABLE: str(places.run / "agent"),
        INCOMING_VARIABLE: str(places.incoming),
    }
    environment |= {name: os.environ[name] for name in PASSED if name in os.environ}
    newest = spool_format(places)
    if newest:
        environment[FORMAT_VARIABLE] = str(newest)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    if os.geteuid() == 0:
        Path("/proc/self/oom_score_adj").write_text(SPARED)
        give_watchdog(places)
        give_up(places.user)
    os.chdir("/")
    os.umask(0o027)
    seccomp.confine()
    os.execve(become[0], become, environment)
