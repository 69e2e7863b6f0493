"""Decoding with experts on disk: tokens per second against what the drive allows.

    python bench/experts.py MODEL.hga --mem 4g [--tokens 64] [--hints on|off|auto] [--ctx 4096]
    python bench/experts.py MODEL.hga --mem 4g --ctx 64k --depth 63k --budget 2048

With --depth a context of random keys and values lies before them (bench/noise.py), on disk where
memory is short. Tokens are sampled (bench/synthetic.py: random tokens would choose experts without
locality) after a warm-up. Then the drive is measured: reads of whole experts at random, past the
page cache, through the same reader, three at a time, as a layer asks for, and eight. What tokens
read over the best of these bandwidths is the time that the drive takes. Prints one JSON object.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from noise import fill

from hga.kvstore.memory import aligned_zeros
from hga.kvstore.reader import Reader
from hga.kvstore.reader_request import Request
from hga.runtime import Engine, Options, Session
from hga.runtime.experts import blob_bytes
from hga.runtime.options import parse_size, parse_tokens
from hga.tools.bench import memory_bandwidth, weight_bytes

# Experts that the drive's bandwidth is measured into.
_PLACES = 256


def drive_bandwidth(engine: Engine, seconds: float = 2.0, at_once: int = 8) -> float:
    """Bytes per second of reads of random experts to random places, so many at a time. A few places
    would stay in the processor's cache: a quarter more than decoding can have."""
    # Other experts in every run: what lies below the drive may keep what was read before.
    random, size = np.random.default_rng(), blob_bytes(engine.model)
    blobs = [s for s in engine.model.segments if ".experts." in s.name]
    memory = aligned_zeros(size * _PLACES)
    memory[:: 1 << 12] = 1
    done, begin = 0, time.perf_counter()
    with Reader.open(engine.options.io) as reader:
        file = reader.add_file(engine.model.fileno)
        while time.perf_counter() - begin < seconds:
            picks = random.choice(len(blobs), at_once, replace=False)
            places = random.choice(_PLACES, at_once, replace=False)
            wanted = [
                Request(file, blobs[b].offset, size, memory.ctypes.data + int(p) * size)
                for b, p in zip(picks, places)
            ]
            reader.wait(wanted, reader.submit(wanted))
            done += size * at_once
    return done / (time.perf_counter() - begin)


def decode(session: Session, n_tokens: int, random: np.random.Generator) -> list[float]:
    """Sample n_tokens at temperature 1; the seconds of each."""
    seconds = []
    for _ in range(n_tokens):
        noise = random.gumbel(size=len(session.logits))
        token = int(np.argmax(session.logits + noise))
        begin = time.perf_counter()
        session.step(token)
        seconds.append(time.perf_counter() - begin)
    return seconds


def _charged(pid: str = "self") -> dict[str, int]:
    """Memory of this process in bytes, as the system counts it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if line.startswith(("VmHWM", "VmRSS")))
    return {name: int(text.split()[0]) * 1024 for name, text in found.items()}


def run(values: argparse.Namespace) -> dict[str, Any]:
    options = Options(
        ctx=values.ctx,
        mem=values.mem,
        threads=values.threads,
        io=values.io,
        expert_cache=values.expert_cache,
        expert_hints=values.hints,
        budget=values.budget,
    )
    random = np.random.default_rng(values.seed)
    with Engine.open(values.model, options) as engine:
        cache = engine.experts
        if cache is None:
            raise SystemExit("all experts are in memory: a smaller --mem is needed")
        memory = memory_bandwidth(engine._backend.n_threads)
        with engine.session() as session:
            if values.depth:
                fill(session, values.depth)
            session.feed(random.integers(0, engine.plan.vocab_size, values.prompt).tolist())
            decode(session, values.warm, random)
            before = cache.reads
            session.reset_stats()
            seconds = decode(session, values.tokens, random)
            reads, stats = cache.reads - before, session.stats
        charged = _charged()
        drives = [(drive_bandwidth(engine, at_once=n), n) for n in (3, 8, 3, 8)]
        drive = max(speed for speed, _ in drives)
        n, total = len(seconds), sum(seconds)
        best = statistics.quantiles(seconds, n=10)[0]
        io_s, compute_s = reads.read_bytes / n / drive, weight_bytes(engine) / memory
        return {
            "mem": values.mem,
            "slots": cache.n_slots,
            "slots_of": len([s for s in engine.model.segments if ".experts." in s.name]),
            "drive_gb_s": round(drive / 1e9, 2),
            "drives_gb_s": [[round(speed / 1e9, 2), n] for speed, n in drives],
            "memory_gb_s": round(memory / 1e9, 1),
            "depth": values.depth,
            "kv": "disk" if session.on_disk else "ram",
            "attended": stats.attended_mean and round(stats.attended_mean),
            "kv_hit_rate": stats.kv_hit_rate and round(stats.kv_hit_rate, 4),
            "tokens": n,
            "tokens_per_s": round(n / total, 3),
            "median_ms": round(1e3 * statistics.median(seconds), 1),
            "fast_tenth_ms": round(1e3 * best, 1),
            "io_bound_tokens_per_s": round(1 / io_s, 3) if io_s else None,
            "of_io_bound": round(n / total * io_s, 3) if io_s else None,
            "memory_bound_tokens_per_s": round(1 / compute_s, 2),
            "of_memory_bound": round(n / total * compute_s, 3),
            "of_memory_bound_fast_tenth": round(compute_s / best, 3),
            "hit_rate": round(reads.hit_rate or 0, 4),
            "read_mb_per_token": round(reads.read_bytes / n / 1e6, 1),
            "stall_share": round(reads.stall_s / total, 3),
            "recall": reads.recall,
            "precision": reads.precision,
            "hints": reads.hints,
            "foreseen": reads.foreseen,
            "landed": reads.landed,
            **charged,
            "bill": sum(line.n_bytes for line in engine.bill()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="decoding with experts on disk")
    parser.add_argument("model", type=Path)
    parser.add_argument("--mem", type=parse_size)
    parser.add_argument("--expert-cache", type=parse_size)
    parser.add_argument("--ctx", type=parse_tokens, default=4096)
    parser.add_argument("--depth", type=parse_tokens, default=0)
    parser.add_argument("--budget", default="auto")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--warm", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--hints", default="auto")
    parser.add_argument("--io", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
