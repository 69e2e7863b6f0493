"""Hundreds of short turns in one process: memory, descriptors, threads and the arena do not grow.

bench/soak.py runs thousands of them.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kv", ["ram", "disk"])
def test_nothing_grows(small, kernel_cache, own_home, tmp_path, repo_root, monkeypatch, kv, named):
    spec = importlib.util.spec_from_file_location("soak", repo_root / "bench" / "soak.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "soak", module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("HGA_SOAK_CACHE", str(kernel_cache))
    found = module.soak(Path(small), 600, kv, named, tmp_path, 512)
    assert found["grew"] == [], found
    assert found["turns"] == 600 and found["longest_tokens"] > 200
