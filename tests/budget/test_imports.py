"""What the daemon may load: every module costs memory on a small board for as long as the box runs."""

from __future__ import annotations

import json
import subprocess
import sys

FORBIDDEN = ("dns", "cryptography", "psutil", "argparse", "hypothesis", "pytest", "unittest", "multiprocessing")
MODULES = 250  # limit of those that are not ours, aiosmtpd and asyncio included; about 225 when this was written


def loaded(statement: str) -> set[str]:
    """The modules in a fresh interpreter after a statement."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    return set(json.loads(done.stdout))


def test_the_daemon_loads_nothing_that_it_does_not_need() -> None:
    modules = loaded("import edgemail.boot.serve")
    assert "edgemail.boot.serve" in modules
    found = {name for name in modules if name.partition(".")[0] in FORBIDDEN}
    assert not found


def test_the_email_package_is_there_only_for_aiosmtpd() -> None:
    """aiosmtpd imports a part of it; nothing of ours may bring in more."""
    theirs = {name for name in loaded("import aiosmtpd.smtp") if name.startswith("email")}
    ours = {name for name in loaded("import edgemail.boot.serve") if name.startswith("email")}
    assert ours <= theirs


def test_the_daemon_stays_small() -> None:
    assert len({name for name in loaded("import edgemail.boot.serve") if not name.startswith("edgemail")}) < MODULES
