"""What routing costs: the share of a decoded token's time that scanning sketches and choosing
groups takes, at a depth, for a packed model or for layers of Qwen3-30B-A3B's shapes in q4.

    python bench/routing_share.py [MODEL.hga] [--ctx 65536] [--budget 2048] [--threads 2]

Keys and values are random: the scan reads every sketch whatever they say, and a fixed budget reads
as many groups. The routing of all layers is timed alone, by a kernel that does nothing else, in
turns with whole tokens. A model of few experts that fits in a cache decodes faster than the memory
allows the real one: `weights_ms` is what its weights take at the measured bandwidth, and the share
counts the longer of both. Prints a table and one JSON object.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from noise import fill

from hga.runtime import Engine, Options
from hga.tools.bench import memory_bandwidth, weight_bytes
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


def routing_kernel() -> int:
    """Address of a kernel that routes a token in every layer of a CALL block and does no more."""
    from numba import carray, cfunc, types

    from hga.kernels.cpu.layer_route import route
    from hga.kernels.cpu.params import CALL, LAYER
    from hga.kernels.cpu.sync import as_pointer

    @cfunc(types.void(types.int64, types.int64, types.int64))
    def route_layers(thread, n, params):  # type: ignore[no-untyped-def]
        c = carray(as_pointer(params), 1, CALL)[0]
        layers = carray(as_pointer(c.layers), c.last_layer, LAYER)
        private, phase = c.private + thread * c.private_bytes, 1
        n_groups = c.position // 8 + 1
        for i in range(c.last_layer):
            if layers[i].sketches != 0:
                phase = route(c, layers[i], n_groups, thread, n, phase, private)

    _KEEP.append(route_layers)
    return int(route_layers.address)


_KEEP: list[object] = []


def milliseconds(run: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--ctx", type=int, default=65536)
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(a.model) if a.model else shaped_model(Path(folder))
        options = Options(threads=a.threads, ctx=a.ctx + 512, budget=str(a.budget))
        with Engine.open(path, options) as engine:
            session, forward = engine.session(), engine.forward_pass
            fill(session, a.ctx)
            kernel = routing_kernel()

            def routing() -> None:
                forward._counters[:] = 0
                forward._backend._pool.run(kernel, forward._call.ctypes.data)

            pairs = []
            for _ in range(a.rounds):
                token = milliseconds(lambda: session.step(1))
                pairs.append((token, milliseconds(routing)))
                session.truncate(a.ctx)
            token, alone = (statistics.median(column) for column in zip(*pairs, strict=True))
            bandwidth = memory_bandwidth(a.threads)
            weights = 1e3 * weight_bytes(engine) / bandwidth
            whole = alone + max(token - alone, weights)
            found = {
                "model": Path(a.model).name if a.model else "Qwen3-30B-A3B shapes, q4",
                "layers": len(engine.plan.layers),
                "ctx": a.ctx,
                "budget": a.budget,
                "threads": a.threads,
                "bandwidth_gib_s": bandwidth / 2**30,
                "token_ms": token,
                "routing_ms": alone,
                "weights_ms": weights,
                "routing_share": alone / whole,
                "index_bytes_per_token": engine.geometry.sketch_bytes(a.ctx) / a.ctx,
            }
    share = 100 * found["routing_share"]
    print("| depth | token | weights at full bandwidth | routing | share |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    print(f"| {a.ctx:,} | {token:.2f} ms | {weights:.2f} ms | {alone:.2f} ms | {share:.0f} % |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
