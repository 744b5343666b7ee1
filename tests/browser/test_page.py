"""The status page in a real browser: what a person reads there, and what a click does."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, browser
from tests.peers.ports import free_port
from tests.scenarios.relay import LISTENER, Relay, relay
from tests.scenarios.sink import sink

TOKEN = "open-sesame-4711"
REFUSED = 'relayhost = "[127.0.0.1]:{port}"\nminimal_backoff_time = "600s"\nmaximal_backoff_time = "600s"\n'


def health(directory: Path) -> str:
    """A listener and the endpoint with a token."""
    path = directory / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return LISTENER + f'\n[health]\nport = 0\ntoken_file = "{path}"\n'


def address(one: Relay, path: str = "/") -> str:
    found = re.search(r"listening on 127\.0\.0\.1 port (\d+), health", one.log())
    assert found is not None, one.log()
    return f"http://127.0.0.1:{found[1]}{path}"


def page(one: Relay) -> dict[str, Any]:
    with urllib.request.urlopen(address(one, "/page.json"), timeout=20) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def open_page(window: Browser, one: Relay) -> None:
    window.open(address(one))
    window.wait(lambda: "asking" not in window.text("#state"), "answer to the page")


def unlock(window: Browser) -> None:
    window.click("summary")
    window.type("#token", TOKEN)


def test_a_person_reads_why_mail_waits_and_a_flush_sends_it(tmp_path: Path) -> None:
    port = free_port()
    with relay(tmp_path, REFUSED.format(port=port), health(tmp_path)) as one, browser(tmp_path) as window:
        for number in range(3):
            one.send(recipients=f"bob{number}@example.org")
        one.wait_deferred(3)
        open_page(window, one)
        window.wait(lambda: "Connection refused" in window.text("#queue"), "reason in the queue")
        assert window.text("#state") == "degraded"
        assert re.match(
            rf"(Mail through )?\[127.0.0.1\]:{port} (waits|has failed): connect to ", window.text("#sentence")
        )
        window.wait(lambda: f"smtp:[127.0.0.1]:{port}\t3\t" in window.text("#queue"), "all of them for one reason")
        assert "bob2@example.org" in window.text("#recent") and "deferred" in window.text("#recent")
        assert "degraded" in window.text("#routes")
        assert window.run("return document.querySelectorAll('#guards meter').length") == 5

        unlock(window)
        with sink(port=port) as host:
            window.click("#do-flush")
            window.wait(lambda: "will be tried now" in window.text("#result"), "word of the flush")
            assert len(host.wait_for(3)) == 3
            window.wait(lambda: "The queue is empty" in window.text("#queue"), "empty queue")
            window.wait(lambda: window.text("#state") == "all is well", "good state")
            assert "sent" in window.text("#recent")
        assert window.errors() == []
        assert TOKEN not in one.log() and TOKEN not in json.dumps(page(one))


def test_hold_release_delete_and_a_wrong_token(tmp_path: Path) -> None:
    with relay(tmp_path, REFUSED.format(port=free_port()), health(tmp_path)) as one, browser(tmp_path) as window:
        kept, gone = one.send(), one.send()
        one.wait_deferred(2)
        open_page(window, one)
        window.click("summary")
        window.type("#token", "wrong")
        window.click("#do-hold")
        window.wait(lambda: "The token is missing or wrong" in window.text("#result"), "refusal")
        assert {each["queue_name"] for each in one.queue()} == {"deferred"}

        window.type("#token", TOKEN)
        window.type("#which", kept)
        window.click("#do-hold")
        window.wait(lambda: "1 message held" in window.text("#result"), "hold")
        window.wait(lambda: "when released" in window.text("#queue"), "held mail on the page")
        assert {each["queue_id"]: each["queue_name"] for each in one.queue()} == {kept: "hold", gone: "deferred"}
        window.click("#do-release")
        window.wait(lambda: "1 message released" in window.text("#result"), "release")

        window.type("#which", gone)
        window.click("#do-delete")
        window.accept()
        window.wait(lambda: "1 message deleted" in window.text("#result"), "deletion")
        assert [each["queue_id"] for each in one.queue()] == [kept]
        assert f"{gone}: delete from the status page" in one.log()


def test_a_test_message_and_its_conversation(tmp_path: Path) -> None:
    with sink() as host:
        settings = f'relayhost = "[127.0.0.1]:{host.port}"\n'
        with relay(tmp_path, settings, health(tmp_path)) as one, browser(tmp_path) as window:
            open_page(window, one)
            unlock(window)
            window.click("#do-test")
            window.wait(lambda: "to=<admin@example.com>" in window.text("#result"), "end of the conversation")
            said = window.text("#result")
            for line in ("< 220 ", "> EHLO gw.example.com", "> RCPT TO:<admin@example.com>", "octets of the message"):
                assert line in said, said
            assert "a test message of gw.example.com" in host.received[0].content.decode()
            assert "a test message" not in said


def test_the_page_is_usable_with_the_keyboard_alone(tmp_path: Path) -> None:
    with relay(tmp_path, "", health(tmp_path)) as one, browser(tmp_path) as window:
        open_page(window, one)
        seen = []
        window.press("\ue004")
        window.press("\ue007")  # opens the details
        for _ in range(8):
            seen.append(window.run("return document.activeElement.id || document.activeElement.tagName"))
            window.press("\ue004")
        wanted = ["SUMMARY", "token", "which", "do-flush", "do-hold", "do-release", "do-delete", "to"]
        assert seen == wanted
        named = "return [...document.querySelectorAll('input')].every((one) => one.labels.length === 1)"
        assert window.run(named)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_its_screen(tmp_path: Path, width: int, dark: bool) -> None:
    with sink(answers={"RCPT": [b"450 4.2.0 mailbox busy, come back later\r\n"]}) as host:
        settings = f'relayhost = "[127.0.0.1]:{host.port}"\n'
        with relay(tmp_path, settings, health(tmp_path)) as one, browser(tmp_path) as window:
            for number in range(4):
                one.send(sender=f"a-rather-long-name-for-a-printer-{number}@devices.example.com")
            one.wait_deferred()
            host.wait_for(3)
            window.look(width, dark=dark)
            open_page(window, one)
            window.wait(lambda: "mailbox busy" in window.text("#queue"), "reason in the queue")
            overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert window.run(overflow) <= 0
            ground = window.run("return getComputedStyle(document.body).backgroundColor")
            assert (ground == "rgb(18, 22, 27)") is dark
            window.picture(tmp_path / "page.png")
            assert (tmp_path / "page.png").stat().st_size > 10_000
