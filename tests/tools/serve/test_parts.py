"""Parts of the server on their own: stop texts, timelines, counters."""

import json
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hga.runtime.sampler import SamplerOptions
from hga.runtime.tokenizer import StreamDecoder
from hga.tools.server import guard, wire
from hga.tools.server.counts import Counts
from hga.tools.server.problems import ApiError
from hga.tools.server.stops import StopFilter
from hga.tools.server.timelines import Timelines
from hga.tools.server.wire import Wanted
from hga.tools.server.worker import Job, ModelWorker


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
       st.lists(st.integers(1, 4), max_size=30))  # fmt: skip
def test_a_reply_ends_at_the_first_stop_text(text, stops, sizes) -> None:
    shown, out, at = StopFilter(tuple(stops)), "", 0
    for size in [*sizes, len(text)]:
        piece, at = text[at : at + size], at + size
        out += shown.push(piece)
        if shown.stopped:
            break
    places = [text.find(stop) for stop in stops if stop in text]
    if shown.stopped:
        # The first one that is complete, as the text arrives.
        seen = text[:at]
        assert out == text[: min(i for i in (seen.find(s) for s in stops) if i >= 0)]
    else:
        assert not places and out + shown.flush() == text


class FakeSession:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.closed = False

    def fork_point(self, ids):
        n = min(len(ids), len(self.tokens))
        return next((i for i in range(n) if ids[i] != self.tokens[i]), n)

    def truncate(self, n):
        del self.tokens[n:]

    def close(self):
        self.closed = True


class FakeEngine:
    ctx = 100

    def __init__(self, on_disk=False) -> None:
        self.placement = type("P", (), {"on_disk": on_disk})
        self.made: list[FakeSession] = []

    def session(self):
        self.made.append(FakeSession())
        return self.made[-1]


def run(timelines, ids, reply=0):
    session = timelines.best(ids, reply)
    reused = len(session.tokens)
    session.tokens = [*ids, *range(1000, 1000 + reply)]
    return session, reused


def test_a_prompt_goes_on_where_the_longest_beginning_is() -> None:
    engine = FakeEngine()
    timelines = Timelines(engine)
    first, reused = run(timelines, [1, 2, 3, 4])
    assert reused == 0
    second, reused = run(timelines, [9, 8, 7])
    assert second is not first and reused == 0
    again, reused = run(timelines, [1, 2, 3, 4, 5])
    assert again is first and reused == 4
    same, reused = run(timelines, [1, 2, 3, 4, 5])
    assert same is first and reused == 4, "the last token is run for its logits"


def test_a_long_conversation_is_not_given_up_for_a_word_in_common() -> None:
    timelines = Timelines(FakeEngine())
    long, _ = run(timelines, list(range(20)))
    other, reused = run(timelines, [0, 1, 77])
    assert other is not long and reused == 0 and len(long.tokens) == 20


@pytest.mark.parametrize("on_disk", [False, True])
def test_all_timelines_fit_in_the_context(on_disk) -> None:
    engine = FakeEngine(on_disk)
    timelines = Timelines(engine)
    for start in range(0, 400, 40):
        session, _ = run(timelines, list(range(start, start + 35)), 10)
        assert timelines.n_tokens <= engine.ctx
        assert session.tokens[0] == start
    assert len(engine.made) == (1 if on_disk else 3), "more would hold too many tokens"
    timelines.close()
    assert all(session.closed for session in engine.made)


def test_counters_are_text_for_prometheus() -> None:
    counts = Counts()
    text = counts.text(2, 1, 1 << 20)
    assert "# TYPE hga_requests_total counter" in text
    assert "\nhga_requests_waiting 2\n" in text and "\nhga_resident_bytes 1048576\n" in text


class SlowSession(FakeSession):
    """A session whose prompt is told of block by block."""

    def __init__(self, on_block) -> None:
        super().__init__()
        self.blocks, self.replies = 0, 0
        self._on_block = on_block
        self.stop_reason = "eos"

    def feed(self, ids, progress):
        for i in range(100):
            self.blocks += 1
            self._on_block(self.blocks)
            progress(i, 100)
        self.tokens += ids

    def generate(self, sampler, most, stops):
        self.replies += 1
        yield from range(3)


class Pieces:
    """A tokenizer of three tokens: two halves of a letter, and half of another."""

    eos = frozenset({9})

    def decoder(self):
        halves = ["é".encode()[:1], "é".encode()[1:], "ü".encode()[:1]]
        return StreamDecoder(lambda number: halves[number], False)


def answer(on_block, seconds=60.0):
    """What a job emits, and its session; on_block(job, n) is called at every block."""
    events, jobs = [], []
    engine = FakeEngine()
    engine.tokenizer = Pieces()
    session = SlowSession(lambda n: on_block(jobs[0], n))
    engine.session = lambda: session
    worker = ModelWorker(engine, 4)
    wanted = Wanted([1, 2, 3], SamplerOptions(), 10, (), None, False, False)
    jobs.append(Job(wanted, events.append, time.monotonic() + seconds))
    worker.submit(jobs[0])
    while not (events and not isinstance(events[-1], str)):
        time.sleep(0.005)
    worker.close()
    return events, session


def test_a_client_that_leaves_ends_the_prompt() -> None:
    events, session = answer(lambda job, n: job.cancelled.set() if n == 3 else None)
    assert session.blocks == 3 and session.replies == 0
    assert [event.status for event in events] == [499]


def test_time_that_is_up_ends_the_prompt() -> None:
    events, session = answer(lambda job, n: time.sleep(0.05), 0.2)
    assert 1 <= session.blocks <= 5 and session.replies == 0
    assert [event.status for event in events] == [504]


def test_no_letter_is_cut_in_two() -> None:
    events, _ = answer(lambda job, n: None)
    assert events[:-1] == ["é", "\ufffd"] and events[-1].finish == "stop"
    assert events[-1].reply_tokens == 3


def test_a_worker_that_is_closed_takes_nothing() -> None:
    worker = ModelWorker(FakeEngine(), 1)
    worker.close()
    with pytest.raises(ApiError) as error:
        worker.require_room()
    assert error.value.status == 503


class CountingTokenizer:
    """A token for every character; knows how many it was given."""

    bos = None

    def __init__(self) -> None:
        self.n_chars = 0

    def encode(self, text):
        self.n_chars += len(text)
        return [0] * len(text)


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_text_that_cannot_fit_is_not_encoded_whole(kind) -> None:
    tokenizer, most = CountingTokenizer(), 2048
    template = SimpleNamespace(render=lambda messages: "".join(m["content"] for m in messages))
    engine = SimpleNamespace(tokenizer=tokenizer, ctx=most, template=template)
    if kind == "chat":
        parts = [{"role": "user", "content": "x" * 3_000_000} for _ in range(5)]
        body = wire.decode(json.dumps({"messages": parts}).encode(), wire.ChatRequest)
    else:
        body = wire.decode(
            json.dumps({"prompt": "x" * 15_000_000}).encode(), wire.CompletionRequest
        )
    make = wire.chat if kind == "chat" else wire.completion
    with pytest.raises(ApiError, match="15,000,000 characters has more tokens") as caught:
        make(body, engine, SamplerOptions())
    assert caught.value.code == "context_length_exceeded" and caught.value.status == 400
    assert tokenizer.n_chars <= 1 << 20


def test_the_key_is_compared_in_constant_time(monkeypatch) -> None:
    compared, real = [], guard.hmac.compare_digest

    def seen(given, expected):
        compared.append((given, expected))
        return real(given, expected)

    monkeypatch.setattr(guard.hmac, "compare_digest", seen)
    watch = guard.Guard(None, guard.Rules("s3cret", True, 1000), Counts())
    for sent, fits in ((b"Bearer s3cret", True), (b"Bearer s3creT", False), (b"", False)):
        scope = {"path": "/metrics", "method": "GET"}
        try:
            watch._check_key(scope, {b"authorization": sent})
        except ApiError as error:
            assert error.status == 401 and not fits
        else:
            assert fits
    assert [given for given, _ in compared] == [b"Bearer s3cret", b"Bearer s3creT", b""]
