"""A server under sustained load, while clients leave at any moment: every reply is the one that was
asked for, whole and once, and nothing is kept of those who left."""

import http.client
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed")
PATH = "/v1/completions"
N_PROMPTS = 12


class Client:
    """What one thread asks of the server at a port, and what came of it."""

    def __init__(self, port, seed, expected):
        self.port, self.draw, self.expected = port, random.Random(seed), expected
        self.n_whole = self.n_left = self.n_busy = 0
        self.wrong, self.ids = [], []

    def work(self, n):
        for _ in range(n):
            number = self.draw.randrange(N_PROMPTS)
            way = self.draw.choice(("whole", "whole", "stream", "stream", "leave", "abort"))
            try:
                getattr(self, way)(number)
            except Exception as error:
                self.wrong.append((way, number, repr(error)))

    def post(self, connection, number, stream):
        body = json.dumps(wanted(number, stream=stream))
        connection.request("POST", PATH, body, {"Content-Type": "application/json"})
        return connection.getresponse()

    def whole(self, number):
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            answer = self.post(connection, number, False)
            text = answer.read()
        if answer.status == 429:
            self.n_busy += 1
            return
        found = json.loads(text)
        self.ids.append(found["id"])
        self.check(number, found["choices"][0]["text"], found["usage"])

    def stream(self, number):
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            answer = self.post(connection, number, True)
            data = answer.read()
        if answer.status == 429:
            self.n_busy += 1
            return
        lines = [line for line in data.split(b"\n\n") if line]
        assert lines[-1] == b"data: [DONE]", lines[-1]
        events = [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]
        assert len({event["id"] for event in events}) == 1, "events of two replies"
        self.ids.append(events[0]["id"])
        pieces = [each["choices"][0]["text"] for each in events if each["choices"]]
        self.check(number, "".join(pieces), events[-1]["usage"])

    def check(self, number, text, usage):
        self.n_whole += 1
        if (text, usage["completion_tokens"]) != self.expected[number]:
            self.wrong.append((number, text, usage))

    def leave(self, number):
        """Hang up after a while, somewhere in the prompt, the queue or the reply."""
        with self.sent(number) as connection:
            time.sleep(self.draw.expovariate(20))
            if self.draw.random() < 0.5:
                connection.recv(self.draw.choice((1, 100, 1000)))
        self.n_left += 1

    def abort(self, number):
        """Reset the connection, perhaps in the middle of the request."""
        with self.sent(number, cut=self.draw.random()) as connection:
            linger = (1).to_bytes(4, sys.byteorder) + (0).to_bytes(4, sys.byteorder)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.n_left += 1

    def sent(self, number, cut=1.0):
        body = json.dumps(wanted(number, stream=self.draw.random() < 0.5)).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        data = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        connection = socket.create_connection(("127.0.0.1", self.port), 60)
        connection.sendall(data[: max(1, int(cut * len(data)))])
        return connection


def wanted(number, **more):
    usage = {"stream_options": {"include_usage": True}} if more.get("stream") else {}
    prompt = f"number {number}: " + "the quick brown fox " * (3 * number + 1)
    return {
        "prompt": prompt, "max_tokens": 4 + 3 * number, "temperature": 1.0, "seed": number,
        **more, **usage,
    }  # fmt: skip


def held(pid):
    """Descriptors and threads of a process."""
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


def counts(port):
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")
@pytest.mark.parametrize(
    ("n_clients", "n_each", "flags"),
    [
        (6, 25, ["--kv", "ram"]),
        pytest.param(12, 150, ["--queue", "8"], marks=pytest.mark.slow),
        pytest.param(8, 60, ["--kv", "disk"], marks=pytest.mark.slow),
    ],
)
def test_no_reply_is_lost_mixed_or_doubled(served, small, n_clients, n_each, flags):
    process, port = served(small, "-c", "2048", *flags)
    first = Client(port, 0, {})
    expected = {}
    for number in range(N_PROMPTS):
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            found = json.loads(first.post(connection, number, False).read())
        text, usage = found["choices"][0]["text"], found["usage"]
        expected[number] = text, usage["completion_tokens"]
    assert len({text for text, _ in expected.values()}) > N_PROMPTS // 2, "replies to tell apart"
    before, asked = held(process.pid), counts(port)
    clients = [Client(port, seed, expected) for seed in range(n_clients)]
    threads = [threading.Thread(target=client.work, args=(n_each,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert [wrong for client in clients for wrong in client.wrong] == []
    ids = [name for client in clients for name in client.ids]
    n_whole = sum(client.n_whole for client in clients)
    # The others left, or found the queue full.
    assert len(set(ids)) == len(ids) == n_whole > n_clients * n_each // 6
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        now = counts(port)
        if not now["hga_requests_running"] and not now["hga_requests_waiting"]:
            break
        time.sleep(0.05)
    ok = 'hga_requests_total{status="200"}'
    # Some left when their reply had ended already.
    n_left = sum(client.n_left for client in clients)
    assert n_whole <= now[ok] - asked[ok] <= n_whole + n_left
    refused = now.get('hga_requests_total{status="429"}', 0)
    assert refused >= sum(client.n_busy for client in clients)
    assert not [name for name in now if 'status="5' in name], now
    deadline = time.monotonic() + 30
    while (after := held(process.pid)) > before and time.monotonic() < deadline:
        time.sleep(0.1)
    # The threads that render prompts are kept: as many as the processors, and four.
    assert after[0] <= before[0] + 2 and after[1] <= before[1] + (os.cpu_count() or 1) + 4
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert b"Traceback" not in process.stderr.read()
