"""Write a packed model of Qwen3-30B-A3B's shapes, or of other sizes, with random weights, straight
into a container: no checkpoint, little memory, minutes.

    python bench/synthetic.py OUT.hga [--layers 48] [--experts 128] [--format q4] ...

Weights are row groups drawn at random from small pools. The residual stream is made so that the
router behaves as published for the real model: an embedding is the sum of a part that all tokens
share (a fixed skew), one that the tokens of a topic share (locality in time, since the head favours
the next token's topic to be this token's), and one of its own; every layer adds small branches (so
the next layer's router nearly agrees with this one's state). Chosen so that, of a token's experts,
about 43 % also served the token before, 38 % are of the eight hottest, and 88 % are foretold by the
next layer's router on this layer's state. bench/expert_trace.py measures what it is.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hga.kernels.formats import FORMATS
from hga.models.registry import plan_from_hf
from hga.runtime.container_layout import SegmentPlan, plan_layout
from hga.runtime.container_tokenizer import split_tokenizer
from hga.runtime.container_writer import ContainerWriter
from hga.runtime.tokenizer_spec import ControlToken, TokenizerSpec

QWEN3_30B_A3B = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}

# Parts of an embedding that all tokens and those of a topic share; the squares of all three parts
# add up to one. A branch adds about BRANCH of the embedding's size. ROUTER: standard deviation of
# router logits. STAY: how often the next token keeps the topic, where tokens are sampled.
SHARED, TOPICAL, BRANCH, ROUTER, STAY = 0.60, 0.69, 0.10, 1.5, 0.94
N_TOPICS = 64
# Rows that a pool holds.
POOL_ROWS = 4096
TOPIC_POOL_ROWS = 16384


def topic_of(token: NDArray[np.int64]) -> NDArray[np.int64]:
    """The topic of token ids: neighbours of 16, a row group, share one."""
    return token // 16 % N_TOPICS


@dataclass(frozen=True, slots=True)
class Parts:
    """Directions that the residual stream is made of, float32: shared [K], topics [n, K]."""

    shared: NDArray[np.float32]
    topics: NDArray[np.float32]


class Pools:
    """Packed row groups by kind of matrix, made at first use."""

    def __init__(self, hidden: int, n_layers: int, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._pools: dict[tuple[str, str, int], NDArray[np.uint8]] = {}
        self._parts = Parts(self._normal(hidden), self._normal(N_TOPICS, hidden))
        # Of the final state, by which the head knows the topic.
        topical = TOPICAL / math.sqrt(1 + 2 * n_layers * BRANCH**2)
        odds = STAY / (1 - STAY) * (N_TOPICS - 1)
        self._head_gain = math.log(odds) / topical

    def _normal(self, *shape: int) -> NDArray[np.float32]:
        return self._random.standard_normal(shape, np.float32)

    def _values(self, kind: str, cols: int) -> NDArray[np.float32]:
        if kind in ("embed", "head"):
            rows = self._normal(TOPIC_POOL_ROWS, cols)
            topics = self._parts.topics[topic_of(np.arange(TOPIC_POOL_ROWS))]
            if kind == "head":
                return rows / np.float32(math.sqrt(cols)) + topics * np.float32(
                    self._head_gain / cols
                )
            own = math.sqrt(1 - SHARED**2 - TOPICAL**2)
            mixed = np.float32(own) * rows + np.float32(TOPICAL) * topics
            return mixed + np.float32(SHARED) * self._parts.shared
        # What a branch has lost on its way: attention averages tokens down to what they share,
        # silu(g) u is 0.6 on average, and the experts of a token are added as if independent.
        gains = {"o": BRANCH / 0.65, "down": BRANCH / 0.21, "router": ROUTER}
        gain = gains.get(kind, 1.0) / math.sqrt(cols)
        return self._normal(POOL_ROWS, cols) * np.float32(gain)

    def pack(self, fmt: str, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """uint8 [rows / 16, bytes] of rows in a format."""
        return FORMATS[fmt].pack(values)

    def groups(self, kind: str, fmt: str, rows: int, cols: int) -> NDArray[np.uint8]:
        """uint8 [ceil(rows / 16), group_bytes] of a new matrix."""
        of = kind if kind in ("embed", "head", "o", "down", "router") else "any"
        key = (of, fmt, cols)
        if key not in self._pools:
            self._pools[key] = self.pack(fmt, self._values(of, cols))
        pool, n = self._pools[key], -(-rows // 16)
        if of in ("embed", "head"):
            order = np.arange(n) % len(pool)
        else:
            order = self._random.integers(0, len(pool), n)
        return pool[order]

    def vector(self, n: int) -> NDArray[np.uint8]:
        """A norm's weights, near one."""
        values = 1 + np.float32(0.1) * self._normal(n)
        return values.astype("<f4").view(np.uint8)


def format_of(role: str, fmt: str) -> str:
    """As `hga pack --format` would have it of a bf16 checkpoint."""
    if role.endswith(".router"):
        return "bf16"
    if role in ("embed", "head") and FORMATS[fmt].bits_per_weight < 8:
        return "q8"
    return fmt


def tokenizer(n_vocab: int) -> TokenizerSpec:
    """Bytes as tokens, and names for all other ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(letters)}
    control = ControlToken(len(vocab), "<|im_end|>")
    for i in range(len(vocab) + 1, n_vocab):
        vocab[f"Ġw{i}"] = i
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return TokenizerSpec("json", made.to_str(), n_vocab, "bytelevel", (control,), eos=(control.id,))


def _parts(pools: Pools, segment: SegmentPlan) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    for tensor in segment.tensors:
        if len(tensor.shape) == 1:
            yield tensor.role, pools.vector(tensor.shape[0])
        else:
            kind = tensor.role.rsplit(".", 1)[-1]
            yield tensor.role, pools.groups(kind, tensor.format, *tensor.shape)


def write(path: Path, config: dict[str, Any], fmt: str = "q4", seed: int = 0) -> int:
    """Write the packed model; returns its bytes."""
    plan, specs = plan_from_hf(config)
    formats = {spec.role: format_of(spec.role, fmt) for spec in specs}
    entry, texts = split_tokenizer(tokenizer(plan.vocab_size))
    layout = plan_layout(plan, formats, texts)
    source = {"name": "synthetic", "kind": "synthetic", "nbytes": 0, "format": fmt}
    pools = Pools(plan.hidden, len(plan.layers), seed)
    with ContainerWriter(path, layout, source, resume=False) as writer:
        writer.write_text_segments()
        for segment in layout.segments:
            if segment.payload is None:
                writer.write_segment(segment.name, _parts(pools, segment))
        return writer.finish(entry, {}, source, ())


def main() -> None:
    parser = argparse.ArgumentParser(description="a packed model with random weights")
    parser.add_argument("out", type=Path)
    parser.add_argument("--format", default="q4", choices=("q4", "q8", "fp8", "bf16"))
    parser.add_argument("--seed", type=int, default=0)
    sizes = {
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "kv-heads": "num_key_value_heads",
        "head-dim": "head_dim",
        "experts": "num_experts",
        "used": "num_experts_per_tok",
        "width": "moe_intermediate_size",
        "vocab": "vocab_size",
    }
    for name, key in sizes.items():
        parser.add_argument(f"--{name}", dest=key, type=int, default=QWEN3_30B_A3B[key])
    values = vars(parser.parse_args())
    begin = time.perf_counter()
    config = {**QWEN3_30B_A3B, **{key: values[key] for key in sizes.values()}}
    n_bytes = write(values["out"], config, values["format"], values["seed"])
    print(json.dumps({"bytes": n_bytes, "seconds": round(time.perf_counter() - begin, 1)}))


if __name__ == "__main__":
    main()
