"""The image that is flashed is the image that is tested: it boots under QEMU, is updated, cut, damaged, and comes back.

`make image-test` builds it and runs all of this; CI runs the part that is marked. Needs no root but for crash replays.
"""
