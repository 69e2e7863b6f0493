"""The timeline: what is refused leaves no trace, why generation stops, what the counters say."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from hga.kvstore.errors import StoreError
from hga.kvstore.route import Limits
from hga.runtime.engine import ContextError, Engine, Session
from hga.runtime.sampler import Sampler, SamplerOptions

Packed = Callable[..., Path]
Opened = Callable[..., Engine]
Ids = Callable[..., list[int]]


class Script:
    """A sampler that says what it was told to, then token 9, and notes what it was shown."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = list(tokens)
        self.seen: list[tuple[int, int]] = []

    def sample(self, logits: np.ndarray, recent: Sequence[int]) -> int:
        self.seen.append((int(logits.argmax()), len(recent)))
        return self.tokens.pop(0) if self.tokens else 9


@pytest.fixture
def session(engine: Engine) -> Session:
    return engine.session()


def test_no_logits_before_the_first_token(session: Session) -> None:
    with pytest.raises(ValueError, match="no logits before the first token"):
        _ = session.logits
    with pytest.raises(ValueError, match="no logits"):
        next(session.generate(Script(), 5, ()))


def test_too_long_a_prompt_changes_nothing(session: Session, token_ids: Ids) -> None:
    session.feed(token_ids(400))
    logits, kv_bytes = session.logits.copy(), session.kv_bytes
    for feed in (
        lambda: session.feed(token_ids(113)),
        lambda: list(session.score(token_ids(113))),
    ):
        with pytest.raises(ContextError, match=r"400 \+ 113 tokens .* context of 512"):
            feed()
    assert session.tokens == token_ids(400) and session.kv_bytes == kv_bytes
    np.testing.assert_array_equal(session.logits, logits)
    session.feed(token_ids(112))
    with pytest.raises(ContextError, match=r"512 \+ 1 tokens .* context of 512"):
        session.step(3)
    assert len(session.tokens) == 512


@pytest.mark.parametrize("bad", [-1, 320, 1 << 40])
def test_tokens_out_of_range_change_nothing(session: Session, bad: int) -> None:
    session.feed([1, 2, 3])
    logits = session.logits.copy()
    for call in (
        lambda: session.feed([4, bad, 5]),
        lambda: session.step(bad),
        lambda: list(session.score([bad])),
    ):
        with pytest.raises(ValueError, match=r"0\.\.319"):
            call()
    assert session.tokens == [1, 2, 3]
    np.testing.assert_array_equal(session.logits, logits)


def test_feeding_nothing_changes_nothing(session: Session) -> None:
    session.feed([])
    session.feed([5])
    logits = session.logits.copy()
    session.feed([])
    assert session.tokens == [5]
    np.testing.assert_array_equal(session.logits, logits)


def test_logits_are_a_copy_of_its_own(engine: Engine) -> None:
    first, second = engine.session(), engine.session()
    first.feed([1, 2])
    kept = first.logits
    before = kept.copy()
    second.feed([7, 8, 9])
    first.step(3)
    np.testing.assert_array_equal(kept, before)
    assert kept.shape == (320,) and kept.dtype == np.float32


def test_progress_is_told_after_each_block(
    packed_tiny: Packed, open_engine: Opened, token_ids: Ids
) -> None:
    told: list[tuple[int, int]] = []
    with open_engine(packed_tiny("qwen3"), ctx=1300) as engine:
        engine.session().feed(token_ids(1100), lambda done, total: told.append((done, total)))
        assert engine.notices, "longer than the model was trained on"
    assert told == [(512, 1100), (1024, 1100), (1100, 1100)]


def test_an_interrupted_prompt_keeps_whole_blocks(
    packed_tiny: Packed, open_engine: Opened, token_ids: Ids
) -> None:
    ids = token_ids(1200)

    def interrupt(done: int, total: int) -> None:
        if done == 512:
            raise KeyboardInterrupt

    with open_engine(packed_tiny("qwen3"), ctx=1300) as engine:
        whole, session = engine.session(), engine.session()
        whole.feed(ids)
        with pytest.raises(KeyboardInterrupt):
            session.feed(ids, interrupt)
        assert session.tokens == ids[:512]
        session.feed(ids[512:])
        np.testing.assert_array_equal(session.logits, whole.logits)


def test_generation_stops_at_a_stop_token(session: Session) -> None:
    session.feed([1])
    assert list(session.generate(Script(4, 5, 2, 6), 10, {2, 3})) == [4, 5]
    assert session.stop_reason == "eos"
    assert session.tokens == [1, 4, 5, 2], "the stop token is part of the timeline"


def test_generation_stops_at_its_length(session: Session) -> None:
    session.feed([1])
    script = Script(4, 5, 6)
    assert list(session.generate(script, 2, {2})) == [4, 5]
    assert session.stop_reason == "length" and session.tokens == [1, 4, 5]
    assert [n for _, n in script.seen] == [1, 2]
    assert list(session.generate(script, 0, {2})) == []
    assert session.stop_reason == "length"


def test_generation_stops_at_a_full_context(session: Session, token_ids: Ids) -> None:
    session.feed(token_ids(509))
    assert list(session.generate(Script(), 100, {2})) == [9, 9, 9]
    assert session.stop_reason == "ctx" and len(session.tokens) == 512
    assert list(session.generate(Script(), 100, {2})) == []
    assert session.stop_reason == "ctx"


def test_generation_can_be_left(session: Session) -> None:
    session.feed([1])
    for token in session.generate(Script(4, 5, 6), 100, {2}):
        if token == 5:
            break
    assert session.stop_reason == "interrupt" and session.tokens == [1, 4, 5]
    session.step(7)
    assert session.tokens == [1, 4, 5, 7]


def test_the_sampler_sees_the_logits_of_the_last_token(session: Session) -> None:
    session.feed([1, 2, 3])
    tops, script = [], Script(10, 11, 12)
    for _ in session.generate(script, 3, ()):
        tops.append(int(session.logits.argmax()))
    assert [top for top, _ in script.seen[1:]] == tops[:-1]


def test_the_same_seed_generates_the_same_tokens(engine: Engine) -> None:
    replies = []
    for seed in (1, 1, 2):
        session = engine.session()
        session.feed([5, 6, 7])
        options = SamplerOptions(temperature=30.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        sampler = Sampler(options)
        replies.append(list(session.generate(sampler, 30, ())))
    assert replies[0] == replies[1] != replies[2]


@pytest.mark.parametrize("attention", ["dense", "hga"])
def test_scores_are_the_logits_of_feeding(engine: Engine, attention: str, token_ids: Ids) -> None:
    ids = token_ids(100)
    fed, scored = engine.session(), engine.session()
    scored.attention = attention
    fed.feed(ids[:30])
    scored.feed(ids[:30])
    rows = np.concatenate([block.copy() for block in scored.score(ids[30:])])
    assert rows.shape == (70, 320)
    for token, row in zip(ids[30:], rows, strict=True):
        fed.feed([token])
        np.testing.assert_array_equal(fed.logits, row)
    np.testing.assert_array_equal(scored.logits, rows[-1])
    assert scored.tokens == ids


def test_stats(session: Session, token_ids: Ids) -> None:
    assert session.stats.attended_mean is None and session.stats.decode_tps is None
    session.feed(token_ids(40))
    list(session.generate(Script(), 3, ()))
    stats = session.stats
    assert (stats.prompt_tokens, stats.decode_tokens) == (40, 3)
    assert stats.prefill_s > 0 and stats.decode_s > 0
    assert stats.attended_mean == 42, "41, 42 and 43 tokens: everything before and the token"
    assert stats.kv_bytes == session.kv_bytes > 0
    session.reset_stats()
    assert session.stats.prompt_tokens == 0 and session.stats.attended_mean is None


def test_attended_counts_windows(packed_tiny: Packed, open_engine: Opened, token_ids: Ids) -> None:
    with open_engine(packed_tiny("gemma3"), attention="dense") as engine:
        session = engine.session()
        session.feed(token_ids(99))
        session.step(1)
        # Five layers see 32 tokens, one sees all.
        assert session.stats.attended_mean == pytest.approx((5 * 32 + 100) / 6)


@pytest.mark.parametrize(
    ("ids", "common"),
    [([], 0), ([1, 2, 3], 3), ([1, 2, 3, 4], 3), ([1, 2], 2), ([1, 9, 3], 1), ([9], 0)],
)
def test_fork_point(session: Session, ids: list[int], common: int) -> None:
    assert session.fork_point(ids) == 0
    session.feed([1, 2, 3])
    assert session.fork_point(ids) == common


def test_truncation(session: Session, token_ids: Ids) -> None:
    session.feed(token_ids(50))
    logits = session.logits
    session.truncate(50)
    assert session.logits is logits, "nothing was cut"
    session.truncate(20)
    assert session.tokens == token_ids(50)[:20]
    with pytest.raises(ValueError, match="no logits"):
        _ = session.logits
    for n_tokens in (-1, 21):
        with pytest.raises(ValueError, match=f"cannot keep {n_tokens} of 20 tokens"):
            session.truncate(n_tokens)


def test_int8_takes_half_the_memory_and_says_nearly_the_same(
    packed_tiny: Packed, open_engine: Opened, token_ids: Ids
) -> None:
    path, ids = packed_tiny("qwen3", head_dim=64), token_ids(300)
    logits, sizes = [], []
    for kv_type in ("bf16", "q8"):
        with open_engine(path, kv_type=kv_type) as engine, engine.session() as session:
            session.feed(ids[:-1])
            logits.append(session.step(ids[-1]).copy())
            sizes.append((session.kv_bytes, session.stats.read_bytes))
    (kv_bytes, read), (kv_half, read_half) = sizes
    assert kv_half == kv_bytes // 2 and read_half == read // 2
    difference = np.abs(logits[1] - logits[0]).max() / np.abs(logits[0]).max()
    assert 0 < difference < 0.05


def test_memory_grows_by_slabs_and_is_freed(
    packed_tiny: Packed, open_engine: Opened, token_ids: Ids
) -> None:
    with open_engine(packed_tiny("qwen3"), ctx=4096) as engine:
        slab = 8 * engine.geometry.block_kv_bytes
        session = engine.session()
        assert session.kv_bytes == 0
        for n_tokens, n_slabs in ((1, 1), (1023, 1), (1, 2), (1100, 3)):
            session.feed(token_ids(n_tokens))
            assert session.kv_bytes == n_slabs * slab
        session.truncate(1024)
        assert session.kv_bytes == slab
        session.truncate(0)
        assert session.kv_bytes == 0
        session.feed([1, 2])
        with session:
            pass
        assert session.kv_bytes == 0 and session.tokens == []


def test_a_full_memory_leaves_the_timeline(
    session: Session, token_ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.feed(token_ids(30))
    logits = session.logits.copy()

    def refuse(n_tokens: int, limits: Limits) -> None:
        raise StoreError("no memory")

    monkeypatch.setattr(session._arena, "reserve", refuse)
    for call in (lambda: session.feed([1, 2]), lambda: session.step(1)):
        with pytest.raises(StoreError, match="no memory"):
            call()
    assert session.tokens == token_ids(30)
    np.testing.assert_array_equal(session.logits, logits)


def test_attention_and_budget_are_checked(session: Session) -> None:
    for value in ("paper", "", "Dense"):
        with pytest.raises(ValueError, match="expected one of dense, hga"):
            session.attention = value
    for value in ("0", "-1", "101%", "some"):
        with pytest.raises(ValueError, match="budget"):
            session.budget = value
    assert (session.attention, session.budget) == ("hga", "auto")
    session.attention, session.budget = "dense", "5%"
    assert (session.attention, session.budget) == ("dense", "5%")
