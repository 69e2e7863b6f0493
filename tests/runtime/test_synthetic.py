"""bench/synthetic.py writes packed models that open, verify and speak."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from hga.runtime.container import ModelFile
from hga.runtime.engine import Engine


@pytest.mark.parametrize("fmt", ["q4", "fp8"])
def test_a_small_one(
    repo_root: Path,
    tmp_path: Path,
    open_engine: Callable[..., Engine],
    load_module: Callable[[Path], ModuleType],
    fmt: str,
) -> None:
    synthetic = load_module(repo_root / "bench" / "synthetic.py")
    trace = load_module(repo_root / "bench" / "expert_trace.py")
    small = {
        "num_hidden_layers": 3,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 128,
        "vocab_size": 2048,
    }
    path = tmp_path / "small.hga"
    size = synthetic.write(path, {**synthetic.QWEN3_30B_A3B, **small}, fmt)
    assert path.stat().st_size == size
    with ModelFile.open(path, verify=True) as model:
        assert model.record("layers.2.experts.15.down").format == fmt
        assert model.record("layers.0.router").format == "bf16"
    with open_engine(
        path, ctx=256, expert_cache=20 * model.segment("layers.0.experts.0").nbytes
    ) as engine:
        assert engine.tokenizer.decode(engine.tokenizer.encode("hello")) == "hello"
        with engine.session() as session:
            tokens = trace.generate(session, [100], 100)
        found = trace.statistics(*trace.trace(engine, tokens), 16)
    # Chance is a quarter.
    assert 0.35 < found["repeated"] < 0.9 and found["foretold"] > 0.7
