"""A certificate authority and a server certificate for tests, made by openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.peers import need


@dataclass(frozen=True)
class Certificate:
    """PEM files: the authority, and a certificate for `name` and 127.0.0.1 with its key."""

    authority: Path
    certificate: Path
    key: Path


def certificate(directory: Path, name: str = "smarthost.example") -> Certificate:
    """Make them in `directory`."""
    openssl = need("openssl").path()
    made = Certificate(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")
    authority_key, request, extensions = directory / "ca.key", directory / "cert.csr", directory / "cert.ext"
    extensions.write_text(f"subjectAltName=DNS:{name},DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj"]
    days = ["-days", "7"]
    signed = ["-CA", made.authority, "-CAkey", authority_key, "-CAcreateserial", "-extfile", extensions]
    commands = [
        ["req", "-x509", *curve, "/CN=Test Authority", *days, "-keyout", authority_key, "-out", made.authority],
        ["req", *curve, f"/CN={name}", "-keyout", made.key, "-out", request],
        ["x509", "-req", *signed, *days, "-in", request, "-out", made.certificate],
    ]
    for command in commands:
        subprocess.run([openssl, *map(str, command)], check=True, capture_output=True, timeout=60)
    return made
