"""fetchmail, which asks for its mail by ETRN and takes it by ATRN ("ODMR mode"), at the real process."""

from __future__ import annotations

import re
from pathlib import Path

from tests.peers import need
from tests.peers.clients import fetchmail
from tests.scenarios.relay import LISTENER, Relay, relay
from tests.scenarios.sink import after_trace, sink

SETTINGS = """
myhostname = "hub.example.net"
relay_domains = ["branch.example"]
defer_transports = ["ondemand"]
relay_transport = "ondemand:[127.0.0.1]:{port}"
"""
ODMR = """
odmr_domain_maps = [{ "branch" = "branch.example" }]
smtpd_sasl_password_file = "users"
"""
ODMR_LISTENER = """
[[listener]]
name = "odmr"
address = "127.0.0.1"
port = 0
profile = "odmr"
"""
BODIES = [b"Subject: %d\r\n\r\n%s.dot\r\n..\r\n" % (number, b"line\r\n" * number * 100) for number in range(4)]


def test_odmr(tmp_path: Path) -> None:
    need("fetchmail")
    hub = Relay(tmp_path, SETTINGS.format(port=1) + ODMR, LISTENER + ODMR_LISTENER)
    hub.run("edgemail", "passwd", "--cram", "branch", input=b"s3cret\n")
    hub.start()
    try:
        with sink() as inner:
            poll = f"poll 127.0.0.1 service {hub.ports['odmr']} protocol odmr username branch password {{}} "
            poll += f"fetchdomains branch.example smtphost 127.0.0.1/{inner.port}"
            none = fetchmail(tmp_path, poll.format("s3cret"))
            assert "fetchmail: You have no mail." in none.stderr, none
            for body in BODIES:
                hub.send(recipients="bob@branch.example", message=body)
            hub.wait_deferred(len(BODIES))
            wrong = fetchmail(tmp_path, poll.format("wrong"))
            assert wrong.returncode not in (0, 1), wrong
            assert inner.received == []
            done = fetchmail(tmp_path, poll.format("s3cret"))
            assert done.returncode in (0, 1), done
            found = [after_trace(one.content) for one in inner.wait_for(len(BODIES))]
            assert sorted(found) == sorted(BODIES)
        hub.wait_empty()
        assert len(re.findall("relay=branch.* status=sent", hub.log())) == len(BODIES)
        assert "s3cret" not in hub.log()
    finally:
        hub._end()


def test_etrn(tmp_path: Path) -> None:
    need("fetchmail")
    with sink() as site, relay(tmp_path, SETTINGS.format(port=site.port)) as hub:
        hub.send(recipients="bob@branch.example")
        hub.wait_deferred(1)
        poll = f"poll 127.0.0.1 service {hub.port} protocol etrn fetchdomains {{}}"
        refused = fetchmail(tmp_path, poll.format("elsewhere.example"))
        assert "459 <elsewhere.example>: service unavailable" in refused.stdout + refused.stderr
        assert site.received == []
        fetchmail(tmp_path, poll.format("branch.example"))
        site.wait_for(1)
        hub.wait_for("etrn from .*: branch.example, 1 messages")
