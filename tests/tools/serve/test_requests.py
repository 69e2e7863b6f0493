"""`hga serve` from outside: the openai client, many clients at once, some that leave, signals."""

import json
import signal
import socket
import threading
import time

import pytest

openai = pytest.importorskip("openai", reason="the client package openai is not installed")

CTX = 2048
LONG = "Ishmael went to sea. " * 300


def test_a_reply_whole_and_as_a_stream(server) -> None:
    whole = server.say("Name a colour.")
    text, usage = whole.choices[0].message.content, whole.usage
    assert text and whole.choices[0].finish_reason in ("stop", "length")
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    chunks = list(server.say("Name a colour.", stream=True, stream_options={"include_usage": True}))
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == text
    assert chunks[-1].usage.completion_tokens == usage.completion_tokens
    # The same prompt again: all but its last token was there.
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1
    assert {c.id for c in chunks} == {chunks[0].id} and chunks[0].id != whole.id


def test_a_second_turn_computes_only_what_is_new(server) -> None:
    first = server.say("My name is Ada.")
    messages = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": [{"type": "text", "text": "Who am I?"}]},
    ]
    second = server.client.chat.completions.create(
        model="demo", messages=messages, temperature=0, max_completion_tokens=4
    )
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 1


def test_completions_and_stop_texts(server) -> None:
    make = server.client.completions.create
    free = make(model="demo", prompt="1 2 3 4", temperature=0, max_tokens=12)
    text = free.choices[0].text
    stop = text[5:8]
    cut = make(model="demo", prompt="1 2 3 4", temperature=0, max_tokens=12, stop=["@@", stop])
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop" and free.choices[0].finish_reason == "length"
    chunks = make(
        model="demo", prompt="1 2 3 4", temperature=0, max_tokens=12, stop=stop, stream=True
    )
    assert "".join(c.choices[0].text for c in chunks) == cut.choices[0].text


def test_same_seed_same_reply(server) -> None:
    options = {"temperature": 1.0, "seed": 7, "max_tokens": 12}
    texts = {server.say("Tell me.", **options).choices[0].message.content for _ in range(2)}
    assert len(texts) == 1


def test_a_reply_of_a_schema(server) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["age"],
        "additionalProperties": False,
    }
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = server.say("How old?", response_format=shape, max_tokens=40)
    value = json.loads(reply.choices[0].message.content)
    assert list(value) == ["age"] and 0 <= value["age"] <= 99


def test_a_reply_that_is_some_object(server) -> None:
    reply = server.say("Answer in JSON.", response_format={"type": "json_object"})
    assert reply.choices[0].message.content.startswith("{")
    bounded = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    shape = {"type": "json_object", "schema": {**bounded, "additionalProperties": False}}
    status, _, text = server.raw(
        "POST",
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Well?"}], "response_format": shape},
    )
    value = json.loads(json.loads(text)["choices"][0]["message"]["content"])
    assert status == 200 and list(value) == ["ok"] and isinstance(value["ok"], bool)


def test_models_health_and_page(server) -> None:
    assert [model.id for model in server.client.models.list()] == ["demo"]
    assert server.client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("other")
    assert server.raw("GET", "/health")[2] == '{"status":"ok"}'
    status, headers, text = server.raw("GET", "/")
    assert status == 200 and "<title>hga</title>" in text
    assert "default-src 'none'" in headers["content-security-policy"]
    for name in ("chat.js", "chat.css"):
        assert name in text and server.raw("GET", f"/{name}")[0] == 200
    assert "innerHTML" not in server.raw("GET", "/chat.js")[2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_tokens": CTX}, "context holds 2,048"),
        ({"messages": [{"role": "user", "content": LONG * 2}]}, "the context holds 2,048"),
        ({"messages": []}, "messages: expected at least one"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: 'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        ({"temperature": -1}, "temperature: expected a number"),
        ({"top_p": "much"}, "top_p"),
        ({"n": 2}, "n: 2 is not supported"),
        ({"logprobs": True}, "logprobs: True is not supported"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"stop": ["x"] * 17}, "stop: expected at most 16"),
        ({"max_tokens": 0}, "max_tokens: expected at least 1"),
        ({"response_format": {"type": "xml"}}, "response_format: 'xml'"),
        ({"json_schema": {"type": "nonsense"}}, "JSON schema"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"service_tier": "priority"}, "service_tier: 'priority'"),
        ({"stream_options": {}}, "stream_options: only with stream"),
        ({"stream_options": {"more": 1}, "stream": True}, "unknown field `more`"),
        ({"response_format": {"type": "json_object", "more": 1}}, "unknown field `more`"),
        ({"response_format": {"type": "text"}, "json_schema": {}}, "exclude each other"),
        ({"response_format": {"type": "json_schema"}}, "belongs to type json_schema"),
        ({"response_format": {"type": "text", "schema": {}}}, "belongs to type json_schema"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "y": 1}]}]},
            "unknown field `y`",
        ),
        ({"service_tier": "priority"}, "service_tier: 'priority'"),
        ({"stream_options": {}}, "stream_options: only with stream"),
        ({"stream_options": {"more": 1}, "stream": True}, "unknown field `more`"),
        ({"response_format": {"type": "json_object", "more": 1}}, "unknown field `more`"),
        ({"response_format": {"type": "text"}, "json_schema": {}}, "exclude each other"),
        ({"response_format": {"type": "json_schema"}}, "belongs to type json_schema"),
        ({"response_format": {"type": "text", "schema": {}}}, "belongs to type json_schema"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "y": 1}]}]},
            "unknown field `y`",
        ),
        ({"model": 5}, "model"),
    ],
)
def test_what_cannot_be_honoured_is_named(server, change, said) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, **change}
    status, _, text = server.raw("POST", "/v1/chat/completions", body)
    error = json.loads(text)["error"]
    assert status == 400 and said in error["message"] and error["type"] == "invalid_request_error"
    if "context" in said:
        assert error["code"] == "context_length_exceeded" and error["param"] == "messages"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (("GET", "/nothing", None), 404),
        (("GET", "/../etc/passwd", None), 404),
        (("GET", "/v1/chat/completions", None), 405),
        (("POST", "/v1/chat/completions", b"{"), 400),
        (("POST", "/v1/chat/completions", b"[" * 100_000), 400),
        (("POST", "/v1/chat/completions", b"\xff\xfe"), 400),
        (("POST", "/v1/completions", {"prompt": ["a", "b"]}), 400),
        (("POST", "/v1/completions", {"prompt": [1, -2]}), 400),
    ],
)
def test_requests_that_are_none(server, request_, status) -> None:
    found, _, text = server.raw(*request_)
    assert found == status and json.loads(text)["error"]["message"]


def test_other_hosts_and_other_types_are_refused(server) -> None:
    assert server.raw("GET", "/health", Host="example.org")[0] == 403
    assert server.raw("GET", "/health", Host="localhost:1")[0] == 200
    body = {"messages": [{"role": "user", "content": "x"}]}
    path, kind = "/v1/chat/completions", {"Content-Type": "text/plain"}
    status, headers, _ = server.raw("POST", path, body, Origin="https://example.org", **kind)
    assert status == 415 and not any("access-control" in name.lower() for name in headers)
    status, headers, _ = server.raw("OPTIONS", path, Origin="https://example.org")
    assert status == 405 and not any("access-control" in name.lower() for name in headers)


def test_many_clients_some_of_whom_leave(server) -> None:
    prompts = [f"Count from {n}." for n in range(8)]
    alone = [server.say(prompt).choices[0].message.content for prompt in prompts]
    before, replies, errors = server.counts(), {}, []

    def ask(number: int) -> None:
        try:
            if number % 4 == 3:
                server.leave(f"Tale {number}: {LONG[:2000]}", 0.02 * number)
            elif number % 2:
                chunks = server.say(prompts[number % 8], stream=True)
                texts = (c.choices[0].delta.content or "" for c in chunks)
                replies[number] = "".join(texts)
            else:
                replies[number] = server.say(prompts[number % 8]).choices[0].message.content
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == [] and len(replies) == 24
    assert all(text == alone[number % 8] for number, text in replies.items())
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        now = server.counts()
        if not now["hga_requests_running"] and not now["hga_requests_waiting"]:
            break
        time.sleep(0.1)
    ended = {n: now.get(n, 0) - before.get(n, 0) for n in now if n.startswith("hga_requests_total")}
    # Who leaves before a busy server has read the request never made one.
    left = ended['hga_requests_total{status="499"}']
    assert ended['hga_requests_total{status="200"}'] == 24 and 4 <= left <= 8
    assert sum(ended.values()) == 24 + left


def test_leaving_during_the_prompt_frees_the_model(server) -> None:
    before = server.counts().get('hga_requests_total{status="499"}', 0)
    server.leave(LONG[:5000], 0.05)
    assert server.say("Still there?").choices[0].message.content
    assert server.counts()['hga_requests_total{status="499"}'] == before + 1
    # What had been read of the prompt before the client left is whole and can be gone on with.
    assert server.say(LONG[:5000]).usage.completion_tokens > 0


def test_a_key_a_small_queue_and_short_bodies(start) -> None:
    server = start(
        "--api-key", "s3cret", "--queue", 1, "--max-body", "64k", "--alias", "mine",
        "--timeout", 60, key="s3cret",
    )  # fmt: skip
    assert [model.id for model in server.client.models.list()] == ["mine"]
    body = {"messages": [{"role": "user", "content": "x"}]}
    for key in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "s3cret"}):
        status, headers, text = server.raw("POST", "/v1/chat/completions", body, **key)
        assert status == 401 and json.loads(text)["error"]["code"] == "invalid_api_key"
    assert server.raw("GET", "/metrics")[0] == 401
    assert server.raw("GET", "/health")[0] == server.raw("GET", "/")[0] == 200
    key = {"Authorization": "Bearer s3cret"}
    long = {"messages": [{"role": "user", "content": "x" * 70_000}]}
    assert server.raw("POST", "/v1/chat/completions", long, **key)[0] == 413
    threads = [
        threading.Thread(target=server.say, args=(LONG[:4000],), kwargs={"max_tokens": 200})
        for _ in range(2)
    ]
    for thread, state in zip(threads, ("running", "waiting"), strict=True):
        thread.start()
        while server.counts(**key)[f"hga_requests_{state}"] < 1:
            assert thread.is_alive()
            time.sleep(0.02)
    status, headers, text = server.raw("POST", "/v1/chat/completions", body, **key)
    assert status == 429 and int(headers["retry-after"]) > 0 and "waiting already" in text
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_end_the_server(start, number, code) -> None:
    server = start()
    thread = threading.Thread(target=server.leave, args=(LONG[:3000], 3))
    thread.start()
    time.sleep(0.3)
    server.process.send_signal(number)
    assert server.process.wait(30) == code
    thread.join()
    assert "Traceback" not in server.process.stderr.read()


def test_refusals_before_the_model_is_opened(capsys) -> None:
    from hga.tools.cli import main

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "demo", "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in capsys.readouterr().err
    assert main(["serve", "demo", "--api-key", "a b\n"]) == 2
    assert main(["serve", "demo", "--host", "no.such.host.invalid"]) == 2
    assert main(["serve", "demo", "--port", "70000"]) == 2
