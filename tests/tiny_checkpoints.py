"""Tiny random checkpoints of every architecture, as Hugging Face folders and as GGUF files.

Reached through the fixtures `tiny`, `tiny_hf` and `tiny_gguf` of conftest. The same seed gives the
same float32 weights in both forms, so that one can be the reference of the other. GGUF names and
keys come from the `gguf` package, not from the code under test.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hga.models.registry import ARCHITECTURES, plan_from_hf

VOCAB = 320
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CORPUS = (
    "the quick brown fox jumps over the lazy dog while the other dogs sleep in the shade",
    "once upon a time there was a little engine that could carry the whole train",
    "def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)",
)
# K-quants need rows of a multiple of 256 values.
_WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
_K_QUANTS = ("Q4_K", "Q5_K", "Q6_K")
_GGUF_ARCHS = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
}


def config(arch: str, **changes: object) -> dict[str, object]:
    """config.json of a tiny model; a change to None removes the key."""
    tiny = next(a.tiny for a in ARCHITECTURES if a.name == arch)
    out = {**tiny, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32", **changes}
    return {key: value for key, value in out.items() if value is not None}


def wide_config(arch: str, **changes: object) -> dict[str, object]:
    """A config whose every matrix has columns in multiples of 256."""
    moe = {"moe_intermediate_size": 256} if arch == "qwen3_moe" else {}
    return config(arch, **{**_WIDE, **moe, **changes})


def state(cfg: Mapping[str, object], seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 weights by Hugging Face name: matrices of variance 1 / columns, norm weights
    near one (near zero where the architecture adds one)."""
    _, specs = plan_from_hf(cfg)
    rng = np.random.default_rng(seed)
    out = {}
    for spec in specs:
        values = rng.standard_normal(spec.shape).astype(np.float32)
        if len(spec.shape) == 2:
            values *= np.float32(1.0 if spec.role == "embed" else spec.shape[1] ** -0.5)
        elif spec.source.endswith(".bias"):
            values *= np.float32(0.5)
        else:
            values = values * np.float32(0.1) + np.float32(spec.transform != "add_one")
        out[spec.source] = values
    return out


def fp8_parts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(e4m3 codes as uint8 [R, K], scales float32 [ceil(R/128), ceil(K/128)])."""
    rows, cols = (-(-n // 128) for n in values.shape)
    padded = np.zeros((rows * 128, cols * 128), np.float32)
    padded[: values.shape[0], : values.shape[1]] = values
    blocks = padded.reshape(rows, 128, cols, 128)
    scale = np.maximum(np.abs(blocks).max((1, 3)), 1e-8).astype(np.float32) / np.float32(448)
    codes = (blocks / scale[:, None, :, None]).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    codes = codes.reshape(padded.shape)[: values.shape[0], : values.shape[1]]
    return np.ascontiguousarray(codes), scale


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, np.ndarray]]) -> None:
    """A safetensors file from name -> (dtype name, array); written by hand, holes impossible."""
    header, at = {}, 0
    for name, (dtype, values) in tensors.items():
        end = at + values.nbytes
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, values in tensors.values():
            file.write(np.ascontiguousarray(values).tobytes())


def _stored(weights: Mapping[str, np.ndarray], dtype: str) -> dict[str, tuple[str, np.ndarray]]:
    """Weights as they stand in the files; FP8 keeps norms, embeddings and routers in bf16."""
    kinds = {"f32": ("F32", np.float32), "f16": ("F16", np.float16)}
    out: dict[str, tuple[str, np.ndarray]] = {}
    for name, values in weights.items():
        linear = values.ndim == 2 and "_proj." in name
        if dtype == "fp8" and linear:
            codes, scale = fp8_parts(values)
            out[name] = ("F8_E4M3", codes)
            out[name + "_scale_inv"] = ("F32", scale)
        else:
            code, kind = kinds.get(dtype, ("BF16", ml_dtypes.bfloat16))
            out[name] = (code, values.astype(kind))
    return out


def held(cfg: Mapping[str, object], dtype: str, seed: int = 0) -> dict[str, np.ndarray]:
    """The float32 values that `write_hf` leaves in the files, by name: what a reader must see."""
    stored = _stored(state(cfg, seed), dtype)
    out = {}
    for name, (code, values) in stored.items():
        if name.endswith("_scale_inv"):
            continue
        if code == "F8_E4M3":
            scale = np.repeat(np.repeat(stored[name + "_scale_inv"][1], 128, 0), 128, 1)
            codes = values.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
            out[name] = codes * scale[: codes.shape[0], : codes.shape[1]]
        else:
            out[name] = values.astype(np.float32)
    return out


def write_hf(
    folder: Path,
    cfg: Mapping[str, object],
    dtype: str = "f32",
    shards: int = 1,
    seed: int = 0,
    extra: Mapping[str, tuple[str, np.ndarray]] | None = None,
) -> Path:
    """A checkpoint folder with a tokenizer; dtype f32, f16, bf16 or fp8. `extra` adds tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = dict(cfg)
    stored = {**_stored(state(cfg, seed), dtype), **(extra or {})}
    if dtype == "fp8":
        cfg["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head", "model.embed_tokens", "mlp.gate"],
        }
    (folder / "config.json").write_text(json.dumps(cfg, indent=1))
    if shards == 1:
        write_safetensors(folder / "model.safetensors", stored)
    else:
        names = list(stored)
        weight_map = {}
        for i in range(shards):
            shard = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = {name: stored[name] for name in names[i::shards]}
            write_safetensors(folder / shard, part)
            weight_map.update(dict.fromkeys(part, shard))
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<|im_start|>",
                "eos_token": "<|im_end|>",
                "add_bos_token": False,
                "chat_template": CHATML,
            }
        )
    )
    return folder


def tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer of exactly VOCAB tokens: 3 special, 256 bytes, 61 merges."""
    out = Tokenizer(models.BPE())
    out.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    out.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    out.train_from_iterator(_CORPUS, trainer)
    assert out.get_vocab_size() == VOCAB
    return out


def random_blocks(shape: tuple[int, int], kind: str, rng: np.random.Generator) -> np.ndarray:
    """Valid random K-quant blocks, uint8 [rows, row bytes]: every code and sub-scale occurs."""
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    n_blocks = shape[0] * shape[1] // block
    raw = rng.integers(0, 256, (n_blocks, nbytes), dtype=np.uint8)
    steps = rng.uniform(0.5, 1.5, (n_blocks, 2)) * shape[1] ** -0.5 / 512
    halves = steps.astype(np.float16).view(np.uint8).reshape(n_blocks, 4)
    if kind == "Q6_K":
        raw[:, -2:] = halves[:, :2]
    else:
        raw[:, :4] = halves
    return raw.reshape(shape[0], -1)


def interleaved(values: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of q or k as a llama GGUF has them: half-split pairs of each head made adjacent."""
    heads = values.reshape(-1, 2, head_dim // 2, *values.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(values.shape)


def _gguf_state(cfg: Mapping[str, object], seed: int) -> dict[str, np.ndarray]:
    """The same weights under GGUF names, with the converter's transformations."""
    plan, _ = plan_from_hf(cfg)
    name_map = gguf.get_tensor_name_map(_GGUF_ARCHS[plan.architecture], len(plan.layers))
    stacks: dict[str, list[np.ndarray]] = {}
    out = {}
    for name, values in state(cfg, seed).items():
        if plan.architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            values = interleaved(values, plan.layers[0].attention.head_dim)
        if plan.architecture == "gemma3" and name.endswith("norm.weight"):
            values = values + np.float32(1)
        head, _, tail = name.partition(".experts.")
        if tail:
            name = f"{head}.experts.{tail.split('.', 1)[1]}"
        found = name_map.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        if tail:
            stacks.setdefault(found, []).append(values)
        else:
            out[found] = values
    return {**out, **{name: np.stack(parts) for name, parts in stacks.items()}}


def write_gguf(
    path: Path,
    cfg: Mapping[str, object],
    kind: str = "F32",
    seed: int = 0,
    metadata: Mapping[str, object] | None = None,
    drop: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
    """A GGUF file; returns the values that it holds, float32 by GGUF name.

    `kind` is the type of all matrices but the router (F32, F16, BF16, Q4_0 ... Q8_0, Q4_K, Q5_K,
    Q6_K; these last are random blocks, unrelated to `state`). `metadata` adds scalar pairs and
    `drop` leaves out keys that would be written.
    """
    plan, _ = plan_from_hf(cfg)
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[_GGUF_ARCHS[plan.architecture]])
    _write_metadata(writer, cfg)
    _write_tokenizer(writer)
    for key, value in (metadata or {}).items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for key in drop:
        del writer.kv_data[0][key]
    held = {}
    for name, values in _gguf_state(cfg, seed).items():
        matrix = values.ndim >= 2 and "ffn_gate_inp" not in name
        if not matrix or kind == "F32":
            writer.add_tensor(name, values)
            held[name] = values
            continue
        quant = gguf.GGMLQuantizationType[kind]
        if kind in _K_QUANTS:
            rows = int(np.prod(values.shape[:-1]))
            raw = random_blocks((rows, values.shape[-1]), kind, rng)
            raw = raw.reshape(*values.shape[:-1], -1)
        else:
            raw = gguf.quantize(values, quant)
        if kind == "F16":
            writer.add_tensor(name, values.astype(np.float16))
        else:
            writer.add_tensor(name, raw, raw_dtype=quant)
        held[name] = gguf.dequantize(raw, quant).reshape(values.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def _write_metadata(writer: gguf.GGUFWriter, cfg: Mapping[str, object]) -> None:
    plan, _ = plan_from_hf(cfg)
    attention = plan.layers[0].attention
    writer.add_name("tiny")
    writer.add_vocab_size(plan.vocab_size)
    writer.add_context_length(plan.ctx_train)
    writer.add_embedding_length(plan.hidden)
    writer.add_block_count(len(plan.layers))
    writer.add_feed_forward_length(int(str(cfg["intermediate_size"])))
    writer.add_head_count(attention.n_heads)
    writer.add_head_count_kv(attention.n_kv_heads)
    writer.add_key_length(attention.head_dim)
    writer.add_value_length(attention.head_dim)
    writer.add_layer_norm_rms_eps(plan.norm_eps)
    writer.add_rope_freq_base(float(str(cfg["rope_theta"])))
    writer.add_rope_dimension_count(attention.head_dim)
    if plan.architecture == "gemma3":
        writer.add_sliding_window(attention.window)
    if plan.architecture == "qwen3_moe":
        writer.add_expert_count(int(str(cfg["num_experts"])))
        writer.add_expert_used_count(int(str(cfg["num_experts_per_tok"])))
        writer.add_expert_feed_forward_length(int(str(cfg["moe_intermediate_size"])))


def _write_tokenizer(writer: gguf.GGUFWriter) -> None:
    text = json.loads(tokenizer().to_str())
    vocab = sorted(text["model"]["vocab"], key=text["model"]["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in text["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocab)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(vocab))])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)
