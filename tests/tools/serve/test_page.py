"""The chat page in a real browser, by the WebDriver protocol."""

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytestmark = pytest.mark.skipif(
    not (shutil.which("chromedriver") and shutil.which("chromium")),
    reason="no browser: chromium and chromedriver are not installed",
)
# The key under which an element's name comes.
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
ENTER = "\ue007"


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
    return found


class Browser:
    """One window."""

    def __init__(self, port: int, profile: Path) -> None:
        self._root = f"http://127.0.0.1:{port}"
        flags = (
            *("--headless", "--no-sandbox", "--disable-gpu", "--window-size=900,700"),
            *("--disable-background-networking", f"--user-data-dir={profile}"),
        )
        wanted = {
            "goog:chromeOptions": {"args": list(flags)},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"

    def _call(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            self._root + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self._call("POST", f"{self._session}/url", {"url": url})

    def element(self, name: str) -> str:
        found = self._call(
            "POST", f"{self._session}/element", {"using": "css selector", "value": name}
        )
        return f"{self._session}/element/{found[ELEMENT]}"

    def type(self, name: str, text: str) -> None:
        self._call("POST", f"{self.element(name)}/value", {"text": text})

    def click(self, name: str) -> None:
        self._call("POST", f"{self.element(name)}/click", {})

    def ask(self, script: str) -> Any:
        return self._call(
            "POST", f"{self._session}/execute/sync", {"script": f"return {script}", "args": []}
        )

    def complaints(self) -> list[str]:
        entries = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def close(self) -> None:
        self._call("DELETE", self._session)


@pytest.fixture
def page(server, tmp_path: Path) -> Iterator[Browser]:
    """A browser that shows the page of a server of the demo model."""
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    browser = None
    try:
        lines = iter(driver.stdout.readline, "")
        port = next(m[1] for line in lines if (m := re.search(r"on port (\d+)\.", line)))
        browser = Browser(int(port), tmp_path / "profile")
        browser.open(f"{server.url}/")
        yield browser
    finally:
        if browser is not None:
            browser.close()
        driver.terminate()
        driver.wait(30)


def test_a_conversation_in_the_browser(page) -> None:
    name = "document.getElementById('model').textContent"
    wait_for(lambda: page.ask(name) == "demo, 2,048 tokens")
    page.click("summary")
    page.type("#temperature", "0")
    page.type("#text", "Repeat: <img src=x onerror=alert(1)> **bold**" + ENTER)
    figures = "document.getElementById('figures').textContent"
    wait_for(lambda: "written" in page.ask(figures))
    every = "[...document.querySelectorAll('.turn')]"
    turns = page.ask(f"{every}.map(e => [e.className, e.textContent])")
    assert [name for name, _ in turns] == ["turn user", "turn assistant"]
    assert "<img src=x onerror=alert(1)> bold" in turns[0][1] and turns[1][1].strip("…")
    assert page.ask("document.querySelectorAll('main img').length") == 0
    page.type("#text", "Tell a very long story." + ENTER)
    wait_for(lambda: len(page.ask("document.querySelector('.turn:last-child').textContent")) > 5)
    page.click("#stop")
    wait_for(lambda: page.ask(figures) == "stopped")
    page.type("#text", "Another very long story." + ENTER)
    wait_for(lambda: len(page.ask("document.querySelector('.turn:last-child').textContent")) > 5)
    # In the middle of a reply: nothing of it may turn up in the new chat.
    page.click("#new")
    page.type("#text", "Hello." + ENTER)
    wait_for(lambda: "written" in page.ask(figures))
    assert page.ask("turns.map(turn => turn.role)") == ["user", "assistant"]
    assert page.ask("turns[0].content") == "Hello."
    assert page.ask("document.querySelectorAll('.turn').length") == 2
    assert page.complaints() == []
