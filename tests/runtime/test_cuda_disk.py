"""Keys and values on disk with the CUDA backend, and named sessions, in Triton's interpreter: the
same bits as in the card's memory, whatever the frames. With TRITON_INTERPRET=0 it runs on a card.

The interpreter takes half a second for a kernel of a token: pasts are computed by the CPU and
opened from sessions, kernels run as few programs.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hga.kvstore import disk_arena, frames
from hga.kvstore.errors import StoreError
from hga.runtime import prompt as prompt_module
from hga.runtime.engine import Engine, Session
from hga.runtime.options import Options

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed (Linux alone has it)")
DEVICE = "cuda" if os.environ["TRITON_INTERPRET"] == "0" else "cpu"

Packed = Callable[..., Path]
Ids = Callable[..., list[int]]
Opened = Callable[..., Engine]

CTX, PAST = 384, 300
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
SESSION = {"budget": "72", "ctx": CTX}


@pytest.fixture
def on_card(
    monkeypatch: pytest.MonkeyPatch, disk_engines: Callable[[Engine, int], Engine], tmp_path: Path
) -> Opened:
    """on_card(path, frames=…, **options): an engine with device cuda; frames: of a KV head, where
    keys and values lie on disk. Of a past of three blocks one lies there alone."""
    from hga.kernels.triton import attention, experts, products, routing
    from hga.runtime import cuda_backend

    if DEVICE == "cpu":
        monkeypatch.setattr(cuda_backend, "require_cuda", lambda options: None)
        made = partial(cuda_backend.CudaBackend, device="cpu")
        monkeypatch.setattr(cuda_backend, "CudaBackend", made)
        for module, name, number in (
            (routing, "SCANNERS", 2), (routing, "POOLERS", 1), (attention, "SPLITS", 2),
            (products, "ROWS", 128), (experts, "ROWS", 128), (experts, "DOWN_ROWS", 64),
        ):  # fmt: skip
            monkeypatch.setattr(module, name, number)
    monkeypatch.setattr(disk_arena, "recent_blocks", lambda window: 2 if window == 0 else 3)
    monkeypatch.setattr(frames, "LEAST_FRAMES", 1)

    def opened(path: Path, frames: int = 8, **options: Any) -> Engine:
        given = {"kv_dir": tmp_path / "kv", "sessions_dir": tmp_path / "sessions", **SESSION}
        engine = Engine.open(path, Options(device="cuda", **{**given, **options}))
        return disk_engines(engine, frames)

    return opened


@pytest.fixture
def past(
    packed_tiny: Packed, open_engine: Opened, token_ids: Ids, tmp_path: Path
) -> Callable[[str], Path]:
    """past(arch): a packed model with a session "a" of PAST tokens that the CPU ran, and
    "b", a fork of it."""

    def made(arch: str) -> Path:
        path, ids = packed_tiny(arch, **(SMALL if arch == "qwen3" else {})), token_ids(PAST)
        on_cpu = open_engine(path, sessions_dir=tmp_path / "sessions", **SESSION)
        with on_cpu as engine, engine.session("a") as session:
            session.feed(ids[:-1])
            session.step(ids[-1])
            session.save("from the CPU")
            assert session.saved is not None
            session.saved.store.fork(tmp_path / "sessions" / "b")
        return path

    return made


def went_on(session: Session, ids: list[int]) -> np.ndarray:
    """Logits of decoded tokens and a prompt, routed and dense."""
    logits = [session.step(ids[0]).copy(), session.step(ids[1]).copy()]
    session.feed(ids[2:5])
    logits.append(session.logits.copy())
    session.attention = "dense"
    logits.append(session.step(ids[5]).copy())
    session.attention = "hga"
    logits.append(session.step(ids[6]).copy())
    return np.stack(logits)


@pytest.mark.parametrize("arch", ["qwen3", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_disk_and_memory_agree_to_the_bit(
    past: Callable[[str], Path], on_card: Opened, open_engine: Opened, token_ids: Ids, arch: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    """A session that the CPU began goes on: with keys and values in memory, on disk with frames
    for all that a token reads, and with fewer; and as the CPU would have gone on, nearly."""
    path, ids, found = past(arch), token_ids(PAST + 7)[PAST:], []
    on_cpu = open_engine(path, sessions_dir=tmp_path / "sessions", **SESSION)
    with on_cpu as engine, engine.session("a") as session:
        want = went_on(session, ids)
    for name, n_frames, kv in (("a", 8, "auto"), ("a", 8, "disk"), ("b", 2, "disk")):
        with on_card(path, n_frames, kv=kv).session(name, new=False) as session:
            assert session.on_disk == (kv == "disk")
            assert session.tokens == token_ids(PAST) and session.saved is not None
            assert session.saved.note == "from the CPU"
            found.append(went_on(session, ids))
            if session.on_disk:
                stats = session.stats
                assert stats.cell_reads > 0 and stats.disk_bytes > 0 and stats.stall_s > 0
                # With two frames some cells find no room, and are read again.
                overflows = session.arena.frames.cell_reads.overflows
                assert (overflows > 0) == (n_frames == 2) and stats.cell_hits > 0
    assert np.abs(found[0] - want).max() <= 0.05 * want.std()
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_a_prompt_on_disk_is_saved_and_goes_on_anywhere(
    past: Callable[[str], Path], on_card: Opened, open_engine: Opened, token_ids: Ids,
    tmp_path: Path,
) -> None:  # fmt: skip
    """A prompt across the end of a block, in parts; the session is opened by the card in memory
    and by the CPU."""
    path, ids = past("qwen3"), token_ids(CTX)
    with on_card(path, kv="disk").session("a", new=False) as session:
        session.truncate(250)
        done: list[tuple[int, int]] = []
        session.feed(ids[250:260], lambda n, total: done.append((n, total)))
        assert done == sorted(done) and done[-1] == (10, 10)
        expected, index = session.logits.copy(), session.arena.block_index(1)
        session.save()
    assert index.any()
    with on_card(path).session("a", new=False) as session:
        np.testing.assert_array_equal(session.logits, expected)
        np.testing.assert_array_equal(session.arena.block_index(1), index)
        session.truncate(250)
        session.feed(ids[250:260])
        np.testing.assert_array_equal(session.logits, expected)
        session.save()
    on_cpu = open_engine(path, sessions_dir=tmp_path / "sessions", **SESSION)
    with on_cpu as engine, engine.session("a", new=False) as session:
        assert session.tokens == ids[:260]
        assert np.abs(session.logits - expected).max() <= 0.05 * expected.std()


def test_a_changed_cell_is_an_error(
    past: Callable[[str], Path], on_card: Opened, token_ids: Ids, tmp_path: Path
) -> None:
    """Found when it is read for a token, which then does not join the timeline; what lay in memory
    by then is forgotten."""
    path, ids = past("qwen3"), token_ids(CTX)
    with on_card(path, kv="disk").session("a", new=False) as session:
        kept = {}
        for segment in (tmp_path / "sessions" / "a").glob("seg-*.kv"):
            kept[segment] = segment.read_bytes()
            with segment.open("r+b") as file:
                file.write(kept[segment][:4096] + bytes(255 - b for b in kept[segment][4096:]))
        with pytest.raises(StoreError, match=r"block 0 .*layer 0.*checksum"):
            session.step(ids[PAST])
        assert len(session.tokens) == PAST
        session.attention = "dense"
        with pytest.raises(StoreError, match=r"block 0 .*checksum"):
            session.step(ids[PAST])
        for segment, data in kept.items():
            with segment.open("r+b") as file:
                file.write(data)
        session.attention = "hga"
        got = session.step(ids[PAST]).copy()
    with on_card(path).session("b", new=False) as session:
        np.testing.assert_array_equal(session.step(ids[PAST]), got)


@pytest.mark.parametrize("n_frames", [8, 2])
def test_an_interrupted_token_leaves_no_cell_unread(
    past: Callable[[str], Path], on_card: Opened, token_ids: Ids, n_frames: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Ctrl-C when cells have memory and their bytes have not come yet."""
    path, token = past("qwen3"), token_ids(CTX)[PAST]
    give = frames.Frames.give

    def interrupted(self: frames.Frames, *arguments: Any) -> None:
        give(self, *arguments)
        raise KeyboardInterrupt

    with on_card(path, n_frames, kv="disk").session("a", new=False) as session:
        with monkeypatch.context() as patch:
            patch.setattr(frames.Frames, "give", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.step(token)
        assert len(session.tokens) == PAST
        got = session.step(token).copy()
        assert not session.arena.frames.has_overflows
    with on_card(path).session("b", new=False) as session:
        np.testing.assert_array_equal(session.step(token), got)


def test_parts_of_a_prompt_end_where_blocks_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a token shares its block with the same others however much of a prompt passes a layer
    together."""

    class Forward:
        on_card, block_tokens = True, 256

    for position in (0, 5, 64, 100):
        whole = prompt_module.cuts(position, 2000, 256)
        found = [
            (a + first, b + first)
            for first, end in prompt_module.parts_of(Forward(), position, 2000, np.empty((512, 1)))
            for a, b in prompt_module.cuts(position + first, end - first, 256)
        ]
        assert found == whole


def test_nothing_is_compiled_by_numba(tmp_path: Path) -> None:
    """On a machine without it `--device cuda --kv disk` works."""
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import hga.runtime.engine, hga.runtime.cuda_forward, hga.runtime.arenas\n"
        "import hga.kvstore.plain_reader, hga.runtime.cuda_pages, numpy as np\n"
        "from hga.kvstore.cellsums import cell_sums_in_numpy\n"
        "cell_sums_in_numpy(np.zeros(512, np.uint8), 256, 0, np.zeros(2, np.uint32))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
