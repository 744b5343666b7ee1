"""The updates of a box: what is asked, installed, confirmed, left again; and where bundles come from."""

from __future__ import annotations

import http.server
import io
import json
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgemail.boot import bootstate, certs, confirm, launch, source
from edgemail.boot.bootstate import BootState
from edgemail.boot.bundle import BundleRefused
from edgemail.boot.card import BlockCard
from edgemail.boot.places import Places, Ran
from edgemail.boot.slots import UpdateRefused
from edgemail.boot.update import Updates
from edgemail.clock import RELEASE_DATE
from edgemail.settings import Update
from tests.cards import PUBLIC, blank, release, slot_image, started

URL = "https://localhost:{port}/edgemail.bundle"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "card.img").write_bytes(blank())
    (tmp_path / "release").write_text("VERSION=1.0\nBOARD=arm64\nSERIAL=10\nBUILD_DATE=1795219200\n")
    (tmp_path / "keys").write_text("\n".join(key.hex() for key in PUBLIC))
    (tmp_path / "cmdline").write_text("quiet edgemail.slot=A edgemail.left=2\n")
    for name in ("run", "data/edgemail/incoming", "boot"):
        (tmp_path / name).mkdir(parents=True)
    return Places(
        disk=str(tmp_path / "card.img"),
        boot=tmp_path / "boot",
        data=tmp_path / "data",
        run=tmp_path / "run",
        release=str(tmp_path / "release"),
        keys=str(tmp_path / "keys"),
        cmdline=str(tmp_path / "cmdline"),
        console=str(tmp_path / "console"),
    )


def state(places: Places) -> BootState:
    with BlockCard(places.disk, write=False) as medium:
        return bootstate.load(medium)


def count(places: Places, **left: int) -> None:
    """What the boot script does at a start."""
    with BlockCard(places.disk) as medium:
        before = bootstate.load(medium)
        bootstate.store(medium, BootState(before.order, {**before.left, **left}))


def file(places: Places, data: bytes, name: str = "new.bundle") -> str:
    path = Path(places.disk).with_name(name)
    path.write_bytes(data)
    return str(path)


# ---- install, confirm, leave


def test_installed_tried_confirmed_and_left(places: Places) -> None:
    updates = Updates(places, Update())
    assert updates.install(file(places, release())).version == "1.1"
    assert state(places).order == ("B", "A")
    found = updates.status()
    assert (found["slot"], found["good"], found["slots"]) == (
        "A",
        True,
        {"B": {"version": "1.1", "serial": 11, "spool_format": 1, "good": False}},
    )
    assert found["progress"]["state"] == "installed"

    # the box starts from B
    Path(places.cmdline).write_text("edgemail.slot=B")
    Path(places.release).write_text("VERSION=1.1\nBOARD=arm64\nSERIAL=11\nBUILD_DATE=1795219200\n")
    count(places, B=2)
    assert updates.status()["good"] is False
    with pytest.raises(UpdateRefused, match="marked good"):
        updates.install(file(places, release("1.2", serial=12)))
    assert updates.mark_good()
    assert updates.status()["good"] is True
    assert updates.roll_back() == "A"
    assert state(places).order == ("A", "B")


def test_a_newer_format_of_the_spool_waits_until_the_slot_is_good(places: Places) -> None:
    updates = Updates(places, Update())
    updates.mark_good()
    updates.install(file(places, release(spool_format=2)))
    assert updates.spool_format() == 1
    Path(places.cmdline).write_text("edgemail.slot=B")
    Path(places.release).write_text("VERSION=1.1\nBOARD=arm64\nSERIAL=11\nBUILD_DATE=1\nSPOOL_FORMAT=2\n")
    count(places, B=2)
    updates.note_format()
    assert updates.spool_format() == launch.spool_format(places) == 1
    updates.mark_good()
    assert updates.spool_format() == launch.spool_format(places) == 2
    assert launch.spool_format(Places(disk="/nowhere")) == 0


def test_a_failed_update_is_said(places: Places) -> None:
    updates = Updates(places, Update())
    with pytest.raises(BundleRefused, match="too early"):
        updates.install(file(places, release()[:-5]))
    assert updates.status()["progress"]["message"] == "the bundle ends too early"
    assert "B" not in updates.status()["slots"]
    with pytest.raises(OSError):
        updates.install("/nowhere.bundle")


def test_one_update_at_a_time(places: Places) -> None:
    updates = Updates(places, Update())
    with updates._alone(), pytest.raises(UpdateRefused, match="under way"):
        updates.install(file(places, release()))


def test_keys_of_the_configuration_are_trusted_too(places: Places) -> None:
    Path(places.keys).write_text("")
    with pytest.raises(BundleRefused, match="signature"):
        Updates(places, Update()).install(file(places, release()))
    Updates(places, Update(keys=(PUBLIC[0].hex(),))).install(file(places, release()))
    assert state(places).chosen() == "B"


def test_what_is_no_image(places: Places) -> None:
    Path(places.cmdline).write_text("quiet")
    with pytest.raises(UpdateRefused, match="no system image"):
        Updates(places, Update()).status()


# ---- sticks


def stick(places: Places, tmp_path: Path, *bundles: bytes) -> tuple[Path, list[list[str]], object]:
    devices = tmp_path / "dev"
    devices.mkdir(exist_ok=True)
    (devices / "sda1").touch()
    ran: list[list[str]] = []

    def run(command: Sequence[str], seconds: float) -> Ran:
        ran.append(list(command))
        if command[0] == "mount":
            for number, data in enumerate(bundles):
                (Path(command[-1]) / f"{number}.bundle").write_bytes(data)
        return Ran(0)

    return devices, ran, run


def test_the_newest_release_on_a_stick(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles = (
        release("1.2", serial=12),
        release("1.3", serial=13),
        b"junk",
        release("1.4", serial=14, keys=(b"x" * 32,)),
    )
    devices, ran, run = stick(places, tmp_path, *bundles)
    real = source.stick
    monkeypatch.setattr(source, "stick", lambda places, run: real(places, run, devices))
    updates = Updates(places, Update())
    found = updates.from_stick(run)  # type: ignore[arg-type]
    assert found is not None
    assert found.version == "1.3"
    assert [each[0] for each in ran] == ["mount", "umount"]
    assert "ro,nosuid,nodev,noexec" in ran[0]
    # it did not come up, and was left: the stick that is still there does not bring it back
    for left in (0, 2):
        count(places, B=left)
        assert updates.from_stick(run) is None  # type: ignore[arg-type]
    Path(places.release).write_text("VERSION=1.3\nBOARD=arm64\nSERIAL=13\nBUILD_DATE=1\n")
    count(places, B=3)
    assert updates.from_stick(run) is None  # type: ignore[arg-type]


# ---- over https


class Handler(http.server.BaseHTTPRequestHandler):
    content = b""
    asked: list[str] = []

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "http://localhost/x" if self.path == "/moved-out" else "/edgemail.bundle")
            self.end_headers()
            return
        if self.path != "/edgemail.bundle":
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        try:
            self.wfile.write(type(self).content)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(directory: Path, content: bytes) -> Iterator[int]:
    certs.write(directory, "localhost", ["127.0.0.1"])
    Handler.content, Handler.asked = content, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_checked_and_installed_over_https(places: Places, tmp_path: Path) -> None:
    with served(tmp_path / "tls", release()) as port:
        settings = Update(url=URL.format(port=port), ca_file=str(tmp_path / "tls" / "cert.pem"))
        updates = Updates(places, settings)
        found = updates.check()
        assert found is not None
        assert found.version == "1.1"
        assert json.loads((places.home / "release.json").read_text())["newer"] is True
        moved = settings.url.replace("edgemail.bundle", "moved")
        assert updates.install(moved).version == "1.1"
        assert started(Path(places.disk).read_bytes()) == started_from(release())
        for path, said in (("none", "404"), ("moved-out", "https only")):
            with pytest.raises(UpdateRefused, match=said):
                updates.install(settings.url.replace("edgemail.bundle", path))
        with pytest.raises(UpdateRefused, match="CERTIFICATE_VERIFY_FAILED"):
            Updates(places, Update(url=settings.url)).check()
        with pytest.raises(UpdateRefused, match="https only"):
            updates.install(settings.url.replace("https", "http"))
    Path(places.release).write_text("VERSION=1.1\nBOARD=arm64\nSERIAL=11\nBUILD_DATE=1\n")
    with served(tmp_path / "tls", release()) as port:
        assert Updates(places, Update(url=URL.format(port=port), ca_file=settings.ca_file)).check() is None
    with pytest.raises(UpdateRefused, match="cannot be asked"):
        Updates(places, settings).check()


def started_from(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(slot_image("1.1")).hexdigest() if data else ""


def test_by_itself_only_in_its_window(places: Places, tmp_path: Path) -> None:
    now = RELEASE_DATE + 3.5 * 3600  # a Saturday, UTC
    with served(tmp_path / "tls", release()) as port:

        def box(*windows: str) -> Updates:
            roots = str(tmp_path / "tls" / "cert.pem")
            return Updates(places, Update(URL.format(port=port), windows=windows, ca_file=roots), now=lambda: now)

        closed = box("Sun 00:00-00:01")
        assert closed.due()
        assert closed.by_itself() is None
        assert Handler.asked == ["/edgemail.bundle"]
        assert not closed.due()
        assert closed.by_itself() is None
        assert Handler.asked == ["/edgemail.bundle"]
        assert box().by_itself() is None
        found = box("Mon-Sun 00:00-24:00").by_itself()
        assert found is not None
        assert state(places).chosen() == "B"
        # it failed, or somebody went back: it is not tried again by itself
        for left in (0, 3):
            count(places, B=left)
            assert box("Mon-Sun 00:00-24:00").by_itself() is None
        Updates(places, Update()).mark_good()
        assert box("Mon-Sun 00:00-24:00").by_itself() is None
    assert not Updates(places, Update()).due()
    assert not Updates(places, Update(url="https://x.example/", check_interval=0)).due()


# ---- confirmed


def test_confirmed_when_it_is_well(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = Updates(places, Update())
    updates.install(file(places, release()))
    Path(places.cmdline).write_text("edgemail.slot=B")
    count(places, B=2)
    report = {"configured": True, "port": 80, "message": ""}
    places.report.write_text(json.dumps(report))
    codes = iter((0, 503, 503, 200))
    asked: list[str] = []

    def ask(port: int, path: str, host: str = "") -> int:
        asked.append(path)
        return next(codes)

    monkeypatch.setattr(confirm, "ask", ask)
    assert confirm.confirm(places, updates, pause=lambda _: None) == 0
    assert asked == ["/readyz"] * 4
    assert state(places).left == {"A": 3, "B": 3}
    assert Path(places.console).read_text().startswith("edgemail: ready")
    # a box that waits for a person is well when its page is there
    places.report.write_text(json.dumps({**report, "configured": False}))
    count(places, B=2)
    monkeypatch.setattr(confirm, "ask", lambda port, path, host="": 200 if path == "/livez" else 503)
    assert confirm.confirm(places, updates, pause=lambda _: None) == 0
    assert state(places).left["B"] == 3


def test_not_well_in_time(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = Updates(places, Update())
    places.report.write_text(json.dumps({"configured": True, "port": 80, "message": ""}))
    monkeypatch.setattr(confirm, "ask", lambda port, path, host="": 503)
    now = iter(range(1000))

    def run() -> int:
        return confirm.confirm(places, updates, monotonic=lambda: float(next(now)), pause=lambda _: None)

    assert run() == 0  # there is no other slot: starting again would help nobody
    updates.install(file(places, release()))
    Path(places.cmdline).write_text("edgemail.slot=B")
    count(places, B=2)
    assert run() == 75
    assert state(places).left["B"] == 2


def test_a_release_that_never_did_its_work_has_one_chance(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that did has all its attempts: what ails the box may pass."""
    updates = Updates(places, Update())
    updates.mark_good()
    updates.install(file(places, release()))
    Path(places.cmdline).write_text("edgemail.slot=B")
    serial = json.loads((places.home / "slots.json").read_text())["B"]["serial"]
    Path(places.release).write_text(f"VERSION=1.1\nBOARD=arm64\nSERIAL={serial}\nBUILD_DATE=1795219200\n")
    count(places, B=2)
    places.report.write_text(json.dumps({"configured": True, "port": 80, "message": ""}))
    answers = [503]
    monkeypatch.setattr(confirm, "ask", lambda port, path, host="": answers[0])

    def run() -> int:
        now = iter(range(1000))
        return confirm.confirm(places, updates, monotonic=lambda: float(next(now)), pause=lambda _: None)

    assert updates.unproven()
    assert run() == 75
    assert state(places).chosen() == "A"
    count(places, A=3, B=2)
    answers[0] = 200
    assert run() == 0 and not updates.unproven()
    count(places, B=2)
    answers[0] = 503
    assert run() == 75
    assert state(places).chosen() == "B", "it was good once"


def test_nobody_answers() -> None:
    assert confirm.ask(1, "/readyz") == 0


def test_a_stream_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    with source.opened(str(tmp_path / "x")) as stream:
        assert io.BytesIO(stream.read(10)).read() == b"abc"
        assert stream.read(1) == b""
