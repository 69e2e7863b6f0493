"""Opening and closing: what is said, what is refused, and that nothing is left behind."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hga.models.plan import UnsupportedError
from hga.runtime.budget import BudgetError, total
from hga.runtime.container import ContainerError
from hga.runtime.engine import Engine, Session
from hga.runtime.options import Options

Packed = Callable[..., Path]
Opened = Callable[..., Engine]


def test_an_engine_says_what_it_is(engine: Engine) -> None:
    assert engine.backend.startswith("cpu: ") and engine.backend.endswith(", 2 threads")
    assert engine.ctx == engine.plan.ctx_train == 512
    assert engine.tokenizer.n_vocab == 320 and engine.tokenizer is engine.tokenizer
    assert engine.template is not None and engine.template is engine.template
    assert isinstance(engine.generation, dict)
    assert engine.resident_bytes() > 1 << 20
    assert isinstance(engine.session(), Session)


def test_one_thread_is_singular(packed_tiny: Packed, open_engine: Opened) -> None:
    with open_engine(packed_tiny("qwen3"), threads=1) as engine:
        assert engine.backend.endswith(", 1 thread")


def test_session_names_are_checked(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"invalid session name '\.\./x'"):
        engine.session("../x")


def test_sessions_start_with_the_options(packed_tiny: Packed, open_engine: Opened) -> None:
    with open_engine(packed_tiny("qwen3"), attention="dense", budget="7%", ctx=100) as engine:
        session = engine.session()
        assert (session.attention, session.budget, session.ctx) == ("dense", "7%", 100)
        assert session.tokens == []


def notices(packed: Path, open_engine: Opened, **options: object) -> str:
    with open_engine(packed, **options) as engine:
        return "\n".join(engine.notices)


def test_notices(packed_tiny: Packed, open_engine: Opened) -> None:
    path = packed_tiny("qwen3")
    plain = notices(path, open_engine)
    assert "context" not in plain and "budget" not in plain
    assert "context 1024 is longer than the 512 tokens" in notices(path, open_engine, ctx=1024)
    small = notices(path, open_engine, budget="20")
    assert "--budget 20" in small and "48 are read" in small
    assert "budget" not in notices(path, open_engine, budget="100")
    assert "budget" not in notices(path, open_engine, budget="20", attention="dense")


def test_the_bill(packed_tiny: Packed, open_engine: Opened) -> None:
    path = packed_tiny("qwen3")
    with open_engine(path) as engine:
        lines = {line.name: line.n_bytes for line in engine.bill()}
        # Two layers of two KV heads of 32 dimensions, keys and values, two bytes each.
        assert lines["keys and values"] == 512 * 2 * 2 * 32 * 2 * 2
        assert lines["weights"] <= path.stat().st_size
        needed = total(engine.bill())
        engine.session().feed([1])
        assert engine.session().kv_bytes <= lines["keys and values"]
    with open_engine(path, mem=needed):
        pass
    with pytest.raises(BudgetError, match=r"keys and values .* \(a smaller --ctx needs less\)"):
        open_engine(path, mem=needed - 1)


def test_a_refused_model_leaves_nothing_open(packed_tiny: Packed, open_engine: Opened) -> None:
    before = threading.active_count()
    with pytest.raises(UnsupportedError, match=r"layers\.0\.attention: head_dim 544; supported"):
        open_engine(packed_tiny("qwen3", head_dim=544))
    with pytest.raises(BudgetError):
        open_engine(packed_tiny("qwen3"), mem=1 << 20)
    assert threading.active_count() == before


def test_closing_ends_the_threads(packed_tiny: Packed, open_engine: Opened) -> None:
    before = threading.active_count()
    engine = open_engine(packed_tiny("qwen3"), threads=3)
    session = engine.session()
    session.feed([1, 2, 3])
    assert threading.active_count() == before + 2
    engine.close()
    engine.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        session.step(4)
    assert session.tokens == [1, 2, 3]


def test_engines_can_be_opened_side_by_side(packed_tiny: Packed, open_engine: Opened) -> None:
    with open_engine(packed_tiny("qwen3")) as one, open_engine(packed_tiny("gemma3")) as other:
        first, second = one.session(), other.session()
        first.feed([1, 2, 3])
        second.feed([1, 2, 3])
        alone = first.logits.copy()
        assert not np.array_equal(alone, second.logits)
        first.truncate(0)
        first.feed([1, 2, 3])
        np.testing.assert_array_equal(first.logits, alone)


def test_kernels_are_compiled_once_and_said(
    packed_tiny: Packed, kernel_cache: Path, engine: Engine
) -> None:
    said: list[str] = []
    with Engine.open(packed_tiny("qwen3"), Options(threads=1), kernel_cache, said.append):
        pass
    assert said == [], "the fixture compiled them"
    assert list((kernel_cache / "kernels").rglob("*.nbc"))


def test_a_missing_and_a_foreign_file(tmp_path: Path, open_engine: Opened) -> None:
    with pytest.raises(FileNotFoundError):
        open_engine(tmp_path / "absent.hga")
    (tmp_path / "other").write_bytes(b"GGUF" + bytes(8192))
    with pytest.raises(ContainerError):
        open_engine(tmp_path / "other")
