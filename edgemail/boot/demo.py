"""`edgemail demo`, which is what `make run` starts: the relay at work on loopback, with a smarthost of its own.

Writes a configuration and a spool under a directory (./var), starts the relay of that configuration and a development
smarthost that keeps what it receives in a Maildir, sends one message, prints its way, and goes on serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import logging
import socket
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edgemail.boot import config, log
from edgemail.boot.maildir import Maildir
from edgemail.boot.serve import Relay, guarded
from edgemail.clock import SystemClock
from edgemail.envelope import Envelope
from edgemail.relay.receive.listen import Server
from edgemail.relay.receive.reception import Reception
from edgemail.settings import Configuration
from edgemail.spool.store import ensure_free

PORTS: Final = (2525, 2526, 8025)  # the relay, the smarthost, the health endpoint; the next free ones where taken
WAIT_SECONDS: Final = 20.0  # limit: until the demonstration message must have arrived
GONE_SECONDS: Final = 5.0  # limit: from then until the spool has forgotten it

CONFIG: Final = """\
# Written anew by every `make run`; take a copy to change it, and `make run CONFIG=` with the name of the copy.
myhostname      = "relay.demo.example"
mynetworks      = ["127.0.0.0/8", "::1/128"]
relayhost       = "[127.0.0.1]:{smarthost}"
queue_directory = "{spool}"
admin_address   = "you@demo.example"
mail_owner      = "{owner}"

[[listener]]
address = "127.0.0.1"
port    = {relay}

[health]
address = "127.0.0.1"
port    = {health}
"""

# The conversation up to the content; the first is the greeting, which nobody asks for.
OPENING: Final = (
    "",
    "EHLO printer.demo.example",
    "MAIL FROM:<printer@demo.example>",
    "RCPT TO:<you@demo.example>",
    "DATA",
)

MESSAGE: Final = """\
From: Printer <printer@demo.example>\r
To: You <you@demo.example>\r
Subject: Hello from edgemail\r
Date: {date}\r
Message-ID: <{unique}@demo.example>\r
\r
This message went in over SMTP, was made durable in the spool,\r
and was passed on to the smarthost that keeps it in a Maildir.\r
"""


@dataclass
class Way:
    """The demonstration message's way through the relay, as the log tells it: (seconds since the start, what)."""

    began: float
    queue_id: str = ""
    steps: list[tuple[float, str]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, what: str) -> None:
        self.steps.append((time.monotonic() - self.began, what))


class WayHandler(logging.Handler):
    """Listens to the relay's own log for the one message."""

    def __init__(self, way: Way) -> None:
        super().__init__(logging.INFO)
        self.way = way

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not self.way.queue_id or not text.startswith(self.way.queue_id):
            return
        _, _, what = text.partition(": ")
        if "status=" in what:
            self.way.note("relayed    " + what)
        elif what == "removed":
            self.way.note("removed    the spool has forgotten it")
            self.way.gone.set()


def free_port(wanted: int, taken: Collection[int] = ()) -> int:
    """`wanted`, or the next one on loopback that nobody listens on and that is not among those `taken` already."""
    for port in range(wanted, wanted + 100):
        if port in taken:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {wanted} and {wanted + 99} on 127.0.0.1")


def write_configuration(directory: Path) -> tuple[Path, int]:
    """Write `directory`/edgemail.toml with free ports; returns it and the smarthost's port.

    Raises SpoolBusy where a relay runs there already: its commands go by the file that is there.
    """
    spool = directory.absolute() / "spool"
    ensure_free(spool)
    spool.mkdir(parents=True, exist_ok=True)
    ports: list[int] = []
    for wanted in PORTS:
        ports.append(free_port(wanted, ports))
    relay, smarthost, health = ports
    path = directory / "edgemail.toml"
    path.write_text(
        CONFIG.format(smarthost=smarthost, spool=spool, relay=relay, health=health, owner=getpass.getuser())
    )
    return path, smarthost


async def send(port: int, way: Way, unique: str) -> bool:
    """Hand the message over as a client does, printing the conversation; whether it was taken."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def expect(command: str = "") -> str:
        if command:
            print(f"    C: {command}")
            writer.write(command.encode() + b"\r\n")
        while True:
            line = (await reader.readline()).decode("utf-8", "replace").rstrip()
            print(f"    S: {line}")
            if line[3:4] != "-":
                return line

    try:
        for command in OPENING:
            if not (await expect(command)).startswith(("2", "3")):
                return False
        date = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime())
        writer.write(MESSAGE.format(date=date, unique=unique).encode())
        print("    C: (the message)")
        way.note("received   the client has said its final dot")
        reply = await expect(".")
        if not reply.startswith("2"):
            return False
        way.queue_id = reply.rpartition(" ")[2]
        way.note(f"committed  the relay said 250: message {way.queue_id} is on the medium, flushed")
        await expect("QUIT")
        return True
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def smarthost(configuration: Configuration, port: int, way: Way, maildir: Path, unique: str) -> Server:
    """The development smarthost: the same sessions as the relay's, into a Maildir. Stop it with `drain`."""

    def delivered(envelope: Envelope, path: Path) -> None:
        head = path.read_bytes()[:4096].decode("utf-8", "replace")
        if unique in head:
            way.note(f"delivered  to {path}")
            way.arrived.set()
        else:
            recipients = ", ".join(str(r.address) for r in envelope.recipients)
            print(f"delivered: a message for {recipients} is in {path}")

    own = config.smarthost_configuration(configuration, "smarthost.demo.example", port)
    reception = Reception.alone(Maildir(maildir, delivered), SystemClock(), own)
    server = Server(own.listeners)
    server.bind()
    await server.start(reception)
    return server


async def demonstrate(directory: Path) -> int:
    """Run the demonstration until SIGINT or SIGTERM; returns the exit code."""
    path, port = write_configuration(directory)
    configuration = config.load(path)
    relay = Relay(configuration, SystemClock())
    unique = f"{time.time_ns():x}"
    way = Way(time.monotonic())
    maildir = directory / "Maildir"
    server = await smarthost(configuration, port, way, maildir, unique)
    handler = WayHandler(way)
    logging.getLogger("edgemail").addHandler(handler)
    await relay.start()
    try:
        listening = relay.server.addresses[0][2]
        print(f"\nedgemail relays on 127.0.0.1:{listening}; its smarthost listens on 127.0.0.1:{port}.")
        print("One message, handed over by SMTP:\n")
        way.began = time.monotonic()
        if await send(listening, way, unique):
            try:
                await asyncio.wait_for(way.arrived.wait(), WAIT_SECONDS)
                with contextlib.suppress(TimeoutError):  # it may wait a second for a barrier
                    await asyncio.wait_for(way.gone.wait(), GONE_SECONDS)
            except TimeoutError:
                print(f"\nThe message did not arrive within {WAIT_SECONDS:.0f} s; the log above says why.")
            print("\nIts way, in milliseconds from the first byte:\n")
            for at, what in way.steps:
                print(f"  {at * 1000:8.1f}  {what}")
        else:
            print("\nThe relay did not take it; its last answer and the log above say why.")
        page = f"http://127.0.0.1:{configuration.health.port}/" if configuration.health else ""
        print(hints(path, listening, maildir, page), flush=True)
        relay.heed()
        await relay.serve_until_signal()
    finally:
        logging.getLogger("edgemail").removeHandler(handler)
        await relay.stop()
        await server.drain(1.0)
    return 0


def run(directory: str) -> int:
    """`edgemail demo DIRECTORY`; returns the exit code."""
    log.start()
    return guarded(lambda: asyncio.run(demonstrate(Path(directory))))


def hints(path: Path, port: int, maildir: Path, page: str) -> str:
    """How to send another one and where to look."""
    return f"""
Send another one:
    printf 'Subject: test\\n\\nhello\\n' | EDGEMAIL_CONFIG={path} .venv/bin/sendmail -f me@demo.example you@demo.example
    or any mail client, to 127.0.0.1 port {port}
Look:
    the mail      {maildir}/new
    the queue     EDGEMAIL_CONFIG={path} .venv/bin/mailq
    the page      {page}
    the settings  .venv/bin/edgemail config -n --config {path}
    the log       on this terminal
Stop it with Ctrl-C.
"""
