"""Damaged keys and values are computed again from a session's tokens, to the last bit."""

import os
import shutil

import numpy as np
import pytest

from hga.kvstore.errors import PagesError, SessionError
from hga.kvstore.store import SessionStore
from hga.runtime.repair import repair_session
from hga.runtime.sampler import Sampler, SamplerOptions

GREEDY = SamplerOptions(temperature=0.0)
CASES = {
    "hga": {"attention": "hga", "budget": "128"},
    "dense": {"attention": "dense"},
    "int8": {"attention": "hga", "budget": "160", "kv_type": "q8"},
    "on disk": {"attention": "hga", "budget": "128", "kv": "disk"},
    "routed prompts": {"attention": "hga", "budget": "128", "prefill": "hga"},
}


def flip(path, offset):
    """Another bit in a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 4]))


def places(folder):
    with SessionStore.open(folder) as store:
        found = [store.locate(block) for block in range(-(-store.n_tokens // 128))]
        return [(place.path, place.offset) for place in found], store.shape


def a_cell(folder):
    where, _ = places(folder)
    path, offset = where[min(2, len(where) - 1)]
    flip(path, offset + 4097)


def an_index(folder):
    where, shape = places(folder)
    flip(where[1][0], where[1][1] + shape.kv_bytes + 3)


def a_cut_segment(folder):
    path = places(folder)[0][1][0]
    os.truncate(path, path.stat().st_size - 1)


def a_segment_that_is_gone(folder):
    places(folder)[0][-1][0].unlink()


def a_foreign_segment(folder):
    path = places(folder)[0][0][0]
    flip(path, 20)


DAMAGES = [a_cell, an_index, a_cut_segment, a_segment_that_is_gone, a_foreign_segment]


@pytest.fixture
def opened(packed_tiny, open_engine, tmp_path):
    """opened(**options) -> an engine whose sessions lie in tmp_path."""

    def make(**options):
        return open_engine(packed_tiny("qwen3"), ctx=2000, sessions_dir=tmp_path, **options)

    return make


def turn(session, ids, n):
    session.feed(ids)
    return list(session.generate(Sampler(GREEDY), n, ()))


def contents(folder):
    """Tokens and all pages of a session."""
    with SessionStore.open(folder) as store:
        assert store.verify() == -(-store.n_tokens // 128)
        pages = np.zeros((store.verify(), store.shape.kv_bytes), np.uint8)
        indices = []
        for block, page in enumerate(pages):
            indices.append(store.read_index(block).copy())
            store.read_block(block, page)
        # The rest of the last cells of a context is whatever was there.
        return store.tokens, pages[:-1], indices[:-1], store.meta, dict(store.fingerprint)


@pytest.mark.parametrize(
    ("case", "damage"),
    [*(("hga", damage) for damage in DAMAGES), *((case, a_cell) for case in CASES if case != "hga"),
     ("on disk", a_segment_that_is_gone)],
)  # fmt: skip
def test_it_is_as_if_nothing_had_happened(opened, token_ids, tmp_path, case, damage):
    folder, options = tmp_path / "a", CASES[case]
    with opened(**options) as engine:
        with engine.session("a") as session:
            for seed in range(3):
                turn(session, token_ids(190, seed), 30)
                session.save(f"note {seed}")
        whole = contents(folder)
        shutil.copytree(folder, tmp_path / "b")
        with engine.session("b") as session:
            expected = turn(session, token_ids(50, 9), 20)
        damage(folder)
        if case != "on disk" or damage is not a_cell:
            with pytest.raises(PagesError):
                engine.session("a")
        told = []
        stored = whole[4]
        done = repair_session(engine, "a", stored, lambda *given: told.append(given))
        assert done.n_tokens == len(whole[0]) and 0 < done.n_run <= done.n_tokens
        assert told[-1] == (done.n_run, done.n_run)
        now = contents(folder)
        np.testing.assert_array_equal(now[0], whole[0])
        np.testing.assert_array_equal(now[1], whole[1])
        for one, other in zip(now[2], whole[2], strict=True):
            np.testing.assert_array_equal(one, other)
        assert now[3:] == whole[3:]
        with engine.session("a") as session:
            assert session.saved.note == "note 2"
            assert turn(session, token_ids(50, 9), 20) == expected
        assert repair_session(engine, "a", stored, lambda *given: None).n_run == 0


def test_only_what_follows_the_damage_is_run(opened, token_ids, tmp_path):
    with opened() as engine:
        with engine.session("a") as session:
            session.feed(token_ids(500))
            session.save()
        a_cell(tmp_path / "a")
        done = repair_session(engine, "a", {"attention": "hga", "budget": "auto"}, lambda *x: None)
        assert (done.n_run, done.n_tokens) == (500 - 2 * 128, 500)


def test_a_repair_that_is_cut_short_changes_nothing(opened, token_ids, tmp_path):
    def stop(*given):
        raise KeyboardInterrupt

    stored = {"attention": "hga", "budget": "auto"}
    with opened() as engine:
        with engine.session("a") as session:
            turn(session, token_ids(300), 30)
            session.save()
        a_segment_that_is_gone(tmp_path / "a")
        heads = [path.read_bytes() for path in sorted((tmp_path / "a").glob("head-*"))]
        with pytest.raises(KeyboardInterrupt):
            repair_session(engine, "a", stored, stop)
        assert [p.read_bytes() for p in sorted((tmp_path / "a").glob("head-*"))] == heads
        assert repair_session(engine, "a", stored, lambda *x: None).n_run > 0
        assert repair_session(engine, "a", stored, lambda *x: None).n_run == 0


def test_another_model_and_lost_tokens_are_refused(
    opened, packed_tiny, open_engine, token_ids, tmp_path
):
    stored = {"attention": "hga", "budget": "auto"}
    with opened() as engine, engine.session("a") as session:
        session.feed(token_ids(200))
        session.save()
    a_cell(tmp_path / "a")
    with (
        open_engine(packed_tiny("llama"), ctx=2000, sessions_dir=tmp_path) as engine,
        pytest.raises(SessionError, match="it belongs to another model"),
    ):
        repair_session(engine, "a", stored, lambda *x: None)
    for path in (tmp_path / "a").glob("tokens-*"):
        path.write_bytes(b"x" * path.stat().st_size)
    with opened() as engine, pytest.raises(SessionError, match="do not match their digest"):
        repair_session(engine, "a", stored, lambda *x: None)
