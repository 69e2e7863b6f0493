"""Decode and prefill on a card at growing depths: the roofline first, then what is measured.

    python bench/gpu.py MODEL.hga --depths 4k,32k,64k [--gpu-mem 32g] [--kv disk] [--budgets 1024]

One session grows from depth to depth with random tokens, so prefill speed is that of each stretch.
At each depth tokens are decoded by every budget, densely by our kernels, and densely with torch's
scaled_dot_product_attention in their place (same weights, recorded as a graph as well). The
roofline of a decoded token is its bytes over the bandwidths measured here and now: weights, key
sketches and keys and values from the card's memory, what lies on the host over the bus. What comes
from the disk is not in it: "disk MB" and "wait ms" are a token's, "in memory" the share of cells
that were found there.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hga.kernels.triton import decode as decoding
from hga.kernels.triton.bank import pinned, unpin
from hga.runtime.engine import Engine
from hga.runtime.options import Options, parse_size, parse_tokens

_TRIES = 10


def timed(run: Callable[[], object]) -> float:
    """Seconds of a call on the card, the best of some tries."""
    run()
    best = float("inf")
    for _ in range(_TRIES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "se")
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return best


def bandwidths() -> dict[str, float]:
    """Bytes a second: read by a sum on the card, and copied from pinned memory to it."""
    data = torch.ones(1 << 28, dtype=torch.float32, device="cuda")
    card = data.numel() * 4 / timed(lambda: data.sum())
    host = pinned((1 << 28,), torch.uint8)
    target = torch.empty_like(host, device="cuda")
    bus = host.numel() / timed(lambda: target.copy_(host, non_blocking=True))
    unpin(host)
    return {"card": card, "bus": bus}


def weight_bytes(engine: Engine) -> tuple[float, float]:
    """Bytes of weights of a token on the card and over the bus, experts chosen evenly."""
    model = engine.forward_pass._model
    here, bus = float(model.head.nbytes + model.embed.cols), 0.0
    for layer in model.layers:
        trunk = [*layer.qkv, layer.o, *([layer.router] if layer.router else [])]
        here += sum(m.nbytes for m in trunk)
        mlp, on_card = layer.mlp, len(layer.mlp.keep[0])
        used = mlp.n_used * mlp.blob.nbytes
        here += used * on_card / mlp.n_experts
        bus += used * (1 - on_card / mlp.n_experts)
    return here, bus


def sdpa_attend(q: Any, at: Any, params: Any, splits: Any, out: Any, true: int,
                window: int = 0, groups: Any = None, counts: Any = None) -> None:  # fmt: skip
    """`attend` through torch, for a fixed depth (`sdpa_attend.depth`) without windows."""
    keys, values = at.keys, at.values
    n_kv, _, d = keys.shape
    n = sdpa_attend.depth
    rows = q.view(1, n_kv, -1, d)
    y = torch.nn.functional.scaled_dot_product_attention(
        rows, keys[None, :, :n], values[None, :, :n], scale=1.0
    )
    out[: y.numel()].copy_(y.reshape(-1)[: out.numel()])


def dense_by_torch(engine: Engine, bank: Any, depth: int) -> float:
    """Seconds of a decode step with torch's attention over `depth` keys."""
    forward, ours = engine.forward_pass, decoding.attend
    sdpa_attend.depth = depth
    decoding.attend = sdpa_attend
    try:
        decoding.decode(forward._model, bank, forward._buffers, 0)
        torch.cuda.synchronize()
        graph = decoding.record(forward._model, bank, forward._buffers, 0)
    finally:
        decoding.attend = ours
    return timed(graph.replay)


def measured(session: Any, ids: list[int], name: str) -> dict[str, Any]:
    """Latencies and counts of single tokens from the session's depth, which is kept."""
    depth, n, steps = len(session.tokens), len(ids), []
    session.reset_stats()
    for token in ids:
        begin = time.perf_counter()
        session.step(token)
        steps.append(time.perf_counter() - begin)
    stats = session.stats
    session.truncate(depth)
    return {
        "budget": name,
        "tps": n / sum(steps),
        "p50_ms": 1e3 * statistics.median(steps),
        "p99_ms": 1e3 * float(np.quantile(steps, 0.99)),
        "attended": stats.attended / n,
        "kv_bytes": stats.read_bytes / n,
        "index_bytes": stats.index_bytes / n,
        "disk_bytes": stats.disk_bytes / n,
        "stall_ms": 1e3 * stats.stall_s / n,
        "hit_rate": stats.kv_hit_rate,
    }


def decode_rows(
    session: Any, ids: list[int], others: list[int], budget: str
) -> list[dict[str, Any]]:
    """Rows of a budget. On disk three: with empty frames, with the same tokens again, which find
    all that fits, and with others after them."""
    depth, n = len(session.tokens), len(ids)
    session.attention = "dense" if budget == "dense" else "hga"
    if budget != "dense":
        session.budget = budget
    for _ in range(2):
        # Tokens at both ends: a power of two of groups may lie between.
        for token in ids:
            session.step(token)
        session.truncate(depth)
    if session.on_disk:
        arena = session.arena
        for layer, cells in enumerate(arena.cells):
            arena.frames.drop(layer, cells, 0, cells.shape[1])
        kinds = ((ids, "cold"), (ids, "warm"), (others, "others"))
        return [measured(session, tokens, f"{budget}, {kind}") for tokens, kind in kinds]
    row = measured(session, ids, budget)
    shape = 0 if budget == "dense" else 1 << ((depth + n - 1) // 8).bit_length()
    (graph,) = session.arena.bank.graphs[shape]
    return [row | {"card_ms": 1e3 * timed(graph.replay)}]


def printed(row: dict[str, Any]) -> str:
    """A row of the table."""
    disk = f"{row['disk_bytes'] / 1e6:,.1f} | {row['stall_ms']:.2f}" if row["disk_bytes"] else " | "
    card = f"{row['card_ms']:.2f}" if "card_ms" in row else ""
    hits = f"{100 * row['hit_rate']:.1f} %" if row["hit_rate"] is not None else ""
    return (
        f"| {row['depth']:,} | {row['budget']} | {row['prefill_tps']:,.0f} | {row['tps']:,.1f} |"
        f" {row['p50_ms']:.2f} | {row['p99_ms']:.2f} | {card} | {row['attended']:,.0f} |"
        f" {row['kv_bytes'] / 1e6:,.0f} | {100 * row['tps'] / row['roofline_tps']:.0f} % |"
        f" {disk} | {hits} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="decode and prefill on a card")
    parser.add_argument("model", type=Path)
    parser.add_argument("--depths", default="4k,32k,64k")
    parser.add_argument("--budgets", default="auto,1024,dense")
    parser.add_argument("--gpu-mem", type=parse_size, default=None)
    parser.add_argument("--mem", type=parse_size, default=None, help="of host memory")
    parser.add_argument("--kv", default="auto")
    parser.add_argument("--kv-dir", type=Path, default=None)
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--sdpa", action="store_true", help="dense attention by torch as well")
    values = parser.parse_args()
    depths = [parse_tokens(text) for text in values.depths.split(",")]
    ctx = max(depths) + values.n + 8
    rates = bandwidths()
    begin = time.perf_counter()
    options = Options(
        ctx=ctx,
        device="cuda",
        attention="hga",
        gpu_mem=values.gpu_mem,
        mem=values.mem,
        kv=values.kv,
        kv_dir=values.kv_dir,
    )
    rows: list[dict[str, Any]] = []
    with Engine.open(values.model, options) as engine:
        opened = time.perf_counter() - begin
        here, bus = weight_bytes(engine)
        kv_bus = engine._backend.plan.kv_on_host
        best = 1 / (here / rates["card"] + bus / rates["bus"])
        print(f"{engine.backend}; opened in {opened:.0f} s")
        print(
            f"card {rates['card'] / 1e9:,.0f} GB/s, bus {rates['bus'] / 1e9:.1f} GB/s; weights of"
            f" a token {here / 1e9:.2f} GB on the card, {bus / 1e9:.2f} GB over the bus: at most"
            f" {best:,.0f} tok/s before keys and values\n"
        )
        print("| depth | budget | prefill tok/s | decode tok/s | p50 ms | p99 ms | card ms |"
              " attended | KV MB | of the roofline | disk MB | wait ms | in memory |")  # fmt: skip
        print("| ---: | --- |" + " ---: |" * 11, flush=True)
        random = np.random.default_rng(0)
        vocab = engine.plan.vocab_size
        session = engine.session(attention="hga")
        # Kernels are compiled for the first prompt and the first tokens.
        session.feed(random.integers(0, vocab, 3000).tolist())
        session.truncate(0)
        for depth in depths:
            missing = depth - len(session.tokens)
            session.reset_stats()
            session.feed(random.integers(0, vocab, missing).tolist())
            speed = session.stats.prefill_tps
            ids, others = (random.integers(0, vocab, values.n).tolist() for _ in "ab")
            for budget in values.budgets.split(","):
                for found in decode_rows(session, ids, others, budget):
                    row = {"depth": depth, "prefill_tps": speed, **found}
                    kv = row["kv_bytes"] / rates["bus" if kv_bus else "card"]
                    index = row["index_bytes"] / rates["card"]
                    row["roofline_tps"] = 1 / (1 / best + kv + index)
                    rows.append(row)
                    print(printed(row), flush=True)
            if values.sdpa and not kv_bus:
                ms = 1e3 * dense_by_torch(engine, session.arena.bank, depth)
                rows.append({"depth": depth, "budget": "torch SDPA, dense", "card_ms": ms})
                print(f"| {depth:,} | torch SDPA, dense | | {1e3 / ms:,.1f} | | | {ms:.2f} | | | |")
        peak = torch.cuda.max_memory_reserved()
        print(f"\nGPU memory reserved at most {peak / 2**30:.2f} GiB, cap {values.gpu_mem}")
        session.close()
        result = {
            "card": torch.cuda.get_device_name(),
            "model": values.model.name,
            "bandwidth": rates,
            "weight_bytes": [here, bus],
            "peak_reserved": peak,
            "gpu_mem": values.gpu_mem,
            "rows": rows,
        }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
