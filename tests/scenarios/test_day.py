"""A day of a busy site in a minute, by a clock that runs fast: memory stays where it is.

Anonymous memory is read when each two hours are over and the queue is empty. The figures are printed (-rP).
"""

from __future__ import annotations

import contextlib
import random
import smtplib
import ssl
import time
from pathlib import Path

from tests.scenarios.relay import Relay
from tests.scenarios.sink import one_in, sink
from tests.scenarios.test_health import HEALTH, get, wait_ready
from tests.scenarios.test_pressure import anonymous

PACE = 1800  # 48 s for a day
STEPS = 12  # of two hours
WARM = 4  # steps until everything has been used once, and the rings of the page are full
FLAT = 2.0  # MiB
MESSAGES = 160  # a step
PATHS = ("/healthz", "/metrics", "/page.json", "/readyz", "/")


class Site:
    """What a site does in two hours. The chances are the same in each run."""

    def __init__(self, one: Relay) -> None:
        self.one = one
        self.chance = random.Random(2026)
        self.sent = 0
        self.tls = ssl.create_default_context()
        self.tls.check_hostname, self.tls.verify_mode = False, ssl.CERT_NONE

    def size(self) -> int:
        return self.chance.choices((700, 20_000, 300_000, 3_000_000), (70, 22, 7, 1))[0]

    def busy(self) -> None:
        """Devices that send, some under TLS, some that hang up, some that ask for what they may not have."""
        for number in range(MESSAGES // 8):
            with contextlib.suppress(smtplib.SMTPServerDisconnected):
                with smtplib.SMTP("127.0.0.1", self.one.port, "device.example.com", timeout=60) as client:
                    if number % 5 == 0:
                        client.starttls(context=self.tls)
                    for _ in range(8):
                        content = b"Subject: %d\r\n\r\n" % self.sent + b"x" * 70 + b"\r\n"
                        content += (b"y" * 76 + b"\r\n") * (self.size() // 78)
                        to = f"user{self.chance.randrange(400)}@site{self.chance.randrange(60)}.example"
                        client.sendmail(f"device{number}@example.com", to, content)
                        self.sent += 1
                    if number % 7 == 0:
                        client.docmd("MAIL", "FROM:<a@example.com> SIZE=999999999")
                        client.docmd("NONSENSE", str(number))
                    if number % 11 == 0:
                        client.docmd("MAIL", "FROM:<a@example.com>")
                        client.docmd("RCPT", "TO:<b@example.org>")
                        client.docmd("DATA")
                        client.send(b"Subject: never finished\r\n\r\n" + b"z" * 5000)
                        client.close()
            get(self.one, PATHS[number % len(PATHS)])


def test_a_day_of_traffic_leaves_memory_flat(tmp_path: Path) -> None:
    busy, gone = one_in(9, b"450 4.2.0 mailbox busy, come back later\r\n"), one_in(50, b"550 5.1.1 who?\r\n")
    with sink(digests=True, answers={"RCPT": lambda line: gone(line) or busy(line)}) as host:
        settings = f"""\
relayhost = "[127.0.0.1]:{host.port}"
in_flow_delay = 0
smtpd_error_sleep_time = 0
minimal_backoff_time = "120s"
maximal_backoff_time = "600s"
queue_run_delay = "60s"
"""
        one = Relay(tmp_path, settings, HEALTH)
        one.program = ["-m", "tests.scenarios.day"]
        one.start(EDGEMAIL_PACE=str(PACE))
        try:
            assert one.process is not None
            pid = one.process.pid
            wait_ready(one)
            site = Site(one)
            levels = []
            began = time.monotonic()
            for step in range(STEPS):
                if step == 6:
                    host.stop()  # two hours without the smarthost
                site.busy()
                if step == 6:
                    one.wait_deferred(1)
                    host.start()
                one.wait_empty(60)
                levels.append(anonymous(one) / (1 << 20))
                while time.monotonic() < began + (step + 1) * 7200 / PACE:
                    time.sleep(0.05)
            figures = " ".join(f"{each:.1f}" for each in levels)
            print(f"{site.sent} messages; anonymous MiB each two hours: {figures}")
            assert time.monotonic() - began >= 86_400 / PACE
            flat = levels[WARM:]
            assert max(flat) - min(flat) < FLAT
            assert one.process.pid == pid and one.process.poll() is None
            returned = len([None for each in host.received if "<>" in each.mail])
            assert site.sent == STEPS * MESSAGES
            assert len(host.received) >= site.sent and returned > 0
            assert "panic" not in one.log() and "Traceback" not in one.log()
            assert one.stop() == 0
        finally:
            one._end()
