"""Mail clients that nobody here wrote: swaks, msmtp, curl, openssl, fetchmail."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.peers import need

SECONDS = 60


def swaks(port: int, sender: str, recipients: Sequence[str], *options: str) -> subprocess.CompletedProcess[str]:
    """Send one message; the dialogue is on stdout."""
    peer = need("swaks")
    command = [peer.path(), "--server", "127.0.0.1", "--port", str(port), "--from", sender]
    command += ["--to", ",".join(recipients), "--timeout", "20", *options]
    return _run(command, peer.environment())


def msmtp(
    port: int, sender: str, recipients: Sequence[str], message: bytes, *options: str
) -> subprocess.CompletedProcess[str]:
    """Send `message` as it is."""
    peer = need("msmtp")
    command = [peer.path(), "--file=/dev/null", "--host=127.0.0.1", f"--port={port}", f"--from={sender}", *options]
    return _run([*command, "--", *recipients], peer.environment(), message)


def curl(
    port: int, sender: str, recipients: Sequence[str], message: Path, *options: str, scheme: str = "smtp"
) -> subprocess.CompletedProcess[str]:
    """Upload a file; the dialogue is on stderr."""
    peer = need("curl")
    command = [peer.path(), "--silent", "--verbose", "--url", f"{scheme}://127.0.0.1:{port}/client.example"]
    command += ["--mail-from", sender]
    for recipient in recipients:
        command += ["--mail-rcpt", recipient]
    return _run([*command, "--upload-file", str(message), *options], peer.environment())


def s_client(port: int, *options: str, lines: bytes = b"quit\n") -> subprocess.CompletedProcess[str]:
    """openssl s_client on an SMTP port; `lines` in lower case, since an R at a line's start renegotiates."""
    peer = need("openssl")
    command = [peer.path(), "s_client", "-connect", f"127.0.0.1:{port}", "-crlf", "-ign_eof", *options]
    return _run(command, peer.environment(), lines)


def fetchmail(directory: Path, poll: str) -> subprocess.CompletedProcess[str]:
    """Poll once, as a line of fetchmailrc says; its own files go into `directory`. The dialogue is on both outputs."""
    peer = need("fetchmail")
    settings = directory / "fetchmailrc"
    settings.write_text(f"set no syslog\n{poll}\n")
    settings.chmod(0o600)
    command = [peer.path(), "-v", "--nodetach", "--fetchmailrc", str(settings)]
    command += ["--pidfile", str(directory / "fetchmail.pid"), "--idfile", str(directory / "fetchids")]
    return _run(command, {**peer.environment(), "HOME": str(directory), "LC_ALL": "C"})


def _run(
    command: list[str], environment: dict[str, str], input: bytes | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        env=environment,
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    return subprocess.CompletedProcess(
        command, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )
