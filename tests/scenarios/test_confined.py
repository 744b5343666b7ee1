"""The relay under the filter for system calls of the system image: all its work is done, and no call is missed."""

from __future__ import annotations

import os
import smtplib
import ssl
import sys
from pathlib import Path

import pytest

from edgemail.boot import seccomp
from tests.scenarios.relay import LISTENER, Relay
from tests.scenarios.sink import sink

BECOME = "import os, sys; from edgemail.boot import seccomp; seccomp.confine(); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.mark.skipif(os.uname().machine not in seccomp.ARCHITECTURES, reason="no list for this machine")
def test_the_relay_does_its_work_confined(tmp_path: Path) -> None:
    listeners = LISTENER + '\n[health]\nport = 0\n\n[[link]]\nname = "up"\ncommand = ["/bin/true"]\n'
    with sink() as smarthost:
        relay = Relay(tmp_path, f'relayhost = "[127.0.0.1]:{smarthost.port}"\nsmtp_links = ["up"]\n', listeners)
        relay.prefix = (sys.executable, "-c", BECOME)
        try:
            relay.start()
            assert relay.process is not None
            assert "Seccomp:\t2" in Path(f"/proc/{relay.process.pid}/status").read_text()
            context = ssl.create_default_context(cafile=str(tmp_path / "spool" / "tls" / "cert.pem"))
            context.check_hostname = False
            with smtplib.SMTP("127.0.0.1", relay.port, timeout=20) as client:
                client.starttls(context=context)
                client.sendmail("alice@example.com", ["bob@example.org"], b"Subject: x\r\n\r\n" + b"y" * 300_000)
            smarthost.wait_for(1)
            relay.reload()
            assert "read again" in relay.log()
            relay.send()
            smarthost.wait_for(2)
            assert relay.stop() == 0
            for sign in ("Traceback", "not implemented", "not permitted", "Bad system call"):
                assert sign not in relay.log()
        finally:
            relay._end()
