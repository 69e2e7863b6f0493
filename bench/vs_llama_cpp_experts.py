"""Decoding a mixture of experts with hga and llama.cpp on one GGUF, in turns: with all the memory
they want, and each in a memory control group smaller than the file.

    python bench/synthetic_gguf.py moe.gguf --layers 6
    python bench/vs_llama_cpp_experts.py moe.gguf [--mem 1600m] [-n 16] [-r 5] [-t 2]

Tokens follow topics, as those of bench/synthetic.py do, since which experts serve a token decides
what is read. hga is told the limit by --mem; llama.cpp maps the file, and there does not repack it,
since the copy would not fit. What the system keeps of the file is dropped before either starts, so
that it is charged to who reads it. Needs Linux and the right to make a control group. Prints a
table and one JSON object.
"""

import argparse
import contextlib
import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from memory import own_group
from synthetic import N_TOPICS, STAY
from vs_llama_cpp import HgaRunner, LlamaRunner, Worker

from hga.runtime.options import parse_size
from hga.tools.resolve import resolve
from hga.tools.status import Status

_CTX, _SLACK = 4096, 1.03
# Tokens before the first round: enough that every expert has been used; less where that takes long.
_WARM, _WARM_LIMITED = 768, 96
# Ids below are the tokenizer's own; a run of so many covers every topic several times.
_FIRST, _SPAN = 1024, 8192


def topical_ids(count: int, seed: int = 0) -> list[int]:
    """Token ids that keep a topic for some 16 tokens."""
    random = np.random.default_rng(seed)
    ids, topic = [], 0
    for _ in range(count):
        if random.random() > STAY:
            topic = int(random.integers(N_TOPICS))
        run = int(random.integers(_SPAN // (16 * N_TOPICS)))
        ids.append(_FIRST + 16 * (topic + N_TOPICS * run) + int(random.integers(16)))
    return ids


@contextlib.contextmanager
def limited(name: str, limit: int | None) -> Iterator[Path | None]:
    """A control group of so much memory; None: none."""
    if limit is None:
        yield None
        return
    parent, (limit_file, _) = own_group()
    group = parent / f"hga-bench-{os.getpid()}-{name}"
    group.mkdir()
    try:
        (group / limit_file).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def forget(path: Path) -> None:
    """Drop what the system keeps of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare(values: argparse.Namespace, mem: int | None) -> dict[str, Any]:
    """Median tokens per second of each; median, least and most of the rounds' ratios."""
    ids = topical_ids(_CTX)
    limit = None if mem is None else int(_SLACK * mem)
    packed = resolve(values.model, Status(quiet=True))
    for path in (Path(values.model), packed):
        forget(path)
    warm = _WARM if mem is None else _WARM_LIMITED
    speeds: dict[str, list[float]] = {"hga": [], "llama.cpp": []}
    with contextlib.ExitStack() as stack:
        ours, theirs = (stack.enter_context(limited(name, limit)) for name in ("hga", "llama"))
        peer = {"flash": False, "repack": mem is None}
        workers = {}
        for name, make, path, group, options in (
            ("hga", HgaRunner, str(packed), ours, {"mem": mem}),
            ("llama.cpp", LlamaRunner, values.model, theirs, peer),
        ):
            worker = Worker(make, path, _CTX, values.threads, ids, group=group, **options)
            stack.callback(worker.close)
            workers[name] = worker
        # A first stretch fills what each keeps in memory; then every round has new tokens.
        for worker in workers.values():
            worker.seconds("decode", 0, warm)
        for depth in range(warm, warm + values.rounds * values.tokens, values.tokens):
            for name, worker in workers.items():
                seconds = worker.seconds("decode", depth, values.tokens)
                speeds[name].append(values.tokens / seconds)
    ratios = [a / b for a, b in zip(speeds["hga"], speeds["llama.cpp"])]
    return {
        "mem": mem,
        "speeds": {name: round(statistics.median(s), 2) for name, s in speeds.items()},
        "ratio": [round(x, 2) for x in (statistics.median(ratios), min(ratios), max(ratios))],
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--mem", type=parse_size, default=None, help="also within so much memory")
    parser.add_argument("-n", "--tokens", type=int, default=16)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    values = parser.parse_args()
    rows = []
    print("| memory | hga | llama.cpp | ratio (least, most) |")
    print("| --- | ---: | ---: | --- |")
    for mem in (None, *([values.mem] if values.mem else [])):
        rows.append(row := compare(values, mem))
        speeds, ratio = row["speeds"], row["ratio"]
        print(
            f"| {mem or 'all'} | {speeds['hga']:,.2f} | {speeds['llama.cpp']:,.2f} |"
            f" {ratio[0]} ({ratio[1]}, {ratio[2]}) |",
            flush=True,
        )
    print(json.dumps({"model": Path(values.model).name, "threads": values.threads, "rows": rows}))


if __name__ == "__main__":
    main()
