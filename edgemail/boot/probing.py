"""The probe of ourselves: SMTP to each of our own listeners, and a record committed to the spool and removed again.

Owns the verdict that /readyz repeats. What it stores is never relayed: the scheduler is not told of it, and should the
power go in between, the next start finds mail to the sender of notices, which is dropped. Seldom, for the card's sake.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from typing import TYPE_CHECKING, Final

from edgemail.envelope import NULL_SENDER, Address, Envelope, Recipient
from edgemail.errors import SpoolError
from edgemail.relay.receive.service import place_of
from edgemail.spool.verbs import Change

if TYPE_CHECKING:
    from edgemail.boot.serve import Relay
    from edgemail.settings import Settings

log = logging.getLogger("edgemail.health")

PROBE_SECONDS: Final = 1800.0  # between two probes while they succeed
AGAIN_SECONDS: Final = 15.0  # between two probes while they fail
ANSWER_SECONDS: Final = 8.0  # limit: for the whole conversation with one of our own listeners
COMMIT_SECONDS: Final = 10.0  # limit: for the probe's record to be durable, and to be gone
RECORD: Final = b"Subject: a probe of edgemail by itself\r\n\r\nThis is not mail.\r\n"


class Prober:
    """Probes at the start and then now and then. `verdict`: "" when the last probe went through, else why not."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._commit: asyncio.Task[None] | None = None
        self.verdict = "the first probe has not gone through yet"
        self.failing: dict[str, str] = {}  # listener -> what was wrong

    async def run(self) -> None:
        """Until it is cancelled. The first probe waits until the listeners serve."""
        while not self._relay.server.serving:
            await asyncio.sleep(0.05)
        while True:
            before, self.verdict = self.verdict, await self.probe()
            if self.verdict != before:
                level = logging.WARNING if self.verdict else logging.INFO
                log.log(level, "probe: %s", self.verdict or "mail is taken")
            await asyncio.sleep(AGAIN_SECONDS if self.verdict else PROBE_SECONDS)

    async def probe(self) -> str:
        """One probe: "" or the sentence that says what did not work."""
        failing: dict[str, str] = {}
        settings = {place_of(each): each.settings for each in self._relay.configuration.listeners}
        places = {each.name: place_of(each) for each in self._relay.configuration.listeners}
        for name, host, port in self._relay.server.addresses:
            own = settings.get(places.get(name, ""), self._relay.configuration.settings)
            why = await converse(_reachable(host), port, own)
            if why:
                failing.setdefault(name, why)
        self.failing = failing
        why = await self._store()
        if failing:
            name, said = next(iter(failing.items()))
            return f"listener {name}: {said}"
        return f"the spool: {why}" if why else ""

    async def _store(self) -> str:
        """Commit a record and remove it; the medium may hang for longer than we wait, and then the task goes on."""
        if self._commit is not None and not self._commit.done():
            return "the probe's record is still being written"
        self._commit = asyncio.create_task(self._record(), name="probe-record")
        done, _ = await asyncio.wait({self._commit}, timeout=COMMIT_SECONDS)
        if not done:
            return f"nothing could be written in {COMMIT_SECONDS:.0f} s"
        error = self._commit.exception()
        if error is None or isinstance(error, SpoolError):
            return str(error or "")
        log.error("error: the probe failed", exc_info=error)
        return f"the probe failed: {error!r}"

    async def _record(self) -> None:
        relay = self._relay
        settings = relay.configuration.settings
        recipient = Recipient(Address(Address.of(settings.double_bounce_sender).local, settings.myhostname))
        intake = relay.store.intake()
        try:
            intake.write(RECORD)
            await intake.drain()
            envelope = await intake.commit(
                Envelope(intake.id, NULL_SENDER, (recipient,), received_at=relay.clock.wall(), bounce=True)
            )
        except BaseException:
            with contextlib.suppress(SpoolError):
                await intake.abort()
            raise
        await relay.store.apply(Change(remove=(envelope.id,)))


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


async def converse(host: str, port: int, settings: Settings) -> str:
    """Greet a listener of ours as a client does: "" or what it did wrong."""
    context = None
    if settings.smtpd_tls_wrappermode:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # it is asked whether it answers, not who it is
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            for command, code in ((b"", b"220"), (b"EHLO probe.invalid\r\n", b"250"), (b"QUIT\r\n", b"221")):
                if command:
                    writer.write(command)
                line = await reader.readline()
                while line[3:4] == b"-":
                    line = await reader.readline()
                if not line.startswith(code):
                    said = line.decode("ascii", "replace").strip()
                    return f"it says {said[:200]!r}" if said else "it hangs up"
    except TimeoutError:
        return f"it does not answer within {ANSWER_SECONDS:.0f} s"
    except OSError as error:
        return f"no connection: {error.strerror or error}"
    finally:
        if writer is not None:
            writer.transport.abort()
    return ""
