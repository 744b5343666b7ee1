"""The same card in an emulated Raspberry Pi 3: the Pi's device tree, its SD controller, a network on USB, no clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from image import build
from image.definition import WORK
from tests.image.conftest import configuration
from tests.image.machine import Card, Machine
from tests.image.test_life import send
from tests.scenarios.sink import sink

DIRECT_SECONDS = 30.0  # from a directly loaded kernel
TREE = "bcm2837-rpi-3-b.dtb"
WORDS = "console=ttyS1,115200 console=ttyAMA0 quiet panic=5 cryptomgr.notests edgemail.watchdog=off"


@pytest.mark.long
def test_raspberry_pi_3_with_the_kernel_loaded_directly(made: build.Build, image: Path, tmp_path: Path) -> None:
    card = Card.flashed(image, tmp_path / "card.img")
    (tmp_path / "tree.dtb").write_bytes(card.get(TREE))
    kernel = next((WORK / "kernel" / "boot").glob("vmlinuz-*"))
    direct = (
        *("-kernel", str(kernel), "-initrd", str(made.work / "initrd"), "-dtb", str(tmp_path / "tree.dtb")),
        *("-append", f"{WORDS} edgemail.slot=A edgemail.left=2 dwc_otg.fiq_fsm_enable=0"),
    )
    with sink() as smarthost:
        card.put("edgemail.toml", configuration(smarthost.port))
        with Machine(card, board="raspi3b", direct=direct) as machine:
            took, spent = machine.greeting(400), machine.cpu()
            print(f"greeting after {took:.0f} s, {spent:.0f} CPU seconds; the goal is {DIRECT_SECONDS:.0f} s")
            send(machine, "from a Pi")
            smarthost.wait_for(1, 120)


@pytest.mark.long
def test_raspberry_pi_3_through_its_boot_loader(image: Path, tmp_path: Path) -> None:
    """U-Boot reads the emulated card and counts the try; readiness is read from the serial line."""
    card = Card.flashed(image, tmp_path / "card.img")
    card.put("edgemail.toml", configuration(9))
    card.put("boot-arguments.txt", "more=edgemail.watchdog=off console=ttyAMA0\n")
    (tmp_path / "tree.dtb").write_bytes(card.get(TREE))
    (tmp_path / "u-boot.bin").write_bytes(card.get("u-boot.bin"))
    direct = ("-kernel", str(tmp_path / "u-boot.bin"), "-dtb", str(tmp_path / "tree.dtb"))
    with Machine(card, board="raspi3b", direct=direct) as machine:
        machine.wait_for("slot A, 2 tries left", 200)
        machine.wait_for("edgemail: ready", 600)
