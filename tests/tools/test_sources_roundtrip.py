"""Values read from tiny checkpoints equal what their writers put in, in every format."""

import gguf
import ml_dtypes
import numpy as np
import pytest

from hga.tools.sources import open_source

ARCHS = ["llama", "qwen2", "qwen3", "qwen3_moe", "gemma3"]
KINDS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]


def values(tensor):
    """A GGUF matrix as float32, by the gguf package."""
    raw = tensor.read(0, tensor.shape[0]).view(np.uint8)
    return gguf.dequantize(raw, gguf.GGMLQuantizationType[tensor.dtype]).reshape(tensor.shape)


def fp8_values(tensor):
    codes = tensor.read(0, tensor.shape[0]).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    scale = np.repeat(np.repeat(tensor.scale, 128, 0), 128, 1)
    return codes * scale[: codes.shape[0], : codes.shape[1]]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_hf_values(tiny, tiny_hf, arch, dtype):
    state = tiny.state(tiny.config(arch))
    kind = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[dtype]
    with open_source(tiny_hf(arch, dtype)) as source:
        assert source.kind == "hf"
        assert source.notices == ()
        assert {spec.source for spec in source.specs} == set(state)
        for spec in source.specs:
            tensor = source.spec_tensor(spec)
            assert tensor.shape == spec.shape
            if len(spec.shape) == 1:
                found = tensor.vector()
            else:
                found = tensor.read(0, spec.shape[0])
                assert found.dtype == kind
            expected = state[spec.source].astype(kind)
            assert np.array_equal(found.astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("arch", ARCHS)
def test_sharded_folder_equals_single_file(tiny_hf, arch):
    with open_source(tiny_hf(arch)) as one, open_source(tiny_hf(arch, shards=3)) as three:
        assert len(three.files) == 3
        assert one.specs == three.specs
        for spec in one.specs:
            a, b = one.spec_tensor(spec), three.spec_tensor(spec)
            if len(spec.shape) == 2:
                assert np.array_equal(a.read(0, spec.shape[0]), b.read(0, spec.shape[0]))


@pytest.mark.parametrize("arch", ARCHS)
def test_fp8_values(tiny, tmp_path, arch):
    # 160 and 192: a partial second block in both directions.
    changes = {"hidden_size": 160, "intermediate_size": 192, "head_dim": 40}
    if arch == "qwen3_moe":
        changes["moe_intermediate_size"] = 192
    cfg = tiny.config(arch, **changes)
    folder = tiny.write_hf(tmp_path / "m", cfg, "fp8")
    state = tiny.state(cfg)
    with open_source(folder) as source:
        n_fp8 = 0
        for spec in source.specs:
            tensor = source.spec_tensor(spec)
            if tensor.dtype != "F8_E4M3":
                continue
            n_fp8 += 1
            assert tensor.scale.shape == tuple(-(-n // 128) for n in spec.shape)
            codes, scale = tiny.fp8_parts(state[spec.source])
            assert np.array_equal(tensor.read(0, spec.shape[0]), codes)
            assert np.array_equal(tensor.scale, scale)
            assert np.array_equal(fp8_values(tensor), tiny.held(cfg, "fp8")[spec.source])
            error = np.abs(fp8_values(tensor) - state[spec.source])
            assert (error <= np.abs(state[spec.source]) / 16 + scale.max() / 512).all()
        assert n_fp8 > 0


@pytest.mark.parametrize("kind", KINDS)
def test_gguf_values(tiny_gguf, kind):
    path, held = tiny_gguf("qwen3", kind)
    with open_source(path) as source:
        assert source.kind == "gguf"
        assert source.plan.architecture == "qwen3"
        for spec in source.specs:
            tensor = source.spec_tensor(spec)
            if len(spec.shape) == 1:
                assert np.array_equal(tensor.vector(), held[spec.source])
            else:
                assert tensor.dtype == kind
                assert np.array_equal(values(tensor), held[spec.source])


@pytest.mark.parametrize("arch", ARCHS)
def test_gguf_plan_equals_hf_plan(tiny_hf, tiny_gguf, arch):
    path, _ = tiny_gguf(arch)
    with open_source(path) as a, open_source(tiny_hf(arch)) as b:
        assert a.plan.architecture == b.plan.architecture
        assert [s.role for s in a.specs] == [s.role for s in b.specs]
        assert a.plan.norm_eps == pytest.approx(b.plan.norm_eps, rel=1e-6)
        assert (a.plan.tied_head, a.plan.embed_scale) == (b.plan.tied_head, b.plan.embed_scale)
        assert a.plan.layers == b.plan.layers


@pytest.mark.parametrize("arch", ARCHS)
def test_gguf_transforms_give_back_the_hf_weights(tiny, tiny_hf, tiny_gguf, arch):
    """unrope, add_one and the slices of stacked experts, against the weights both came from."""
    path, _ = tiny_gguf(arch)
    with open_source(path) as gguf_source, open_source(tiny_hf(arch)) as hf_source:
        for a, b in zip(gguf_source.specs, hf_source.specs, strict=True):
            assert a.role == b.role
            found, expected = (
                s.spec_tensor(spec).vector()
                if len(spec.shape) == 1
                else s.spec_tensor(spec).read(0, spec.shape[0])
                for s, spec in ((gguf_source, a), (hf_source, b))
            )
            if a.transform == "unrope":
                heads = found.reshape(a.n_heads, -1, 2, *found.shape[1:])
                found = heads.swapaxes(1, 2).reshape(found.shape)
            if b.transform == "add_one":
                expected = expected + np.float32(1)
            assert np.array_equal(found, expected), a.role


def test_row_ranges(tiny_gguf):
    path, _ = tiny_gguf("llama", "Q8_0")
    with open_source(path) as source:
        tensor = source.tensor("blk.1.ffn_down.weight")
        assert tensor.shape == (64, 128)
        part = tensor.read(16, 48)
        assert part.shape == (32, tensor.row_bytes)
        assert np.array_equal(part, tensor.read(0, 64)[16:48])
        assert tensor.read(64, 64).shape[0] == 0
        for bad in ((-1, 2), (3, 2), (0, 65)):
            with pytest.raises(IndexError, match=r"blk\.1\.ffn_down\.weight: rows"):
                tensor.read(*bad)


def test_stacked_experts_are_sliced(tiny, tiny_gguf):
    path, _ = tiny_gguf("qwen3_moe", "F32")
    state = tiny.state(tiny.config("qwen3_moe"))
    with open_source(path) as source:
        for spec in source.specs:
            if ".experts.5." in spec.role:
                name = "model." + spec.role.replace("experts.5", "mlp.experts.5")
                expected = state[f"{name}_proj.weight"]
                found = source.spec_tensor(spec).read(0, spec.shape[0])
                assert np.array_equal(found, expected)


def test_needle_checkpoint(needle_moe):
    with open_source(needle_moe) as source:
        assert source.plan.architecture == "qwen3_moe"
        assert source.plan.tied_head
        assert len(source.specs) == 842
        assert source.generation() == {}
        assert source.tensor("model.layers.0.self_attn.q_proj.weight").dtype == "F8_E4M3"
        assert source.tensor("model.layers.0.mlp.gate.weight").dtype == "BF16"
        assert source.nbytes == 93_226_632


def test_smollm2(smollm2_gguf):
    with open_source(smollm2_gguf) as source:
        plan = source.plan
        assert (plan.architecture, plan.hidden, len(plan.layers)) == ("llama", 576, 30)
        assert plan.layers[0].attention.rope.theta == 100000
        assert plan.tied_head
        theirs = {t.name: t for t in gguf.GGUFReader(smollm2_gguf).tensors}
        for name in ("blk.0.attn_q.weight", "blk.29.ffn_down.weight", "token_embd.weight"):
            tensor, other = source.tensor(name), theirs[name]
            assert (tensor.dtype, tensor.offset) == (other.tensor_type.name, other.data_offset)
            assert np.array_equal(tensor.read(3, 19), other.data[3:19])


def test_gemma(gemma_gguf):
    with open_source(gemma_gguf) as source:
        plan = source.plan
        assert (plan.architecture, plan.hidden, plan.vocab_size) == ("gemma3", 640, 262144)
        full = [i for i, layer in enumerate(plan.layers) if not layer.attention.window]
        assert full == [5, 11, 17]
        assert {layer.attention.rope.theta for layer in plan.layers} == {1e4, 1e6}
        assert {source.spec_tensor(s).dtype for s in source.specs} == {
            "F32",
            "Q4_K",
            "Q5_0",
            "Q6_K",
            "Q8_0",
        }
