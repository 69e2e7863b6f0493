"""--mem is kept, page cache included, from the start of a process to its end, where a cgroup can be
made to tell; a budget that is too small is refused with the bill. bench/memory.py measures the same
with real models."""

import importlib.util
import sys

import pytest
from safetensors.numpy import load_file, save_file

from hga.tools.pack import pack

CHARS = 40_000


@pytest.fixture(scope="module")
def memory(repo_root):
    """The module bench/memory.py."""
    spec = importlib.util.spec_from_file_location("memory", repo_root / "bench" / "memory.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["memory"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def roomy(tiny, tmp_path_factory):
    """A small model whose keys and values take 16 KiB a token."""
    folder = tmp_path_factory.mktemp("roomy")
    config = tiny.config(
        "llama", hidden_size=128, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, head_dim=64, max_position_embeddings=131072,
    )  # fmt: skip
    made = tiny.write_hf(folder / "hf", config)
    # Nothing ends a reply but its length: the logits of control tokens are 0, never the largest.
    path = made / "model.safetensors"
    tensors = load_file(path)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        if name in tensors:
            tensors[name][:3] = 0
    save_file(tensors, path)
    pack(made, folder / "roomy.hga")
    return folder / "roomy.hga"


@pytest.fixture
def asked(memory, roomy, home, tmp_path):
    """asked(mem, ctx, n_prompt, n_decoded) -> (figures, outcome) of a run with this budget."""

    def run(mem, ctx, n_prompt, n_decoded):
        path = tmp_path / "text"
        path.write_text(("The quick brown fox jumps over the lazy dog. " * 4000)[: 3 * n_prompt])
        flags = ["-n", str(n_decoded), "--ctx", str(ctx), "--budget", "1024", "--prefill", "hga"]
        return memory.measure(roomy, path, mem << 20, flags, home)

    return run


def test_a_budget_is_kept_where_keys_and_values_do_not_fit(asked):
    row, done = asked(330, 16384, 4000, 600)
    assert done.code == 0, (row, done.err)
    assert row["kv"] == "disk" and row["peak_share"] <= 1.03, row
    assert len(row["tokens"]) == 600


@pytest.mark.parametrize("mem", [40, 200])
def test_too_small_a_budget_is_refused_with_the_bill(asked, mem):
    row, done = asked(mem, 65536, 100, 8)
    if done.code == -9 and done.how == "cgroup":
        # Less than the interpreter and the compiled kernels take: the limit itself ends it.
        assert mem < 100
        return
    assert done.code == 3, (row, done.err)
    (line,) = done.err.splitlines()
    assert f"--mem allows {mem} MiB" in line and "MiB are needed" in line
    for item in ("weights", "runtime and scratch", "tables of cells", "key sketches"):
        assert f"{item} " in line, line


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_budget_is_kept_and_gives_the_same_tokens(asked):
    answers = {}
    for mem in (480, 700, 1700):
        row, done = asked(mem, 40960, 8192, 2000)
        assert done.code == 0, (row, done.err)
        assert row["peak_share"] <= 1.03, row
        answers[mem] = row["kv"], row["tokens"]
    assert answers[480][0] == answers[700][0] == "disk" and answers[1700][0] == "ram"
    assert answers[480][1] == answers[700][1] == answers[1700][1]
