"""Hundreds of short turns, or one long reply, in one process: memory, descriptors, threads and the
arena do not grow beyond what the tokens themselves are planned to take.

bench/soak.py runs thousands of turns, and a reply of 200,000 tokens.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def bench(kernel_cache, own_home, repo_root, monkeypatch):
    """The module bench/soak.py."""
    spec = importlib.util.spec_from_file_location("soak", repo_root / "bench" / "soak.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "soak", module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("HGA_SOAK_CACHE", str(kernel_cache))
    return module


@pytest.mark.slow
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("kv", ["ram", "disk"])
def test_nothing_grows(bench, small, tmp_path, kv, named):
    found = bench.soak(Path(small), 600, kv, named, tmp_path, 512)
    assert found["grew"] == [], found
    assert found["turns"] == 600 and found["longest_tokens"] > 200


@pytest.mark.parametrize(
    ("kv", "named", "n_tokens"),
    [
        ("disk", True, 3000),
        pytest.param("ram", False, 20_000, marks=pytest.mark.slow),
        pytest.param("disk", False, 20_000, marks=pytest.mark.slow),
    ],
)
def test_a_long_reply_grows_nothing_but_what_is_planned(
    bench, small, tmp_path, kv, named, n_tokens
):
    mem = 260 << 20 if kv == "disk" else None
    if mem is None or named:
        found = bench.generate(Path(small), n_tokens, kv, named, tmp_path, mem)
    else:
        # In a process of its own: this one holds what earlier tests have left in it.
        words = [bench.__file__, small, "--generate", n_tokens, "--kv", kv, "--mem", mem]
        done = subprocess.run(
            [sys.executable, *map(str, words)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
    assert found["grew"] == [], found
    assert found["stop"] == "length" and found["tokens"] > n_tokens
    if kv == "disk":
        # What was announced; a block that grows while it is saved has a slot more.
        assert 0 < found["disk_bytes"] <= found["announced_disk_bytes"], found
        assert found["segment_descriptors"] <= 60, found
        assert found["peak_rss"] < 1.03 * mem or n_tokens < 10_000, found
