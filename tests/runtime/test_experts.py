"""Experts on disk: the same bits as in memory, whatever the slots, hints, threads and ways to
read."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash

from hga.runtime import prompt
from hga.runtime.budget import BudgetError
from hga.runtime.container import ContainerError
from hga.runtime.engine import Engine, Session
from hga.runtime.experts import blob_bytes
from hga.runtime.hint_switch import HintSwitch

Packed = Callable[..., Path]
Opened = Callable[..., Engine]
Ids = Callable[..., list[int]]

N_EXPERTS, N_LAYERS = 12, 3


@pytest.fixture(scope="module")
def model(packed_tiny: Packed) -> Path:
    return packed_tiny(
        "qwen3_moe", num_experts=N_EXPERTS, num_experts_per_tok=3, num_hidden_layers=N_LAYERS
    )


def slots(path: Path, n: int) -> int:
    """--expert-cache for n slots."""
    from hga.runtime.container import ModelFile
    from hga.runtime.expert_budget import _TABLE_BYTES

    with ModelFile.open(path) as opened:
        return n * (blob_bytes(opened) + _TABLE_BYTES)


def spoken(session: Session, ids: list[int]) -> np.ndarray:
    """Logits after a prompt, decoded tokens, a second prompt and more."""
    session.feed(ids[:70])
    logits = [session.logits.copy()]
    logits += [session.step(token).copy() for token in ids[70:90]]
    session.feed(ids[90:120])
    logits.append(session.logits.copy())
    logits += [session.step(token).copy() for token in ids[120:130]]
    return np.stack(logits)


@pytest.fixture(scope="module")
def expected(model: Path, open_engine: Opened, token_ids: Ids) -> np.ndarray:
    with open_engine(model) as engine, engine.session() as session:
        assert engine.experts is None
        return spoken(session, token_ids(130))


@pytest.mark.parametrize("n_slots", [1, 2, 3, 5, 7, 12, 20, 36])
@pytest.mark.parametrize("hints", ["off", "on"])
def test_slots_and_hints_change_nothing(
    model: Path, open_engine: Opened, token_ids: Ids, expected: np.ndarray, n_slots: int, hints: str
) -> None:
    size = slots(model, n_slots)
    with open_engine(model, expert_cache=size, expert_hints=hints) as engine:
        assert engine.experts is not None and engine.experts.n_slots == n_slots
        with engine.session() as session:
            np.testing.assert_array_equal(spoken(session, token_ids(130)), expected)
        reads = engine.experts.reads
        assert reads.hits + reads.foreseen + reads.reads > 0
        if n_slots == N_EXPERTS * N_LAYERS:
            assert reads.reads <= n_slots
        assert engine.experts.resident <= n_slots


def cached(path: Path, open_engine: Opened, n_slots: int, **options: object) -> Engine:
    engine = open_engine(path, expert_cache=slots(path, n_slots), **options)
    assert engine.experts is not None
    return engine


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(
    model: Path, open_engine: Opened, token_ids: Ids, expected: np.ndarray, threads: int
) -> None:
    for n_slots, hints in ((4, "off"), (14, "on"), (14, "auto")):
        options = {"threads": threads, "expert_hints": hints}
        with cached(model, open_engine, n_slots, **options) as engine, engine.session() as session:
            np.testing.assert_array_equal(spoken(session, token_ids(130)), expected)


@pytest.mark.parametrize("io", ["threads", "uring", "mmap"])
def test_how_the_disk_is_read_changes_nothing(
    model: Path, open_engine: Opened, token_ids: Ids, expected: np.ndarray, io: str
) -> None:
    options = {"io": io, "expert_hints": "on"}
    with cached(model, open_engine, 14, **options) as engine, engine.session() as session:
        np.testing.assert_array_equal(spoken(session, token_ids(130)), expected)


def long_talk(session: Session, ids: list[int]) -> np.ndarray:
    """Logits after a prompt of several calls, decoded tokens, and scored ones."""
    session.feed(ids[:1100])
    logits = [session.logits.copy()]
    logits += [session.step(token).copy() for token in ids[1100:1110]]
    session.attention = "dense"
    logits += [rows.copy() for rows in session.score(ids[1110:1160])]
    return np.concatenate([np.atleast_2d(x) for x in logits])


@pytest.mark.parametrize("kv", ["ram", "disk"])
def test_a_long_prompt_reads_every_expert_once(
    model: Path, open_engine: Opened, token_ids: Ids, tmp_path: Path, kv: str
) -> None:
    ids = token_ids(1160)
    with open_engine(model, ctx=1200) as engine, engine.session() as session:
        expected = long_talk(session, ids)
    with cached(model, open_engine, N_EXPERTS, ctx=1200, kv=kv, kv_dir=tmp_path) as engine:
        assert engine.experts is not None
        with engine.session() as session:
            session.feed(ids[:1100])
            assert engine.experts.reads.reads <= N_EXPERTS * N_LAYERS
        with engine.session() as session:
            np.testing.assert_array_equal(long_talk(session, ids), expected)
            stats = session.stats.experts
            read = stats.reads + stats.hints - stats.withdrawn
            assert stats.reads > 0 and stats.read_bytes == read * engine.experts.slot_bytes
            assert session.stats.expert_hit_rate == stats.hit_rate


@pytest.mark.parametrize("kv", ["ram", "disk"])
@pytest.mark.parametrize("hints", ["off", "on"])
def test_the_parts_of_a_prompt_are_as_long_as_slots_can_be_lent(
    model: Path,
    open_engine: Opened,
    token_ids: Ids,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kv: str,
    hints: str,
) -> None:
    ids = token_ids(1160)
    with open_engine(model, ctx=1200) as engine, engine.session() as session:
        expected = long_talk(session, ids)
    monkeypatch.setattr(prompt, "SEGMENT_TOKENS", 64)
    options = {"ctx": 1200, "kv": kv, "kv_dir": tmp_path, "expert_hints": hints}
    with cached(model, open_engine, 30, **options) as engine, engine.session() as session:
        experts = engine.experts
        assert experts is not None and experts.spare_bytes == 18 * experts.slot_bytes
        assert experts.spare_bytes >= 4 * 1100 * engine.plan.hidden
        for token in ids[:5]:
            session.step(token)
        session.truncate(0)
        before = experts.reads.reads
        session.feed(ids[:1100])
        assert experts.reads.reads - before <= N_EXPERTS * N_LAYERS
        assert experts._record[0]["n_slots"] == 30
        owners = experts._owners
        assert (experts._table[owners[owners >= 0]] - 1 == np.flatnonzero(owners >= 0)).all()
        assert (experts._table > 0).sum() == experts.resident
        session.truncate(0)
        np.testing.assert_array_equal(long_talk(session, ids), expected)

        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            session.feed(ids[:20] * 2, stop)
        assert experts._record[0]["n_slots"] == 30


def test_slots_lie_in_one_allocation(model: Path, open_engine: Opened, token_ids: Ids) -> None:
    with cached(model, open_engine, 14, expert_hints="on") as engine:
        experts = engine.experts
        assert experts is not None
        record = experts._record[0]
        first, end = int(record["slots"]), int(record["slots"]) + 14 * experts.slot_bytes
        assert first % 4096 == 0 and experts._slots.nbytes == 14 * experts.slot_bytes
        with engine.session() as session:
            spoken(session, token_ids(130))
        used = experts._table[experts._table > 0]
        assert len(set(used.tolist())) == len(used) <= 14 and used.max() <= 14
        addresses = engine.experts._keep  # what kernels were told last
        table = next(a for a in addresses if a.shape == (N_EXPERTS, 3))
        assert (table[table > 0] >= first).all() and (table < end).all()


@pytest.fixture
def damaged(model: Path, tmp_path: Path) -> tuple[Path, int]:
    """A copy of the model whose expert 0 of layer 1 has one wrong bit, and where."""
    from hga.runtime.container import ModelFile

    path = tmp_path / "damaged.hga"
    shutil.copyfile(model, path)
    with ModelFile.open(path) as opened:
        segment = opened.segment("layers.1.experts.0")
    place = segment.offset + segment.nbytes - 5
    flip(path, place)
    return path, place


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes((byte ^ 4,)))


@pytest.mark.parametrize("hints", ["off", "on"])
def test_a_damaged_expert_is_named_and_no_token_made_of_it(
    damaged: tuple[Path, int],
    open_engine: Opened,
    token_ids: Ids,
    expected: np.ndarray,
    hints: str,
) -> None:
    path, place = damaged
    with cached(path, open_engine, 14, expert_hints=hints) as engine, engine.session() as session:
        ids = token_ids(130)
        with pytest.raises(ContainerError, match=r"expert 0 of layer 1.*the checksum is wrong"):
            session.feed(ids[:70])
        assert session.tokens == []
        met = False
        for n in range(30):
            try:
                session.step(ids[n])
            except ContainerError:
                met = True
                assert len(session.tokens) == n
                break
        assert met
        session.truncate(0)
        flip(path, place)
        np.testing.assert_array_equal(spoken(session, ids), expected)


def test_a_file_cut_while_it_is_open(
    model: Path, open_engine: Opened, token_ids: Ids, tmp_path: Path
) -> None:
    path = tmp_path / "cut.hga"
    shutil.copyfile(model, path)
    with cached(path, open_engine, 6) as engine, engine.session() as session:
        with path.open("r+b") as file:
            file.truncate(engine.model.segment("layers.0.experts.1").offset)
        with pytest.raises(ContainerError, match="the file ends before that"):
            session.feed(token_ids(70))


def test_the_budget_decides(model: Path, open_engine: Opened) -> None:
    with open_engine(model) as engine:
        assert engine.experts is None
        bill = {line.name: line.n_bytes for line in engine.bill()}
    whole, every = sum(bill.values()), N_EXPERTS * N_LAYERS
    for n in (7, 20, every - 1):
        with open_engine(model, mem=whole - slots(model, every - n)) as engine:
            assert engine.experts is not None and engine.experts.n_slots == n
            assert sum(line.n_bytes for line in engine.bill()) <= engine.options.mem
    with pytest.raises(BudgetError, match=r"experts .* MiB"):
        open_engine(model, mem=whole - slots(model, every - 3))


@pytest.mark.parametrize("harder", [0.7, 1.0, 1.4])
@pytest.mark.parametrize(("gain", "kept"), [(0.9, True), (1.1, False), (1.0, False)])
def test_hints_stop_where_they_cost_time(gain: float, kept: bool, harder: float) -> None:
    """Whatever the tokens of either way happen to miss."""
    switch, rng = HintSwitch(), np.random.default_rng(0)

    def pass_tokens(n: int) -> None:
        for _ in range(n):
            misses = int(rng.integers(60, 200) * (harder if switch.on else 1))
            fixed = 100 * gain if switch.on else 100
            switch.note(fixed + misses, misses)

    pass_tokens(200)
    assert switch.trials == 1 and switch.on == kept
    pass_tokens(512)
    assert switch.trials == 2


def test_hints_are_not_judged_before_the_cache_is_full(
    model: Path, open_engine: Opened, token_ids: Ids
) -> None:
    """The first tokens read what later ones find."""
    whole = N_EXPERTS * N_LAYERS
    with open_engine(model, expert_cache=slots(model, whole - 1)) as engine:
        noted: list[int] = []
        cache = engine.experts
        assert cache is not None and cache._switch is not None
        cache._switch.note = lambda seconds, misses: noted.append(misses)  # type: ignore[method-assign]
        session = engine.session()
        for token in token_ids(60):
            before = cache.reads
            full = cache.resident == cache.n_slots
            session.step(int(token))
            after = cache.reads - before
            if full:
                assert noted[-1] == after.foreseen + after.reads
            elif cache.resident < cache.n_slots:
                assert not noted
        assert noted


@pytest.mark.parametrize("n_bytes", [241, 256, 1023, 1024, 1025, 1088, 2048, 40_000])
def test_the_sum_of_a_blob_is_xxh3(model: Path, open_engine: Opened, n_bytes: int) -> None:
    with open_engine(model):
        from hga.kernels.cpu.blob_sum import blob_sum
    data = np.frombuffer(np.random.default_rng(n_bytes).bytes(n_bytes), np.uint8)
    assert int(blob_sum(data.ctypes.data, n_bytes)) == xxhash.xxh3_64_intdigest(data.data)
