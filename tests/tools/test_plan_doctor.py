"""`hga plan`: the bill before anything is loaded; `hga doctor`: what the machine offers."""

import json
from pathlib import Path

import pytest

from hga.tools.cli import main
from hga.tools.pack import pack

pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.fixture(scope="module")
def packed(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    # Layers enough that two of them, which a prompt needs in memory, are a small part.
    config = tiny.config("qwen3", num_hidden_layers=12, head_dim=64)
    pack(tiny.write_hf(folder / "hf", config, "f32"), folder / "tiny.hga")
    return folder / "tiny.hga"


def planned(capsys, *words):
    code = main(["plan", *map(str, words), "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out.splitlines()[-1]), said.err


def test_the_bill_adds_up_and_grows_with_the_context(capsys, packed):
    code, small, _ = planned(capsys, packed, "--ctx", "1k")
    _, large, _ = planned(capsys, packed, "--ctx", "64k")
    assert code == 0 and small["kv"] == "ram" and small["fits"] and small["ctx"] == 1024
    for found in (small, large):
        assert sum(line["bytes"] for line in found["bill"]) == found["total_bytes"]
    for a, b in zip(small["bill"], large["bill"], strict=True):
        assert a["name"] == b["name"]
        assert b["bytes"] == (64 * a["bytes"] if a["by_context"] else a["bytes"])


def test_a_budget_moves_keys_and_values_to_disk_and_is_kept(capsys, packed):
    _, whole, _ = planned(capsys, packed, "--ctx", "64k")
    mem = whole["total_bytes"] - (32 << 20)
    code, found, _ = planned(capsys, packed, "--ctx", "64k", "--mem", mem)
    assert code == 0 and found["kv"] == "disk" and found["fits"]
    assert found["total_bytes"] <= mem < whole["total_bytes"]
    kv = next(line["bytes"] for line in whole["bill"] if line["name"] == "keys and values")
    assert found["disk_bytes"] > kv


def test_what_cannot_fit_is_refused_with_the_bill(capsys, packed):
    code, found, said = planned(capsys, packed, "--ctx", "64k", "--mem", "100m")
    assert code == 3 and not found["fits"]
    assert said.count("\n") == 1 and "--mem allows 100 MiB" in said and "weights" in said


def test_the_plan_for_people(capsys, packed):
    assert main(["plan", str(packed), "--ctx", "2k", "--kv", "disk"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("weights") and lines[-2].startswith("total")
    assert "2,048 tokens; keys and values on disk" in lines[-1]


def test_the_bill_of_a_card(capsys, packed):
    """No card is needed for it."""
    code, whole, _ = planned(capsys, packed, "--ctx", "64k", "--device", "cuda")
    assert code == 0 and whole["kv"] == "card" and whole["gpu_mem"] is None
    assert sum(line["bytes"] for line in whole["card_bill"]) == whole["card_total_bytes"]
    cap = whole["card_total_bytes"] - (4 << 20)
    words = ("--ctx", "64k", "--device", "cuda", "--gpu-mem", cap)
    code, capped, _ = planned(capsys, packed, *words)
    assert code == 0 and capped["kv"] == "ram" and capped["card_total_bytes"] <= cap
    assert capped["total_bytes"] > whole["total_bytes"]
    assert main(["plan", str(packed), *map(str, words)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "on the card" and "in host memory" in lines
    assert any(line.startswith("--gpu-mem") for line in lines)


def test_a_card_with_keys_and_values_on_disk(capsys, packed):
    words = ("--ctx", "64k", "--device", "cuda", "--kv", "disk")
    code, found, _ = planned(capsys, packed, *words)
    assert code == 0 and found["kv"] == "disk" and found["disk_bytes"] > 0
    assert main(["plan", str(packed), *words]) == 0
    assert "65,536 tokens; keys and values on disk, " in capsys.readouterr().out


def test_a_card_that_is_too_small_and_what_no_card_can_do(capsys, packed):
    card = ["plan", str(packed), "--ctx", "64k", "--device", "cuda"]
    assert main([*card, "--gpu-mem", "500m"]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--gpu-mem" in said and "trunk" in said
    assert main([*card, "--attention", "hga-paper"]) == 2
    assert main([*card, "--mem", "1g"]) == 3


def test_the_doctor_measures_and_leaves_nothing(capsys, tmp_path, monkeypatch):
    from hga.tools import doctor

    monkeypatch.setattr(doctor, "_FILE_BYTES", 8 << 20)
    monkeypatch.setattr(doctor, "_CELLS", 128)
    folder = tmp_path / "kv"
    assert main(["doctor", "--kv-dir", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["memory"]["read_bytes_per_s"] > 0
    disk = found["disk"]
    assert disk["folder"] == str(folder) and disk["reads_by"] == "threads"
    assert disk["sequential_bytes_per_s"] > 0 and disk["random_8_KiB_bytes_per_s"] > 0
    assert isinstance(disk["past_the_page_cache"], bool)
    assert list(folder.iterdir()) == []


def test_the_doctor_says_what_it_cannot_measure(capsys, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["doctor", "--kv-dir", str(blocked)]) == 0
    said = capsys.readouterr().out
    assert "cannot be measured" in said
    assert [line for line in said.splitlines() if not line.startswith(" ")] == [
        "system",
        "processor",
        "memory",
        "disk",
        "gpu",
        "folders",
    ]
