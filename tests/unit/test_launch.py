"""What the relay is started with: how often, as whom, and which system calls it may make."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from edgemail.boot import launch, seccomp
from edgemail.boot.places import Places

ALLOW, KILL, ERRNO = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
MACHINES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}


# ---- how often


def test_starts_that_do_not_last_are_spread() -> None:
    waits = []
    starts: list[float] = []
    now = 1000.0
    for _ in range(9):
        waits.append(launch.wait(starts, now))
        now += waits[-1]
        starts.append(now)
        now += 1.0
    assert waits == [0.0, 0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert launch.wait(starts, now + 10_000.0) == 0.0
    assert launch.wait([5_000.0], 1.0) == 0.0  # of another start of the machine


def test_starts_are_written_down(tmp_path: Path) -> None:
    assert [launch.take_turn(tmp_path, now) for now in (10.0, 11.0, 12.0)] == [0.0, 0.0, 2.0]
    for text in ("{", "[null]", '{"a": 1}'):
        (tmp_path / "starts.json").write_text(text)
        assert launch.take_turn(tmp_path, 20.0) == 0.0


def test_what_is_become() -> None:
    places = Places()
    assert launch.command(places, True)[1:] == [
        "-I", "-m", "edgemail.boot.cli", "run", "--config", "/run/edgemail/edgemail.toml",
    ]  # fmt: skip
    assert launch.command(places, False)[-2:] == ["edgemail.boot.waiting", "/run/edgemail/boot.json"]


# ---- the filter


def verdict(code: bytes, machine: str, number: int, argument: int = 0) -> int:
    """What the kernel makes of a call: classic BPF, run by hand."""
    memory = struct.pack("=IIQQ", number, MACHINES[machine], 0, argument)
    program = list(struct.iter_unpack("=HBBI", code))
    at, accumulator = 0, 0
    while True:
        operation, yes, no, value = program[at]
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("=I", memory, value)[0]
        elif operation == 0x06:
            return int(value)
        else:
            hit = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[operation]
            at += yes if hit else no


@pytest.mark.parametrize("machine", MACHINES)
def test_the_program_says_what_the_lists_say(machine: str) -> None:
    code = seccomp.program(machine)
    known = set()
    for table, wanted in ((seccomp.ALLOWED, ALLOW), (seccomp.HOSTILE, KILL)):
        for number in seccomp.numbers(table, machine):
            assert verdict(code, machine, number) == wanted
            assert number not in known
            known.add(number)
    names = [entry.split(":")[0] for entry in (seccomp.ALLOWED + seccomp.HOSTILE).split()]
    assert len(names) == len(set(names))
    clone, socket = seccomp.CLONE[machine], seccomp.SOCKET[machine]
    for number in set(range(1000)) - known - {clone, socket}:
        assert verdict(code, machine, number) == ERRNO | errno.ENOSYS
    assert verdict(code, machine, clone, 0x0120_0011) == ALLOW  # fork
    assert verdict(code, machine, clone, 0x1000_0011) == ERRNO | errno.EPERM  # a user namespace
    assert [verdict(code, machine, socket, family) for family in (1, 2, 10, 16)] == [ALLOW] * 4
    assert verdict(code, machine, socket, 17) == ERRNO | errno.EAFNOSUPPORT  # packets off the wire
    assert len(code) // 8 < 4096


def test_another_machine_ends_the_process() -> None:
    assert verdict(seccomp.program("x86_64"), "aarch64", 63) == KILL
    assert verdict(seccomp.program("aarch64"), "x86_64", 0) == KILL
    assert verdict(seccomp.program("x86_64"), "x86_64", 0x4000_0000) == KILL
    with pytest.raises(KeyError):
        seccomp.program("riscv64")


def child(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=False, timeout=60)


CONFINE = "import os, socket, ctypes\nfrom edgemail.boot import seccomp\nseccomp.confine()\n"


@pytest.mark.skipif(os.uname().machine not in MACHINES, reason="no list for this machine")
def test_a_confined_process_works_and_may_not_do_the_rest() -> None:
    done = child(CONFINE + "import subprocess; print(subprocess.run(['echo', 'child'], capture_output=True).stdout)")
    assert (done.stdout, done.returncode) == ("b'child\\n'\n", 0), done.stderr
    done = child(CONFINE + "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)")
    assert "Address family not supported" in done.stderr
    done = child(CONFINE + "print(open('/proc/self/status').read())")
    assert "NoNewPrivs:\t1" in done.stdout
    assert "Seccomp:\t2" in done.stdout
    ends = child(CONFINE + "ctypes.CDLL(None).mount(b'x', b'/mnt', b'tmpfs', 0, None)\nprint('on')")
    assert (ends.returncode, ends.stdout) == (-31, "")  # SIGSYS
    unknown = child(CONFINE + "l = ctypes.CDLL(None, use_errno=True); l.unshare(0x10000000); print(ctypes.get_errno())")
    assert unknown.stdout.strip() == str(errno.ENOSYS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up root")
def test_root_is_given_up_but_for_low_ports() -> None:
    body = """
import errno, os, selectors, socket, subprocess
from edgemail.boot import launch, seccomp
launch.give_up("nobody")
seccomp.confine()
with socket.socket() as low:
    low.bind(("127.0.0.1", 0))
print(subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout)
try:
    os.setuid(0)
except OSError as error:
    print("setuid", error.errno)
try:
    open("/etc/shadow").close()
except OSError as error:
    print("shadow", error.errno)
"""
    done = child(body)
    assert done.returncode == 0, done.stderr
    found = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    only = f"{1 << 10:016x}"
    assert [found[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == [only] * 5
    assert found["Uid"].split() == [found["Uid"].split()[0]] * 4 != ["0"] * 4
    assert found["NoNewPrivs"] == "1"
    assert f"setuid {errno.ENOSYS}" in done.stdout
    assert f"shadow {errno.EACCES}" in done.stdout
