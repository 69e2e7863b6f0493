"""`hga bench`: the table, the JSON object, what is measured from where."""

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from hga.tools import bench as bench_module
from hga.tools import cli

pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.fixture
def packed_moe(tiny, tmp_path):
    """A tiny mixture of experts, packed."""
    from hga.tools.pack import pack

    changes = {"num_experts": 12, "num_experts_per_tok": 3, "num_hidden_layers": 3}
    source = tiny.write_hf(tmp_path / "hf", tiny.config("qwen3_moe", **changes), "bf16")
    return pack(source, tmp_path / "moe.hga", "q8").path


@pytest.fixture
def hga_bench(fake_engine, monkeypatch, capsys):
    """hga_bench(words) -> (exit code, stdout, stderr, engine)."""
    engines = []

    def go(*words):
        @contextlib.contextmanager
        def opened(model, options, values, status):
            engine = fake_engine(ctx=options.ctx)
            tensors = {"embed": 1000, "layers.0.q": 500}
            engine.model = SimpleNamespace(
                roles=tuple(tensors),
                tensor=lambda role: SimpleNamespace(data=np.zeros(tensors[role], np.uint8)),
            )
            engine.plan.tied_head = False
            engine.options.threads = 1
            engines.append(engine)
            yield engine

        monkeypatch.setattr(bench_module, "open_engine", opened)
        monkeypatch.setattr(bench_module, "_BANDWIDTH_BYTES", 1 << 16)
        code = cli.main(["bench", *words])
        out, err = capsys.readouterr()
        return code, out, err, engines[-1] if engines else None

    return go


def test_a_row_per_test_and_depth(hga_bench):
    code, out, _, engine = hga_bench("-p", "8,4", "-n", "3", "-d", "0,16", "-r", "2")
    assert code == 0 and engine.ctx == 16 + 8 + 1
    figures = json.loads(out.splitlines()[-1])
    names = ["pp4", "pp8", "tg3", "pp4 @ d16", "pp8 @ d16", "tg3 @ d16"]
    assert [row["test"] for row in figures["rows"]] == names
    assert all(row["tps"] > 0 and len(row["samples"]) == 2 for row in figures["rows"])
    # The input embedding of a model with a head of its own is looked up, not read.
    assert figures["weight_bytes_per_token"] == 500
    assert [row["roofline"] is None for row in figures["rows"][:3]] == [True, True, False]
    assert out.startswith("fake: 1 thread; ") and "| tg3 @ d16 |" in out


def test_every_repetition_starts_at_the_depth(hga_bench):
    engine = hga_bench("-p", "8", "-n", "0", "-d", "16", "-r", "2", "-o", "json")[3]
    session = engine.sessions[0]
    assert [len(block) for block in session.fed] == [16, 8, 8, 8]
    assert set(session.truncated) == {16}


def test_a_picture_of_the_speeds(hga_bench, tmp_path):
    path = tmp_path / "bench.png"
    words = ("-p", "4,8", "-n", "3", "-d", "0,16", "-r", "1", "-o", "json", "--plot", str(path))
    assert hga_bench(*words)[0] == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    code, _, err, _ = hga_bench("-p", "4", "--plot", str(tmp_path / "no" / "x.png"))
    assert code == 2 and "there is no folder" in err


def test_experts_and_cells_on_disk_have_columns(packed_moe, capsys, tmp_path):
    path = tmp_path / "bench.svg"
    words = ["bench", str(packed_moe), "-p", "0", "-n", "4", "-d", "300", "-r", "1", "--quiet"]
    words += ["--kv", "disk", "--kv-dir", str(tmp_path / "kv"), "--expert-cache", "200k"]
    assert cli.main([*words, "--plot", str(path)]) == 0
    out = capsys.readouterr().out
    figures, row = json.loads(out.splitlines()[-1]), json.loads(out.splitlines()[-1])["rows"][0]
    assert "| disk a token | waiting | in memory |" in out
    assert row["disk_bytes"] > 0 and 0 < row["expert_hit_rate"] < 1 and row["stall_share"] > 0
    layers = figures["expert_layer_hit_rates"]
    assert len(layers) == 3 and all(0 < rate < 1 for rate in layers)
    assert "experts found in memory" in path.read_text() or "<svg" in path.read_text()


def test_json_alone(hga_bench):
    code, out, _, _ = hga_bench("-p", "4", "-n", "0", "-o", "json")
    assert code == 0 and len(out.splitlines()) == 1 and json.loads(out)["backend"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "0", "-n", "0"], "nothing to measure"),
        (["-p", "x"], "not a whole number"),
        (["-r", "0"], "out of range"),
        (["-o", "csv"], "expected md, json"),
    ],
)
def test_refusals(hga_bench, words, said):
    code, out, err, _ = hga_bench(*words)
    assert (code, out) == (2, "") and said in err and len(err.splitlines()) == 1
