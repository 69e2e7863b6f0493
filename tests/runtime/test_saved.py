"""Named sessions: what comes back after a reopening is what was there, to the last bit."""

from collections.abc import Callable

import numpy as np
import pytest

from hga.kvstore.errors import SessionError, StoreError
from hga.kvstore.store import SessionStore
from hga.kvstore.store_layout import BlockShape
from hga.runtime.engine import Engine
from hga.runtime.sampler import Sampler, SamplerOptions
from hga.runtime.saved import encode_text, fingerprint, session_folder

Opened = Callable[..., Engine]
Ids = Callable[..., list[int]]
GREEDY = SamplerOptions(temperature=0.0)

CASES = {
    "hga": {"attention": "hga", "budget": "128"},
    "dense": {"attention": "dense"},
    "paper": {"attention": "hga-paper", "budget": "400"},
    "one bit": {"attention": "hga", "budget": "160", "sketch_bits": 1},
    "int8": {"attention": "hga", "budget": "160", "kv_type": "q8"},
    "paper in int8": {"attention": "hga-paper", "budget": "400", "kv_type": "q8"},
    "int8 on disk": {"attention": "hga", "budget": "128", "kv": "disk", "kv_type": "q8"},
    "on disk": {"attention": "hga", "budget": "128", "kv": "disk"},
    "dense on disk": {"attention": "dense", "kv": "disk"},
}


@pytest.fixture
def opened(packed_tiny, open_engine, tmp_path) -> Opened:
    """opened(arch="qwen3", **options) -> an engine whose sessions lie in tmp_path/sessions."""

    def make(arch: str = "qwen3", **options):
        options = {"ctx": 2000, "sessions_dir": tmp_path / "sessions", **options}
        return open_engine(packed_tiny(arch), **options)

    return make


def turns(session, ids, n):
    """A prompt and some decoded tokens, as a turn has them; the tokens and logits."""
    session.feed(ids)
    tokens = list(session.generate(Sampler(GREEDY), n, ()))
    return tokens, session.logits.copy()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("arch", ["qwen3", "gemma3"])
def test_a_reopened_session_goes_on_bit_by_bit(opened, token_ids, case, arch) -> None:
    options = CASES[case]
    with opened(arch, **options) as engine:
        whole, named = engine.session(), engine.session("a")
        for seed in (0, 1):
            for session in (whole, named):
                turns(session, token_ids(300, seed), 20)
            named.save("note")
            logits = named.logits.copy()
            named.close()
            named = engine.session("a")
            assert named.saved.reused_tokens == len(whole.tokens) == 320 * (seed + 1)
            assert named.tokens == whole.tokens and named.marks == whole.marks
            np.testing.assert_array_equal(named.logits, logits)
            for block in range(-(-len(whole.tokens) // 128) - 1):
                index = whole.arena.block_index(block), named.arena.block_index(block)
                np.testing.assert_array_equal(*index)
                if whole.on_disk:
                    continue
                kv = whole.arena.block_kv(block), named.arena.block_kv(block)
                np.testing.assert_array_equal(*kv)
        # First without a prompt between, from the logits that were computed again.
        for session in (whole, named):
            session.reset_stats()
        first = [list(s.generate(Sampler(GREEDY), 30, ())) for s in (whole, named)]
        assert first[0] == first[1]
        second = [turns(s, token_ids(100, 7), 30) for s in (whole, named)]
        assert second[0][0] == second[1][0]
        np.testing.assert_array_equal(second[0][1], second[1][1])
        assert whole.stats.attended == named.stats.attended
        named.close()


@pytest.mark.parametrize("prefill", ["exact", "hga"])
@pytest.mark.parametrize("lengths", [(5, 4800), (4700, 130, 37), (4700, 1), (4608, 64)])
def test_logits_after_a_prompt(opened, token_ids, prefill, lengths) -> None:
    """A prompt's last token is run again with what shares its unit."""
    with opened(ctx=6000, prefill=prefill) as engine, engine.session("a") as session:
        for i, n_tokens in enumerate(lengths):
            session.feed(token_ids(n_tokens, i))
        logits = session.logits.copy()
        before = [session.arena.block_kv(i).copy() for i in range(len(session.tokens) // 128)]
        session.save()
        session.close()
        with engine.session("a") as again:
            np.testing.assert_array_equal(again.logits, logits)
            for i, block in enumerate(before):
                np.testing.assert_array_equal(again.arena.block_kv(i), block)
            assert again.stats.decode_tokens == 0


def test_memory_and_disk_are_one_format(opened, token_ids) -> None:
    """A session saved from memory goes on from the disk, and the other way round."""
    options = {"attention": "hga", "budget": "128"}
    with opened(**options) as engine:
        whole = engine.session()
        expected = [turns(whole, token_ids(300, seed), 20) for seed in range(4)]
    for seed in range(4):
        with opened(kv="disk" if seed % 2 else "ram", **options) as engine:
            with engine.session("a") as session:
                assert session.on_disk == bool(seed % 2)
                tokens, logits = turns(session, token_ids(300, seed), 20)
                assert tokens == expected[seed][0]
                np.testing.assert_array_equal(logits, expected[seed][1])
                session.save()
                # What is not saved is gone.
                session.truncate(250)
                session.feed(token_ids(500, 9))
            with engine.session("a") as session:
                assert len(session.tokens) == 320 * (seed + 1)
                np.testing.assert_array_equal(session.logits, logits)


@pytest.mark.parametrize("kv", ["ram", "disk"])
def test_any_history_is_saved(opened, token_ids, kv) -> None:
    """Prompts, tokens and truncations, with and without a save between, against a session that is
    never closed; every save is followed by a check of every checksum."""
    random = np.random.default_rng(5)
    with opened(attention="hga", budget="128", kv=kv) as engine:
        whole, named = engine.session(), engine.session("a")
        for round_ in range(24):
            n = int(random.choice((1, 5, 64, 100, 128, 200, 256)))
            kept = int(random.integers(0, len(whole.tokens) + 1))
            kept = kept if random.random() < 0.4 or len(whole.tokens) > 1500 else len(whole.tokens)
            if random.random() < 0.2:
                kept = kept // 128 * 128
            for session in (whole, named):
                session.truncate(kept)
                session.feed(token_ids(n, round_))
                for token in token_ids(int(n % 7), round_ + 100):
                    session.step(token)
            np.testing.assert_array_equal(whole.logits, named.logits)
            if random.random() < 0.7:
                named.save(str(round_))
                named.close()
                with SessionStore.open(engine.sessions_dir / "a") as store:
                    store.verify()
                named = engine.session("a")
                np.testing.assert_array_equal(whole.logits, named.logits)
                assert named.tokens == whole.tokens
        named.close()


def test_only_what_changed_is_written(opened, token_ids, monkeypatch) -> None:
    written: list[int] = []
    plain = SessionStore.write_block

    def noted(self, block, kv, index):
        written.append(block)
        plain(self, block, kv, index)

    monkeypatch.setattr(SessionStore, "write_block", noted)
    with opened() as engine, engine.session("a") as session:
        expected = (
            (lambda: session.feed(token_ids(300)), [0, 1, 2]),
            (lambda: session.step(5), [2]),
            (lambda: session.feed(token_ids(83)), [2]),
            (lambda: None, []),
            (lambda: session.feed([1]), [3]),
            (lambda: session.truncate(200), []),
            (lambda: session.feed([1]), [1]),
            (lambda: session.truncate(0), []),
        )
        for act, blocks in expected:
            act()
            written.clear()
            session.save()
            assert written == blocks
            generation = session.saved.store.generation
            session.save()
            assert session.saved.store.generation == generation
        session.close()
        with engine.session("a") as again:
            assert again.tokens == []
            with pytest.raises(ValueError, match="no logits"):
                _ = again.logits


def test_a_truncated_session_has_no_logits_again(opened, token_ids) -> None:
    with opened() as engine:
        with engine.session("a") as session:
            session.feed(token_ids(300))
            session.truncate(200)
            session.save()
        with engine.session("a") as session:
            assert session.tokens == token_ids(300)[:200] and not session.has_logits


def test_what_differs_is_explained(opened, packed_tiny, open_engine, token_ids, tmp_path) -> None:
    with opened(attention="hga", budget="128") as engine, engine.session("a") as session:
        session.feed(token_ids(10))
        session.save()
        session.attention = "dense"
        session.save()
    with opened(attention="hga", budget="2%") as engine, pytest.raises(SessionError) as caught:
        engine.session("a")
    text = str(caught.value)
    assert "attention: stored dense, now hga; budget: stored 128, now 2%" in text
    assert "model" not in text and "prefill" not in text
    text = r"model: stored \w+, now \w+; layers: stored 2, now 6; heads: stored"
    with opened("gemma3", attention="dense", budget="128") as engine:  # noqa: SIM117
        with pytest.raises(SessionError, match=text):
            engine.session("a")
    text = "holds 10 tokens and the context 9: --ctx 10"
    with opened(ctx=9, attention="dense", budget="128") as engine:  # noqa: SIM117
        with pytest.raises(StoreError, match=text):
            engine.session("a")
    with opened(attention="dense", budget="128") as engine:
        engine.session("a").close()


@pytest.mark.parametrize("parent", [None, "elsewhere"])
def test_saving_a_session_that_lies_on_disk(opened, token_ids, tmp_path, parent) -> None:
    folder = None if parent is None else tmp_path / parent
    with opened(kv="disk", kv_dir=folder or tmp_path / "kv", budget="128") as engine:
        session = engine.session()
        _, logits = turns(session, token_ids(500), 20)
        named = engine.save_as(session, "a", "one")
        assert named is not session and named.saved.note == "one"
        session.close()
        np.testing.assert_array_equal(named.logits, logits)
        second = turns(named, token_ids(300, 1), 20)
        other = engine.save_as(named, "b", "two")
        named.close()
        np.testing.assert_array_equal(other.logits, second[1])
        turns(other, token_ids(300, 2), 5)
        other.close()
        for name, n_tokens in (("a", 840), ("b", 840)):
            with engine.session(name) as session:
                assert len(session.tokens) == n_tokens
                np.testing.assert_array_equal(session.logits, second[1])
    assert not list((folder or tmp_path / "kv").iterdir())


def test_saving_under_a_name(opened, token_ids, tmp_path) -> None:
    with opened() as engine:
        session = engine.session()
        with pytest.raises(ValueError, match="no name"):
            session.save()
        session.feed(token_ids(300))
        assert engine.save_as(session, "a", "one") is session
        session.feed([5])
        with pytest.raises(StoreError, match="'a' exists already"):
            engine.save_as(session, "a")
        engine.save_as(session, "b", "two")
        session.feed([6])
        session.save()
        assert session.saved.name == "b" and session.saved.note == "two"
        with engine.session("a", new=False) as other:
            assert other.tokens == [*token_ids(300), 5] and other.saved.note == "one"
        session.close()
        with engine.session("b", new=False) as other:
            assert other.tokens == [*token_ids(300), 5, 6]
            assert other.saved.disk_bytes > 0
        with pytest.raises(FileNotFoundError, match="no session 'c' in"):
            engine.session("c", new=False)
        assert sorted(p.name for p in (tmp_path / "sessions").iterdir()) == ["a", "b"]


def test_a_session_in_use(opened) -> None:
    text = "'a' is in use by this process"
    with opened() as engine, engine.session("a"), pytest.raises(StoreError, match=text):
        engine.session("a")


def test_a_failed_save_leaves_both_sides(opened, token_ids, monkeypatch) -> None:
    """The next save writes what the failed one did not."""
    import errno

    from hga.kvstore.filelayer import Files

    with opened() as engine:
        session = engine.session("a")
        session.feed(token_ids(300))
        session.save("first")
        session.feed(token_ids(200, 1))
        with monkeypatch.context() as patch:

            def full(self, fd, n_bytes):
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(Files, "allocate", full)
            with pytest.raises(StoreError, match=r"needs \d+ bytes and \d+ are free"):
                session.save("second")
        assert len(session.tokens) == 500 and session.saved.note == "first"
        session.save("second")
        session.close()
        with engine.session("a") as again:
            assert len(again.tokens) == 500 and again.saved.note == "second"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "/a", ".a", "a\\b", "a b", "a\n", "a\0", "-x", "é" * 40]
)
def test_names_that_are_refused(name, tmp_path) -> None:
    with pytest.raises(ValueError, match="invalid session name"):
        session_folder(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "Größe-2.b", "2026-11-25", "x_y@z+1", "a" * 64])
def test_names_that_are_taken(name, tmp_path) -> None:
    assert session_folder(tmp_path, name).parent == tmp_path


def test_damage_and_hostile_files(opened, token_ids, tmp_path) -> None:
    with opened() as engine:
        with engine.session("a") as session:
            session.feed(token_ids(200))
            session.save()
            good = session.saved.store.meta
            words = session.saved.store.tokens
        folder = tmp_path / "sessions" / "a"
        for meta, ids in ((("{}"), words), ("x" * 10, words), ("[" * 100_000, words)):
            with SessionStore.open(folder) as store:
                store.commit(ids, meta)
            with pytest.raises(SessionError, match="its text is not what this version writes"):
                engine.session("a")
        with SessionStore.open(folder) as store:
            block, index = store.locate(1), store.read_index(0)
            out = np.empty(store.shape.kv_bytes, np.uint8)
            store.read_block(0, out)
            store.write_block(0, out, index)
            changed = words.copy()
            changed[5] = 320
            store.read_block(1, out)
            store.write_block(1, out, store.read_index(1))
            store.commit(changed, good)
        with pytest.raises(SessionError, match="token id 320 is beyond the vocabulary of 320"):
            engine.session("a")
        assert block.path.exists()


def test_the_sampler_goes_on() -> None:
    logits = np.random.default_rng(0).normal(size=100).astype(np.float32)
    whole, cut = Sampler(SamplerOptions(seed=5)), Sampler(SamplerOptions(seed=5))
    for _ in range(10):
        assert whole.sample(logits) == cut.sample(logits)
    again = Sampler(SamplerOptions(seed=5))
    again.state = cut.state
    assert [whole.sample(logits) for _ in range(20)] == [again.sample(logits) for _ in range(20)]
    for bad in (("0", "2"), ("-1", "1"), (f"{1 << 128:x}", "1"), ("z", "1")):
        with pytest.raises(ValueError):
            again.state = bad


def test_blocks_of_another_shape_are_refused(opened, tmp_path) -> None:
    """A fingerprint that was copied does not make pages fit."""
    with opened() as engine:
        stamp = fingerprint(engine, "hga", "auto", "exact")
        shape = BlockShape(((2, 256), (1, 512)), 100)
        SessionStore.create(tmp_path / "sessions" / "a", shape, stamp, encode_text("")).close()
        with pytest.raises(SessionError, match="its blocks have another shape"):
            engine.session("a")
