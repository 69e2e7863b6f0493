"""Hostile bytes on the wire: every connection ends, no answer is a failure of the server's own,
nothing is said but the notices of its start, and the next client is served."""

import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import socket
import threading
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed")

N_CLIENTS = 6
N_RANDOM = 400
# A head that is not finished is waited for so long; nothing may take much longer.
MOST_S = 60


@pytest.fixture(scope="module")
def wire_bytes(load_module):
    """The module tests/hostile/wire_bytes.py."""
    return load_module(Path(__file__).parents[1] / "hostile" / "wire_bytes.py")


def talk(port, raw, pause_s):
    """Everything that the server answers to these bytes, until it closes the connection; `pause_s`
    after them the client says that there will be no more."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), MOST_S) as connection:
        try:
            connection.sendall(raw)
            connection.settimeout(pause_s)
            with contextlib.suppress(TimeoutError):
                got += connection.recv(1 << 16)
            connection.settimeout(MOST_S)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(1 << 16):
                got += piece
        except (BrokenPipeError, ConnectionResetError, OSError) as error:
            # It may close while there is still something to send.
            assert not isinstance(error, TimeoutError), "the connection was not closed"
    return got


def complaint(name, got):
    """What is wrong with an answer."""
    statuses = [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", got)]
    if got and not got.startswith(b"HTTP/1.1 "):
        return f"{name}: {got[:100]!r}"
    if any(status >= 500 for status in statuses) or b"internal error" in got:
        return f"{name}: {got[:200]!r}"
    return None


def attack(port, named, pause_s):
    """Send (name, bytes) pairs from several clients at once; the complaints."""
    complaints, lock = [], threading.Lock()
    pairs = iter(named)

    def client():
        while True:
            with lock:
                pair = next(pairs, None)
            if pair is None:
                return
            try:
                found = complaint(pair[0], talk(port, pair[1], pause_s))
            except Exception as error:
                found = f"{pair[0]}: {error!r}"
            if found:
                complaints.append(found)

    threads = [threading.Thread(target=client) for _ in range(N_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return complaints


def ask(port):
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        body = json.dumps({"prompt": "hello", "max_tokens": 3, "temperature": 0})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())["choices"][0]["text"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")
def test_hostile_bytes(served, small, wire_bytes):
    process, port = served(small, "-c", "512", "--kv", "ram")
    expected = ask(port)
    assert expected[0] == 200
    n_before = len(os.listdir(f"/proc/{process.pid}/fd"))
    cases = wire_bytes.cases()
    assert len(cases) > 130
    complaints = attack(port, cases.items(), 0.3)
    seed = int(os.environ.get("HGA_TEST_SEED", "1"))
    more = itertools.islice(wire_bytes.stream(seed), N_RANDOM)
    complaints += attack(port, ((f"{raw!r:.300}", raw) for raw in more), 0.05)
    assert complaints == []
    assert ask(port) == expected
    assert len(os.listdir(f"/proc/{process.pid}/fd")) <= n_before + 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert process.stderr.read().decode().splitlines() == []
