"""The commands: `edgemail queue ...` and Postfix's names, with the daemon up and with it down."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemail.boot import names, sendmail
from edgemail.boot.cli import main
from edgemail.boot.client import Failure, Office
from edgemail.envelope import Address, Recipient
from tests.desk import Running, running, write_configuration

Text = pytest.CaptureFixture[str]


@pytest.fixture
def relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    with running(tmp_path, 'fast_flush_domains = ["example.org"]\n') as found:
        monkeypatch.setenv("EDGEMAIL_CONFIG", str(found.path))
        yield found


def late(address: str = "bob@example.org", reason: str = "no route to host") -> Recipient:
    return Recipient(Address.of(address), reason=reason, status="4.4.1")


def lines(capsys: Text) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# edgemail


def test_wrong_use_is_64(capsys: Text) -> None:
    for arguments in ([], ["explode"], ["queue"], ["queue", "explode"], ["queue", "list", "--colour"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 64, arguments
    capsys.readouterr()


def test_help_has_examples(capsys: Text) -> None:
    for arguments in (["--help"], ["queue", "--help"], ["config", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert "examples:" in capsys.readouterr().out


def test_version(capsys: Text) -> None:
    assert main(["version"]) == 0
    assert re.fullmatch(r"edgemail \d+\.\d+\.\d+\n", capsys.readouterr().out)
    assert main(["version", "--json"]) == 0
    assert "version" in lines(capsys)[0]


def test_check_is_silent_when_all_is_well(tmp_path: Path, capsys: Text) -> None:
    path = write_configuration(tmp_path, 'admin_address = "admin@example.com"\nmail_owner = "root"\n')
    assert main(["check", "--config", str(path)]) == 0
    assert capsys.readouterr().out == ""


def test_check_says_every_mistake_with_its_line(tmp_path: Path, capsys: Text) -> None:
    path = write_configuration(tmp_path, "smtp_conect_timeout = 5\nhopcount_limit = -1\n")
    assert main(["--config", str(path), "check"]) == 78
    said = capsys.readouterr().err
    assert f"{path}:4:" in said and f"{path}:5:" in said
    assert main(["check", "--json", "--config", str(path)]) == 78
    assert [one["line"] for one in lines(capsys) if one["kind"] == "error"] == [4, 5]


def test_config_prints_one_value(tmp_path: Path, capsys: Text) -> None:
    path = write_configuration(tmp_path)
    assert main(["config", "-h", "myhostname", "--config", str(path)]) == 0
    assert capsys.readouterr().out == "gw.example.com\n"
    assert main(["config", "-n", "--config", str(path)]) == 0
    assert "myhostname" in capsys.readouterr().out
    assert main(["config", "nonsense", "--config", str(path)]) == 64


def test_a_bad_file_is_78(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Text) -> None:
    monkeypatch.setenv("EDGEMAIL_CONFIG", str(tmp_path / "absent.toml"))
    assert main(["config"]) == 78
    assert main(["queue", "list"]) == 78
    assert names.mailq([]) == 78
    assert "absent.toml" in capsys.readouterr().err


def test_a_file_with_mistakes_does_not_hide_the_queue(relay: Running, capsys: Text) -> None:
    relay.keep()
    relay.path.write_text(relay.path.read_text() + "\nnonsense = 1\n")
    assert names.mailq([]) == 0
    assert "1 Request" in capsys.readouterr().out


# edgemail queue, daemon up


def test_queue_list(relay: Running, capsys: Text) -> None:
    kept = relay.keep(recipients=[late()], attempts=1)
    relay.keep(sender="eve@example.net")
    assert main(["queue", "list", "--state", "deferred"]) == 0
    out = capsys.readouterr().out
    assert kept.queue_id in out and "(no route to host)" in out and "in 1 Request." in out
    assert main(["queue", "list", "--json", "--sender", "eve@example.net"]) == 0
    (one,) = lines(capsys)
    assert one["sender"] == "eve@example.net"
    assert main(["queue", "list", "--domain", "nowhere.example"]) == 0
    assert capsys.readouterr().out == "Mail queue is empty\n"


def test_queue_list_tells_what_was_set_aside(relay: Running, capsys: Text) -> None:
    kept = relay.keep()
    relay.call(relay.store.quarantine(kept.id, "the checksum is wrong"))
    assert main(["queue", "list"]) == 0
    assert f"set aside: {kept.queue_id}" in capsys.readouterr().out
    assert main(["queue", "list", "--json"]) == 0
    assert lines(capsys)[0]["damaged"]


def test_queue_show(relay: Running, capsys: Text) -> None:
    kept = relay.keep(recipients=[late()], attempts=4)
    assert main(["queue", "show", kept.queue_id.lower()]) == 0
    assert "4.4.1 no route to host" in capsys.readouterr().out
    assert main(["queue", "show", "FFFF"]) == 65
    assert main(["queue", "show"]) == 64
    assert main(["queue", "show", "--json", "ALL"]) == 0


def test_queue_why(relay: Running, capsys: Text) -> None:
    relay.keep(recipients=[late()], attempts=1)
    relay.keep(recipients=[late("carol@example.org")], attempts=1)
    assert main(["queue", "why"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[:2] == ["2", "example.org"] and line.endswith(": no route to host")
    assert main(["queue", "why", "--json"]) == 0
    assert lines(capsys)[0]["messages"] == 2


def test_queue_shape(relay: Running, capsys: Text) -> None:
    relay.keep()
    assert main(["queue", "shape"]) == 0
    assert "example.org" in capsys.readouterr().out
    assert main(["queue", "shape", "--json", "--senders"]) == 0
    assert [(one["domain"], one["total"]) for one in lines(capsys)] == [("TOTAL", 1), ("example.com", 1)]


def test_queue_flush(relay: Running, capsys: Text) -> None:
    one, two = relay.keep(sender="a@b"), relay.keep(sender="c@d")
    assert main(["queue", "flush"]) == 0
    assert main(["queue", "flush", one.queue_id]) == 0
    assert main(["queue", "flush", "--sender", "c@d"]) == 0
    assert main(["queue", "flush", "--route", "smtp:[isp.example]:587"]) == 0
    assert main(["queue", "flush", "--id", one.queue_id, "--id", two.queue_id]) == 0
    assert main(["queue", "flush", "--domain", "elsewhere.example"]) == 0
    assert relay.queue.flushed == [
        (None, None, None),
        ([one.id], None, None),
        ([two.id], None, None),
        (None, None, "smtp:[isp.example]:587"),
        ([one.id, two.id], None, None),
        (None, "elsewhere.example", None),  # no fast_flush_domains: a person may
    ]
    assert relay.queue.accounts == []


def test_a_flush_says_what_it_did(relay: Running, capsys: Text) -> None:
    assert main(["queue", "flush"]) == 0
    assert capsys.readouterr().out == "0 messages to be tried now\n"
    for number in range(6):
        relay.keep(sender=f"a{number}@b")
    assert main(["queue", "flush"]) == 0
    assert capsys.readouterr().out == ("6 messages: 2 sent, 2 returned, 2 still waiting\n  2  450 4.2.0 later\n")
    assert main(["queue", "flush", "--json"]) == 0
    assert lines(capsys) == [
        {
            "count": 6,
            "sent": 2,
            "returned": 2,
            "waiting": 2,
            "untried": 0,
            "reasons": [{"reason": "450 4.2.0 later", "messages": 2}],
        }
    ]
    assert main(["queue", "flush", "--no-wait"]) == 0
    assert main(["queue", "flush", "--no-wait", "--json"]) == 0
    assert capsys.readouterr().out == '6 messages to be tried now\n{"count": 6}\n'
    for wrong in (["--wait", "-1"], ["--wait", "x"], ["--wait", "99999"], ["--wait", "1", "--no-wait"]):
        with pytest.raises(SystemExit) as caught:
            main(["queue", "flush", *wrong])
        assert caught.value.code == 64
    for wait in (-1, "x", None, 1e9, float("nan")):
        with pytest.raises(Failure, match="wait: seconds"):
            Office.of(str(relay.path)).ask({"verb": "queue.flush", "wait": wait})


def test_changing_verbs_want_to_be_told_which(relay: Running, capsys: Text) -> None:
    relay.keep()
    for verb in ("hold", "release", "requeue", "delete"):
        assert main(["queue", verb]) == 64
    assert len(relay.envelopes()) == 1
    assert "say which messages" in capsys.readouterr().err


@pytest.mark.parametrize("up", [True, False])
def test_hold_release_requeue_delete(relay: Running, capsys: Text, up: bool) -> None:
    kept = relay.keep()
    other = relay.keep(sender="x@y")

    def run(*arguments: str) -> list[dict[str, object]]:
        if not up:
            relay.stop()
        assert main(["queue", *arguments, "--json"]) == 0
        if not up:
            relay.start()
        return lines(capsys)

    assert run("hold", kept.queue_id, "--because", "moving") == [{"queue_id": kept.queue_id, "done": "on hold"}]
    assert [e.hold_reason for e in relay.envelopes()] == ["moving", ""]
    assert run("release", "ALL") == [{"queue_id": kept.queue_id, "done": "released"}]
    (line,) = run("requeue", "--sender", "alice@example.com")
    assert line["queue_id"] == kept.queue_id
    new = next(e for e in relay.envelopes() if str(e.sender) == "alice@example.com")
    assert line["new_queue_id"] == new.queue_id != kept.queue_id
    assert relay.body(new.id).count(b"Received: by gw.example.com") == 1
    assert run("delete", new.queue_id, "FFFF") == [{"queue_id": new.queue_id, "done": "deleted"}]
    assert [e.id for e in relay.envelopes()] == [other.id]


def test_delete_by_address_from_a_pipe(relay: Running, monkeypatch: pytest.MonkeyPatch, capsys: Text) -> None:
    one, two = relay.keep(), relay.keep()
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{one.queue_id}\n\n"))
    assert main(["queue", "delete", "-"]) == 0
    assert [e.id for e in relay.envelopes()] == [two.id]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["queue", "delete", "-"]) == 0
    assert [e.id for e in relay.envelopes()] == [two.id]


@pytest.mark.parametrize("up", [True, False])
def test_reading_works_up_and_down(relay: Running, capfd: Text, tmp_path: Path, up: bool) -> None:
    body = b"Subject: x\r\n\r\n" + b"line\r\n" * 20_000
    kept = relay.keep(recipients=[late()], attempts=1, body=body)
    if not up:
        relay.stop()
    for arguments in (["list"], ["show", kept.queue_id], ["why"], ["shape"], ["cat", kept.queue_id]):
        assert main(["queue", *arguments]) == 0, arguments
        assert capfd.readouterr().out
    assert main(["queue", "export", "ALL", "--to", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / f"{kept.queue_id}.eml").read_bytes() == body
    assert json.loads((tmp_path / "out" / f"{kept.queue_id}.json").read_text())["sender"] == "alice@example.com"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{kept.queue_id}.eml", f"{kept.queue_id}.json"]


def test_what_only_a_daemon_can_do_is_75(relay: Running, capsys: Text) -> None:
    relay.stop()
    assert main(["queue", "flush"]) == 75
    assert main(["reload"]) == 75
    assert main(["status"]) == 75
    assert capsys.readouterr().err.count("the relay is not running") == 3


def test_status_and_reload(relay: Running, capsys: Text) -> None:
    relay.keep()
    assert main(["status"]) == 0
    assert json.loads(capsys.readouterr().out)["queue"]["incoming"] == 1
    assert main(["reload"]) == 0
    assert relay.reloads == 1


def test_no_spool_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Text) -> None:
    monkeypatch.setenv("EDGEMAIL_CONFIG", str(write_configuration(tmp_path)))
    assert main(["queue", "list"]) == 75
    assert "there is no spool here" in capsys.readouterr().err
    assert names.mailq([]) == 69
    assert "Queue report unavailable - mail system is down" in capsys.readouterr().err


# Postfix's names


def test_mailq_and_its_other_names(relay: Running, capsys: Text) -> None:
    relay.keep()
    said = set()
    for run, arguments in ((names.mailq, []), (names.sendmail, ["-bp"]), (names.postqueue, ["-p"])):
        assert run(arguments) == 0
        said.add(capsys.readouterr().out)
    (out,) = said
    assert out.startswith("-Queue ID-  --Size-- ")


def test_postqueue_reads_the_spool_when_the_daemon_is_down(relay: Running, capsys: Text) -> None:
    relay.keep()
    relay.stop()
    assert names.postqueue(["-p"]) == 0
    found = capsys.readouterr()
    assert "in 1 Request." in found.out
    assert found.err == "postqueue: warning: Mail system is down -- accessing queue directly\n"
    assert names.postqueue(["-f"]) == 69
    assert "Cannot flush mail queue - mail system is down" in capsys.readouterr().err


def test_postqueue_flushes(relay: Running, capsys: Text) -> None:
    kept = relay.keep()
    assert names.postqueue(["-f"]) == 0
    assert names.postqueue(["-s", "Example.org"]) == 0
    assert names.postqueue(["-i", kept.queue_id]) == 0
    assert names.sendmail(["-q"]) == 0
    assert names.sendmail(["-qRexample.org"]) == 0
    assert names.sendmail([f"-qI{kept.queue_id}"]) == 0
    assert names.sendmail(["-q15m"]) == 0
    everything, domain, one = (None, None, None), (None, "example.org", None), ([kept.id], None, None)
    assert relay.queue.flushed == [everything, domain, one] * 2
    assert capsys.readouterr() == ("", "")


def test_postqueue_asks_for_fast_flush_domains_alone(relay: Running, capsys: Text) -> None:
    for program, arguments in ((names.postqueue, ["-s", "example.net"]), (names.sendmail, ["-qRexample.net"])):
        assert program(arguments) == 69
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.endswith(': fatal: Flush service is not configured for destination "example.net"\n')
    assert relay.queue.flushed == []
    assert names.postqueue(["-s", "sub.example.org"]) == 0
    assert relay.queue.flushed == [(None, "sub.example.org", None)]


@pytest.mark.parametrize(
    "arguments", [[], ["-p", "-f"], ["-x"], ["-p", "more"], ["-s", "a b"], ["-s", ""], ["-i", "x!"]]
)
def test_postqueue_wrong_use(relay: Running, capsys: Text, arguments: list[str]) -> None:
    assert names.postqueue(arguments) == 64
    assert capsys.readouterr().err.startswith("postqueue: fatal: ")


def test_postsuper_deletes_one(relay: Running, capsys: Text) -> None:
    kept = relay.keep(recipients=[late()], attempts=1)
    assert names.postsuper(["-d", kept.queue_id]) == 0
    expected = f"postsuper: {kept.queue_id}: removed\npostsuper: Deleted: 1 message\n"
    assert capsys.readouterr() == ("", expected)


def test_postsuper_deletes_all_but_only_in_capitals(relay: Running, capsys: Text) -> None:
    for _ in range(23):
        relay.keep()
    assert names.postsuper(["-d", "all"]) == 0
    assert len(relay.envelopes()) == 23
    capsys.readouterr()
    assert names.postsuper(["-d", "ALL"]) == 0
    assert capsys.readouterr().err == "postsuper: Deleted: 23 messages\n"
    assert relay.envelopes() == []


def test_postsuper_deletes_in_one_queue_only(relay: Running, capsys: Text) -> None:
    relay.keep(recipients=[late()], attempts=1)
    busy = relay.keep(recipients=[late()], attempts=1)
    relay.queue.in_hand.add(busy.id)
    fresh = relay.keep()
    assert names.postsuper(["-d", "ALL", "deferred"]) == 0
    assert capsys.readouterr().err == "postsuper: Deleted: 1 message\n"
    assert [e.id for e in relay.envelopes()] == [busy.id, fresh.id]
    assert names.postsuper(["-d", "ALL", "maildrop"]) == 0
    assert names.postsuper(["-d", "ALL", "elsewhere"]) == 1
    assert len(relay.envelopes()) == 2


def test_postsuper_takes_ids_from_stdin_and_several_options(
    relay: Running, capsys: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = relay.keep(), relay.keep(), relay.keep()
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{one.queue_id}\n{two.queue_id}\nnonsense\n"))
    assert names.postsuper(["-h", "-", "-H", two.queue_id, "-d", three.queue_id]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "postsuper: warning: invalid mail queue id: nonsense",
        f"postsuper: {one.queue_id}: placed on hold",
        f"postsuper: {two.queue_id}: placed on hold",
        f"postsuper: {two.queue_id}: released from hold",
        f"postsuper: {three.queue_id}: removed",
        "postsuper: Deleted: 1 message",
        "postsuper: Placed on hold: 2 messages",
        "postsuper: Released from hold: 1 message",
    ]
    assert {e.id: e.hold for e in relay.envelopes()} == {one.id: True, two.id: False}


def test_postsuper_requeues(relay: Running, capsys: Text) -> None:
    kept = relay.keep()
    assert names.postsuper(["-r", "ALL"]) == 0
    assert capsys.readouterr().err == "postsuper: Requeued: 1 message\n"
    (found,) = relay.envelopes()
    assert found.id != kept.id


def test_postsuper_works_with_the_daemon_down(relay: Running, capsys: Text) -> None:
    kept = relay.keep()
    relay.stop()
    assert names.postsuper(["-d", kept.queue_id]) == 0
    relay.start()
    assert relay.envelopes() == []
    assert "removed" in capsys.readouterr().err


def test_postcat_parts(relay: Running, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    kept = relay.keep(body=b"Received: x\r\n\tby y\r\nSubject: a\r\n\r\nfirst\r\n\r\nlast\r\n")

    def cat(*options: str) -> bytes:
        assert names.postcat([*options, "-q", kept.queue_id]) == 0
        return capfdbinary.readouterr().out

    assert cat("-h") == b"Received: x\n\tby y\nSubject: a\n"
    assert cat("-b") == b"\nfirst\n\nlast\n"
    assert cat("-hb") == cat("-h") + cat("-b")
    whole = cat()
    assert whole == cat("-ehb")
    assert b"\nsender: alice@example.com\n" in whole and b"\nrecipient: bob@example.org\n" in whole
    assert cat("-h") + cat("-b") in whole


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_postcat_at_any_split(size: int) -> None:
    body = b"Subject: a\r\nTo: b\r\n\r\nfirst\r\r\n\r\nlast\r"
    for part, expected in (("h", b"Subject: a\nTo: b\n"), ("b", b"\nfirst\r\n\nlast\r")):
        out: list[bytes] = []
        cat = names.Cat([part], out.append)
        for start in range(0, len(body), size):
            cat.take(body[start : start + size])
        cat.end()
        assert b"".join(out) == expected


@pytest.mark.parametrize(("body", "header"), [(b"\r\nbody\r\n", b""), (b"Subject: a\r\n", b"Subject: a\n"), (b"", b"")])
def test_postcat_of_odd_messages(body: bytes, header: bytes) -> None:
    out: list[bytes] = []
    cat = names.Cat("h", out.append)
    cat.take(body)
    cat.end()
    assert b"".join(out) == header


def test_postcat_wrong_use(relay: Running, capsys: Text) -> None:
    for arguments in ([], ["-q"], ["file"], ["-q", "x!"], ["-z"], ["-q", "FFFF"]):
        assert names.postcat(arguments) == 1, arguments
        assert "fatal" in capsys.readouterr().err


def test_qshape_of_named_queues(relay: Running, capsys: Text) -> None:
    relay.keep(recipients=[late()], attempts=1)
    assert names.qshape([]) == 0
    assert "example.org" not in capsys.readouterr().out
    assert names.qshape(["deferred"]) == 0
    assert "example.org" in capsys.readouterr().out
    assert names.qshape(["-s", "-b", "3", "/var/spool/postfix/deferred"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["T", "5", "10", "10+"]
    assert names.qshape(["-h"]) == 0
    assert names.qshape(["-b", "many"]) == 1
    assert names.qshape(["nowhere"]) == 1


# sendmail


def send(relay: Running, message: bytes, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the real program: it reads a real stdin."""
    code = "import sys; from edgemail.boot.names import sendmail; sys.exit(sendmail())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        input=message,
        env={**os.environ, "EDGEMAIL_CONFIG": str(relay.path), "NAME": "", **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )


def stored(relay: Running) -> tuple[bytes, list[str]]:
    """The one message without its trace header, and its recipients."""
    (found,) = relay.envelopes()
    body = relay.body(found.id)
    assert body.startswith(b"Received: by gw.example.com (edgemail, from userid %d)\r\n\tid " % os.geteuid())
    return body.split(b"\r\n", 2)[2], [str(r.address) for r in found.recipients]


def test_sendmail_fills_in_what_is_missing(relay: Running) -> None:
    done = send(
        relay, b"Subject: a\nTo: x@y\n\nhello\n", "-f", "alarm@example.com", "-F", "The Alarm", "bob@example.org"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    body, recipients = stored(relay)
    header, _, rest = body.partition(b"\r\n\r\n")
    assert rest == b"hello\r\n"
    assert header.startswith(b"Subject: a\r\nTo: x@y\r\nMessage-Id: <")
    assert re.search(rb"\r\nMessage-Id: <\d{14}\.[0-9a-f]+@gw\.example\.com>\r\nDate: ", header)
    assert header.endswith(b"\r\nFrom: The Alarm <alarm@example.com>")
    assert recipients == ["bob@example.org"]
    assert str(relay.envelopes()[0].sender) == "alarm@example.com"


def test_sendmail_t_takes_recipients_and_drops_bcc(relay: Running) -> None:
    message = (
        b'To: "Doe, John" <john@example.org>, (a (nested) comment) jane@example.org\n'
        b"Cc: friends: amy@example.net, Bob <@relay.example:bob@example.net>;, undisclosed:;\n"
        b"BCC: secret@example.com,\n hidden@example.com\n"
        b"Message-ID: <1@x>\nDate: now\nFrom: me@x\n\nhello\n"
    )
    assert send(relay, message, "-t", "-i", "extra@example.org").returncode == 0
    body, recipients = stored(relay)
    expected = ["extra@example.org", "john@example.org", "jane@example.org", "amy@example.net", "bob@example.net"]
    assert recipients == [*expected, "secret@example.com", "hidden@example.com"]
    assert b"secret" not in body and b"hidden" not in body
    assert body.endswith(b"\r\nMessage-ID: <1@x>\r\nDate: now\r\nFrom: me@x\r\n\r\nhello\r\n")


def test_sendmail_without_t_leaves_the_header_alone(relay: Running) -> None:
    message = b"Bcc: x@y\nFrom: a@b\nDate: now\nMessage-Id: <1@x>\n\n"
    assert send(relay, message, "bob").returncode == 0
    assert stored(relay) == (message.replace(b"\n", b"\r\n"), ["bob"])


def test_sendmail_resent_fields_come_first(relay: Running) -> None:
    message = b"To: old@x\nFrom: a@b\nDate: d\nMessage-Id: <1@x>\nResent-To: new@x\nResent-Bcc: blind@x\n\n"
    assert send(relay, message, "-t").returncode == 0
    body, recipients = stored(relay)
    assert recipients == ["new@x", "blind@x"]
    assert b"Resent-Message-Id: <" in body and b"Resent-From: " in body and b"blind" not in body


@pytest.mark.parametrize(
    ("options", "rest"),
    [
        ([], b"one\r\n"),
        (["-i"], b"one\r\n.\r\ntwo\r\n"),
        (["-oi"], b"one\r\n.\r\ntwo\r\n"),
        (["-o", "i"], b"one\r\n.\r\ntwo\r\n"),
    ],
)
def test_sendmail_dot(relay: Running, options: list[str], rest: bytes) -> None:
    assert send(relay, b"Subject: x\n\none\n.\ntwo\n", *options, "bob").returncode == 0
    assert stored(relay)[0].partition(b"\r\n\r\n")[2] == rest


@pytest.mark.parametrize(
    ("message", "start"),
    [
        (b"From root Mon Nov 16\nSubject: x\n\nbody\n", b"Subject: x\r\n"),
        (b">From root\nFrom root\nSubject: x\r\n\r\nbody\r\n", b"Subject: x\r\n"),
        (b"no header at all\n", b"Message-Id: "),
        (b"", b"Message-Id: "),
        (b"\nbody\n", b"Message-Id: "),
        (b" starts with a blank\n", b"Message-Id: "),
    ],
)
def test_sendmail_odd_messages(relay: Running, message: bytes, start: bytes) -> None:
    assert send(relay, message, "bob").returncode == 0
    body, _ = stored(relay)
    header, empty, rest = body.partition(b"\r\n\r\n")
    assert header.startswith(start)
    assert all(re.match(rb"[!-9;-~]+: ", line) for line in header.split(b"\r\n"))
    assert empty
    plain = message.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert plain.endswith(rest)


def test_sendmail_dsn_options(relay: Running) -> None:
    done = send(relay, b"x\n", "-N", "success,failure", "-R", "hdrs", "-V", "id +1", "-f", "<>", "bob")
    assert done.returncode == 0
    (found,) = relay.envelopes()
    assert (str(found.sender), found.envid, found.ret and found.ret.value) == ("", "id+20+2B1", "HDRS")
    assert int(found.recipients[0].notify or 0) == 3


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 64),
        (["-t"], 64),
        (["-z", "bob"], 64),
        (["-bs"], 64),
        (["-bv", "bob"], 64),
        (["-f"], 64),
        (["-B", "9BIT", "bob"], 64),
        (["-qSfoo"], 64),
        (["-q", "bob"], 64),
        (["-bp", "bob"], 64),
        (["-t", "-bp"], 64),
        (["bob@[<x>]"], 64),
        (["bob smith"], 64),
        (["-t", "bob@\x01"], 64),
    ],
)
def test_sendmail_wrong_use(relay: Running, arguments: list[str], code: int) -> None:
    done = send(relay, b"Subject: x\n\nhello\n", *arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(b"sendmail: fatal: ")
    assert relay.envelopes() == []


def test_sendmail_t_with_addresses_that_cannot_be_read(relay: Running) -> None:
    done = send(relay, b"To: (never closed x@y\n\nhello\n", "-t")
    assert done.returncode == 65
    assert b"unable to extract recipients" in done.stderr
    assert relay.envelopes() == []


def test_sendmail_without_a_stdin(relay: Running) -> None:
    code = "import os; os.close(0); from edgemail.boot.names import sendmail; raise SystemExit(sendmail(['bob']))"
    environment = {**os.environ, "EDGEMAIL_CONFIG": str(relay.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, relay.envelopes()) == (65, [])
    assert b"error reading input" in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(relay: Running) -> None:
    for _ in range(300):
        relay.keep()
    command = f"{sys.executable} -c 'from edgemail.boot.names import mailq; raise SystemExit(mailq())' | head -1"
    environment = {**os.environ, "EDGEMAIL_CONFIG": str(relay.path)}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env=environment, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_sendmail_accepts_what_does_nothing_here(relay: Running) -> None:
    ignored = ["-Am", "-G", "-n", "-m", "-v", "-om", "-oem", "-o7", "-L", "x", "-h", "5", "-O", "x=y", "-bm", "-U"]
    assert send(relay, b"x\n", *ignored, "--", "bob").returncode == 0
    assert stored(relay)[1] == ["bob"]
    assert names.sendmail(["-bi"]) == 0
    assert names.sendmail(["-I"]) == 0


def test_sendmail_with_the_daemon_down(relay: Running) -> None:
    relay.stop()
    done = send(relay, b"Subject: x\n\nhello\n", "bob")
    assert done.returncode == 75
    assert b"the relay is not running" in done.stderr and b"the message was not taken" in done.stderr
    relay.start()
    assert relay.envelopes() == []


def test_sendmail_bd_is_content_with_a_relay_that_runs(relay: Running) -> None:
    assert names.sendmail(["-bd", "-q15m"]) == 0


def test_sendmail_large_message_is_streamed(relay: Running) -> None:
    line = b"0123456789" * 7 + b"\n"
    message = b"Subject: big\nFrom: a@b\nDate: d\nMessage-Id: <1@x>\n\n" + line * 50_000
    assert send(relay, message, "bob").returncode == 0
    assert stored(relay)[0] == message.replace(b"\n", b"\r\n")


def test_sendmail_option_forms() -> None:
    request = sendmail.parse(["-oi", "-ffoo@bar", "-FFull Name", "-t", "-N", "never", "--", "-odd"])
    assert (request.dot_ends, request.sender, request.full_name, request.take_recipients) == (
        False,
        "foo@bar",
        "Full Name",
        True,
    )
    assert (request.notify, request.recipients) == (0, ["-odd"])
    assert sendmail.parse(["-it", "x"]).take_recipients
