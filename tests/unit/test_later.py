"""What aiosmtpd imports for nothing stays out, and works all the same for who uses it."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, sys
import edgemail.relay.receive.session
absent = [name for name in ("attr", "aiosmtpd.proxy_protocol", "email._header_value_parser") if name in sys.modules]
from aiosmtpd import smtp
results = [smtp.AuthResult(success=True), smtp.AuthResult(success=False, message="no")]
address = smtp.get_addr_spec("alice@example.com")[0].addr_spec
proxy = smtp.ProxyData(version=1).version
print(json.dumps([absent, [[r.success, r.handled, r.message] for r in results],
    isinstance(results[0], smtp.AuthResult), repr(results[0]), address, proxy]))
"""


def test_stand_ins_until_they_are_used() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    absent, results, instance, shown, address, proxy = json.loads(done.stdout)
    assert absent == []
    assert results == [[True, True, None], [False, True, "no"]]
    assert instance
    assert shown.startswith("AuthResult(success=True, handled=True")
    assert (address, proxy) == ("alice@example.com", 1)
