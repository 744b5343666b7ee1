"""A browser for tests: headless Chromium driven over the WebDriver protocol, without a library for it.

Owns one chromedriver and one window. https://www.w3.org/TR/webdriver2/ names the commands.
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.peers import Peer, need
from tests.peers.ports import free_port

FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>
<dir>{fonts}</dir><cachedir>{cache}</cachedir>
<match target="pattern"><edit name="family" mode="append"><string>DejaVu Sans</string></edit></match>
</fontconfig>"""
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element reference, W3C WebDriver 12.1


class Browser:
    """One window."""

    def __init__(self, root: str, session: str) -> None:
        self._base = f"{root}/session/{session}"

    def _do(self, method: str, path: str, body: Any = None) -> Any:
        return call(method, self._base + path, body)

    def open(self, address: str) -> None:
        self._do("POST", "/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a script's `return`."""
        return self._do("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str = "body") -> str:
        """What a person reads there."""
        return str(self.run("return document.querySelector(arguments[0]).innerText", selector))

    def click(self, selector: str) -> None:
        self._do("POST", f"/element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        self._do("POST", f"/element/{self._find(selector)}/clear", {})
        self._do("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def press(self, key: str) -> None:
        """A key, wherever the focus is."""
        actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self._do("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def accept(self) -> None:
        """Say yes to what a dialog asks."""
        self._do("POST", "/alert/accept", {})

    def _find(self, selector: str) -> str:
        return str(self._do("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT])

    def tool(self, command: str, **parameters: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self._do("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def look(self, width: int, *, dark: bool = False) -> None:
        """The width of the screen and its theme."""
        self.tool("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tool("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path, height: int = 0) -> None:
        """A picture of the page: the whole of it, or its first `height` pixels."""
        size = self.run("return [document.documentElement.clientWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": height or size[1], "scale": 1}
        found = self.tool("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(found["data"]))

    def errors(self) -> list[str]:
        """What the page complained about in the console."""
        found = self._do("POST", "/se/log", {"type": "browser"})
        return [one["message"] for one in found if one["level"] in ("SEVERE", "WARNING")]

    def wait(self, done: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
        until = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < until, f"no {what}; the page says:\n{self.text()}"
            time.sleep(0.05)


def call(method: str, address: str, body: Any = None) -> Any:
    """One WebDriver command; its value."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(f"{method} {address}: {error.read().decode()[:2000]}") from None


@contextlib.contextmanager
def browser(directory: Path) -> Iterator[Browser]:
    """A browser for the length of a test; `directory` takes its files. Skipped where there is none."""
    peer = need("chromium")
    port = free_port()
    root = f"http://127.0.0.1:{port}"
    with (directory / "chromedriver.log").open("wb") as log:
        driver = subprocess.Popen(
            [peer.path(), f"--port={port}"], stdout=log, stderr=log, env=_environment(peer, directory)
        )
        session = ""
        try:
            _wait_ready(root, driver)
            session = _begin(root, peer, directory)
            yield Browser(root, session)
        finally:
            if session:
                with contextlib.suppress(AssertionError, OSError):
                    call("DELETE", f"{root}/session/{session}")
            driver.terminate()
            driver.wait(20)


def _environment(peer: Peer, directory: Path) -> dict[str, str]:
    fonts = directory / "fonts.conf"
    fonts.write_text(FONTS.format(fonts=peer.tree / "usr/share/fonts", cache=directory / "fonts"))
    return {**peer.environment(), "FONTCONFIG_FILE": str(fonts), "HOME": str(directory)}


def _wait_ready(root: str, driver: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 20
    while True:
        assert driver.poll() is None, "chromedriver has ended"
        with contextlib.suppress(OSError):
            if call("GET", f"{root}/status")["ready"]:
                return
        assert time.monotonic() < until, "chromedriver does not answer"
        time.sleep(0.05)


def _begin(root: str, peer: Peer, directory: Path) -> str:
    unpacked = peer.tree / "usr/lib/chromium/chromium"
    options = {
        "binary": str(unpacked) if unpacked.exists() else peer.path("chromium"),
        "args": [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--hide-scrollbars",
            "--window-size=1280,900",
            f"--user-data-dir={directory / 'profile'}",
        ],
    }
    wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    answer = call("POST", f"{root}/session", {"capabilities": {"alwaysMatch": wanted}})
    return str(answer["sessionId"])
