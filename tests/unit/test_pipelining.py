"""Several messages on their way over one connection: what the server may do to one of them must not touch the others.

The courier against scripted servers on loopback; every delivery names a link that may have so many connections.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest

from edgemail.envelope import Address, Delivery, Outcome
from edgemail.errors import Kind, SpoolDamaged
from edgemail.relay.send.berth import Berths
from edgemail.relay.send.pool import Key
from tests.servers import DROP, FULL, PLAIN, STALL, Authority, FakeServer
from tests.unit.test_deliver import Rig, at, rig, run

OK = b"250 2.0.0 ok\r\n"
PIPELINED = (*PLAIN, "PIPELINING")
BOTH = pytest.mark.parametrize("keywords", [FULL, PIPELINED], ids=["bdat", "data"])


async def queued(box: Rig, number: int, connections: int = 1, **more: Any) -> list[Delivery]:
    """So many deliveries, each with a sender and a content of its own, over a link with so many connections."""
    found = []
    for place in range(number):
        content = f"Subject: {place}\r\n\r\nmessage {place}\r\n".encode()
        one = await box.mail(
            f"b{place}@example.net", sender=Address(f"a{place}", "example.com"), content=content, **more
        )
        found.append(dataclasses.replace(one, link="sat", connections=connections))
    return found


async def send(box: Rig, deliveries: list[Delivery]) -> list[Outcome]:
    """All at once; the outcome of each."""
    return [outcome for (outcome,) in await asyncio.gather(*map(box.courier.deliver, deliveries))]


def whole(server: FakeServer) -> list[int]:
    """Which messages the server has; each with its own sender, recipient and content."""
    found = []
    for one in server.received:
        number = int(re.search(rb"Subject: (\d+)", one.content)[1])  # type: ignore[index]
        assert f"<a{number}@example.com>" in one.mail
        assert [f"<b{number}@example.net>" in line for line in one.rcpt] == [True]
        assert one.content == f"Subject: {number}\r\n\r\nmessage {number}\r\n".encode()
        found.append(number)
    return found


@BOTH
def test_one_connection_carries_all_and_each_arrives_whole(keywords: tuple[str, ...]) -> None:
    async def scenario() -> None:
        async with FakeServer(keywords) as server, rig(at(server)) as box:
            outcomes = await send(box, await queued(box, 40))
            assert all(outcome.delivered for outcome in outcomes)
            assert sorted(whole(server)) == list(range(40))
            assert server.connections == 1
            resets = server.lines.count("RSET")
            assert (resets > 30) if keywords is FULL else (resets == 0), "behind BDAT only"

    run(scenario)


def test_next_messages_are_written_before_the_first_is_answered() -> None:
    seen: list[bytes] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 fake ESMTP\r\n")
        await reader.readline()
        writer.write(b"250-fake\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
        while b"".join(seen).count(b"MAIL") < 10:
            seen.append(await reader.read(65536))
        for number in range(10):
            writer.write(b"250 ok\r\n" * (3 if number == 0 else 4))
        await reader.read()

    async def scenario() -> None:
        async with FakeServer(script=silent) as server, rig(at(server)) as box:
            assert all(outcome.delivered for outcome in await send(box, await queued(box, 10)))
            assert server.connections == 1

    run(scenario)
    assert len(seen) < 10, "they share writes"


def test_the_next_envelope_goes_with_the_dot() -> None:
    pieces: list[bytes] = []

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 fake ESMTP\r\n")
        await reader.readline()
        writer.write(b"250-fake\r\n250 PIPELINING\r\n")
        await reader.read(65536)
        for _ in range(5):
            writer.write(b"250 ok\r\n250 ok\r\n354 go\r\n")
            data = await reader.read(65536)
            pieces.append(data)
            assert b"\r\n.\r\n" in data
            writer.write(b"250 queued\r\n")

    async def scenario() -> None:
        async with FakeServer(script=slow) as server, rig(at(server)) as box:
            assert all(outcome.delivered for outcome in await send(box, await queued(box, 5)))

    run(scenario)
    assert [data.rpartition(b"\r\n.\r\n")[2][:4] for data in pieces] == [b"MAIL"] * 4 + [b""]
    assert all(data.endswith(b"DATA\r\n") for data in pieces[:-1])


@BOTH
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "END"])
@pytest.mark.parametrize("said", [b"451 4.3.0 later\r\n", b"550 5.7.1 no\r\n"])
def test_a_refused_message_does_not_touch_those_behind_it(keywords: tuple[str, ...], verb: str, said: bytes) -> None:
    async def scenario() -> None:
        at_end = "LAST" if keywords is FULL else "."
        answers = {at_end if verb == "END" else verb: [OK, OK, said, OK, said]}
        async with FakeServer(keywords, answers) as server, rig(at(server)) as box:
            outcomes = await send(box, await queued(box, 12))
            refused = [place for place, outcome in enumerate(outcomes) if not outcome.delivered]
            assert len(refused) == 2
            assert all(outcomes[place].reply.code == int(said[:3]) for place in refused)
            assert sorted(whole(server)) == sorted(set(range(12)) - set(refused))
            assert server.connections == 1

    run(scenario)


def test_a_server_that_stays_in_a_refused_transaction_takes_nobody_for_another_sender() -> None:
    """As RFC 3030 2 leaves it open: after a BDAT that was refused only RSET ends the transaction."""
    taken: list[tuple[str, list[str]]] = []

    async def sticky(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 fake ESMTP\r\n")
        mail, rcpt = "", list[str]()
        while line := (await reader.readline()).decode().strip():
            verb = line.split(" ")[0]
            if verb == "EHLO":
                writer.write(b"250-fake\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
            elif verb == "RSET":
                mail, rcpt = "", []
                writer.write(b"250 ok\r\n")
            elif verb == "MAIL":
                writer.write(b"503 nested MAIL\r\n" if mail else b"250 ok\r\n")
                mail = mail or line
            elif verb == "RCPT" and "b3@" in line:
                writer.write(b"550 5.1.1 nobody\r\n")
            elif verb == "RCPT":
                rcpt.append(line)
                writer.write(b"250 ok\r\n")
            elif verb == "BDAT":
                await reader.readexactly(int(line.split(" ")[1]))
                if rcpt:
                    taken.append((mail, rcpt))
                    mail, rcpt = "", []
                    writer.write(b"250 ok\r\n")
                else:
                    writer.write(b"503 no valid recipients\r\n")
            else:
                writer.write(b"221 bye\r\n")

    async def scenario() -> None:
        async with FakeServer(script=sticky) as server, rig(at(server)) as box:
            outcomes = await send(box, await queued(box, 8))
            assert [place for place, outcome in enumerate(outcomes) if not outcome.delivered] == [3]

    run(scenario)
    assert len(taken) == 7
    for mail, (rcpt,) in taken:
        assert re.search(r"<a(\d)@", mail)[1] == re.search(r"<b(\d)@", rcpt)[1]  # type: ignore[index]


@BOTH
def test_a_connection_that_drops_repeats_only_what_was_not_heard_of(keywords: tuple[str, ...]) -> None:
    async def scenario() -> None:
        at_end = "LAST" if keywords is FULL else "."
        answers = {at_end: [OK, OK, OK, DROP]}
        async with FakeServer(keywords, answers) as server, rig(at(server)) as box:
            outcomes = await send(box, await queued(box, 12))
            lost = [place for place, outcome in enumerate(outcomes) if not outcome.delivered]
            assert len(lost) <= 1, "the one whose answer was on its way, if anything was heard about it"
            for place in lost:
                assert outcomes[place].kind is Kind.MESSAGE_TEMPORARY
                assert "message may be sent more than once" in outcomes[place].reply.text
            assert server.connections == 2
            taken = whole(server)
            assert set(taken) == set(range(12))
            twice = {number for number in taken if taken.count(number) > 1}
            assert twice <= set(taken[:4]), "only those whose answers the drop took with it"
            assert len(taken) <= 12 + 4

    run(scenario)


def test_a_farewell_in_the_middle_sends_the_rest_over_another_connection() -> None:
    async def scenario() -> None:
        answers = {"MAIL": [OK, OK, b"421 4.7.0 too many messages\r\n"]}
        async with FakeServer(FULL, answers) as server, rig(at(server)) as box:
            outcomes = await send(box, await queued(box, 9))
            assert all(outcome.delivered for outcome in outcomes)
            assert sorted(whole(server)) == list(range(9))
            assert server.connections == 2

    run(scenario)


def test_nonsense_breaks_the_connection_and_bounces_nothing() -> None:
    async def scenario() -> None:
        answers = {"LAST": [OK, OK, b"hello\r\n"]}
        async with FakeServer(FULL, answers) as server, rig(at(server)) as box:
            outcomes = await send(box, await queued(box, 6))
            kinds = {outcome.kind for outcome in outcomes if not outcome.delivered}
            assert kinds == {Kind.ROUTE}
            assert {o.reply.enhanced for o in outcomes if not o.delivered} == {"4.5.0"}

    run(scenario)


@pytest.mark.parametrize(("verb", "said"), [("GREETING", b"554 5.3.2 no\r\n"), ("EHLO", DROP)])
def test_a_connection_that_does_not_come_about_has_failed_for_all_who_waited(verb: str, said: bytes) -> None:
    async def scenario() -> None:
        async with FakeServer(FULL, {verb: said}) as server, rig(at(server)) as box:
            outcomes = await send(box, await queued(box, 20))
            assert {(outcome.kind, outcome.site_failed) for outcome in outcomes} == {(Kind.ROUTE, True)}
            assert server.connections == 1

    run(scenario)


@pytest.mark.parametrize(("keywords", "most"), [(FULL, 1), (PIPELINED, 3), (PLAIN, 3)], ids=["bdat", "data", "in step"])
def test_more_connections_only_where_one_does_not_take_all(keywords: tuple[str, ...], most: int) -> None:
    async def scenario() -> None:
        async with FakeServer(keywords, delays={".": 0.005}) as server, rig(at(server)) as box:
            outcomes = await send(box, await queued(box, 30, connections=3))
            assert all(outcome.delivered for outcome in outcomes)
            assert sorted(whole(server)) == list(range(30))
            assert server.connections == most

    run(scenario)


def test_destinations_take_turns_at_the_one_connection() -> None:
    async def scenario() -> None:
        async with FakeServer() as one, FakeServer() as two:
            hops = {"one": [at(one)], "two": [at(two)]}
            async with rig(hops=hops) as box:
                deliveries = await queued(box, 4, hops=("one",)) + await queued(box, 4, hops=("two",))
                assert all(outcome.delivered for outcome in await send(box, deliveries))
                assert (one.connections, two.connections) == (1, 1)
                assert (sorted(whole(one)), sorted(whole(two))) == ([0, 1, 2, 3], [0, 1, 2, 3])

    run(scenario)


def test_a_connection_is_not_shared_beyond_its_limits() -> None:
    async def scenario() -> None:
        async with FakeServer() as server, rig(at(server), smtp_connection_reuse_count_limit=5) as box:
            assert all(outcome.delivered for outcome in await send(box, await queued(box, 20)))
            assert server.connections == 4

    run(scenario)


@BOTH
def test_a_message_that_cannot_be_read_leaves_the_others_to_another_connection(keywords: tuple[str, ...]) -> None:
    async def scenario() -> None:
        async with FakeServer(keywords) as server, rig(at(server)) as box:
            deliveries = await queued(box, 6)
            readable = box.spool.body

            def torn(id: int) -> Iterator[bytes]:
                yield from readable(id)
                if id == deliveries[3].envelope.id:
                    raise SpoolDamaged(id, "checksum")

            box.spool.body = torn  # type: ignore[method-assign]
            outcomes = await send(box, deliveries)
            assert [place for place, outcome in enumerate(outcomes) if outcome.kind is Kind.LOCAL] == [3]
            missing = [place for place, outcome in enumerate(outcomes) if not outcome.delivered]
            assert len(missing) <= 2, "the damaged one, and one whose answer was on its way"
            assert set(whole(server)) >= set(range(6)) - set(missing)
            assert 3 not in whole(server)

    run(scenario)


def test_giving_one_up_leaves_nobody_waiting() -> None:
    async def scenario() -> None:
        async with FakeServer(PIPELINED, {"DATA": [STALL]}) as server, rig(at(server)) as box:
            tasks = [asyncio.ensure_future(box.courier.deliver(each)) for each in await queued(box, 5)]
            while "DATA" not in server.lines:
                await asyncio.sleep(0)
            tasks[2].cancel()  # one that waits in line
            tasks[0].cancel()  # the one that is on its way
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert [isinstance(each, asyncio.CancelledError) for each in done] == [True, False, True, False, False]
            assert sorted(whole(server)) == [1, 3, 4]

    run(scenario)


def test_one_connection_after_another_offers_its_tls_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    authority = Authority(tmp_path_factory.mktemp("authority"))

    async def scenario() -> None:
        settings: dict[str, Any] = {"smtp_tls_security_level": "encrypt"}
        answers = {"LAST": [OK, OK, OK, DROP]}
        async with FakeServer(FULL, answers, tls=authority.server("fake.example")) as server:
            async with rig(at(server), **settings) as box:
                outcomes = await send(box, await queued(box, 10))
                assert sum(outcome.delivered for outcome in outcomes) >= 9
                assert server.sessions == ["full", "resumed"], "though the first connection had no good end"

    run(scenario)


def test_urgent_mail_is_next_at_a_connection_that_others_wait_for() -> None:
    async def scenario() -> None:
        async with FakeServer(PIPELINED, delays={"DATA": 0.01}) as server, rig(at(server)) as box:
            deliveries = await queued(box, 8)
            deliveries[7] = dataclasses.replace(deliveries[7], urgent=True)
            tasks = [asyncio.ensure_future(box.courier.deliver(each)) for each in deliveries[:7]]
            while "DATA" not in server.lines:
                await asyncio.sleep(0)
            tasks.append(asyncio.ensure_future(box.courier.deliver(deliveries[7])))
            assert all(outcome.delivered for (outcome,) in await asyncio.gather(*tasks))
            assert whole(server).index(7) == 1

    run(scenario)


def test_a_farewell_to_rset_is_not_about_the_message_behind_it() -> None:
    async def scenario() -> None:
        async with FakeServer(FULL, {"RSET": [OK, b"421 4.3.2 closing\r\n"]}) as server, rig(at(server)) as box:
            assert all(outcome.delivered for outcome in await send(box, await queued(box, 6)))
            assert set(whole(server)) == set(range(6))

    run(scenario)


def test_a_turn_that_nobody_takes_is_the_next_ones() -> None:
    async def scenario() -> None:
        berths: Berths[object] = Berths()
        key = Key("smtp", "hop", "may", "", "sat")
        first, second = (asyncio.ensure_future(berths.wait(key, first=False)) for _ in range(2))
        await asyncio.sleep(0)
        assert berths.stir("sat")
        first.cancel()  # it has been called, and goes
        assert await second == ()
        assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], asyncio.CancelledError)
        assert not berths.stir("sat")

    run(scenario)
