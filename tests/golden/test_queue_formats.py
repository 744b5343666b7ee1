"""Our queue commands beside Debian's Postfix, for the same queue: what both print must be the same.

A private Postfix is given a few messages that it cannot deliver; the same messages, with the same times and reasons,
are put into a spool of ours. Queue ids differ, so ids (and what contains them) are made alike before the comparison.
"""

from __future__ import annotations

import json
import re
import smtplib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgemail.boot import names
from edgemail.envelope import Address, Envelope, Notify, Origin, Recipient, Ret
from tests.desk import Running, running
from tests.peers.postfix import Postfix, closed_port, postfix


@dataclass
class Pair:
    """The two queues."""

    theirs: Postfix
    ours: Running
    entries: list[dict[str, Any]]  # of postqueue -j
    kept: dict[str, Envelope]  # by the sender that both know

    def output(self, program: str, *arguments: str) -> str:
        return self.theirs.run(program, *arguments, check=False).stdout.decode()

    def id_of(self, sender: str) -> str:
        return str(next(one["queue_id"] for one in self.entries if one["sender"] == sender))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    settings = {"relayhost": f"[127.0.0.1]:{closed_port()}", "default_destination_recipient_limit": "10"}
    with postfix(settings) as theirs:
        with smtplib.SMTP("127.0.0.1", theirs.port, "pc.example.com") as client:
            text = (
                b"From: a@b\r\nTo: c@d\r\nMessage-Id: <%d@x>\r\nDate: Sat, 21 Nov 2026 00:00:00 +0000\r\n\r\nhello\r\n"
            )
            client.sendmail("alice@example.com", ["bob@example.org", "carol@example.org"], text % 1)
            client.sendmail("", ["bob@example.org"], text % 2)
            client.sendmail('"a b"@example.com', ["bob@example.net"], text % 3)
            options = ["RET=HDRS", "ENVID=QQ314159"]
            client.sendmail("dsn@example.com", ["eve@example.net"], text % 4, options, ["NOTIFY=SUCCESS,DELAY"])
        theirs.wait_for("status=deferred", 5)
        time.sleep(1.1)  # the queue manager puts a message back a moment after its log line
        held = next(one for one in _entries(theirs) if one["sender"] == '"a b"@example.com')
        theirs.run("postsuper", "-h", held["queue_id"])
        with running(tmp_path_factory.mktemp("queue")) as ours:
            ours.clock.now = time.time() - ours.clock.started
            entries = _entries(theirs)
            kept = {one["sender"]: _copy(theirs, ours, one) for one in entries}
            yield Pair(theirs, ours, entries, kept)


def _entries(theirs: Postfix) -> list[dict[str, Any]]:
    return [json.loads(line) for line in theirs.run("postqueue", "-j").stdout.splitlines()]


def _copy(theirs: Postfix, ours: Running, one: dict[str, Any]) -> Envelope:
    """The same message in our spool."""
    body = theirs.run("postcat", "-hbq", one["queue_id"]).stdout.replace(b"\n", b"\r\n")
    sender = "" if one["sender"] == "MAILER-DAEMON" else one["sender"]
    dsn = sender == "dsn@example.com"
    recipients = [
        Recipient(Address.of(r["address"]), Notify.SUCCESS | Notify.DELAY if dsn else None, reason=r["delay_reason"])
        for r in one["recipients"]
    ]
    return ours.keep(
        sender,
        recipients,
        body,
        received_at=float(one["arrival_time"]),
        attempts=1,
        hold=one["queue_name"] == "hold",
        origin=Origin("unknown", "127.0.0.1", "pc.example.com", "ESMTP"),
        ret=Ret.HDRS if dsn else None,
        envid="QQ314159" if dsn else "",
    )


@pytest.fixture(autouse=True)
def utc(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("EDGEMAIL_CONFIG", str(pair.ours.path))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def alike(text: str) -> str:
    """Queue ids made one: they differ in length too."""
    text = re.sub(r"(?m)^[0-9A-F]{6,15}([*!]?) +", r"ID\1 ", text)
    return re.sub(r"(deferred|hold|active|incoming)/(?:[0-9A-F]/)?[0-9A-F]{6,15}", r"\1/ID", text)


def blocks(text: str) -> list[str]:
    """A listing's messages, in an order of their own: that of Postfix is its directories'."""
    return sorted(alike(text).split("\n\n"))


def test_mailq(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert names.postqueue(["-p"]) == 0
    ours, theirs = capsys.readouterr().out, pair.output("postqueue", "-p")
    assert ours.splitlines()[0] == theirs.splitlines()[0]
    assert ours.splitlines()[-1] == theirs.splitlines()[-1]
    assert blocks("\n\n" + ours.partition("\n")[2]) == blocks("\n\n" + theirs.partition("\n")[2])


def test_json(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert names.postqueue(["-j"]) == 0
    ours, theirs = capsys.readouterr().out, pair.output("postqueue", "-j")
    id = re.compile(r'"queue_id": "[0-9A-F]+"')
    assert sorted(id.sub("ID", ours).splitlines()) == sorted(id.sub("ID", theirs).splitlines())


@pytest.mark.parametrize("sender", ["alice@example.com", "MAILER-DAEMON", '"a b"@example.com', "dsn@example.com"])
@pytest.mark.parametrize("options", ["-q", "-hq", "-bq", "-ehq", "-eq"])
def test_postcat(pair: Pair, capfdbinary: pytest.CaptureFixture[bytes], sender: str, options: str) -> None:
    assert names.postcat([options, pair.kept[sender].queue_id]) == 0
    ours = capfdbinary.readouterr().out.decode()
    assert records(ours) == records(pair.output("postcat", options, pair.id_of(sender)))


def records(text: str) -> list[str]:
    """postcat's lines without what only Postfix keeps: ports, offsets in its file, an ORCPT of its making."""
    text = alike(text)
    text = re.sub(r"(?m)^(message_size: .{15}) .{15} (.{15}) .{15} (.{15}) .{15}$", r"\1 \2 \3", text)
    text = re.sub(r"(?m)^(named_attribute: log_ident)=.*", r"\1=ID", text)
    only_theirs = re.compile(
        r"named_attribute: (log_client_port|client_port|server_address|server_port|reverse_client_name|dsn_orig_rcpt)="
    )
    return [line for line in text.splitlines() if not only_theirs.match(line)]


@pytest.mark.parametrize(
    "arguments", [[], ["deferred"], ["hold", "deferred"], ["-s", "deferred"], ["-l", "-b", "4", "-t", "1", "deferred"]]
)
def test_qshape(pair: Pair, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert names.qshape(arguments) == 0
    ours, theirs = capsys.readouterr().out, pair.output("qshape", *arguments)
    assert ours.splitlines()[:2] == theirs.splitlines()[:2]
    assert sorted(ours.splitlines()) == sorted(theirs.splitlines())  # of equal counts, Perl has no order


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("postsuper", ["-d", "ABCDEF0123"]),
        ("postsuper", ["-h", "ABCDEF0123", "-H", "ABCDEF0123", "-r", "ABCDEF0123"]),
        ("postsuper", ["-d", "all"]),
        ("postsuper", ["-h", "ALL", "incoming"]),
    ],
)
def test_postsuper_that_finds_nothing(
    pair: Pair, capsys: pytest.CaptureFixture[str], program: str, arguments: list[str]
) -> None:
    status = getattr(names, program)(arguments)
    theirs = pair.theirs.run(program, *arguments, check=False)
    assert status == theirs.returncode == 0
    found = [line for line in capsys.readouterr().err.splitlines() if "invalid mail queue id" not in line]
    assert found == theirs.stderr.decode().splitlines()


def test_postsuper_holds_and_releases_with_the_same_words(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["-h"], ["-H"]):
        ours = pair.kept["dsn@example.com"].queue_id
        theirs = pair.id_of("dsn@example.com")
        assert names.postsuper([*arguments, ours]) == 0
        said = pair.theirs.run("postsuper", *arguments, theirs).stderr.decode()
        assert capsys.readouterr().err.replace(ours, "ID") == said.replace(theirs, "ID")


def test_empty_queue(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with postfix() as theirs, running(tmp_path) as ours:
        monkeypatch.setenv("EDGEMAIL_CONFIG", str(ours.path))
        for program, arguments in (("postqueue", ["-p"]), ("postqueue", ["-j"]), ("mailq", []), ("qshape", [])):
            assert getattr(names, program)(arguments) == 0
            said = theirs.run("sendmail", "-bp") if program == "mailq" else theirs.run(program, *arguments)
            assert capsys.readouterr().out == said.stdout.decode()
