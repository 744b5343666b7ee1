"""The queue commands against the real process: what scripts and people do with mail that waits."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.ports import free_port
from tests.scenarios.relay import MESSAGE, Relay, relay
from tests.scenarios.sink import after_trace, sink

# No second try of its own within a test, unless it is asked for one.
PATIENT = 'minimal_backoff_time = "1h"\nmaximal_backoff_time = "2h"\nqueue_run_delay = "1h"\nin_flow_delay = 0\n'


@pytest.fixture(scope="module")
def closed() -> int:
    """A port where no smarthost listens."""
    return free_port()


@pytest.fixture
def waiting(tmp_path: Path, closed: int) -> Iterator[Relay]:
    """A relay whose smarthost is away."""
    with relay(tmp_path, PATIENT + f'relayhost = "[127.0.0.1]:{closed}"\n') as found:
        yield found


def test_listing_of_held_and_deferred_mail(waiting: Relay) -> None:
    held = waiting.send("kdent@example.com", "someone@example.org")
    other = waiting.send("alice@example.com", ["bob@example.org", "carol@example.org"])
    waiting.wait_deferred(2)
    waiting.run("postsuper", "-h", held)
    out = waiting.run("postqueue", "-p").stdout
    assert out == waiting.run("mailq").stdout == waiting.run("sendmail", "-bp").stdout
    head, first, second, trailer = out.replace("\n\n", "\0").replace("\n", "\0", 1).split("\0")
    assert head == "-Queue ID-  --Size-- ----Arrival Time---- -Sender/Recipient-------"
    when = r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"{held}! +\d+ {when}  kdent@example.com", first.splitlines()[0])
    assert re.fullmatch(rf"{other}   +\d+ {when}  alice@example.com", second.splitlines()[0])
    reason, bob, carol = second.splitlines()[1:]
    assert re.fullmatch(r" +\(connect to 127\.0\.0\.1\[127\.0\.0\.1\]:\d+: Connection refused\)", reason)
    assert (bob, carol) == (f"{'':41}bob@example.org", f"{'':41}carol@example.org")
    assert re.fullmatch(r"-- \d+ Kbytes in 2 Requests\.\n", trailer)


def test_delete_one(waiting: Relay) -> None:
    queue_id = waiting.send()
    waiting.wait_deferred()
    done = waiting.run("postsuper", "-d", queue_id)
    assert done.stderr == f"postsuper: {queue_id}: removed\npostsuper: Deleted: 1 message\n"
    assert waiting.run("mailq").stdout == "Mail queue is empty\n"
    again = waiting.run("postsuper", "-d", queue_id)
    assert again.stderr == "postsuper: Deleted: 0 messages\n"


def test_delete_all_needs_capitals(waiting: Relay) -> None:
    for number in range(22):
        waiting.send(f"sender{number}@example.com")
    count = len(waiting.wait_deferred(23))  # with the notice that the route pauses
    assert waiting.run("postsuper", "-d", "all").returncode == 0
    assert len(waiting.queue()) == count == 23
    assert waiting.run("postsuper", "-d", "ALL").stderr == "postsuper: Deleted: 23 messages\n"
    assert waiting.queue() == []


def test_delete_all_that_is_deferred_spares_what_is_active(tmp_path: Path, closed: int) -> None:
    stalled = 'smtp_data_done_timeout = "60s"\n'
    with sink(answers={"GREETING": b"<stall>"}) as silent:
        maps = f'transport_maps = [{{ "slow.example" = "smtp:[127.0.0.1]:{silent.port}" }}]\n'
        settings = PATIENT + stalled + maps + f'relayhost = "[127.0.0.1]:{closed}"\n'
        with relay(tmp_path, settings) as found:
            deferred = found.send(recipients="bob@example.org")
            found.wait_deferred()
            active = found.send(recipients="bob@slow.example")
            found.wait_until(lambda: f"{active}*" in found.run("mailq").stdout, "active message")
            assert found.run("postsuper", "-d", "ALL", "deferred").stderr == "postsuper: Deleted: 1 message\n"
            left = [one["queue_id"] for one in found.queue()]
            assert left == [active]
            assert deferred not in left
            found.kill()


def test_hold_release_flush(tmp_path: Path) -> None:
    with sink() as smarthost:
        smarthost.stop()
        with relay(tmp_path, PATIENT + f'relayhost = "[127.0.0.1]:{smarthost.port}"\n') as found:
            queue_id = found.send()
            found.wait_deferred()
            found.run("postsuper", "-h", queue_id)
            smarthost.start()
            found.run("postqueue", "-f")
            other = found.send("second@example.com")
            found.wait_for(rf"{other}: removed")
            (left,) = found.queue()
            assert (left["queue_id"], left["queue_name"]) == (queue_id, "hold")
            found.run("postsuper", "-H", queue_id)
            found.run("postqueue", "-f")
            found.wait_for(rf"{queue_id}: removed")
            assert len(smarthost.received) == 2


def test_held_mail_stays_held_over_a_restart(waiting: Relay) -> None:
    queue_id = waiting.send()
    waiting.wait_deferred()
    waiting.run("edgemail", "queue", "hold", queue_id, "--because", "the smarthost moves")
    waiting.kill()
    waiting.start()
    (left,) = waiting.queue()
    assert (left["queue_name"], left["hold_reason"]) == ("hold", "the smarthost moves")


def test_requeue_after_a_wrong_transport(tmp_path: Path, closed: int) -> None:
    with sink() as smarthost:
        with relay(tmp_path, PATIENT + f'relayhost = "[127.0.0.1]:{closed}"\n') as found:
            old = [found.send(f"sender{number}@example.com") for number in range(3)]
            found.wait_deferred(3)
            found.reload(PATIENT + f'relayhost = "[127.0.0.1]:{smarthost.port}"\n')
            assert found.run("postsuper", "-r", "ALL").stderr == "postsuper: Requeued: 3 messages\n"
            for one in smarthost.wait_for(3):
                assert one.content.count(b"Received: by gw.example.com (edgemail, from userid ") == 1
                assert one.content.count(b"Received: from client.example.com ") == 1
                assert after_trace(after_trace(one.content)) == MESSAGE
            found.wait_empty()
            new = set(re.findall(r"([0-9A-F]{8,}): to=<\S+>.* status=sent", found.log()))
            assert len(new) == 3 and not new & set(old)


@pytest.mark.parametrize("queue_name", ["deferred", "hold"])
def test_postcat_from_any_queue(waiting: Relay, queue_name: str) -> None:
    queue_id = waiting.send("alice@example.com", ["bob@example.org", "carol@example.org"])
    waiting.wait_deferred()
    if queue_name == "hold":
        waiting.run("postsuper", "-h", queue_id)
    lines = waiting.run("postcat", "-q", queue_id).stdout.splitlines()
    assert lines[0] == f"*** ENVELOPE RECORDS {queue_name}/{queue_id} ***"
    for line in ("sender: alice@example.com", "recipient: bob@example.org", "recipient: carol@example.org"):
        assert line in lines
    assert lines[-7:-2] == MESSAGE.decode().splitlines()
    assert lines[-1] == f"*** MESSAGE FILE END {queue_name}/{queue_id} ***"


def test_delete_by_recipient_with_json(waiting: Relay) -> None:
    gone = [waiting.send(recipients="bob@example.org"), waiting.send(recipients=["eve@x.example", "bob@example.org"])]
    kept = waiting.send(recipients=["eve@x.example", "carol@example.org"])
    waiting.wait_deferred(3)
    entries = [json.loads(line) for line in waiting.run("postqueue", "-j").stdout.splitlines()]
    ids = [e["queue_id"] for e in entries if any(r["address"] == "bob@example.org" for r in e["recipients"])]
    done = waiting.run("postsuper", "-d", "-", input="".join(f"{one}\n" for one in ids).encode())
    assert sorted(done.stderr.splitlines()) == sorted(
        [*(f"postsuper: {one}: removed" for one in gone), "postsuper: Deleted: 2 messages"]
    )
    assert [one["queue_id"] for one in waiting.queue()] == [kept]


def test_flush_of_one_site(tmp_path: Path) -> None:
    with sink() as smarthost:
        smarthost.stop()
        settings = f'relayhost = "[127.0.0.1]:{smarthost.port}"\nfast_flush_domains = ["one.example", "two.example"]\n'
        with relay(tmp_path, PATIENT + settings) as found:
            found.send(recipients="bob@one.example")
            found.send(recipients="bob@two.example")
            found.wait_deferred(2)
            smarthost.start()
            found.run("postqueue", "-s", "one.example")
            smarthost.wait_for(1)
            found.run("sendmail", "-qRtwo.example")
            smarthost.wait_for(2)
            assert [re.findall("<(.*?)>", one.rcpt[0])[0] for one in smarthost.received] == [
                "bob@one.example",
                "bob@two.example",
            ]
            found.wait_empty()


def test_sendmail_goes_out_through_the_relay(tmp_path: Path) -> None:
    with sink() as smarthost, relay(tmp_path, f'relayhost = "[127.0.0.1]:{smarthost.port}"\n') as found:
        text = b"To: bob@example.org\nBcc: blind@example.org\nSubject: disk is full\n\nsee /data\n.\n"
        found.run("sendmail", "-t", "-i", "-f", "monitor@example.com", input=text)
        (one,) = smarthost.wait_for(1)
        assert "<monitor@example.com>" in one.mail
        assert sorted(re.findall("<(.*?)>", " ".join(one.rcpt))) == ["blind@example.org", "bob@example.org"]
        assert one.content.startswith(f"Received: by gw.example.com (edgemail, from userid {os.geteuid()})".encode())
        header, _, body = after_trace(one.content).partition(b"\r\n\r\n")
        assert body == b"see /data\r\n.\r\n"
        assert b"blind" not in header
        for name in (b"Date: ", b"From: ", b"Message-Id: <"):
            assert header.count(b"\r\n" + name) == 1
        found.wait_empty()


def test_bare_names_of_local_mail_are_completed(tmp_path: Path) -> None:
    with sink() as smarthost, relay(tmp_path, f'relayhost = "[127.0.0.1]:{smarthost.port}"\n') as found:
        found.run("sendmail", "root", input=b"Subject: alert\n\nhot\n")
        (one,) = smarthost.wait_for(1)
        assert re.search(r"<[^@<>]+@gw\.example\.com>", one.mail)
        assert "<admin@example.com>" in one.rcpt[0]
        assert re.search(rb"\r\nFrom: (.* <)?[^@<>]+@gw\.example\.com>?\r\n", one.content)


def test_why_counts_and_explains(waiting: Relay, closed: int) -> None:
    for number in range(3):
        waiting.send(recipients=f"bob{number}@example.org")
    waiting.wait_deferred(3)
    (line,) = waiting.run("edgemail", "queue", "why").stdout.splitlines()
    assert line.split()[:2] == ["3", f"smtp:[127.0.0.1]:{closed}"]
    assert "Connection refused" in line and "next in" in line


def test_commands_while_it_is_down(waiting: Relay, tmp_path: Path) -> None:
    queue_id = waiting.send()
    waiting.wait_deferred()
    assert waiting.stop() == 0
    assert waiting.run("sendmail", "bob", input=b"x\n", check=False).returncode == 75
    assert waiting.run("edgemail", "queue", "flush", check=False).returncode == 75
    assert queue_id in waiting.run("postqueue", "-p").stdout
    assert "Connection refused" in waiting.run("edgemail", "queue", "why").stdout
    waiting.run("edgemail", "queue", "export", "ALL", "--to", str(tmp_path / "out"))
    assert (tmp_path / "out" / f"{queue_id}.eml").read_bytes().endswith(MESSAGE)
    assert waiting.run("postsuper", "-d", "ALL").stderr == "postsuper: Deleted: 1 message\n"
    waiting.start()
    assert waiting.queue() == []


def test_one_queue_after_a_power_cut(waiting: Relay, tmp_path: Path) -> None:
    """What stands in the journal alone is listed, read and deleted as all other mail, and is there at the start."""
    small, other = waiting.send(), waiting.send()
    large = waiting.send(message=MESSAGE + b"x" * 76 * 1000 + b"\r\n")
    waiting.wait_deferred(3)
    waiting.kill()
    listed = waiting.run("postqueue", "-p").stdout
    assert all(one in listed for one in (small, other, large))
    assert waiting.run("postcat", "-bq", small).stdout == "\nhello\n"
    waiting.run("postsuper", "-d", other)
    assert {entry["queue_id"] for entry in waiting.queue()} == {small, large}
    waiting.start()
    assert {entry["queue_id"] for entry in waiting.queue()} == {small, large}
    assert waiting.stop() == 0
    (tmp_path / "spool" / "journal").unlink()  # after an orderly stop nothing is in it
    assert {entry["queue_id"] for entry in waiting.queue()} == {small, large}


def test_a_second_start_names_the_holder(waiting: Relay) -> None:
    done = waiting.run("edgemail", "run", check=False)
    assert done.returncode == 69
    assert waiting.process is not None and str(waiting.process.pid) in done.stderr


def test_reload_by_command(waiting: Relay) -> None:
    waiting.path.write_text(waiting.path.read_text().replace("[127.0.0.1]", "[127.0.0.2]"))
    waiting.run("edgemail", "reload")
    queue_id = waiting.send()
    waiting.wait_for(rf"{queue_id}: to=<.*127\.0\.0\.2")
    waiting.path.write_text("nonsense = 1\n" + waiting.path.read_text())
    done = waiting.run("edgemail", "reload", check=False)
    assert (done.returncode, "nonsense" in done.stderr) == (78, True)
    waiting.send()
