"""Write a GGUF of Qwen3-30B-A3B's shapes, of fewer layers, with the random weights of synthetic.py,
for programs that read no packed file (bench/vs_llama_cpp_experts.py).

    python bench/synthetic_gguf.py OUT.gguf [--layers 6] [--format q4_0]

Needs the gguf package. Embedding, head: q8_0; router: f32. Its tokenizer names numbers.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from synthetic import QWEN3_30B_A3B, Pools

_ROWS = 16


class GgufPools(Pools):
    """Row groups in GGUF's own formats."""

    def pack(self, fmt: str, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        kind = gguf.GGMLQuantizationType[fmt.upper()]
        rows = np.ascontiguousarray(gguf.quants.quantize(values, kind)).view(np.uint8)
        return rows.reshape(len(values) // _ROWS, -1)


def _tensors(config: dict[str, Any], fmt: str) -> list[tuple[str, str, str, tuple[int, ...]]]:
    """(name, kind of values, format, shape), outermost dimension first."""
    hidden, width = config["hidden_size"], config["moe_intermediate_size"]
    dim, n = config["head_dim"], config["num_experts"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    vocab = config["vocab_size"]
    rows = [("token_embd", "embed", "q8_0", (vocab, hidden))]
    for i in range(config["num_hidden_layers"]):
        layer = [
            ("attn_norm", "norm", "f32", (hidden,)),
            ("attn_q", "any", fmt, (q, hidden)),
            ("attn_k", "any", fmt, (kv, hidden)),
            ("attn_v", "any", fmt, (kv, hidden)),
            ("attn_q_norm", "norm", "f32", (dim,)),
            ("attn_k_norm", "norm", "f32", (dim,)),
            ("attn_output", "o", fmt, (hidden, q)),
            ("ffn_norm", "norm", "f32", (hidden,)),
            ("ffn_gate_inp", "router", "f32", (n, hidden)),
            ("ffn_gate_exps", "any", fmt, (n, width, hidden)),
            ("ffn_up_exps", "any", fmt, (n, width, hidden)),
            ("ffn_down_exps", "down", fmt, (n, hidden, width)),
        ]
        rows += [(f"blk.{i}.{name}", *rest) for name, *rest in layer]
    ends = (("output_norm", "norm", "f32", (hidden,)), ("output", "head", "q8_0", (vocab, hidden)))
    return [*rows, *ends]


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    # The characters that stand for bytes.
    codes = (*range(33, 127), *range(161, 173), *range(174, 324))
    letters = [chr(code) for code in codes]
    names = [*letters, "ab", *(f"w{i}" for i in range(len(letters) + 1, config["vocab_size"]))]
    names[-1] = "<|im_end|>"
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(names)
    writer.add_token_types([1] * (len(names) - 1) + [3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(len(names) - 1)


def write(path: Path, config: dict[str, Any], fmt: str = "q4_0", seed: int = 0) -> int:
    """Write the GGUF; returns its bytes."""
    pools = GgufPools(config["hidden_size"], config["num_hidden_layers"], seed)
    writer = gguf.GGUFWriter(path, "qwen3moe")
    _describe(writer, config)
    tensors = _tensors(config, fmt)
    for name, _, form, shape in tensors:
        kind = gguf.GGMLQuantizationType[form.upper()]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        n_bytes = int(np.prod(shape)) // block * size
        stored = (*shape[:-1], shape[-1] // block * size)
        known = np.float32 if form == "f32" else np.uint8
        writer.add_tensor_info(
            f"{name}.weight", shape if form == "f32" else stored, np.dtype(known), n_bytes,
            None if form == "f32" else kind,
        )  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, kind, form, shape in tensors:
        if kind == "norm":
            data = pools.vector(shape[0])
        else:
            n_rows = int(np.prod(shape[:-1]))
            data = pools.groups(kind, form, n_rows, shape[-1]).reshape(-1)
        writer.write_tensor_data(data.view(np.float32) if form == "f32" else data)
    writer.close()
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description="a GGUF of experts with random weights")
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--format", default="q4_0")
    parser.add_argument("--seed", type=int, default=0)
    values = parser.parse_args()
    config = {**QWEN3_30B_A3B, "num_hidden_layers": values.layers}
    print(json.dumps({"bytes": write(values.out, config, values.format, values.seed)}))


if __name__ == "__main__":
    main()
