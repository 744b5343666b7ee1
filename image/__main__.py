"""`python -m image build | relock | bundle | keys | tools`; `make image` and `make relock` call it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from image import build, debian, signing, tools
from image.definition import BUILD


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m image", description="Build the system image.")
    verbs = found.add_subparsers(dest="verb", required=True)
    make = verbs.add_parser("build", help="the image, its slot, the signed bundle, manifest and SBOM, into build/")
    make.add_argument("--out", type=Path, default=BUILD, help="another directory")
    make.add_argument("--no-xz", action="store_true", help="do not pack the image")
    verbs.add_parser("relock", help="pin today's packages")
    verbs.add_parser("tools", help="fetch and unpack the programs that build and test the image")
    keys = verbs.add_parser("keys", help="make a pair of keys to sign releases with")
    keys.add_argument("directory", type=Path)
    sign = verbs.add_parser("bundle", help="sign the slot of an image that was built")
    sign.add_argument("--key", type=Path, action="append", required=True, help="a private key; more than one may sign")
    sign.add_argument("--min-from", type=int, default=0, help="the serial that a box must have to take this release")
    sign.add_argument("--out", type=Path, default=BUILD, help="where the image is")
    return found


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        if options.verb == "build":
            made = build.Build(build.version(), build.date(), build.serial(), out=options.out, xz=not options.no_xz)
            build.run(made)
            print(f"{made.out / made.name}.img")
        elif options.verb == "relock":
            debian.write(debian.relock())
        elif options.verb == "tools":
            for group in ("tools", "emulator"):
                print(tools.tools(group).tree)
        elif options.verb == "keys":
            signing.make(options.directory)
        else:
            made = build.Build(build.version(), build.date(), build.serial(), out=options.out)
            print(build.bundle(made, options.key, options.min_from))
    except (build.Wrong, debian.Mismatch, OSError, RuntimeError, LookupError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
