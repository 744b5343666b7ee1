"""Arguments that want to be something else: a second command, a header, a path, a shell's line, another's message."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemail.boot import names
from edgemail.boot.cli import main
from edgemail.relay.receive.auth import set_password
from tests.desk import Running, running
from tests.receiving import serving
from tests.unit.test_cli import send

IDS = (
    *("../../etc/passwd", "/etc/passwd", "$(touch made)", "`touch made`", "0;touch made", "0\nALL", "0 ALL", "ALL "),
    *("--", "0\0", "%s", "*", "A" * 10_000, "0x10", "-1", "１２", ""),
)
RECIPIENTS = (
    *("|/usr/bin/touch made", "/etc/passwd", ":include:/etc/passwd", "`touch made`@example.org", "$(touch made)"),
    *(
        "bob@example.org\nRCPT TO:<evil@example.com>",
        "bob@example.org>\r\nDATA",
        "bob@example.org NOTIFY=NEVER",
        "a@b\0c",
    ),
    *("../../etc/passwd@example.org", "%s%n@example.org", "<bob@example.org>,evil@example.com", '"a\nb"@example.org'),
)
PLAIN = base64.b64encode(b"\0lamp\0sesame").decode()
WRONG = base64.b64encode(b"\0lamp\0open").decode()


@pytest.fixture
def relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.chdir(tmp_path)
    with running(tmp_path) as found:
        monkeypatch.setenv("EDGEMAIL_CONFIG", str(found.path))
        yield found


# -- the commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", IDS, ids=range(len(IDS)))
def test_an_id_is_a_number_and_nothing_else(
    relay: Running, id: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    relay.keep()
    before = sorted(path.name for path in tmp_path.iterdir())
    for verb in ("-d", "-h", "-H", "-r"):
        names.postsuper([verb, id])  # as Postfix's, it warns and goes on
    assert names.postcat(["-q", id]) != 0
    assert names.postqueue(["-i", id]) != 0
    for words in (["show", id], ["delete", "--", id], ["flush", "--id", id]):
        try:
            assert main(["queue", *words]) != 0
        except SystemExit as end:
            assert end.code
    said = capsys.readouterr()
    assert "root:" not in said.out + said.err
    assert "hello" not in said.out
    (kept,) = relay.envelopes()
    assert not kept.hold
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("recipient", RECIPIENTS, ids=range(len(RECIPIENTS)))
def test_a_recipient_is_an_address_and_nothing_else(relay: Running, recipient: str, tmp_path: Path) -> None:
    if "\0" not in recipient:  # which no argument can hold
        done = send(relay, b"Subject: x\n\nhello\n", "--", recipient)
        assert done.returncode == 0 or done.stderr.startswith(b"sendmail: fatal: "), done.stderr
    done = send(relay, b"To: " + recipient.encode() + b"\nSubject: x\n\nhello\n", "-t")
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "made").exists()
    for envelope in relay.envelopes():
        body = relay.body(envelope.id)
        assert body.count(b"\r\n") == body.count(b"\r") == body.count(b"\n")
        assert b"root:" not in body
        for one in envelope.recipients:
            assert not re.search(r"[\x00-\x1f\x7f]", str(one.address))
            assert one.address.domain in ("", "example.org") or "evil@example.com" in recipient  # as was asked for


@pytest.mark.parametrize(
    "arguments",
    [
        ["-F", "Eve\nBcc: all@example.com"],
        ["-F", "Eve\r\n\r\nbody"],
        ["-f", "eve@example.com>\r\nRCPT TO:<evil@example.com>"],
        ["-f", "eve@example.com\nBcc: all@example.com"],
        ["-V", "x\r\nBcc: all@example.com"],
        ["-R", "full\r\nBcc: all@example.com"],
        ["-N", "never\r\nBcc: all@example.com"],
        ["-B", "8BITMIME\r\nBcc: all@example.com"],
        ["-h", "1\r\nBcc: all@example.com"],
    ],
    ids=lambda arguments: f"{arguments[0]}-{len(arguments[1])}",
)
def test_no_option_of_sendmail_makes_a_header_or_a_recipient(relay: Running, arguments: list[str]) -> None:
    done = send(relay, b"Subject: x\n\nhello\n", *arguments, "bob@example.org")
    assert b"Traceback" not in done.stderr
    for envelope in relay.envelopes():
        assert [str(one.address) for one in envelope.recipients] == ["bob@example.org"]
        assert not re.search(r"[\x00-\x1f\x7f]", f"{envelope.sender}{envelope.envid}")
        header, _, content = relay.body(envelope.id).partition(b"\r\n\r\n")
        assert content == b"hello\r\n"
        assert not re.search(rb"^Bcc:", header, re.MULTILINE)


# -- the session ------------------------------------------------------------------------------------------------------


def talked(users: Path, *commands: str) -> tuple[list[str], int]:
    """All of it in one write, by a stranger; the replies after EHLO's, and how many messages were stored."""
    data = "".join(f"{command}\r\n" for command in ("EHLO me", *commands, "QUIT")).encode()

    async def scenario() -> tuple[list[str], int]:
        async with serving(
            mynetworks=("192.0.2.0/24",),
            smtpd_sasl_auth_enable=True,
            smtpd_tls_auth_only=False,
            smtpd_sasl_password_file=str(users),
        ) as box:
            wire = await box.wire()
            wire.send(data)
            said = (await wire.rest()).decode().splitlines()
            last = max(number for number, line in enumerate(said) if line.startswith("250 CHUNKING"))
            return said[last + 1 :], len(list(box.spool.envelopes()))

    return asyncio.run(scenario())


@pytest.fixture
def users(tmp_path: Path) -> Path:
    set_password(str(tmp_path / "users"), "lamp", "sesame", recoverable=True)
    return tmp_path / "users"


MAIL = ("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA", "Subject: x", ".")
DENIED = ["250", "554", "554", "500", "500", "221"]  # what was to be the content is read as commands, and is none


@pytest.mark.parametrize(
    ("commands", "codes", "count"),
    [
        ((f"AUTH PLAIN {PLAIN}", *MAIL), ["235", "250", "250", "354", "250", "221"], 1),
        ((f"AUTH PLAIN {WRONG}", *MAIL), ["535", *DENIED], 0),
        (("AUTH PLAIN", *MAIL), ["334", "501", "503", "503", "500", "500", "221"], 0),
        (("AUTH PLAIN", PLAIN, *MAIL), ["334", "235", "250", "250", "354", "250", "221"], 1),
        (("AUTH PLAIN", "*", *MAIL), ["334", "501", *DENIED], 0),
        ((*MAIL[:1], f"AUTH PLAIN {PLAIN}", *MAIL[1:]), ["250", "503", "554", "554", "500", "500", "221"], 0),
        ((f"AUTH PLAIN {PLAIN}", f"AUTH PLAIN {WRONG}", *MAIL), ["235", "503", "250", "250", "354", "250", "221"], 1),
        ((f"AUTH PLAIN {PLAIN} {PLAIN}", *MAIL), ["501", *DENIED], 0),
    ],
)
def test_what_is_pipelined_behind_a_login(users: Path, commands: tuple[str, ...], codes: list[str], count: int) -> None:
    """Answered one by one; what stands where a response belongs is a response, whatever it looks like."""
    said, stored = talked(users, *commands)
    assert [line[:3] for line in said] == codes
    assert stored == count


@pytest.mark.parametrize(
    "command",
    [
        "MAIL FROM:<a@b.example> ENVID=x+0D+0ABcc:+20all@example.com",
        "MAIL FROM:<a@b.example> ENVID=+00",
        "MAIL FROM:<a@b.example> RET=FULL+0D+0A",
        "MAIL FROM:<a@b.example> AUTH=x+0D",
        "MAIL FROM:<a@b.example> SIZE=1\rBcc:",
        "MAIL FROM:<a\r@b.example>",
        "MAIL FROM:<a@b.example\n.c>",
        "MAIL FROM:<a@b.example>> RCPT TO:<c@d.example>",
    ],
)
def test_no_parameter_of_mail_holds_a_line_end(users: Path, command: str) -> None:
    said, _ = talked(users, f"AUTH PLAIN {PLAIN}", command)
    if "AUTH=" not in command:  # which is believed of nobody, and passed on to nobody
        assert re.match("5(00|01|55)", said[1]), said
    assert len(said) == 3, said


@pytest.mark.parametrize(
    "command",
    [
        "RCPT TO:<c@d.example> ORCPT=rfc822;c+0D+0ABcc:+20all@example.com",
        "RCPT TO:<c@d.example> ORCPT=rfc822\r;c",
        "RCPT TO:<c@d.example> ORCPT=utf-8;c\n",
        "RCPT TO:<c@d.example> NOTIFY=NEVER+0D+0A",
        'RCPT TO:<"c\rd"@d.example>',
    ],
)
def test_no_parameter_of_rcpt_holds_a_line_end(users: Path, command: str) -> None:
    said, _ = talked(users, f"AUTH PLAIN {PLAIN}", "MAIL FROM:<a@b.example>", command)
    assert said[2].startswith("5"), said
    assert len(said) == 4, said


def test_no_command_of_the_session_names_a_message(users: Path) -> None:
    """Ids rise one by one, and to know one is of no use to a client."""

    async def scenario() -> None:
        async with serving(mynetworks=("127.0.0.0/8",)) as box:
            wire = await box.wire()
            await wire.hello()
            queue_id = (await wire.mail()).rpartition(" ")[2]
            before = box.stored()
            for command in ("VRFY", "EXPN", "ETRN", "ETRN #", "NOOP", "HELP", "XQUEUE", "RSET", "MAIL FROM:", "ATRN"):
                for said in (f"{command} {queue_id}", f"{command}{queue_id}", f"{command} <{queue_id}>"):
                    reply = await wire.say(said)
                    assert queue_id not in reply or command == "VRFY", reply
                    assert "hello" not in reply
                if wire.reader.at_eof():
                    break
            assert box.stored() == before

    asyncio.run(scenario())
