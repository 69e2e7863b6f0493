"""Tiny models, packed, and engines on them."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hga.kernels.reference import attention
from hga.kernels.reference.model import Reference
from hga.runtime.container import ModelFile
from hga.runtime.engine import Engine
from hga.runtime.options import Options
from hga.runtime.rope import inverse_frequencies
from hga.tools.pack import pack

VOCAB = 320


@pytest.fixture(scope="session")
def packed_tiny(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """packed_tiny(arch, kind="f32", **config) -> packed file, made once per run. kind: f32, f16,
    bf16 or fp8 (a safetensors folder), or the name of a GGUF type such as Q4_0."""
    made: dict[tuple[object, ...], Path] = {}

    def make(arch: str, kind: str = "f32", **changes: object) -> Path:
        key = (arch, kind, repr(sorted(changes.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{arch}-{kind}-")
            if kind.islower():
                source = tiny.write_hf(folder / "hf", tiny.config(arch, **changes), kind)
            else:
                source = folder / "tiny.gguf"
                wide = kind.endswith("_K")
                cfg = tiny.wide_config(arch) if wide else tiny.config(arch, **changes)
                tiny.write_gguf(source, cfg, kind)
            made[key] = folder / "tiny.hga"
            pack(source, made[key])
        return made[key]

    return make


@pytest.fixture(scope="session")
def open_engine(kernel_cache: Path) -> Callable[..., Engine]:
    """open_engine(path, **options) -> Engine, two threads unless asked otherwise."""

    def opened(path: Path, **options: Any) -> Engine:
        return Engine.open(path, Options(**{"threads": 2, **options}), cache_dir=kernel_cache)

    return opened


@pytest.fixture(scope="module")
def engine(
    packed_tiny: Callable[..., Path], open_engine: Callable[..., Engine]
) -> Iterator[Engine]:
    """A tiny qwen3 in float32 with the context of its configuration, 512."""
    with open_engine(packed_tiny("qwen3")) as opened:
        yield opened


@pytest.fixture(scope="session")
def token_ids() -> Callable[..., list[int]]:
    """token_ids(n, seed=0) -> random ids of the tiny vocabulary."""

    def ids(n: int, seed: int = 0) -> list[int]:
        return np.random.default_rng(seed).integers(0, VOCAB, n).tolist()

    return ids


@pytest.fixture
def reference_logits(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, list[int]], np.ndarray]:
    """reference_logits(packed file, ids) -> float32 [T, V] of the numpy model, with keys and
    values rounded to float16 as the store keeps them."""
    plain = attention.attend

    def rounded(q: Any, k: Any, v: Any, visible: Any) -> Any:
        half = [x.astype(np.float16).astype(np.float32) for x in (k, v)]
        return plain(q, *half, visible)

    monkeypatch.setattr(attention, "attend", rounded)

    def logits(path: Path, ids: list[int]) -> np.ndarray:
        with ModelFile.open(path) as model:
            cache: dict[str, np.ndarray] = {}

            def values(role: str) -> np.ndarray:
                if role not in cache:
                    cache[role] = model.tensor(role).values()
                return cache[role]

            def quantized(role: str) -> bool:
                return model.tensor(role).format.code > 4

            return Reference(model.plan, values, model.has, inverse_frequencies, quantized).forward(
                ids
            )

    return logits


@pytest.fixture
def disk_engines(tmp_path):
    """disk_engines(engine, frames) gives a KV head of an engine whose sessions lie on disk, in
    tmp_path / "kv", so many frames; at the end all are closed, and nothing is left behind."""
    engines = []

    def given(engine, frames):
        size = sum(
            frames * shape.n_kv_heads * engine.geometry.cell_bytes(i)
            for i, shape in enumerate(engine.geometry.layers)
            if shape.routed
        )
        engine.placement = dataclasses.replace(engine.placement, frame_bytes=size)
        engines.append(engine)
        return engine

    yield given
    for engine in engines:
        engine.close()
    assert list((tmp_path / "kv").glob("*")) == [], "nothing is left behind"
