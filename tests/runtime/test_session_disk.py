"""Keys and values on disk: the same bits as in memory, whatever the frames, threads and cuts."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hga.kvstore.errors import StoreError
from hga.runtime import prompt as prompt_module
from hga.runtime import session as session_module
from hga.runtime.engine import Engine, Session
from hga.runtime.options import OptionError, Options

Packed = Callable[..., Path]
Opened = Callable[..., Engine]
Ids = Callable[..., list[int]]

MODELS = {
    "qwen3": ("qwen3", {"num_attention_heads": 6, "head_dim": 64}),
    # Windows of 16 tokens in all layers but one.
    "gemma3": ("gemma3", {}),
    "qwen3_moe": ("qwen3_moe", {}),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, packed_tiny: Packed) -> Path:
    arch, changes = MODELS[request.param]
    return packed_tiny(arch, **changes)


@pytest.fixture
def on_disk(
    open_engine: Opened, disk_engines: Callable[[Engine, int], Engine], tmp_path: Path
) -> Callable[..., Engine]:
    """on_disk(path, frames=…, **options): an engine whose sessions lie on disk, with so many frames
    a KV head."""

    def opened(path: Path, frames: int = 8, **options: object) -> Engine:
        given = {"kv": "disk", "kv_dir": tmp_path / "kv", **options}
        return disk_engines(open_engine(path, **given), frames)

    return opened


def decoded(session: Session, ids: list[int]) -> list[np.ndarray]:
    return [session.step(token).copy() for token in ids]


def spoken(session: Session, ids: list[int]) -> np.ndarray:
    """Logits along a prompt, decoded tokens, a second prompt, a cut, and more of both."""
    logits = []
    session.feed(ids[:600])
    logits.append(session.logits.copy())
    logits += decoded(session, ids[600:760])
    session.feed(ids[760:890])
    logits.append(session.logits.copy())
    logits += decoded(session, ids[890:900])
    for keep in (897, 640, 130):
        session.truncate(keep)
        session.feed(ids[keep + 100 : keep + 105])
        logits += decoded(session, ids[keep : keep + 20])
    return np.stack(logits)


@pytest.mark.parametrize(("budget", "kv_type"), [("20%", "bf16"), ("auto", "bf16"), ("20%", "q8")])
def test_disk_and_memory_agree_to_the_bit(
    model: Path, open_engine: Opened, on_disk: Opened, token_ids: Ids, budget: str, kv_type: str
) -> None:
    ids, options = token_ids(1000), {"ctx": 1000, "budget": budget, "kv_type": kv_type}
    with open_engine(model, **options) as engine, engine.session() as session:
        expected = spoken(session, ids)
    for frames, threads in ((8, 1), (20, 2), (64, 3)):
        engine = on_disk(model, frames, threads=threads, **options)
        with engine.session() as session:
            assert session.on_disk
            np.testing.assert_array_equal(spoken(session, ids), expected)


@pytest.mark.parametrize("io", ["threads", "mmap"])
def test_how_the_disk_is_read_changes_nothing(
    packed_tiny: Packed, open_engine: Opened, on_disk: Opened, token_ids: Ids, io: str
) -> None:
    path, ids = packed_tiny("qwen3", num_attention_heads=6, head_dim=64), token_ids(1000)
    with open_engine(path, ctx=1000, budget="10%") as engine, engine.session() as session:
        expected = spoken(session, ids)
    with on_disk(path, ctx=1000, budget="10%", io=io).session() as session:
        np.testing.assert_array_equal(spoken(session, ids), expected)


def test_dense_and_scored_tokens_agree(
    model: Path, open_engine: Opened, on_disk: Opened, token_ids: Ids
) -> None:
    ids = token_ids(400)

    def run(engine: Engine) -> np.ndarray:
        with engine.session() as session:
            session.feed(ids[:300])
            session.attention = "dense"
            logits = decoded(session, ids[300:303])
            logits += [rows.copy() for rows in session.score(ids[303:])]
        return np.concatenate([np.atleast_2d(x) for x in logits])

    with open_engine(model, ctx=500) as engine:
        expected = run(engine)
    np.testing.assert_array_equal(run(on_disk(model, ctx=500)), expected)


def test_routed_prompts_agree(
    packed_tiny: Packed,
    open_engine: Opened,
    on_disk: Opened,
    token_ids: Ids,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hga.kvstore.route import NO_UNITS, Units

    small = Units(1, 32, 4, 0.25, 128)
    monkeypatch.setattr(session_module, "PREFILLS", {"exact": NO_UNITS, "hga": small})
    path, ids = packed_tiny("qwen3", num_attention_heads=6, head_dim=64), token_ids(900)

    def run(engine: Engine) -> np.ndarray:
        with engine.session() as session:
            session.feed(ids[:100])
            session.feed(ids[100:])
            return session.logits.copy()

    with open_engine(path, ctx=1000, prefill="hga") as engine:
        expected = run(engine)
    np.testing.assert_array_equal(run(on_disk(path, ctx=1000, prefill="hga")), expected)


@pytest.mark.parametrize("segment", [64, 200, 512])
def test_segments_of_a_prompt_change_nothing(
    model: Path, on_disk: Opened, token_ids: Ids, monkeypatch: pytest.MonkeyPatch, segment: int
) -> None:
    ids = token_ids(700)
    with on_disk(model, ctx=1000).session() as session:
        session.feed(ids)
        expected = session.logits.copy()
    monkeypatch.setattr(prompt_module, "SEGMENT_TOKENS", segment)
    done = []
    with on_disk(model, ctx=1000).session() as session:
        session.feed(ids, lambda n, total: done.append((n, total)))
        np.testing.assert_array_equal(session.logits, expected)
    assert done == sorted(done) and done[-1] == (700, 700)


def test_an_interrupted_prompt_leaves_the_timeline(
    model: Path, on_disk: Opened, token_ids: Ids
) -> None:
    ids = token_ids(1000)

    def interrupted(after: int) -> Callable[[int, int], None]:
        calls = iter(range(1000))

        def progress(done: int, total: int) -> None:
            if next(calls) == after:
                raise KeyboardInterrupt

        return progress

    with on_disk(model, ctx=1000).session() as session:
        session.feed(ids[:300])
        expected = decoded(session, ids[300:420])
    with on_disk(model, ctx=1000).session() as session:
        session.feed(ids[:300])
        decoded(session, ids[300:350])
        for after in (0, 1, 2):
            with pytest.raises(KeyboardInterrupt):
                session.feed(ids[400:], interrupted(after))
            assert session.tokens == ids[:350]
        got = decoded(session, ids[350:420])
    np.testing.assert_array_equal(got, expected[50:])


def test_a_changed_cell_is_an_error(
    packed_tiny: Packed, on_disk: Opened, token_ids: Ids, tmp_path: Path
) -> None:
    path, ids = packed_tiny("qwen3", num_attention_heads=6, head_dim=64), token_ids(800)
    with on_disk(path, ctx=1000, budget="100%").session() as session:
        session.feed(ids)
        for segment in (tmp_path / "kv").rglob("seg-*.kv"):
            with segment.open("r+b") as file:
                data = bytearray(file.read())
                # Past the header: every cell.
                data[4096:] = bytes(255 - b for b in data[4096:])
                file.seek(0)
                file.write(data)
        with pytest.raises(StoreError, match="checksum"):
            session.step(ids[0])
        assert session.tokens == ids


def test_a_budget_beyond_what_has_room_is_refused(
    packed_tiny: Packed, on_disk: Opened, token_ids: Ids
) -> None:
    """Memory for the cells of a token is made when the engine opens; a larger budget is refused,
    and the session stays as it is."""
    ids = token_ids(1000)
    with on_disk(packed_tiny("qwen3"), ctx=1000, budget="10%").session() as session:
        session.feed(ids[:900])
        expected = session.step(ids[900]).copy()
        session.truncate(900)
        for budget in ("90%", "4k", "auto"):
            session.budget = budget
            with pytest.raises(StoreError, match=r"cells of a KV head.*--budget"):
                session.step(ids[900])
        session.budget = "10%"
        assert session.tokens == ids[:900]
        np.testing.assert_array_equal(session.step(ids[900]), expected)


def test_what_reads_every_key_is_refused(
    packed_tiny: Packed, on_disk: Opened, token_ids: Ids
) -> None:
    with pytest.raises(OptionError, match="hga-paper"):
        Options(kv="disk", attention="hga-paper")
    with on_disk(packed_tiny("qwen3"), ctx=500).session() as session:
        with pytest.raises(ValueError, match="--kv ram"):
            session.attention = "oracle"
        with pytest.raises(ValueError, match="--kv ram"):
            session.measure_recall = True


def test_a_full_disk_leaves_the_session(
    packed_tiny: Packed, on_disk: Opened, token_ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a prompt and in the middle of decoding; with room again it goes on as if nothing was."""
    path, ids = packed_tiny("qwen3", num_attention_heads=6, head_dim=64), token_ids(1500)

    def run(session: Session, full: Callable[[], None]) -> np.ndarray:
        session.feed(ids[:500])
        logits = decoded(session, ids[500:511])
        full()
        return np.stack(logits + decoded(session, ids[511:1500]))

    with on_disk(path, ctx=1600, budget="20%").session() as session:
        expected = run(session, lambda: None)

    def allocate(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    engine = on_disk(path, ctx=1600, budget="20%")
    with engine.session() as session:

        def full() -> None:
            with monkeypatch.context() as patch:
                patch.setattr(os, "posix_fallocate", allocate)
                with pytest.raises(StoreError, match=r"needs \d+ bytes and \d+ are free"):
                    session.feed(ids[511:1500])
                assert session.tokens == ids[:511]
                with pytest.raises(StoreError, match=r"needs \d+ bytes and \d+ are free"):
                    decoded(session, ids[511:1500])
                assert 511 <= len(session.tokens) < 1400
            session.truncate(511)

        np.testing.assert_array_equal(run(session, full), expected)


def test_how_the_disk_is_really_read_is_said(
    packed_tiny: Packed, kernel_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although it is known only when the first session begins."""
    monkeypatch.setitem(sys.modules, "liburing", None)
    said: list[str] = []
    options = Options(kv="disk", kv_dir=tmp_path, io="uring", ctx=300)
    with Engine.open(packed_tiny("qwen3"), options, kernel_cache, said.append) as engine:
        assert engine.io is None
        with engine.session():
            assert engine.io == "threads"
    assert any("io_uring is not used" in text for text in said)
