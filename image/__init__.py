"""How the system image is built: standard library only, no root, everything else from pinned Debian packages.

`make image` runs `python -m image build`. A package never runs a script of its own here: archives are unpacked and
what is not wanted is left out, so that the result depends on the lock file and this repository alone.
"""
