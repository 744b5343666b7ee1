"""The control socket: framing, bounds, who may ask what, and each verb over a real spool."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemail.boot import control
from edgemail.boot.client import Down, Failure, Office
from edgemail.boot.control import ControlServer, Peer, Refused, Verb
from edgemail.boot.frames import MAX_FRAME, MAX_REQUEST, SOCKET_NAME, addressed
from edgemail.envelope import Address, Body, Notify, Recipient, Ret
from edgemail.reply import SPOOL_FULL
from tests.desk import Running, running


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, 'fast_flush_domains = ["example.org"]\n') as found:
        yield found


def office(relay: Running) -> Office:
    return Office(relay.directory, str(relay.path))


def ask(relay: Running, verb: str, content: list[bytes] | None = None, **more: Any) -> tuple[list[Any], dict[str, Any]]:
    said: list[Any] = []
    last = office(relay).ask({"verb": verb, **more}, said.append, content)
    return said, dict(last)


def raw(relay: Running, data: bytes, *, shut: bool = False) -> bytes:
    """What comes back for octets on the socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        with addressed(relay.directory / SOCKET_NAME) as address:
            connection.connect(address)
        try:
            connection.sendall(data)
            if shut:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        out = b""
        try:
            while piece := connection.recv(65_536):
                out += piece
        except ConnectionResetError:
            pass
        return out


# the socket


def test_socket_is_for_owner_and_group(relay: Running) -> None:
    assert (relay.directory / SOCKET_NAME).stat().st_mode & 0o777 == 0o660


def test_socket_goes_when_the_daemon_goes(relay: Running) -> None:
    relay.stop()
    assert not (relay.directory / SOCKET_NAME).exists()
    with pytest.raises(Down) as found:
        office(relay).ask({"verb": "status"})
    assert found.value.code == 75


def test_a_socket_left_by_a_crash_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "spool" / SOCKET_NAME))
    left.close()
    with running(tmp_path) as relay:
        assert ask(relay, "status")[1]["state"] == "ok"


def test_a_file_in_its_place_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / SOCKET_NAME
    path.write_text("mine")

    async def scenario() -> None:
        await ControlServer(path, dict).start()

    with pytest.raises(OSError, match="in use"):
        asyncio.run(scenario())
    assert path.read_text() == "mine"


def test_a_deep_directory_is_no_hindrance(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with running(deep) as relay:
        assert ask(relay, "status")[1]["queue"]["messages"] == 0


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b"hello\n", "not a line of JSON"),
        (b"[]\n", "not a JSON object"),
        (b"{}\n", "no verb"),
        (b'{"verb": "explode"}\n', "no verb 'explode'"),
        (b'{"verb": ["status"]}\n', "no verb"),
        (b"[" * 60_000 + b"\n", "not a line of JSON"),
        (b'{"verb": "queue.list", "ids": "all"}\n', "a list of queue ids"),
        (b'{"verb": "queue.list", "ids": ["xyz"]}\n', "invalid queue id"),
        (b'{"verb": "queue.list", "states": ["gone"]}\n', "some of active"),
        (b'{"verb": "queue.list", "sender": 7}\n', "text is wanted"),
        (b'{"verb": "queue.delete"}\n', "say which messages"),
        (b'{"verb": "queue.delete", "all": "yes"}\n', "say which messages"),
        (b'{"verb": "shape", "buckets": 1000000}\n', "a number from 1 to 40"),
        (b'{"verb": "queue.cat", "id": null}\n', "invalid queue id"),
        (b'{"verb": "submit", "recipients": []}\n', "no recipients"),
        (b'{"verb": "submit", "sender": "a b", "recipients": ["c"]}\n', "malformed address"),
        (b'{"verb": "submit", "sender": "", "recipients": ["c@[<>]"]}\n', "malformed address"),
        (b'{"verb": "submit", "sender": "", "recipients": ["\\ud800@b"]}\n', "malformed address"),
        (b'{"verb": "submit", "sender": "", "recipients": ["a"], "notify": 9}\n', "notify"),
        (b'{"verb": "submit", "sender": "", "recipients": ["a"], "envid": "a b"}\n', "envid"),
        (b'{"verb": "submit", "sender": "", "recipients": ["a"], "ret": "ALL"}\n', "ret"),
    ],
)
def test_nonsense_is_refused_with_a_sentence(relay: Running, line: bytes, part: str) -> None:
    answer = json.loads(raw(relay, line))
    assert answer["done"] is True
    assert part in answer["error"]
    assert answer["code"] == 64


def test_a_request_line_without_an_end_is_bounded(relay: Running) -> None:
    answer = json.loads(raw(relay, b"x" * (MAX_REQUEST * 3)))
    assert "longer than" in answer["error"]


def test_half_a_request_gets_no_answer_and_does_no_harm(relay: Running) -> None:
    assert raw(relay, b'{"verb": "sta', shut=True) == b""
    assert ask(relay, "status")[1]["state"] == "ok"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_any_octets_leave_the_daemon_as_it_was(relay: Running, data: bytes) -> None:
    for line in raw(relay, data + b"\n", shut=True).splitlines():
        json.loads(line)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    verb=st.sampled_from(
        ["status", "queue.list", "queue.why", "queue.hold", "queue.cat", "shape", "submit", "queue.flush"]
    ),
    members=st.dictionaries(
        st.sampled_from(["ids", "all", "states", "sender", "domain", "id", "recipients", "site", "buckets", "notify"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
            max_leaves=4,
        ),
        max_size=4,
    ),
)
def test_any_members_get_an_answer(relay: Running, verb: str, members: dict[str, Any]) -> None:
    request = json.dumps({**members, "verb": verb}).encode() + b'\n{"octets":0}\n'
    last = json.loads(raw(relay, request, shut=True).splitlines()[-1])
    assert last["done"] is True
    assert "internal error" not in last.get("error", "")


def test_too_many_at_once_are_told_to_come_back(relay: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr("edgemail.boot.client.BUSY_TRIES", 2)
    monkeypatch.setattr("edgemail.boot.client.BUSY_PAUSE", 0.0)
    held = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for one in held:
        one.connect(str(relay.directory / SOCKET_NAME))
    try:
        with pytest.raises(Failure, match="too many commands") as found:
            ask(relay, "status")
        assert found.value.code == 75
    finally:
        for one in held:
            one.close()


def test_an_idle_connection_is_closed(relay: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(relay.directory / SOCKET_NAME))
        assert b"no request for too long" in connection.recv(1000)


def test_a_reader_that_stands_still_is_let_go(relay: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "WRITE_SECONDS", 0.05)
    kept = relay.keep(body=b"Subject: x\r\n\r\n" + b"y" * 78 * 20_000)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(str(relay.directory / SOCKET_NAME))
        connection.sendall(json.dumps({"verb": "queue.cat", "id": kept.queue_id}).encode() + b"\n")
        assert ask(relay, "status")[1]["state"] == "ok"
        done = threading.Event()

        async def gone() -> None:
            while relay.server._tasks:
                await asyncio.sleep(0.01)
            done.set()

        relay.call(gone())
        assert done.is_set()


def test_members_of_the_group_may_look_but_not_touch(relay: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    relay.keep()
    monkeypatch.setattr(control, "_peer", lambda writer: Peer(1, os.geteuid() + 1000, 1))
    last = ask(relay, "queue.list")[1]
    assert last["count"] == 1
    assert ask(relay, "queue.flush")[1]["count"] == 1
    for verb in ("queue.hold", "queue.release", "queue.requeue", "queue.delete", "queue.cat", "reload"):
        with pytest.raises(Failure, match="for root and the relay's own user") as found:
            ask(relay, verb, all=True)
        assert found.value.code == 77


def test_the_peer_is_who_the_kernel_says(relay: Running) -> None:
    seen: list[Peer] = []

    async def look(request: dict[str, Any], channel: control.Channel) -> dict[str, Any]:
        seen.append(channel.peer)
        return {}

    relay.server._verbs = lambda: {"look": Verb(look)}
    ask(relay, "look")
    assert seen == [Peer(os.getpid(), os.geteuid(), os.getegid())]


def test_an_unexpected_failure_is_temporary_and_logged(relay: Running, caplog: pytest.LogCaptureFixture) -> None:
    async def fall(request: dict[str, Any], channel: control.Channel) -> dict[str, Any]:
        raise ZeroDivisionError("secret detail")

    relay.server._verbs = lambda: {"fall": Verb(fall)}
    with pytest.raises(Failure, match="internal error") as found:
        ask(relay, "fall")
    assert found.value.code == 75
    assert "secret" not in str(found.value)
    assert "ZeroDivisionError" in caplog.text


# looking


def test_list_streams_every_message_with_its_state(relay: Running) -> None:
    fresh = relay.keep()
    held = relay.keep(hold=True, hold_reason="postmaster has no address")
    tried = relay.keep(recipients=[Recipient(Address.of("bob@example.org"), reason="timed out")], attempts=1)
    busy = relay.keep()
    relay.queue.in_hand.add(busy.id)
    said, last = ask(relay, "queue.list")
    states = {one["entry"]["queue_id"]: one["entry"]["queue_name"] for one in said}
    assert states == {
        fresh.queue_id: "incoming",
        held.queue_id: "hold",
        tried.queue_id: "deferred",
        busy.queue_id: "active",
    }
    assert last["count"] == 4


def test_filters_all_have_to_fit(relay: Running) -> None:
    one = relay.keep(sender="Printer@Example.com", recipients=["bob@example.org", "eve@example.net"])
    two = relay.keep(sender="", recipients=["bob@example.org"], bounce=True)
    late = Recipient(Address.of("bob@example.org"), reason="connect to mx[192.0.2.1]:25: Connection TIMED out")
    three = relay.keep(sender="printer@example.com", recipients=[late], attempts=2)

    def found(**filters: Any) -> list[str]:
        return [line["entry"]["queue_id"] for line in ask(relay, "queue.list", **filters)[0]]

    assert found(sender="printer@example.com") == [one.queue_id, three.queue_id]
    assert found(sender="<>") == [two.queue_id]
    assert found(recipient="EVE@example.net") == [one.queue_id]
    assert found(domain="example.net") == [one.queue_id]
    assert found(reason="timed OUT") == [three.queue_id]
    assert found(states=["deferred"], domain="example.org") == [three.queue_id]
    assert found(states=["deferred"], domain="example.net") == []
    assert found(ids=[two.queue_id, "FFFFFFFF"]) == [two.queue_id]


def test_cat_gives_envelope_and_octets(relay: Running) -> None:
    body = b"Subject: big\r\n\r\n" + os.urandom(200_000).hex().encode()
    kept = relay.keep(body=body)
    said, _ = ask(relay, "queue.cat", id=kept.queue_id)
    assert said[0]["entry"]["queue_id"] == kept.queue_id
    assert b"".join(said[1:]) == body
    assert max(map(len, said[1:])) <= MAX_FRAME


def test_cat_of_what_is_not_there(relay: Running) -> None:
    with pytest.raises(Failure, match="no such message") as found:
        ask(relay, "queue.cat", id="ABCDEF")
    assert found.value.code == 65


def test_why_groups_by_destination_and_reason(relay: Running) -> None:
    for address in ("a@example.org", "b@example.org", "c@example.net"):
        relay.keep(recipients=[Recipient(Address.of(address), reason="no route")], attempts=1)
    said, _ = ask(relay, "queue.why")
    assert [(c["cause"]["messages"], c["cause"]["destination"]) for c in said] == [
        (2, "example.org"),
        (1, "example.net"),
    ]


# acting


def test_hold_and_release(relay: Running) -> None:
    one, two = relay.keep(), relay.keep()
    said, _ = ask(relay, "queue.hold", ids=[one.queue_id], because="wait for me")
    assert said == [{"acted": [one.queue_id]}]
    assert [(e.hold, e.hold_reason) for e in relay.envelopes()] == [(True, "wait for me"), (False, "")]
    assert ask(relay, "queue.hold", ids=[one.queue_id])[1]["count"] == 0
    assert ask(relay, "queue.release", all=True)[1]["count"] == 1
    assert not any(e.hold for e in relay.envelopes())
    assert two.id in [e.id for e in relay.envelopes()]


def test_delete_takes_only_what_fits(relay: Running) -> None:
    keep = relay.keep(recipients=["bob@example.org"])
    relay.keep(recipients=["eve@example.net"])
    assert ask(relay, "queue.delete", domain="example.net")[1]["count"] == 1
    assert [e.id for e in relay.envelopes()] == [keep.id]


def test_delete_of_many_goes_in_batches(relay: Running) -> None:
    for _ in range(120):
        relay.keep()
    said, last = ask(relay, "queue.delete", all=True)
    assert [len(one["acted"]) for one in said] == [50, 50, 20]
    assert last["count"] == 120
    assert relay.envelopes() == []


def test_requeue_gives_a_new_id_and_one_more_received_line(relay: Running) -> None:
    late = Recipient(Address.of("bob@example.org"), Notify.SUCCESS, "rfc822;bob@x", reason="no route", status="4.4.1")
    kept = relay.keep(recipients=[late], hold=True, attempts=3, next_attempt=1e10, backoff=4000.0)
    relay.clock.advance(60)
    said, _ = ask(relay, "queue.requeue", ids=[kept.queue_id])
    ((old, new),) = said[0]["acted"]
    (found,) = relay.envelopes()
    assert (old, new) == (kept.queue_id, found.queue_id)
    assert found.id != kept.id
    assert (found.hold, found.attempts, found.next_attempt, found.backoff) == (False, 0, 0.0, 0.0)
    assert found.recipients == (Recipient(Address.of("bob@example.org"), Notify.SUCCESS, "rfc822;bob@x"),)
    body = relay.body(found.id)
    stamp, _, rest = body.partition(b"Subject:")
    assert rest == b" test\r\n\r\nhello\r\n"
    assert stamp.startswith(b"Received: by gw.example.com (edgemail, from userid %d)\r\n\tid " % os.geteuid())
    assert found.queue_id.encode() in stamp


def test_flush_passes_on_what_is_meant(relay: Running) -> None:
    kept = relay.keep()
    ask(relay, "queue.flush")
    ask(relay, "queue.flush", domain="Example.ORG")
    ask(relay, "queue.flush", site="smtp:[isp.example]:587")
    ask(relay, "queue.flush", ids=[kept.queue_id, "FFFF"])
    assert relay.queue.flushed == [
        (None, None, None),
        (None, "example.org", None),
        (None, None, "smtp:[isp.example]:587"),
        ([kept.id], None, None),
    ]


def test_reload_says_what_is_wrong_with_the_file(relay: Running) -> None:
    ask(relay, "reload")
    assert relay.reloads == 1
    relay.path.write_text(relay.path.read_text() + "\nnonsense = 1\n")
    with pytest.raises(Failure, match="nonsense") as found:
        ask(relay, "reload")
    assert found.value.code == 78


# submission


def submit(relay: Running, *content: bytes, **more: Any) -> dict[str, Any]:
    request = {"sender": "alice@example.com", "recipients": ["bob@example.org"], **more}
    return ask(relay, "submit", list(content), **request)[1]


def test_submission_is_kept_with_a_trace_header(relay: Running) -> None:
    last = submit(relay, b"Subject: a\nMessage-Id: <1@x>\n\nfirst\r\nsec", b"ond\rthird\x00\r", b"\n\xc3\xa4")
    (found,) = relay.envelopes()
    assert last["queue_id"] == found.queue_id
    stamp, _, rest = relay.body(found.id).partition(b"\r\nSubject:")
    assert rest == b" a\r\nMessage-Id: <1@x>\r\n\r\nfirst\r\nsecond\r\nthird\r\n\xc3\xa4\r\n"
    assert stamp.startswith(b"Received: by gw.example.com (edgemail, from userid %d)\r\n\tid " % os.geteuid())
    assert f"id {found.queue_id}; ".encode() in stamp
    assert (found.message_id, found.eight_bit, found.origin.protocol, found.origin.client_address) == (
        "<1@x>",
        True,
        "",
        "",
    )
    assert found.size == len(relay.body(found.id))
    assert [e.id for e in relay.queue.taken] == [found.id]


def test_submission_keeps_what_was_asked_of_dsn(relay: Running) -> None:
    submit(
        relay,
        b"x\n",
        sender="",
        notify=3,
        ret="HDRS",
        envid="QQ+2B",
        body="8BITMIME",
        recipients=["b@x", "B@x", "root"],
    )
    (found,) = relay.envelopes()
    assert (found.sender, found.ret, found.envid, found.body) == (Address(""), Ret.HDRS, "QQ+2B", Body.EIGHT_BIT)
    assert [str(r.address) for r in found.recipients] == ["B@x", "root"]
    assert {r.notify for r in found.recipients} == {Notify.SUCCESS | Notify.FAILURE}


def test_a_submission_that_breaks_off_leaves_nothing(relay: Running) -> None:
    request = json.dumps({"verb": "submit", "sender": "a", "recipients": ["b"]}).encode() + b"\n"
    out = raw(relay, request + b'{"octets":10}\n12345', shut=True)
    assert b"broke off" in out
    out = raw(relay, request + b'{"octets":3}\n123', shut=True)
    assert b"broke off" in out
    assert b"a number up to" in raw(relay, request + b'{"octets":-1}\n')
    assert b"a number up to" in raw(relay, request + b'{"octets":%d}\n' % (MAX_FRAME + 1))
    assert relay.envelopes() == []
    assert relay.queue.taken == []


def test_what_is_not_kept_is_given_up(relay: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its octets would count against all sessions' bound for as long as the daemon runs."""
    begin, given_up = relay.store.intake, []

    class Watched:
        def __init__(self) -> None:
            self._intake = begin()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._intake, name)

        async def abort(self) -> None:
            given_up.append(self._intake.id)
            await self._intake.abort()

    monkeypatch.setattr(relay.store, "intake", Watched)
    request = json.dumps({"verb": "submit", "sender": "a", "recipients": ["b"]}).encode() + b"\n"
    raw(relay, request + b'{"octets":3}\n123', shut=True)
    with pytest.raises(Failure):
        submit(relay, b"Received: by somebody\n" * 50)
    assert len(given_up) == 2
    submit(relay, b"x")
    assert len(given_up) == 2


def test_a_full_disk_refuses_before_the_content_is_sent(relay: Running) -> None:
    relay.refused = SPOOL_FULL
    sent: list[bytes] = []

    def content() -> Iterator[bytes]:
        sent.append(b"x")
        yield b"x"

    with pytest.raises(Failure, match="Insufficient system storage") as found:
        office(relay).ask({"verb": "submit", "sender": "a", "recipients": ["b"]}, content=content())
    assert found.value.code == 75
    assert sent == []


def test_a_message_over_the_limit_is_not_kept(tmp_path: Path) -> None:
    with running(tmp_path, "message_size_limit = 5000\n") as relay:
        with pytest.raises(Failure, match="too big") as found:
            submit(relay, b"x" * 6000)
        assert found.value.code == 69
        assert relay.envelopes() == []


def test_a_loop_through_sendmail_ends(relay: Running) -> None:
    with pytest.raises(Failure, match="too many hops"):
        submit(relay, b"Received: by somebody\n" * 50 + b"\nbody\n")
    assert relay.envelopes() == []


def test_refused_is_what_the_command_prints() -> None:
    assert Refused("no", 64).code == 64
    assert struct.calcsize("3i") == 12  # struct ucred
