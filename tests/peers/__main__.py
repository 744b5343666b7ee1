"""`python -m tests.peers install`: fetch and unpack what is missing; quick when nothing is."""

from __future__ import annotations

import argparse
import os
import sys

from tests.peers import PEERS
from tests.peers.install import install


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.peers")
    parser.add_argument("command", choices=["install", "list"])
    parser.add_argument("names", nargs="*", choices=[*PEERS, []], help="these only")
    arguments = parser.parse_args()
    missing = 0
    for name in arguments.names or PEERS:
        peer = PEERS[name]
        why = "" if peer.present else "not installed"
        if arguments.command == "install" and why:
            why = install(peer)
        if why:
            missing += 1
            print(f"SKIP {name}: {why}", file=sys.stderr)
        elif arguments.command == "list":
            print(f"{name}: {peer.path()}")
    return 1 if missing and os.environ.get("CI", "").lower() == "true" else 0


if __name__ == "__main__":
    sys.exit(main())
