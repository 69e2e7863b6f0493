"""inspect and verify over everything that pack reads and writes."""

import json

import pytest

from hga.runtime.container import ContainerError
from hga.tools.cli import main
from hga.tools.inspect import describe, verify
from hga.tools.pack import pack
from hga.tools.sources import SourceError


@pytest.fixture
def packed(tiny_hf, tmp_path):
    """A packed tiny mixture model."""
    pack(tiny_hf("qwen3_moe", "fp8"), tmp_path / "m.hga")
    return tmp_path / "m.hga"


def test_a_packed_file(packed) -> None:
    found = describe(packed)
    text = "\n".join(found.lines)
    for part in ("qwen3_moe", "2 of 8 per token", "packed model", "F8_E4M3 -> fp8", "320 tokens"):
        assert part in text
    data = json.loads(json.dumps(found.data))
    assert data["kind"] == "packed" and data["nbytes"] == packed.stat().st_size
    assert data["plan"]["hidden"] == 64
    assert {row["kind"] for row in data["report"]} >= {"q", "experts", "router", "embed"}


def test_sources(tiny_hf, tiny_gguf) -> None:
    folder = describe(tiny_hf("gemma3", "bf16"))
    assert "safetensors folder" in folder.lines[0]
    assert any(line.startswith("window") for line in folder.lines)
    file = describe(tiny_gguf("llama", "Q4_0")[0])
    assert file.data["kind"] == "gguf"
    assert any("Q4_0" in line for line in file.lines)
    json.dumps([folder.data, file.data])


def test_verify_says_what_it_checked(packed, tiny_hf, tiny_gguf) -> None:
    seen = []
    assert "checksums" in verify(packed, lambda *pair: seen.append(pair))
    assert seen[-1][0] == seen[-1][1]
    assert "has no checksums" in verify(tiny_gguf("llama", "Q4_K")[0])
    assert "whole and finite" in verify(tiny_hf("llama", "fp8"), lambda *pair: seen.append(pair))


def test_verify_for_programs(packed, tiny, capsys) -> None:
    assert main(["verify", str(packed), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["path"] == str(packed) and "match" in found["checked"]


def test_verify_finds_damage(packed, tiny, tmp_path) -> None:
    raw = bytearray(packed.read_bytes())
    raw[len(raw) // 2] ^= 1
    packed.write_bytes(raw)
    with pytest.raises(ContainerError, match="checksum"):
        verify(packed)
    folder = tiny.write_hf(tmp_path / "hf", tiny.config("llama"), "fp8")
    weights = folder / "model.safetensors"
    codes = bytearray(weights.read_bytes())
    start = 8 + int.from_bytes(codes[:8], "little")
    entry = json.loads(codes[8:start])["model.layers.0.mlp.up_proj.weight"]
    codes[start + entry["data_offsets"][0]] = 0xFF
    weights.write_bytes(codes)
    with pytest.raises(SourceError, match=r"layers\.0\.mlp\.up_proj.*NaN"):
        verify(folder)


def test_nothing_there(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        describe(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "none")
