"""Parts of the server on their own: stop texts, timelines, counters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hga.tools.server.counts import Counts
from hga.tools.server.stops import StopFilter
from hga.tools.server.timelines import Timelines


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
