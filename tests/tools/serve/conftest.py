"""Servers in processes of their own, and what clients do with them."""

import http.client
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

CTX = 2048


class Server:
    """A server that listens on loopback."""

    def __init__(self, words: list[str], folder: Path, key: str = "none") -> None:
        openai = pytest.importorskip("openai", reason="the client package openai is missing")
        code = "import sys; from hga.tools.cli import main; sys.exit(main())"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", *words, "--port", "0", "-c", str(CTX)],
            stderr=subprocess.PIPE, text=True, cwd=folder,
        )  # fmt: skip
        self.said = ""
        while not (found := re.search(r"listening on http://[\d.]+:(\d+)", self.said)):
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120
        )

    def say(self, text: str, **more: object) -> Any:
        """One turn, greedy and short unless asked otherwise."""
        more = {"temperature": 0, "max_tokens": 8, "model": "demo", **more}
        messages = [{"role": "user", "content": text}]
        return self.client.chat.completions.create(messages=messages, **more)

    def raw(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers and text of a plain request."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            given = {"Content-Type": "application/json"} if data is not None else {}
            connection.request(method, path, data, {**given, **headers})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read().decode()

    def counts(self, **headers: str) -> dict[str, float]:
        """The counters by name."""
        text = self.raw("GET", "/metrics", **headers)[2]
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def ended(self, status: int) -> float:
        """Requests that ended with a status."""
        return self.counts().get(f'hga_requests_total{{status="{status}"}}', 0)

    def connect(self, text: str, **more: object) -> socket.socket:
        """Begin a long stream; whoever closes the socket hangs up."""
        messages = [{"role": "user", "content": text}]
        wanted = {"messages": messages, "stream": True, "temperature": 0, **more}
        body = json.dumps(wanted).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\n\r\n"
        )
        connection = socket.create_connection(("127.0.0.1", self.port), 60)
        connection.sendall(head.encode() + body)
        return connection

    def leave(self, text: str, after: float) -> None:
        """Begin a long stream and hang up."""
        with self.connect(text):
            time.sleep(after)


@pytest.fixture(scope="session")
def demo_model(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, packed."""
    from hga.tools.pack import pack

    return pack(smollm2_gguf, tmp_path_factory.mktemp("serve") / "demo.hga").path


@pytest.fixture(scope="module")
def start(demo_model: Path) -> Iterator[Callable[..., Server]]:
    """start(*flags, key=…) -> a running Server of the demo model."""
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    started = []

    def go(*flags: object, key: str = "none") -> Server:
        started.append(Server([str(demo_model), *map(str, flags)], demo_model.parent, key))
        return started[-1]

    yield go
    for server in started:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def server(start: Callable[..., Server]) -> Server:
    """A server with its own settings."""
    return start()
