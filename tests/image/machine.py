"""A board under QEMU: a card, a serial line, ports of this host that lead into it. Owns processes; knows no mail."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from image import tools
from image.card import CARD_SIZE
from image.definition import BOOT_START
from tests.peers.ports import quiet_port

HOST: Final = "10.0.2.2"  # this machine, as the board sees it
CARD: Final = 1 << 30  # bytes of the cards that tests flash
SLACK: Final = 3  # a machine that is slower, or whose other core is busy, is no fault of the image
NOISE: Final = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[78])|\r")


@dataclass
class Card:
    """A flashed card: a sparse copy of an image, as large as a card is."""

    path: Path

    @classmethod
    def flashed(cls, image: Path, path: Path, size: int = CARD) -> Card:
        assert size >= CARD_SIZE
        subprocess.run(["cp", "--sparse=always", image, path], check=True)
        os.truncate(path, size)
        return cls(path)

    def copy(self, path: Path) -> Card:
        subprocess.run(["cp", "--sparse=always", self.path, path], check=True)
        return Card(path)

    @property
    def _boot(self) -> str:
        return f"{self.path}@@{BOOT_START}"

    def put(self, name: str, content: str | bytes) -> None:
        """A file on the boot partition, as a person would copy it there."""
        source = self.path.with_name(f"{self.path.name}.put")
        source.write_bytes(content.encode() if isinstance(content, str) else content)
        tools.tools().run("mcopy", "-o", "-i", self._boot, source, f"::{name}")
        source.unlink()

    def get(self, name: str) -> bytes:
        """A file of the boot partition; b"" if it is not there."""
        target = self.path.with_name(f"{self.path.name}.got")
        target.unlink(missing_ok=True)
        with contextlib.suppress(RuntimeError):
            tools.tools().run("mcopy", "-n", "-i", self._boot, f"::{name}", target)
        return target.read_bytes() if target.exists() else b""

    def names(self) -> list[str]:
        return tools.tools().run("mdir", "-b", "-i", self._boot, "::").split()

    def read(self, at: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(at)
            return file.read(size)

    def write(self, at: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(at)
            file.write(data)


@dataclass
class Machine:
    """One power-on. Ports of the board by number, as ports of this host: `machine.port(25)`."""

    card: Card
    memory: int = 256
    board: str = "virt"
    ports: Sequence[int] = (25, 587, 465, 366, 8025)
    clock: str = ""  # an RTC to start from, as QEMU's -rtc base= takes it
    network: bool = True
    log: Path | None = None  # every write and flush of the card, as dm-log-writes has it
    direct: Sequence[str] = ()  # kernel, first root and words, instead of U-Boot
    forward: dict[int, int] = field(default_factory=dict)

    def __enter__(self) -> Machine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Power on. The serial line is read by a thread until the power goes."""
        emulator = tools.tools("emulator")
        while len(set(self.forward.values())) < len(self.ports):
            self.forward = {port: quiet_port() for port in self.ports}
        self.gdb = quiet_port()
        command = emulator.command("qemu-system-aarch64", "-L", str(emulator.tree / "usr/share/qemu"), *self._options())
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=emulator.environment()
        )
        self._said = bytearray()
        self._times: list[tuple[int, float]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _options(self) -> list[str]:
        rules = "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{there}" for there, here in self.forward.items())
        found = ["-nographic", "-nodefaults", "-m", str(self.memory), "-gdb", f"tcp:127.0.0.1:{self.gdb}"]
        if self.clock:
            found += ["-rtc", f"base={self.clock}"]
        if self.log is not None:
            found += [
                *("-blockdev", f"driver=file,node-name=medium,filename={self.card.path}"),
                *("-blockdev", f"driver=file,node-name=log,filename={self.log}"),
                *("-blockdev", "driver=blklogwrites,node-name=card,file=medium,log=log,log-sector-size=512"),
            ]
        else:
            found += ["-blockdev", f"driver=file,node-name=card,filename={self.card.path},cache.direct=off"]
        if self.board == "virt":
            found += ["-M", "virt", "-cpu", "cortex-a53", "-serial", "stdio"]
            found += ["-device", "virtio-blk-device,drive=card", "-device", "i6300esb", "-device", "virtio-rng-pci"]
            found += ["-action", "watchdog=reset"]
            if self.network:
                found += ["-netdev", f"user,id=net{rules}", "-device", "virtio-net-device,netdev=net"]
            if not self.direct:
                found += ["-bios", str(tools.tools("emulator").tree / "usr/lib/u-boot/qemu_arm64/u-boot.bin")]
        else:
            found = ["-M", self.board, "-display", "none", "-serial", "null", "-serial", "stdio", "-monitor", "none"]
            found += ["-drive", f"if=sd,format=raw,file={self.card.path}", "-gdb", f"tcp:127.0.0.1:{self.gdb}"]
            if self.network:
                found += ["-netdev", f"user,id=net{rules}", "-device", "usb-net,netdev=net"]
        return [*found, *self.direct]

    def _read(self) -> None:
        assert self.process.stdout is not None
        while data := os.read(self.process.stdout.fileno(), 65536):
            self._times.append((len(self._said), time.monotonic() - self.began))
            self._said += data

    def cpu(self) -> float:
        """CPU seconds of the emulator so far: what a time would be on a machine that does nothing else."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def _patience(self, seconds: float) -> Callable[[], bool]:
        """Whether so many seconds are over: of the emulator's own, where the machine has other things to do as well."""
        wall, spent = time.monotonic() + seconds, self.cpu() + seconds
        return lambda: time.monotonic() > wall + 4 * seconds or (time.monotonic() > wall and self.cpu() > spent)

    def kill(self) -> None:
        """The power goes."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def port(self, number: int) -> int:
        return self.forward[number]

    @property
    def said(self) -> str:
        """All that stood on the serial line so far."""
        return NOISE.sub("", bytes(self._said).decode("latin-1"))

    def seconds(self, text: str) -> float:
        """When `text` was first said, in seconds since the power came."""
        at = bytes(self._said).find(text.encode())
        assert at >= 0, f"{text!r} was never said"
        return max((when for start, when in self._times if start <= at), default=0.0)

    def wait_for(self, text: str, seconds: float, times: int = 1) -> float:
        """Until `text` (an expression) stands on the serial line so many times; the time since the power came."""
        late = self._patience(seconds)
        while len(re.findall(text, self.said)) < times:
            assert self.process.poll() is None, f"the machine ended:\n{self.said[-3000:]}"
            assert not late(), f"{text!r} not within {seconds} s:\n{self.said[-3000:]}"
            time.sleep(0.05)
        return time.monotonic() - self.began

    def greeting(self, seconds: float, port: int = 25) -> float:
        """Until SMTP greets; the time since the power came."""
        late = self._patience(seconds)
        while not (line := self._line(port)).startswith(b"220 "):
            assert self.process.poll() is None, f"the machine ended:\n{self.said[-3000:]}"
            assert not late(), f"no greeting within {seconds} s but {line!r}:\n{self.said[-3000:]}"
            time.sleep(0.1)
        return time.monotonic() - self.began

    def _line(self, port: int) -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", self.port(port)), 2.0) as connection:
                connection.settimeout(2.0)
                return connection.recv(512)
        except OSError:
            return b""

    def get(self, path: str, seconds: float = 10.0) -> tuple[int, bytes]:
        """A page of the board: status and body; 0 and the reason if nobody answers."""
        try:
            with socket.create_connection(("127.0.0.1", self.port(8025)), seconds) as connection:
                connection.settimeout(seconds)
                connection.sendall(f"GET {path} HTTP/1.0\r\nHost: 10.0.2.15:8025\r\n\r\n".encode())
                data = b""
                while part := connection.recv(65536):
                    data += part
        except OSError as error:
            return 0, str(error).encode()
        head, _, body = data.partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        return (int(words[1]), body) if len(words) == 3 and words[1].isdigit() else (0, data)

    def wait_ready(self, seconds: float) -> float:
        """Until /readyz says 200; the time since the power came."""
        late = self._patience(seconds)
        while (answer := self.get("/readyz"))[0] != 200:
            assert self.process.poll() is None, f"the machine ended:\n{self.said[-3000:]}"
            assert not late(), f"not ready within {seconds} s but {answer}:\n{self.said[-3000:]}"
            time.sleep(0.2)
        return time.monotonic() - self.began


@contextlib.contextmanager
def powered(card: Card, **options: object) -> Iterator[Machine]:
    """A machine that is on inside the block."""
    machine = Machine(card, **options)  # type: ignore[arg-type]
    with machine:
        yield machine


def present() -> str:
    """Why no board can be emulated here, or ""."""
    return "" if shutil.which("dpkg-deb") else "no dpkg-deb here: the emulator cannot be unpacked"
