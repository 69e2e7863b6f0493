"""What a server does not wait for, and whom it does not serve."""

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import threading
import time
from contextlib import closing
from types import SimpleNamespace

import pytest

openai = pytest.importorskip("openai", reason="the client package openai is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")

PATH = "/v1/chat/completions"
LONG = "Ishmael went to sea. " * 200


def wait_for(what, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_who_has_gone_keeps_no_place_in_the_queue(start) -> None:
    server = start("--queue", 2)
    running = server.connect(LONG, max_tokens=900)
    wait_for(lambda: server.counts()["hga_requests_running"] == 1)
    waiting = [server.connect(f"{n} {LONG}") for n in range(2)]
    wait_for(lambda: server.counts()["hga_requests_waiting"] == 2)
    assert server.raw("POST", PATH, {"messages": [{"role": "user", "content": "x"}]})[0] == 429
    for connection in waiting:
        connection.close()
    wait_for(lambda: server.counts()["hga_requests_waiting"] == 0)
    assert server.counts()["hga_requests_running"] == 1, "the places are free before their turn"
    assert server.say("Hello?").choices
    assert server.ended(499) >= 2 and server.ended(429) == 1
    running.close()


def test_a_reply_takes_no_longer_than_it_may(start) -> None:
    server, errors = start("--timeout", 1), []

    def ask() -> None:
        try:
            server.say("Tell a story.", max_tokens=1900, temperature=1.0, seed=1)
        except openai.APIStatusError as error:
            errors.append((error.status_code, error.body["code"]))

    # One is answered, others wait for their turn: none gets more.
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors and set(errors) == {(504, "timeout")}
    wait_for(lambda: server.ended(504) == len(errors))

    def is_served() -> bool:
        # On a busy machine two tokens, too, may take a second.
        try:
            return bool(server.say("Hi", max_tokens=2).choices)
        except openai.APIStatusError as error:
            assert error.status_code == 504
            return False

    wait_for(is_served)


def test_limits_of_a_server_that_others_can_reach(start) -> None:
    server = start("--max-body", "64k", "--host", "0.0.0.0", "--cors", "https://a.example")
    assert "0.0.0.0 can be reached by others, and no key is asked for" in server.said
    # A body whose length nobody states is counted as it comes.
    pieces = (b"x" * 10_000 for _ in range(20))
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        kind = {"Content-Type": "application/json"}
        connection.request("POST", PATH, pieces, kind, encode_chunked=True)
        answer = connection.getresponse()
        assert answer.status == 413 and b"longer than 65,536 bytes" in answer.read()
    for origin, allowed in (("https://a.example", True), ("https://b.example", False)):
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        _, headers, _ = server.raw("OPTIONS", PATH, **asked)
        assert (headers.get("access-control-allow-origin") == origin) == allowed
    assert server.ended(413) == 1
    # Half a request is no reason to stay, nor to complain.
    with socket.create_connection(("127.0.0.1", server.port)) as half:
        half.sendall(
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Content-Length: 100\r\n\r\n{".encode()
        )
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
    assert server.process.stderr.read() == ""


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch) -> None:
    from hga.tools.server import app
    from hga.tools.server.counts import Counts
    from hga.tools.server.guard import Rules

    monkeypatch.setattr(app, "_BODY_S", 0.05)
    sent, reported = [], []
    worker = SimpleNamespace(counts=Counts(), require_room=lambda: None)
    service = app.Service(SimpleNamespace(generation={}), worker, "x", 60)
    built = app.build_app(service, Rules(None, True, 1000), [], reported.append)
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b"",
    }  # fmt: skip

    async def send(event):
        sent.append(event)

    async def never():
        await asyncio.sleep(60)

    async def gone():
        return {"type": "http.disconnect"}

    asyncio.run(built(dict(scope), never, send))
    assert sent[0]["status"] == 408 and json.loads(sent[1]["body"])["error"]["code"] == "timeout"
    asyncio.run(built(dict(scope), gone, send))
    assert sent[2]["status"] == 499 and reported == []


@contextlib.contextmanager
def running(app, protocol):
    """The port of a server of this application."""
    config = uvicorn.Config(
        app, http=protocol.PatientProtocol, lifespan="off", log_level="critical", ws="none"
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def patient(monkeypatch):
    """The port of a server that waits 0.3 s for the head of a request and answers after 0.6 s."""
    from hga.tools.server import protocol

    monkeypatch.setattr(protocol, "_HEAD_S", 0.3)

    async def app(scope, receive, send):
        await asyncio.sleep(0.6)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"late"})

    with running(app, protocol) as port:
        yield port


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_half_a_head_is_not_waited_for(patient, first) -> None:
    with socket.create_connection(("127.0.0.1", patient), 10) as connection:
        connection.sendall(first)
        assert connection.recv(100) == b"", "closed"


def test_slow_answers_and_further_requests_are_left_alone(patient) -> None:
    with socket.create_connection(("127.0.0.1", patient), 10) as connection:
        for _ in range(2):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            got = b""
            while not got.endswith(b"0\r\n\r\n"):
                piece = connection.recv(1000)
                assert piece
                got += piece
            assert b"late" in got
        # Half of a third one.
        connection.sendall(b"GET / HT")
        assert connection.recv(100) == b""


def test_an_answer_to_what_has_turned_out_to_be_no_request(early) -> None:
    port, outcomes = early
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(head)
        wait_for(lambda: outcomes == ["waits"])
        # A part of the body, which is answered at once, and nonsense in the same breath.
        connection.sendall(b"2\r\nok\r\nzz\r\n")
        got = b""
        while piece := connection.recv(1000):
            got += piece
    assert got.startswith(b"HTTP/1.1 400 ") and got.count(b"HTTP/1.1") == 1
    wait_for(lambda: len(outcomes) == 2)
    assert outcomes[1] is None


def test_nonsense_after_an_early_answer(early) -> None:
    port, outcomes = early
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(head + b"2\r\nok\r\n")
        got = b""
        while not got.endswith(b"0\r\n\r\n"):
            got += connection.recv(1000)
        connection.sendall(b"zz\r\n")
        while piece := connection.recv(1000):
            got += piece
    assert b"HTTP/1.1 200 " in got and outcomes == ["waits", None]


@pytest.fixture
def early(caplog):
    """(port of a server that answers the first piece of a body, what its application met)."""
    from hga.tools.server import protocol

    outcomes: list[object] = []

    async def app(scope, receive, send):
        outcomes.append("waits")
        message = await receive()
        while not message.get("body") and message["type"] == "http.request":
            message = await receive()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"early"})
            outcomes.append(None)
        except Exception as error:
            outcomes.append(error)

    with running(app, protocol) as port:
        yield port, outcomes
    assert caplog.get_records("call") == []
