"""What routing costs: the share of a decoded token's time that scanning sketches and choosing
groups takes, at a depth, for a packed model or for layers of Qwen3-30B-A3B's shapes in q4.

    python bench/routing_share.py [MODEL.hga] [--ctx 65536] [--budget 2048] [--threads 2]

Keys and values are random: the scan reads every sketch whatever they say, and a fixed budget reads
as many groups. Routing is the difference between a token that routes at depth `ctx` and one that
reads `budget` tokens of a short context densely, everything else being the same; rounds alternate.
Prints the memory bandwidth, a table and one JSON object.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from hga.runtime import Engine, Options, Session
from hga.tools.bench import memory_bandwidth
from hga.tools.pack import pack

QWEN3_30B_A3B = {
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 262144,
    # Fewer experts and layers than the model's 128 and 48: a token reads as much of each layer.
    "num_experts": 16,
    "num_hidden_layers": 2,
}


def shaped_model(folder: Path) -> Path:
    """A packed model of random weights with the shapes of QWEN3_30B_A3B, in q4."""
    source = Path(__file__).parents[1] / "tests" / "tiny_checkpoints.py"
    spec = importlib.util.spec_from_file_location("tiny_checkpoints", source)
    assert spec is not None and spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    checkpoint = tiny.write_hf(folder / "hf", tiny.config("qwen3_moe", **QWEN3_30B_A3B), "bf16")
    packed = folder / "shaped.hga"
    pack(checkpoint, packed, "q4")
    return packed


def filled(engine: Engine, n_tokens: int) -> Session:
    """A session of n_tokens whose keys, values and sketches are random."""
    session, rng = engine.session(), np.random.default_rng(0)
    arena = session._arena
    arena.reserve(n_tokens + 256)
    noise = rng.standard_normal(1 << 20).astype(np.float16).view(np.uint8)
    for slab in arena._slabs:
        slab[:] = np.resize(np.roll(noise, int(rng.integers(1 << 20))), slab.nbytes)
    for i, sketches in enumerate(arena.sketches):
        if sketches is not None:
            block = 32 * engine.geometry.layers[i].head_dim + 128
            blocks = sketches.reshape(len(sketches), -1, block)
            blocks[:] = rng.integers(0, 256, block, dtype=np.uint8)
            blocks[:, :, -128:] = 16 * 8
    session.tokens = [1] * n_tokens
    return session


def token_ms(session: Session, n_tokens: int, rounds: int) -> float:
    """Median time of a decoded token at a depth."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        session.step(1)
        times.append(time.perf_counter() - start)
    session.truncate(n_tokens)
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--ctx", type=int, default=65536)
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(a.model) if a.model else shaped_model(Path(folder))
        options = Options(threads=a.threads, ctx=a.ctx + 512, budget=str(a.budget))
        with Engine.open(path, options) as engine:
            deep, shallow = filled(engine, a.ctx), filled(engine, a.budget)
            shallow.attention = "dense"
            both = []
            for _ in range(a.rounds):
                pair = token_ms(deep, a.ctx, 5), token_ms(shallow, a.budget, 5)
                both.append(pair)
            routed, plain = (statistics.median(column) for column in zip(*both, strict=True))
            share = statistics.median((r - p) / r for r, p in both)
            layers = len(engine.plan.layers)
            found = {
                "model": Path(a.model).name if a.model else "Qwen3-30B-A3B shapes, q4",
                "layers": layers,
                "ctx": a.ctx,
                "budget": a.budget,
                "threads": a.threads,
                "bandwidth_gib_s": memory_bandwidth(a.threads) / 2**30,
                "token_ms": routed,
                "without_routing_ms": plain,
                "routing_ms_per_layer": (routed - plain) / layers,
                "routing_share": share,
                "index_bytes_per_token": engine.geometry.sketch_bytes(a.ctx) / a.ctx,
            }
    print("| depth | token | without routing | share of routing |")
    print("| ---: | ---: | ---: | ---: |")
    print(f"| {a.ctx:,} | {routed:.2f} ms | {plain:.2f} ms | {100 * share:.0f} % |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
