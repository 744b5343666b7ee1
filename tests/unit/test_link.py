"""Links: hours, budgets, ceilings, connections; what the kernel's bytes mean; probes; what is kept over a restart."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.boot import advice, config, show
from edgemail.clock import ManualClock
from edgemail.errors import ConfigurationError
from edgemail.relay.queue import netlink, uplink
from edgemail.relay.queue.link import MAX_WORDS, OVERHEAD, Answer, Links, State
from edgemail.relay.queue.uplink import FILE_NAME, Uplinks
from edgemail.relay.queue.window import is_open, next_change, parse_window
from edgemail.settings import Configuration, Link, Settings

MONDAY = 1_796_601_600.0  # 2026-12-07 00:00 UTC
HOUR, DAY = 3600.0, 86_400.0


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


# hours


@pytest.mark.parametrize(
    ("text", "opened", "closed"),
    [
        ("Mon-Fri 02:00-04:00", [2.0, 3.98, 4 * 24 + 3.5], [1.98, 4.0, 5 * 24 + 3, 12.0]),
        ("22:00-06:00", [0.0, 5.98, 22.0, 6 * 24 + 23], [6.0, 21.98]),
        ("Sun 23:00-01:00", [6 * 24 + 23.5, 7 * 24 + 0.5, 0.5], [1.0, 23.5, 6 * 24 + 0.5]),
        ("Sat,Sun 00:00-24:00", [5 * 24.0, 6 * 24 + 23.98], [0.0, 4 * 24 + 23.98, 7 * 24.0]),
        ("Fri-Mon 10:00-11:00", [10.5, 4 * 24 + 10.5], [24 + 10.5, 3 * 24 + 10.5]),
        ("monday 10:00 - 11:00", [10.5], [24 + 10.5]),
    ],
)
def test_hours(text: str, opened: list[float], closed: list[float]) -> None:
    window = parse_window(text)
    assert [h for h in opened if not is_open([window], MONDAY + h * HOUR)] == []
    assert [h for h in closed if is_open([window], MONDAY + h * HOUR)] == []


@pytest.mark.parametrize(
    "text", ["", "Mon", "Mon 1-2", "Mon 25:00-26:00", "Mon 10:60-11:00", "Foo 10:00-11:00", "Mon- 10:00-11:00",
             "10:00-10:00", "Mon-Foo 01:00-02:00", "00:00-24:01", ", 10:00-11:00"]
)  # fmt: skip
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(ValueError, match=r"window|day|time|open"):
        parse_window(text)


@given(
    st.integers(0, 7 * 1440 - 1),
    st.lists(st.tuples(st.sets(st.integers(0, 6), min_size=1), st.integers(0, 1439), st.integers(0, 1440)), max_size=3),
)
def test_the_next_change_is_the_next(minute: int, spans: list[tuple[set[int], int, int]]) -> None:
    names = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    windows = [
        parse_window(f"{','.join(names[day] for day in days)} {b // 60}:{b % 60:02d}-{e // 60}:{e % 60:02d}")
        for days, b, e in spans
        if b != e
    ]
    at = MONDAY + minute * 60 + 30
    found = next_change(windows, at)
    now = is_open(windows, at)
    end = found if found is not None else at + 8 * DAY
    assert all(is_open(windows, t) is now for t in range(int(at), int(end), 1800))
    if found is None:
        return
    assert found > at
    assert is_open(windows, found) is not now
    assert is_open(windows, found - 60) is now


# what may go


def rig(*links: Link, **names: tuple[str, ...]) -> tuple[Links, ManualClock, list[tuple[str, ...]]]:
    clock = ManualClock(MONDAY)
    opened: list[tuple[str, ...]] = []
    transports = {name: Settings(smtp_links=each) for name, each in names.items()}
    configuration = Configuration("", Settings(), (), transports, links=links)
    found = Links(clock, configuration, lambda links: opened.append(tuple(link.name for link in links)))
    return found, clock, opened


FIBRE = Link("fibre", interface="eth0")
VSAT = Link("vsat", "satellite", interface="sat0", size_limit=50_000, budget_day=100_000, budget_month=150_000)


def test_mail_waits_while_none_of_its_links_is_up() -> None:
    links, _, opened = rig(FIBRE, VSAT, smtp=("fibre", "vsat"), free=())
    assert links.shut("smtp") == "link fibre is down: not looked at yet; link vsat is down: not looked at yet"
    assert links.shut("free") == links.shut("another") == "", "who names no link waits for none"
    links.observe("vsat", True)
    assert links.shut("smtp") == ""
    assert opened == [("vsat",)]
    links.observe("vsat", False, "no carrier on sat0")
    assert opened == [("vsat",)], "that it went wakes nothing"
    assert "link vsat is down: no carrier on sat0" in links.shut("smtp")
    links.observe("vsat", False, "no carrier on sat0")
    assert len(opened) == 1, "the same again is no news"
    links.observe("nobody", True)


def test_a_message_too_large_for_the_link_that_is_up_waits_for_a_better_one() -> None:
    links, _, _ = rig(FIBRE, VSAT, smtp=("fibre", "vsat"))
    assert links.too_large("smtp", 60_000) == "", "nothing is up: that is why it waits"
    links.observe("vsat", True)
    assert links.too_large("smtp", 50_000) == ""
    assert "60000 bytes are more than link vsat takes (50000)" in links.too_large("smtp", 60_000)
    assert links.begin("smtp", 60_000) is None
    links.observe("fibre", True)
    assert links.too_large("smtp", 60_000) == ""
    charged = links.begin("smtp", 60_000)
    assert charged is not None
    assert charged.name == "fibre"


@pytest.mark.parametrize(
    ("kind", "own", "most"), [("satellite", 0, 1), ("lte", 0, 4), ("lte", 2, 2), ("satellite", 3, 3)]
)
def test_connections(kind: str, own: int, most: int) -> None:
    links, _, _ = rig(Link("a", kind, interface="x", connections=own), smtp=("a",))
    assert not links.busy("smtp"), "a link that is down is not busy"
    links.observe("a", True)
    running = []
    for number in range(most):
        assert not links.busy("smtp", f"site{number}")
        running.append(links.begin("smtp", 1, f"site{number}"))
    assert links.busy("smtp", "another")
    assert not links.busy("smtp", "site0"), "it goes over the connection that is there"
    links.end(running[0], 0, 1, "site0")
    assert not links.busy("smtp", "another")


@pytest.mark.parametrize(("kind", "most"), [("satellite", 32), ("lte", 32)])
def test_messages_to_one_destination_share_its_connections(kind: str, most: int) -> None:
    links, _, _ = rig(Link("a", kind, interface="x"), smtp=("a",))
    links.observe("a", True)
    for _ in range(most):
        assert not links.busy("smtp", "site")
        charged = links.begin("smtp", 1, "site")
    assert links.busy("smtp", "site")
    assert links.busy("smtp", "another")
    assert charged is not None
    assert charged.running == most
    for _ in range(most):
        links.end(charged, 0, 1, "site")
    assert (charged.running, charged.sites) == (0, {})


def test_no_more_octets_are_on_their_way_than_the_window() -> None:
    links, _, _ = rig(Link("a", "satellite", interface="x"), smtp=("a",))
    links.observe("a", True)
    begun = []
    while not links.busy("smtp", "site"):
        begun.append(links.begin("smtp", 10_000, "site"))
    assert len(begun) == 7, "64 KiB, and the message that goes past them"
    links.end(begun[0], 0, 10_000, "site")
    assert not links.busy("smtp", "site")
    large = Link("a", "satellite", interface="x")
    links, _, _ = rig(large, smtp=("a",))
    links.observe("a", True)
    links.begin("smtp", 10_000_000, "site")
    assert links.busy("smtp", "site"), "nothing goes behind a large one before it is over"
    assert links.busy("smtp", "another")


def test_a_fibre_has_no_limit_and_a_second_link_takes_over_when_the_first_is_full() -> None:
    links, _, _ = rig(Link("lte", "lte", interface="x", connections=1), FIBRE, smtp=("lte", "fibre"))
    links.observe("lte", True)
    links.observe("fibre", True)
    names = [one.name for one in (links.begin("smtp", 1, str(n)) for n in range(50)) if one is not None]
    assert names == ["lte"] + ["fibre"] * 49
    assert not links.busy("smtp")


def carry(links: Links, size: int) -> None:
    links.end(links.begin("smtp", size), size)


def test_budgets_of_day_and_month() -> None:
    links, clock, opened = rig(VSAT, smtp=("vsat",))
    links.observe("vsat", True)
    for _ in range(2):
        assert links.shut("smtp") == ""
        carry(links, 49_000)
    assert links.snapshot()[0].state is State.SPENT
    assert f"it has carried {2 * (49_000 + OVERHEAD)} bytes of 100000 this day" in links.shut("smtp")
    wait = links.next_review()
    assert wait is not None
    assert wait <= HOUR
    clock.advance(DAY)
    links.review()
    assert links.shut("smtp") == ""
    assert opened[-1] == ("vsat",)
    carry(links, 49_000)
    assert "this month" in links.shut("smtp"), "150000 in a month"
    clock.advance(5 * DAY)
    links.review()
    assert "this month" in links.shut("smtp")
    clock.advance(20 * DAY)  # January
    links.review()
    assert links.shut("smtp") == ""


def test_a_clock_that_is_not_trusted_opens_no_window_and_grants_no_new_day() -> None:
    links, clock, _ = rig(Link("night", interface="x", windows=("00:00-24:00",)), VSAT, smtp=("vsat",), late=("night",))
    links.observe("vsat", True)
    links.observe("night", True)
    assert links.shut("late") == ""
    for _ in range(2):
        carry(links, 49_000)
    clock.trust = False
    clock.advance(10 * 365 * DAY)
    links.review()
    assert "cannot be told while the clock is not trusted" in links.shut("late")
    assert "link vsat is spent" in links.shut("smtp")
    assert links.next_review() == 60.0
    clock.trust = True
    links.review()
    assert links.shut("late") == links.shut("smtp") == ""


def test_a_window_opens_and_closes() -> None:
    links, clock, opened = rig(Link("night", interface="x", windows=("Mon-Fri 02:00-04:00",)), smtp=("night",))
    links.observe("night", True)
    assert links.shut("smtp") == "link night is closed: its hours begin Mon 02:00"
    assert links.next_review() == HOUR, "never longer than that: somebody may set the clock"
    clock.advance(HOUR + 1800)
    assert links.next_review() == 1800
    clock.advance(1800)
    links.review()
    assert links.shut("smtp") == ""
    clock.advance(2 * HOUR)
    links.review()
    assert links.shut("smtp") == "link night is closed: its hours begin Tue 02:00"
    assert opened == [("night",)]


def test_a_reload_keeps_state_and_accounts() -> None:
    links, _, _ = rig(FIBRE, VSAT, smtp=("fibre", "vsat"))
    links.observe("vsat", True)
    carry(links, 40_000)
    fresh = Link("vsat", "satellite", interface="sat0", budget_day=10_000)
    links.reload(Configuration("", Settings(smtp_links=("vsat",)), (), links=(fresh,)))
    assert [one.name for one in links.snapshot()] == ["vsat"]
    assert links.snapshot()[0].day_bytes == 40_000 + OVERHEAD
    assert "is spent" in links.shut("smtp")


# what is kept


def test_accounts_survive_a_restart_and_nonsense_does_not_hurt(tmp_path: Path) -> None:
    async def life(expect: int, spend: int) -> None:
        links, _, _ = rig(VSAT, smtp=("vsat",))
        watch = Uplinks(links, Configuration("", Settings(), (), links=()), tmp_path, _nothing)
        watch.start()
        links.observe("vsat", True)
        assert links.snapshot()[0].day_bytes == expect
        if spend:
            carry(links, spend)
        await watch.close()
        await watch.close()

    asyncio.run(life(0, 30_000))
    asyncio.run(life(30_000 + OVERHEAD, 10_000))
    asyncio.run(life(40_000 + 2 * OVERHEAD, 0))
    for nonsense in ("", "[]", "{", '{"vsat": 3}', '{"vsat": {"spent": {"day": -1}, "period": 3}}', '{"x": {}}'):
        (tmp_path / FILE_NAME).write_text(nonsense)
        asyncio.run(life(0, 0))


def test_what_a_provider_said_last_survives_a_restart_and_not_another_provider(tmp_path: Path) -> None:
    asks = Link("wan", interface="wan0", etrn="hub.example", etrn_domains=("ship.example",))
    links, clock, _ = rig(asks)
    links.heard("wan", "etrn", "hub.example", Answer.REFUSED, "ship.example: 459 no" + "x" * MAX_WORDS)
    links.heard("gone", "etrn", "hub.example", Answer.OK, "")
    asked = links.snapshot()[0].asked
    said = asked["etrn"]
    assert (said.at, said.answer, len(said.words)) == (clock.wall(), Answer.REFUSED, MAX_WORDS)
    kept = json.loads(json.dumps(links.accounts()))
    again, _, _ = rig(asks)
    again.restore(kept)
    assert again.snapshot()[0].asked == asked
    wrong: list[object] = [3, [], ["hub.example", 1.0, "what", ""], ["hub.example", "", "ok", ""]]
    for nonsense in ([], *({"etrn": each} for each in wrong)):
        again, _, _ = rig(asks)
        again.restore({"wan": {**kept["wan"], "asked": nonsense}})
        assert again.snapshot()[0].asked == {}
    other = Link("wan", interface="wan0", etrn="other.example", etrn_domains=("ship.example",))
    links.reload(Configuration("", Settings(), (), links=(other,)))
    assert links.snapshot()[0].asked == {}
    again, _, _ = rig(other)
    again.restore(kept)
    assert again.snapshot()[0].asked == {}


async def _nothing(link: Link) -> None:
    pass


# probes


def watched(link: Link, directory: Path, opened: uplink.Opened = _nothing) -> tuple[Links, Uplinks]:
    configuration = Configuration("", Settings(smtp_links=(link.name,)), (), links=(link,))
    watch: list[Uplinks] = []

    def changed(opened: tuple[Link, ...]) -> None:
        for each in opened:
            watch[0].came_up(each)

    links = Links(ManualClock(), configuration, changed)
    watch.append(Uplinks(links, configuration, directory, opened))
    return links, watch[0]


async def until(links: Links, state: State) -> str:
    async with asyncio.timeout(10):
        while links.snapshot()[0].state is not state:
            await asyncio.sleep(0.01)
    return links.snapshot()[0].reason


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def test_a_link_that_works_at_the_start_has_not_come_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        seen: list[str] = []

        async def opened(link: Link) -> None:
            seen.append(link.name)

        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        for link in (Link("a", route="127.0.0.1"), Link("a", probe=f"127.0.0.1:{port}")):
            links, watch = watched(link, tmp_path, opened)
            watch.start()
            await until(links, State.UP)
            await asyncio.sleep(0.01)
            assert not seen
            links.observe("a", False, "gone")
            links.observe("a", True, "")
            await asyncio.sleep(0.01)
            assert seen == ["a"]
            seen.clear()
            await watch.close()
        server.close()
        await server.wait_closed()

    asyncio.run(scenario())


def test_without_a_descriptor_to_ask_with_what_was_known_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        links, watch = watched(Link("a", route="127.0.0.1"), tmp_path)
        watch.start()
        assert links.shut("smtp") == ""

        def none_left(address: str) -> str | None:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(netlink, "source_towards", none_left)
        watch.look()
        assert links.shut("smtp") == ""
        assert "Too many open files" in caplog.text
        await watch.close()

    asyncio.run(scenario())


def test_a_probe_connects(tmp_path: Path) -> None:
    async def scenario() -> None:
        seen: list[str] = []

        async def opened(link: Link) -> None:
            seen.append(link.name)

        port = free_port()
        links, watch = watched(Link("a", probe=f"127.0.0.1:{port}", probe_interval=0.02), tmp_path, opened)
        watch.start()
        async with asyncio.timeout(10):
            while "its probe failed" not in links.shut("smtp"):
                await asyncio.sleep(0.01)
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port)
        await until(links, State.UP)
        server.close()
        await server.wait_closed()
        links.observe("a", True, "")  # what was found stays until the next probe
        await until(links, State.DOWN)
        assert "its probe failed" in links.shut("smtp")
        assert seen == ["a"]
        await watch.close()

    asyncio.run(scenario())


def test_a_command_decides_and_is_killed_with_its_children(tmp_path: Path) -> None:
    flag, pid = tmp_path / "flag", tmp_path / "pid"

    async def scenario() -> None:
        link = Link("a", command=("/usr/bin/test", "-e", str(flag)), probe_interval=0.02)
        links, watch = watched(link, tmp_path)
        watch.start()
        async with asyncio.timeout(10):
            while "exit code 1" not in links.snapshot()[0].reason:
                await asyncio.sleep(0.01)
        flag.touch()
        await until(links, State.UP)
        slow = Link("a", command=("/bin/sh", "-c", f"sleep 60 & echo $! >{pid}; wait"), probe_timeout=0.3)
        configuration = Configuration("", Settings(smtp_links=("a",)), (), links=(slow,))
        links.reload(configuration)
        watch.reload(configuration)
        assert "had no answer in 0.3 s" in await until(links, State.DOWN) or links.snapshot()[0].reason
        async with asyncio.timeout(10):
            while "had no answer" not in links.snapshot()[0].reason:
                await asyncio.sleep(0.01)
            child = int(pid.read_text())
            while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
                await asyncio.sleep(0.01)
        await watch.close()

    asyncio.run(scenario())


def test_a_probe_that_cannot_run_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        links, watch = watched(Link("a", command=("/nonexistent/program",)), tmp_path)
        watch.start()
        async with asyncio.timeout(10):
            while "No such file" not in links.snapshot()[0].reason:
                await asyncio.sleep(0.01)
        await watch.close()

    asyncio.run(scenario())


def test_what_is_done_at_link_up_is_bounded_and_not_done_at_every_flap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink, "UP_PAUSE", 0.2)
    monkeypatch.setattr(uplink, "UP_SECONDS", 0.05)
    done: list[float] = []

    async def opened(link: Link) -> None:
        done.append(asyncio.get_running_loop().time())
        if len(done) == 1:
            await asyncio.sleep(60)  # hangs
        raise RuntimeError("and the next one fails")

    async def scenario() -> None:
        links, watch = watched(Link("a", route="127.0.0.1"), tmp_path, opened)
        watch.start()
        links.observe("a", False, "gone")
        links.observe("a", True, "")
        await asyncio.sleep(0.01)  # the first has begun
        for _ in range(20):
            links.observe("a", False, "gone")
            links.observe("a", True, "")
        async with asyncio.timeout(10):
            while len(done) < 2:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert len(done) == 2, "once at the first, once for all those that came meanwhile"
        await watch.close()

    asyncio.run(scenario())


# the kernel's bytes


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def link_message(index: int, name: str, flags: int = 0x10001, state: int = 6) -> bytes:
    head = struct.pack("=BxHiII", 0, 1, index, flags, 0)
    return (
        head
        + attribute(netlink.IFLA_IFNAME, name.encode() + b"\0")
        + attribute(netlink.IFLA_OPERSTATE, bytes((state,)))
    )


def address_message(index: int, address: str, scope: int = 0, flags: int = 0) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    head = struct.pack("=BBBBI", family, 24, 0, scope, index)
    kind = netlink.IFA_ADDRESS if family == socket.AF_INET6 else netlink.IFA_LOCAL
    raw = socket.inet_pton(family, address)
    return head + attribute(kind, raw) + attribute(netlink.IFA_FLAGS, struct.pack("=I", flags))


def test_interfaces_come_and_go() -> None:
    table = netlink.Table()
    assert table.take(netlink.NEWLINK, link_message(7, "wwan0", state=2))
    found = table.interface("wwan0")
    assert found == netlink.Interface("wwan0", False)
    assert table.take(netlink.NEWLINK, link_message(7, "wwan0"))
    assert not table.take(netlink.NEWLINK, link_message(7, "wwan0")), "the same again is no news"
    assert table.take(netlink.NEWADDR, address_message(7, "192.0.2.7"))
    assert not table.take(netlink.NEWADDR, address_message(7, "fe80::1", scope=253)), "does not reach beyond the link"
    assert not table.take(netlink.NEWADDR, address_message(7, "2001:db8::1", flags=0x40)), "not ready yet"
    assert table.take(netlink.NEWADDR, address_message(7, "2001:db8::1", flags=0x80))
    found = table.interface("wwan0")
    assert found is not None
    assert found == netlink.Interface("wwan0", True, frozenset({"192.0.2.7", "2001:db8::1"}))
    assert table.take(netlink.DELADDR, address_message(7, "192.0.2.7"))
    assert table.take(netlink.NEWROUTE, b"")
    assert table.take(netlink.DELLINK, link_message(7, "wwan0"))
    assert table.interface("wwan0") is None


@given(st.binary(max_size=200), st.sampled_from([16, 17, 20, 21, 24]))
def test_no_bytes_break_the_reader(data: bytes, kind: int) -> None:
    table = netlink.Table()
    table.take(kind, data)
    for each, content in netlink.messages(data):
        table.take(each, content)


def test_this_machine_has_a_loopback() -> None:
    async def scenario() -> None:
        watch = netlink.Netlink(lambda: None)
        watch.start()
        lo = watch.table.interface("lo")
        watch.close()
        watch.close()
        assert lo is not None
        assert lo.carrier

    asyncio.run(scenario())
    assert netlink.source_towards("127.0.0.9") == "127.0.0.1"


# the file


def load(tmp_path: Path, text: str) -> Configuration:
    path = tmp_path / "edgemail.toml"
    path.write_text('myhostname = "gw7.example.com"\n' + text)
    return config.load(path, files=False)


WHOLE = """
defer_transports = ["ondemand"]
smtp_links = ["fibre", "vsat"]
[transport.slow]
smtp_links = ["vsat"]
[[link]]
name = "fibre"
interface = "eth0"
[[link]]
name = "vsat"
class = "satellite"
interface = "sat0"
route = "192.0.2.1"
probe = "[192.0.2.1]:587"
command = ["/usr/bin/true", "$$x"]
probe_interval = "5m"
probe_timeout = 5
windows = ["Mon-Fri 02:00-04:00", "Sat 00:00-24:00"]
budget_day = "20MB"
budget_month = 400000000
size_limit = "100kB"
connections = 2
on_up = []
etrn = "mail.isp.example:2525"
etrn_domains = ["ship.example", "@fleet.example"]
atrn = "198.51.100.7:3660"
atrn_domains = "ship.example"
atrn_user = "ship"
atrn_password_file = "hub.password"
ask_interval = "1h"
bind = false
"""


def test_links_of_a_file(tmp_path: Path) -> None:
    found = load(tmp_path, WHOLE)
    fibre, vsat = found.links
    assert fibre == Link("fibre", "fibre", "eth0")
    assert vsat == Link(
        "vsat", "satellite", "sat0", "192.0.2.1", "[192.0.2.1]:587", ("/usr/bin/true", "$$x"), 300.0, 5.0,
        ("Mon-Fri 02:00-04:00", "Sat 00:00-24:00"), 20_000_000, 400_000_000, 100_000, 2, (),
        "mail.isp.example:2525", ("ship.example", "@fleet.example"), "198.51.100.7:3660", ("ship.example",), "ship",
        str(tmp_path / "hub.password"), 3600.0, bind=False,
    )  # fmt: skip
    assert found.settings.smtp_links == ("fibre", "vsat")
    assert found.transport("slow").smtp_links == ("vsat",)
    printed = show.text(found)
    again = tmp_path / "again.toml"
    again.write_text(printed)
    assert config.load(again, files=False).links == found.links, "what is printed can be loaded again"
    assert json.loads(show.as_json(found))["link"][1]["class"] == "satellite"


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("[link]\nname='a'", "link", "expected tables"),
        ("[[link]]\nname='a'", "link[1]", "does not say how its state is known"),
        ("[[link]]\ninterface='a'", "link[1].name", "is missing"),
        ("[[link]]\nname='a b'\ninterface='a'", "link[1].name", "not a short word"),
        ("[[link]]\nname='a'\ninterface='a'\n[[link]]\nname='a'\ninterface='b'", "link[2].name", "another link"),
        ("[[link]]\nname='a'\ninterfase='a'\nroute='192.0.2.1'", "link[1].interfase", "unknown parameter"),
        ("[[link]]\nname='a'\ninterface='much-too-long-a-name'", "link[1].interface", "not the name of an interface"),
        ("[[link]]\nname='a'\nroute='host.example'", "link[1].route", "not an address"),
        ("[[link]]\nname='a'\nprobe='host.example'", "link[1].probe", "names no port"),
        ("[[link]]\nname='a'\nprobe='2001:db8::1'", "link[1].probe", "next hop"),
        ("[[link]]\nname='a'\ncommand='/bin/true'", "link[1].command", "not a command"),
        ("[[link]]\nname='a'\ncommand=['true']", "link[1].command", "not an absolute path"),
        ("[[link]]\nname='a'\ninterface='x'\nclass='fiber'", "link[1].class", "not one of fibre, lte, satellite"),
        ("[[link]]\nname='a'\ninterface='x'\nwindows=['Mon']", "link[1].windows", "no window"),
        ("[[link]]\nname='a'\ninterface='x'\nwindows=[]", "link[1].windows", "would never be used"),
        ("[[link]]\nname='a'\ninterface='x'\nwindows=['02:00-02:00']", "link[1].windows", "is never open"),
        ("[[link]]\nname='a'\ninterface='x'\nbind='no'", "link[1].bind", "expected true or false"),
        ("[[link]]\nname='a'\ninterface='x'\netrn='h'", "link[1]", "etrn and etrn_domains need each other"),
        (
            "[[link]]\nname='a'\ninterface='x'\natrn='h'\natrn_user='u'",
            "link[1]",
            "atrn needs atrn_domains and atrn_password_file too",
        ),
        (
            "[[link]]\nname='a'\ninterface='x'\natrn='h'\natrn_user='u'\natrn_password_file='p'"
            "\natrn_domains=['@b.example']",
            "link[1].atrn_domains",
            "host name",
        ),
        (
            "[[link]]\nname='a'\ninterface='x'\natrn='h'\natrn_user=''\natrn_password_file='p'"
            "\natrn_domains=['b.example']",
            "link[1].atrn_user",
            "is empty",
        ),
        ("[[link]]\nname='a'\ninterface='x'\nask_interval='1h'", "link[1].ask_interval", "asks nobody"),
        (
            "[[link]]\nname='a'\ninterface='x'\netrn='h'\netrn_domains=['b.example']\nask_interval='1s'",
            "link[1].ask_interval",
            "out of bounds",
        ),
        ("[[link]]\nname='a'\ninterface='x'\nprobe_interval='1s'", "link[1].probe_interval", "out of bounds"),
        ("[[link]]\nname='a'\ninterface='x'\nbudget_day=0", "link[1].budget_day", "too small"),
        ("[[link]]\nname='a'\ninterface='x'\nsize_limit='10k'", "link[1].size_limit", "not a size"),
        ("[[link]]\nname='a'\ninterface='x'\nconnections=0", "link[1].connections", "not a number of connections"),
        ("[[link]]\nname='a'\ninterface='x'\non_up=['dance']", "link[1].on_up", "not one of"),
        ("[[link]]\nname='a'\ninterface='x'\netrn='isp.example'", "link[1]", "need each other"),
        (
            "[[link]]\nname='a'\ninterface='x'\netrn='isp example'\netrn_domains=['a.example']",
            "link[1].etrn",
            "next hop",
        ),
        (
            "[[link]]\nname='a'\ninterface='x'\netrn='isp.example'\netrn_domains=['a..b']",
            "link[1].etrn_domains",
            "not a host",
        ),
        (
            "[[link]]\nname='a'\ninterface='x'\netrn='isp.example'\netrn_domains=[]",
            "link[1].etrn_domains",
            "has 0 domains",
        ),
        ("smtp_links=['fibre']", "smtp_links", "there is no link 'fibre'"),
        ("[transport.x]\nsmtp_links=['y']", "transport.x.smtp_links", "there is no link 'y'"),
        ("defer_transports=['a b:c']", "defer_transports", "not a name for a transport"),
        ("\n".join(f"[[link]]\nname='a{n}'\ninterface='x'" for n in range(17)), "link[17]", "more than 16"),
    ],
)
def test_mistakes_in_links(tmp_path: Path, text: str, key: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text)
    problems = caught.value.problems
    assert [problem.key for problem in problems] == [key]
    assert message in problems[0].message
    assert problems[0].line


# what is allowed and yet seldom meant


def advised(tmp_path: Path, text: str) -> list[tuple[str, str]]:
    found = advice.of_configuration(load(tmp_path, text))
    return [(place, mistake.message) for place, mistake in found if "link" in place or "transport" in place]


def test_what_no_link_would_ever_carry(tmp_path: Path) -> None:
    vsat = "[[link]]\nname='vsat'\ninterface='sat0'\nsize_limit='100kB'\n"
    assert advised(tmp_path, "smtp_links = ['vsat']\nmessage_size_limit = '100kB'\n" + vsat) == []
    ((place, message),) = advised(tmp_path, "smtp_links = ['vsat']\n" + vsat)
    assert place == "smtp_links"
    assert "more than 100000 bytes" in message
    quay = "[[link]]\nname='quay'\ninterface='eth0'\n"
    assert advised(tmp_path, "smtp_links = ['vsat', 'quay']\n" + vsat + quay) == []
    ((place, _),) = advised(tmp_path, "[transport.slow]\nsmtp_links = ['vsat']\n" + vsat + quay)
    assert place == "transport.slow"


def test_mail_that_would_go_back_to_where_it_came_from(tmp_path: Path) -> None:
    link = (
        "[[link]]\nname='a'\ninterface='x'\natrn='h'\natrn_user='u'\natrn_password_file='p'\natrn_domains=['b.example']"
    )
    ((place, message),) = advised(tmp_path, "relayhost = '[h]:366'\n" + link)
    assert place == "link[1].atrn_domains"
    assert "mail for b.example would go to relayhost" in message
    inner = "transport_maps = [{ 'b.example' = 'inner:[192.0.2.1]' }]\n"
    assert advised(tmp_path, "relayhost = '[h]:366'\n" + inner + link) == []
