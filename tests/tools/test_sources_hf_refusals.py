"""One damaged Hugging Face folder per check, each refused with its name, and random damage."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hga.models.plan import ConfigError, UnsupportedError
from hga.tools.sources import SourceError, open_source
from hga.tools.sources.safetensors import read_header
from hga.tools.sources.source import ByteFile


def safetensors_bytes(header: object, data: int = 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + b"\0" * data


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def header_of(tmp_path):
    """Parses bytes as a safetensors file and gives back its tensors."""

    def parse(content: bytes):
        path = tmp_path / "x.safetensors"
        path.write_bytes(content)
        file = ByteFile(path)
        try:
            return read_header(file)
        finally:
            file.close()

    return parse


def test_a_sound_header(header_of):
    header = {"__metadata__": {"format": "pt"}, "b": entry(offsets=(16, 32)), "a": entry()}
    found = header_of(safetensors_bytes(header, data=32))
    assert list(found) == ["a", "b"]
    assert found["b"].offset == found["a"].offset + 16
    assert found["a"].shape == (4,)


CASES = [
    ("empty", b"", "expected a length of 8 bytes, found 0"),
    ("length past the end", safetensors_bytes({}, length=1 << 40), "expected at most 18"),
    ("length near 2^64", safetensors_bytes({}, length=(1 << 64) - 1), "header length 1844674407"),
    ("no json", safetensors_bytes(b"{'a': 1}"), "expected JSON"),
    ("not utf-8", safetensors_bytes(b"\xff\xfe"), "expected JSON"),
    ("deep json", safetensors_bytes(b"[" * 100_000), "expected JSON"),
    ("no object", safetensors_bytes([]), "expected a JSON object, found list"),
    ("nan", safetensors_bytes(b'{"a": NaN}'), "NaN is not a JSON number"),
    ("huge integer", safetensors_bytes(b'{"a": ' + b"9" * 5000 + b"}"), "expected JSON"),
    ("duplicate", safetensors_bytes(b'{"a": 1, "a": 2}'), "'a' stands there twice"),
    ("entry no object", safetensors_bytes({"a": 3}), "expected dtype, shape and data_offsets"),
    ("extra field", safetensors_bytes({"a": {**entry(), "x": 1}}), "expected dtype, shape and"),
    ("dtype", safetensors_bytes({"a": entry("F3")}), "unknown dtype 'F3'"),
    ("dtype no string", safetensors_bytes({"a": entry(["F32"])}), "unknown dtype"),
    ("shape", safetensors_bytes({"a": entry(shape=(-4,))}), "shape: expected sizes"),
    ("shape bool", safetensors_bytes({"a": entry(shape=(True, 4))}), "shape: expected sizes"),
    ("shape float", safetensors_bytes({"a": entry(shape=(4.0,))}), "shape: expected sizes"),
    (
        "shape huge",
        safetensors_bytes({"a": entry(shape=(1 << 70,))}),
        "shape .* more than a",
    ),
    ("9 dimensions", safetensors_bytes({"a": entry(shape=(1,) * 9)}), "shape"),
    ("one offset", safetensors_bytes({"a": entry(offsets=(0,))}), "data_offsets"),
    ("reversed", safetensors_bytes({"a": entry(offsets=(16, 0))}), "data_offsets"),
    ("size", safetensors_bytes({"a": entry(shape=(5,))}), "takes 20 bytes, .* hold 16"),
    (
        "hole",
        safetensors_bytes({"a": entry(), "b": entry(offsets=(32, 48))}, data=48),
        "'b' leaves a hole: expected data offset 16, found 32",
    ),
    (
        "overlap",
        safetensors_bytes({"a": entry(), "b": entry(offsets=(8, 24))}, data=24),
        "'b' overlaps the tensor before it: expected data offset 16, found 8",
    ),
    ("starts late", safetensors_bytes({"a": entry(offsets=(8, 24))}, data=24), "leaves a hole"),
    ("truncated", safetensors_bytes({"a": entry()}, data=15), "truncated or damaged"),
    ("trailing bytes", safetensors_bytes({"a": entry()}, data=17), "describes .* the file has"),
]


@pytest.mark.parametrize(("content", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_header_refused(header_of, content, message):
    with pytest.raises(SourceError, match=message):
        header_of(content)


@pytest.fixture
def folder(tiny, tmp_path):
    """A sound llama folder of its own, to be damaged."""
    return tiny.write_hf(tmp_path / "model", tiny.config("llama"))


@pytest.fixture
def sharded(tiny, tmp_path):
    return tiny.write_hf(tmp_path / "model", tiny.config("llama"), shards=2)


def test_no_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"expected model\.safetensors .* found pytorch_model"):
        open_source(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected JSON"),
        ("[1]", "expected a JSON object, found list"),
        ('{"model_type": "llama", "model_type": "llama"}', "'model_type' stands there twice"),
        ('{"rope_theta": Infinity}', "Infinity is not a JSON number"),
        ("{" + '"a":{' * 100_000, "expected JSON"),
    ],
)
def test_config_that_is_not_json(folder, content, message):
    (folder / "config.json").write_text(content)
    with pytest.raises(SourceError, match=message):
        open_source(folder)


def test_config_too_large(folder):
    (folder / "config.json").write_text(" " * ((16 << 20) + 1))
    with pytest.raises(SourceError, match="at most 16777216 bytes"):
        open_source(folder)


def test_wrong_shape_and_missing_tensor(tiny, tmp_path):
    folder = tiny.write_hf(tmp_path / "m", tiny.config("llama"))
    for changes, message in (
        ({"intermediate_size": 96}, r"expected shape \[96, 64\] .* found \[128, 64\]"),
        ({"attention_bias": True}, r"q_proj\.bias \[64\] is missing \(looked in model\.safeten"),
        ({"num_hidden_layers": 1}, r"'model\.layers\.1\.\S+' \S+ is not part of this model"),
    ):
        (folder / "config.json").write_text(json.dumps(tiny.config("llama", **changes)))
        with pytest.raises(SourceError, match=message):
            open_source(folder)


@pytest.mark.parametrize(
    "name", ["../m.safetensors", "/etc/m.safetensors", "a\\m.safetensors", "m.bin", "", 3, None]
)
def test_shard_names_stay_in_the_folder(sharded, name):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(SourceError, match=r"a plain \*\.safetensors file name"):
        open_source(sharded)


def test_index_without_weight_map(sharded):
    (sharded / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(SourceError, match="weight_map: expected an object"):
        open_source(sharded)


def test_missing_shard(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SourceError, match=r"shard 'model-00002-of-\S+' of .* missing"):
        open_source(sharded)


def test_index_and_shards_disagree(sharded):
    path = sharded / "model.safetensors.index.json"
    text = path.read_text()
    index = json.loads(text)
    index["weight_map"]["model.ghost.weight"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(SourceError, match=r"'model\.ghost\.weight' of .* is not there"):
        open_source(sharded)
    index = json.loads(text)
    del index["weight_map"]["lm_head.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(SourceError, match=r"'lm_head\.weight': .* places it in no shard"):
        open_source(sharded)


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    ("quantization", "error", "message"),
    [
        (None, SourceError, r"is F8_E4M3 but config\.json has no quantization_config"),
        ([], SourceError, "expected an object"),
        ({"quant_method": "gptq", "bits": 4}, UnsupportedError, "quant_method is 'gptq'"),
        ({**FP8, "fmt": "e5m2"}, UnsupportedError, "fmt is 'e5m2'"),
        ({**FP8, "weight_block_size": [64, 64]}, UnsupportedError, r"weight_block_size is \[64"),
        ({**FP8, "weight_block_size": None}, ConfigError, "weight_block_size is missing"),
        ({**FP8, "activation_scheme": "static"}, UnsupportedError, "activation_scheme"),
        ({**FP8, "kv_cache": "fp8"}, UnsupportedError, "'kv_cache' = 'fp8'"),
        ({**FP8, "modules_to_not_convert": "lm_head"}, ConfigError, "a list of names"),
        (
            {**FP8, "modules_to_not_convert": ["self_attn.q_proj"]},
            SourceError,
            "q_proj.weight is F8_E4M3, but modules_to_not_convert names 'self_attn.q_proj'",
        ),
    ],
)
def test_quantization_config(tiny, tmp_path, quantization, error, message):
    folder = tiny.write_hf(tmp_path / "m", tiny.config("qwen3"), "fp8")
    cfg = tiny.config("qwen3", quantization_config=quantization)
    (folder / "config.json").write_text(json.dumps(cfg))
    with pytest.raises(error, match=message):
        open_source(folder)


SCALE = "model.layers.0.mlp.up_proj.weight_scale_inv"


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (("F32", np.ones((1, 2), np.float32)), r"expected float \[1, 1\], found F32 \[1, 2\]"),
        (("I32", np.ones((1, 1), np.int32)), r"expected float \[1, 1\], found I32"),
        (("F32", np.full((1, 1), np.nan, np.float32)), "expected finite scales"),
        (("F32", np.full((1, 1), -1, np.float32)), "expected finite scales"),
    ],
)
def test_block_scales(tiny, tmp_path, scale, message):
    folder = tiny.write_hf(tmp_path / "m", tiny.config("qwen3"), "fp8", extra={SCALE: scale})
    with pytest.raises(SourceError, match=message):
        open_source(folder)


def test_missing_and_stray_block_scales(tiny, tmp_path):
    cfg = tiny.config("qwen3")
    folder = tiny.write_hf(tmp_path / "m", cfg, "fp8")
    content = (folder / "model.safetensors").read_bytes()
    renamed = content.replace(SCALE.encode(), SCALE.replace("scale_inv", "scale_xxx").encode())
    (folder / "model.safetensors").write_bytes(renamed)
    with pytest.raises(SourceError, match=r"up_proj\.weight_scale_xxx' \[1, 1\] is not part of"):
        open_source(folder)
    stray = {SCALE: ("F32", np.ones((1, 1), np.float32))}
    folder = tiny.write_hf(tmp_path / "n", cfg, "bf16", extra=stray)
    with pytest.raises(SourceError, match=r"is BF16 but .*scale_inv stands beside it"):
        open_source(folder)


def test_unsupported_dtype(tiny, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    extra = {name: ("F64", np.ones((128, 64)))}
    folder = tiny.write_hf(tmp_path / "m", tiny.config("llama"), extra=extra)
    with pytest.raises(UnsupportedError, match=r"up_proj\.weight is F64; supported: F32, F16"):
        open_source(folder)


def test_unused_tensors_are_named_or_harmless(tiny, tmp_path):
    extra = {
        "lm_head.weight": ("F32", np.ones((320, 64), np.float32)),
        "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", np.ones(8, np.float32)),
        "mtp.fc.weight": ("F32", np.ones((4, 4), np.float32)),
        "mtp.norm.weight": ("F32", np.ones(4, np.float32)),
    }
    folder = tiny.write_hf(tmp_path / "m", tiny.config("qwen2"), extra=extra)
    with open_source(folder) as source:
        assert source.notices == (
            "ignored 1 lm_head.weight, as config.json ties the head to the embedding",
            "ignored 2 tensors that predict further tokens (mtp)",
        )


def test_extra_tensor(tiny, tmp_path):
    extra = {"model.layers.0.self_attn.sinks": ("F32", np.ones(4, np.float32))}
    folder = tiny.write_hf(tmp_path / "m", tiny.config("llama"), extra=extra)
    with pytest.raises(SourceError, match=r"sinks' \[4\] is not part of this model"):
        open_source(folder)


@pytest.mark.parametrize("prefixes", [("language_model.", ""), ("model.language_model.", "model.")])
def test_multimodal_gemma(tiny, tmp_path, prefixes):
    """The language model is read, the image encoder named and left alone."""
    new, old = prefixes
    cfg = tiny.config("gemma3")
    folder = tiny.write_hf(tmp_path / "m", cfg)
    stored = {
        new + name.removeprefix(old): ("F32", values) for name, values in tiny.state(cfg).items()
    }
    stored["vision_tower.patch.weight"] = ("F32", np.ones((2, 2, 2, 2), np.float32))
    tiny.write_safetensors(folder / "model.safetensors", stored)
    outer = {"model_type": "gemma3", "text_config": cfg, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(outer))
    with open_source(folder) as source:
        assert source.plan.architecture == "gemma3"
        assert source.notices == (
            "ignored 1 tensors of the image encoder: this program reads text only",
        )


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"do_sample": False, "eos_token_id": 2}, {}),
        ({"temperature": 0.6, "top_k": 20, "do_sample": True}, {"temperature": 0.6, "top_k": 20}),
        ({"temperature": None, "top_p": 1}, {"top_p": 1}),
    ],
)
def test_sampling_defaults(folder, stated, expected):
    (folder / "generation_config.json").write_text(json.dumps(stated))
    with open_source(folder) as source:
        assert source.generation() == expected


@pytest.mark.parametrize(
    "stated", [{"temperature": -1}, {"top_k": 0.5}, {"top_p": "1"}, {"min_p": True}]
)
def test_sampling_defaults_refused(folder, stated):
    (folder / "generation_config.json").write_text(json.dumps(stated))
    with pytest.raises(SourceError, match=next(iter(stated))):
        open_source(folder)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(tiny_hf, header_of, data):
    content = bytearray((tiny_hf("qwen3", "bf16") / "model.safetensors").read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    try:
        for tensor in header_of(bytes(content)).values():
            assert tensor.offset + tensor.nbytes <= len(content)
    except SourceError as error:
        assert str(error).isprintable()
