"""pack keeps every value where the format has a home for it, and measures what it changes."""

import errno
import json
import shutil
from collections import namedtuple
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest

from hga.kernels.formats import FORMATS
from hga.models.plan import tensor_roles
from hga.runtime.container import ModelFile
from hga.tools import pack_tensor
from hga.tools.pack import pack, report_lines
from hga.tools.pack_tensor import format_for, kind_of
from hga.tools.sources import SourceError, open_source

ARCHS = ["llama", "qwen2", "qwen3", "qwen3_moe", "gemma3"]
GGUF_HOMES = {
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "Q8_0": "q8",
    "Q4_0": "q4",
    "Q4_1": "q4m",
    "Q5_0": "q5",
    "Q5_1": "q5m",
    "Q4_K": "q4k",
    "Q5_K": "q5k",
    "Q6_K": "q6k",
}


def half_split(values: np.ndarray, n_heads: int) -> np.ndarray:
    """q or k rows of a llama GGUF in the order of half-split RoPE."""
    heads = values.reshape(n_heads, -1, 2, *values.shape[1:])
    return heads.swapaxes(1, 2).reshape(values.shape)


def expected_gguf(source, held: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values by role from the values that a GGUF holds by name."""
    out = {}
    for spec in source.specs:
        values = held[spec.source]
        if spec.expert >= 0:
            values = values[spec.expert]
        if spec.transform == "unrope":
            values = half_split(values, spec.n_heads)
        out[spec.role] = values
    return out


def assert_holds(path: Path, expected: dict[str, np.ndarray]) -> None:
    with ModelFile.open(path, verify=True) as model:
        assert set(model.roles) == set(expected)
        for role, values in expected.items():
            np.testing.assert_array_equal(model.tensor(role).values(), values, err_msg=role)


@pytest.mark.parametrize("kind", GGUF_HOMES)
@pytest.mark.parametrize("arch", ["llama", "qwen3_moe"])
def test_gguf_is_packed_without_loss(tiny_gguf, tmp_path, arch, kind) -> None:
    path, held = tiny_gguf(arch, kind)
    report = pack(path, tmp_path / "m.hga")
    with open_source(path) as source:
        assert_holds(tmp_path / "m.hga", expected_gguf(source, held))
        assert source.plan == ModelFile.open(tmp_path / "m.hga").plan
    assert report.changed == ()
    assert all(row.rms == 0 and row.changed == 0 for row in report.rows)
    formats = {row.format for row in report.rows if row.kind == "q"}
    assert formats == {GGUF_HOMES[kind]}


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("arch", ARCHS)
def test_safetensors_are_packed_without_loss(tiny, tiny_hf, tmp_path, arch, dtype) -> None:
    folder = tiny_hf(arch, dtype, shards=3)
    kind = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[dtype]
    state = tiny.state(tiny.config(arch))
    pack(folder, tmp_path / "m.hga")
    with open_source(folder) as source:
        expected = {}
        for spec in source.specs:
            values = state[spec.source].astype(kind).astype(np.float32)
            expected[spec.role] = values + np.float32(spec.transform == "add_one")
    assert_holds(tmp_path / "m.hga", expected)


@pytest.mark.parametrize("arch", ["llama", "qwen3_moe"])
def test_fp8_blocks_are_packed_without_loss(tiny, tmp_path, arch) -> None:
    # 160 and 192: a partial second block in both directions.
    changes = {"hidden_size": 160, "intermediate_size": 192, "head_dim": 40}
    folder = tiny.write_hf(tmp_path / "hf", tiny.config(arch, **changes), "fp8")
    pack(folder, tmp_path / "m.hga")
    with open_source(folder) as source, ModelFile.open(tmp_path / "m.hga") as model:
        assert model.tensor("layers.0.q").format.name == "fp8"
        assert model.tensor("embed").format.name == "bf16"
        for spec in source.specs:
            if len(spec.shape) == 1:
                continue
            tensor = source.spec_tensor(spec)
            raw = tensor.read(0, spec.shape[0])
            if tensor.scale is not None:
                scale = np.repeat(np.repeat(tensor.scale, 128, 0), 128, 1)
                values = raw.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
                values = values * scale[: spec.shape[0], : spec.shape[1]]
            else:
                values = raw.astype(np.float32)
            np.testing.assert_array_equal(model.tensor(spec.role).values(), values)


def test_tokenizer_and_generation_travel_along(tiny, tmp_path) -> None:
    folder = tiny.write_hf(tmp_path / "hf", tiny.config("llama"))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "top_k": 7}))
    report = pack(folder, tmp_path / "m.hga")
    with open_source(folder) as source, ModelFile.open(tmp_path / "m.hga") as model:
        assert model.tokenizer == source.tokenizer_spec()
        assert model.generation == {"temperature": 0.5, "top_k": 7}
        assert model.source["name"] == "hf" and model.source["kind"] == "hf"
        assert model.report == report.rows
    assert str(tmp_path).encode() not in (tmp_path / "m.hga").read_bytes()


def test_small_row_ranges_change_nothing(tiny_gguf, tiny, tmp_path, monkeypatch) -> None:
    path, _ = tiny_gguf("llama", "Q5_K")
    folder = tiny.write_hf(tmp_path / "hf", tiny.wide_config("qwen3_moe"), "fp8")
    for source, fmt in ((path, "auto"), (path, "q4"), (folder, "auto"), (folder, "fp8")):
        monkeypatch.setattr(pack_tensor, "_RANGE_BYTES", 8 << 20)
        pack(source, tmp_path / "large", fmt)
        monkeypatch.setattr(pack_tensor, "_RANGE_BYTES", 1)
        pack(source, tmp_path / "small", fmt)
        with ModelFile.open(tmp_path / "large") as one, ModelFile.open(tmp_path / "small") as two:
            assert one.digest == two.digest


# RMS error that each format may make, relative to the RMS of Gaussian weights.
LIMITS = {"q4": 0.1, "q8": 0.007, "fp8": 0.03, "bf16": 0.002}


@pytest.mark.parametrize("fmt", LIMITS)
@pytest.mark.parametrize("arch", ["llama", "qwen3_moe"])
def test_requantising_reports_its_error(tiny, tiny_hf, tmp_path, arch, fmt) -> None:
    folder = tiny_hf(arch, "f32")
    report = pack(folder, tmp_path / "m.hga", fmt)
    state = tiny.state(tiny.config(arch))
    sums: dict[str, list[float]] = {}
    changed = set()
    with open_source(folder) as source, ModelFile.open(tmp_path / "m.hga") as model:
        for spec in source.specs:
            values = state[spec.source]
            stored = model.tensor(spec.role).values()
            if not np.array_equal(values, stored):
                changed.add(spec.role)
            pair = sums.setdefault(kind_of(spec.role), [0.0, 0.0])
            pair[0] += float(np.square(stored - values, dtype=np.float64).sum())
            pair[1] += float(np.square(values, dtype=np.float64).sum())
    assert set(report.changed) == changed
    assert changed
    for row in report.rows:
        if row.kind in ("vectors", "router"):
            assert row.rms == 0
            assert row.format == ("vec" if row.kind == "vectors" else "f32")
            continue
        assert row.rms == pytest.approx((sums[row.kind][0] / sums[row.kind][1]) ** 0.5, rel=1e-3)
        assert 0 < row.rms < LIMITS[fmt]
        assert row.format == ("q8" if fmt == "q4" and row.kind in ("embed", "head") else fmt)
    text = "\n".join(report.lines())
    assert "relative RMS error" in text and "changed values" in text
    assert ("experts" in text) is (arch == "qwen3_moe")


@pytest.mark.parametrize(
    ("role", "dtype", "requested", "expected"),
    [
        ("layers.0.q", "Q4_1", "auto", "q4m"),
        ("layers.0.q", "Q4_1", "q4", "q4"),
        ("layers.0.q", "Q4_0", "q4", "q4"),
        ("layers.0.experts.3.up", "F8_E4M3", "auto", "fp8"),
        ("layers.0.experts.3.up", "F8_E4M3", "q4", "q4"),
        ("layers.0.router", "F32", "q4", "f32"),
        ("embed", "BF16", "q4", "q8"),
        ("embed", "Q6_K", "q4", "q6k"),
        ("embed", "Q8_0", "q4", "q8"),
        ("embed", "BF16", "fp8", "fp8"),
        ("head", "F16", "q4", "q8"),
        ("head", "F16", "bf16", "bf16"),
    ],
)
def test_choice_of_format(role, dtype, requested, expected) -> None:
    Tensor = namedtuple("Tensor", "shape dtype")
    assert format_for(role, Tensor((256, 256), dtype), requested) == expected
    assert format_for("layers.0.attn_norm", Tensor((256,), "F32"), requested) == "vec"


def test_kinds() -> None:
    kinds = {
        "embed": "embed",
        "final_norm": "vectors",
        "layers.3.q_norm": "vectors",
        "layers.3.q_bias": "vectors",
        "layers.3.q": "q",
        "layers.3.down": "down",
        "layers.3.router": "router",
        "layers.3.experts.9.down": "experts",
    }
    assert {role: kind_of(role) for role in kinds} == kinds


def test_same_format_keeps_values(tiny_gguf, tmp_path) -> None:
    path, _ = tiny_gguf("llama", "Q8_0")
    report = pack(path, tmp_path / "m.hga", "q8")
    assert report.changed == ()
    assert "keep every value" in report.lines()[-1]
    assert all("exact" in line for line in report_lines(report.rows))


# Refusals


def test_unknown_format(tiny_hf, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"--format q3.*auto"):
        pack(tiny_hf("llama"), tmp_path / "m.hga", "q3")


def hf_with(tiny, folder: Path, arch: str, dtype: str, edit) -> Path:
    """A checkpoint whose tensors went through `edit(name, values)` in the file."""
    tiny.write_hf(folder, tiny.config(arch), dtype)
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            first, last = (start + at for at in entry["data_offsets"])
            edit(name, memoryview(raw)[first:last])
    path.write_bytes(raw)
    return folder


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_fp8_nan_is_refused_by_name(tiny, tmp_path, code) -> None:
    def edit(name: str, data: memoryview) -> None:
        if name == "model.layers.1.mlp.experts.3.up_proj.weight":
            data[77] = code

    folder = hf_with(tiny, tmp_path / "hf", "qwen3_moe", "fp8", edit)
    with pytest.raises(SourceError, match=r"layers\.1\.mlp\.experts\.3\.up_proj.*NaN"):
        pack(folder, tmp_path / "m.hga")
    assert not (tmp_path / "m.hga").exists()


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
def test_fp8_scales_are_refused_by_name(tiny, tmp_path, scale) -> None:
    def edit(name: str, data: memoryview) -> None:
        if name == "model.layers.0.self_attn.k_proj.weight_scale_inv":
            data[:4] = np.float32(scale).tobytes()

    folder = hf_with(tiny, tmp_path / "hf", "llama", "fp8", edit)
    with pytest.raises(SourceError, match=r"layers\.0\.self_attn\.k_proj.*scale"):
        pack(folder, tmp_path / "m.hga")


@pytest.mark.parametrize("fmt", ["auto", "q4"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_weight_that_is_not_finite_is_refused_by_name(tiny, tmp_path, dtype, fmt) -> None:
    def edit(name: str, data: memoryview) -> None:
        if name == "model.layers.1.mlp.down_proj.weight":
            data[400:404] = b"\xff" * 4

    folder = hf_with(tiny, tmp_path / "hf", "llama", dtype, edit)
    with pytest.raises(SourceError, match=r"layers\.1\.mlp\.down_proj.*not finite"):
        pack(folder, tmp_path / "m.hga", fmt)


def test_a_folder_is_no_result(tiny_hf, tmp_path) -> None:
    with pytest.raises(IsADirectoryError, match="-o names a file"):
        pack(tiny_hf("llama"), tmp_path)


def test_the_source_is_not_overwritten(tiny_gguf) -> None:
    path, _ = tiny_gguf("llama", "F32")
    size = path.stat().st_size
    with pytest.raises(SourceError, match="overwrite its source"):
        pack(path, path)
    assert path.stat().st_size == size


def test_a_source_that_changes_meanwhile_is_refused(tiny, tmp_path) -> None:
    folder = tiny.write_hf(tmp_path / "hf", tiny.config("llama"))

    def touch(done: int, total: int) -> None:
        (folder / "model.safetensors").touch()

    with pytest.raises(SourceError, match="changed while it was packed"):
        pack(folder, tmp_path / "m.hga", progress=touch)
    assert not (tmp_path / "m.hga").exists()


def test_a_small_disk_is_refused_with_the_bytes_needed(tiny_hf, tmp_path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(OSError, match="bytes needed") as caught:
        pack(tiny_hf("llama"), tmp_path / "m.hga")
    assert caught.value.errno == errno.ENOSPC


def test_progress_counts_bytes_up_to_the_whole(tiny_hf, tmp_path) -> None:
    seen = []
    pack(tiny_hf("qwen3_moe"), tmp_path / "m.hga", progress=lambda *pair: seen.append(pair))
    assert seen == sorted(seen)
    assert len({total for _, total in seen}) == 1
    assert seen[-1][0] == seen[-1][1]


# Real checkpoints


@pytest.mark.oracle
@pytest.mark.parametrize("fixture", ["smollm2_gguf", "gemma_gguf"])
def test_a_real_gguf_keeps_its_values(request, tmp_path, fixture) -> None:
    path = request.getfixturevalue(fixture)
    report = pack(path, tmp_path / "m.hga")
    assert report.changed == ()
    with open_source(path) as source, ModelFile.open(tmp_path / "m.hga", verify=True) as model:
        assert model.plan == source.plan
        last = len(model.plan.layers) - 1
        for spec in source.specs:
            tensor = source.spec_tensor(spec)
            if len(spec.shape) == 1 or (spec.role != "embed" and f".{last}." not in spec.role):
                continue
            n_rows = min(spec.shape[0], 4096)
            raw = tensor.read(0, n_rows).view(np.uint8)
            values = gguf.dequantize(raw, gguf.GGMLQuantizationType[tensor.dtype])
            if spec.transform == "unrope":
                values = half_split(values, spec.n_heads)
            stored = model.tensor(spec.role)
            groups = stored.data[: n_rows // 16]
            np.testing.assert_array_equal(
                stored.format.unpack(groups, n_rows, spec.shape[1]), values
            )


def test_the_fp8_checkpoint(needle_moe, tmp_path) -> None:
    pack(needle_moe, tmp_path / "m.hga")
    with ModelFile.open(tmp_path / "m.hga", verify=True) as model:
        roles = dict(tensor_roles(model.plan))
        assert set(model.roles) == set(roles)
        expert = model.tensor("layers.7.experts.31.down")
        assert expert.format is FORMATS["fp8"]
        blob = model.segment("layers.7.experts.31")
        assert blob.offset % 4096 == 0
