"""Coverage-guided fuzzing: python -m tests.fuzz [--seconds N] [--merge] [TARGET...] (make fuzz).

Each target runs in a process of its own, from its committed corpus and from what earlier runs found (.cache/fuzz). An
input that breaks an invariant is left in build/fuzz: mend the cause, and copy it to the corpus. `--merge` adds to the
corpora what reaches code that nothing in them reaches.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.fuzz.seeds import CORPUS
from tests.fuzz.targets import NAMES, target

ROOT = Path(__file__).parents[2]
FOUND = ROOT / ".cache" / "fuzz"
BROKEN = ROOT / "build" / "fuzz"
MAX_INPUT = 4096  # octets; what is larger repeats itself
MEMORY = 2048  # MiB until a target counts as broken
SLOW = 25  # seconds for one input until it counts as broken


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("--merge", action="store_true", help="add to the corpora what was found since")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all by default: {' '.join(NAMES)}")
    given = parser.parse_args()
    unknown = set(given.targets) - set(NAMES)
    if unknown:
        parser.error(f"unknown: {' '.join(sorted(unknown))}")
    failed = []
    for name in given.targets or NAMES:
        print(f"--- {name}", flush=True)
        code = merge(name) if given.merge else fuzz(name, given.seconds)
        if code:
            failed.append(name)
    if failed:
        print(f"broken: {' '.join(failed)}; the inputs are in {BROKEN.relative_to(ROOT)}")
    return 1 if failed else 0


def fuzz(name: str, seconds: int) -> int:
    """Look for `seconds`."""
    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    BROKEN.mkdir(parents=True, exist_ok=True)
    words = FOUND / f"{name}.words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target(name).WORDS))
    return _child(
        name,
        f"-max_total_time={seconds}",
        f"-max_len={MAX_INPUT}",
        f"-rss_limit_mb={MEMORY}",
        f"-timeout={SLOW}",
        f"-dict={words}",
        f"-artifact_prefix={BROKEN}/{name}-",
        "-print_final_stats=1",
        "-verbosity=0",
        str(found),
        str(CORPUS / name),
    )


def merge(name: str) -> int:
    """Of what was found, what reaches something new by lines run, not by how often. Small inputs first."""
    return _child(name, "-merge=1", "-use_counters=0", "-verbosity=0", str(CORPUS / name), str(FOUND / name))


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{octet:02X}" for octet in word)


def _child(name: str, *flags: str) -> int:
    environment = {**os.environ, "EDGEMAIL_FUZZ_TARGET": name}
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *flags], env=environment, cwd=ROOT, check=False
    ).returncode


def _launcher() -> Path:
    """A program that is this child: to merge, libFuzzer starts itself again by its own name."""
    path = FOUND / "child"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.fuzz "$@"\n')
    path.chmod(0o755)
    return path


def one(name: str) -> None:
    """The child: the arguments are libFuzzer's."""
    import atheris

    with atheris.instrument_imports(include=["edgemail"]):
        judge = target(name).judge
    atheris.Setup([str(_launcher()), *sys.argv[1:]], judge)
    atheris.Fuzz()


if __name__ == "__main__":
    chosen = os.environ.get("EDGEMAIL_FUZZ_TARGET")
    if chosen:
        one(chosen)
    else:
        sys.exit(main())
