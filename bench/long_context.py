"""Decode time against the length of the context, keys and values on disk: routed, and dense.

    python bench/long_context.py MODEL.hga -f TEXT --mem 2g --depths 8192,32768,131072,262144

The text is read once, as one prompt that grows from depth to depth; at every depth some tokens are
decoded by each budget and by dense attention, and then forgotten. A time is the least mean of
several runs of tokens: a shared machine makes the others. Prints a line per depth and one JSON
object; `--plot OUT.png` draws it (needs hga[plot]). The peak of a memory cgroup around it says what
was charged to it, page cache included.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

from hga.runtime import Engine, Options, Session
from hga.runtime.budget import total
from hga.runtime.options import parse_size

_RUNS, _TOKENS = 6, 8


def fastest(run: Callable[[], None], n_runs: int, n_tokens: int) -> float:
    """Seconds per token of the fastest of some runs."""
    times = []
    for _ in range(n_runs):
        begin = time.perf_counter()
        run()
        times.append((time.perf_counter() - begin) / n_tokens)
    return min(times)


def routed(session: Session, ids: list[int], budget: str) -> dict[str, object]:
    """Figures of decoding by a budget; the session is as before."""
    n, stream = len(session.tokens), iter(ids)
    session.attention, session.budget = "hga", budget

    def run() -> None:
        for _ in range(_TOKENS):
            session.step(next(stream))

    # The first tokens find nothing in memory of what routing picks.
    run()
    session.reset_stats()
    seconds, stats = fastest(run, _RUNS, _TOKENS), session.stats
    session.truncate(n)
    return {
        "ms": round(1e3 * seconds, 2),
        "attended": round(stats.attended_mean or 0),
        "kv_hit_rate": stats.kv_hit_rate,
        "disk_bytes_per_token": stats.disk_bytes // (_RUNS * _TOKENS),
        "stall_ms": round(1e3 * stats.stall_s / (_RUNS * _TOKENS), 2),
    }


def dense(session: Session, ids: list[int]) -> float:
    """Milliseconds of a token that reads everything."""
    n, stream = len(session.tokens), iter(ids)
    session.attention = "dense"

    def run() -> None:
        session.step(next(stream))

    seconds = fastest(run, 3, 1)
    session.truncate(n)
    return round(1e3 * seconds, 1)


def plot(rows: list[dict[str, object]], budgets: list[str], path: Path) -> None:
    """Milliseconds a token over the length of the context, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    depths = [row["depth"] for row in rows]
    axes.plot(depths, [row["dense_ms"] for row in rows], "o-", label="dense")
    for budget in budgets:
        axes.plot(depths, [row[budget]["ms"] for row in rows], "o-", label=f"hga, {budget}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(depths, [f"{depth // 1024}K" for depth in depths])
    axes.set_xlabel("tokens in the context")
    axes.set_ylabel("ms per decoded token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("-f", "--file", type=Path, required=True)
    parser.add_argument("--mem", type=parse_size)
    parser.add_argument("--kv", default="disk")
    parser.add_argument("--kv-dir", type=Path)
    parser.add_argument("--depths", default="8192,16384,32768,65536")
    parser.add_argument("--budgets", default="auto,2%")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--plot", type=Path)
    values = parser.parse_args()
    depths = [int(depth) for depth in values.depths.split(",")]
    budgets = values.budgets.split(",")
    options = Options(
        ctx=depths[-1] + 128,
        mem=values.mem,
        kv=values.kv,
        kv_dir=values.kv_dir,
        threads=values.threads,
        prefill="hga",
    )
    with Engine.open(values.model, options) as engine, engine.session() as session:
        text = values.file.read_text(encoding="utf-8", errors="replace")
        ids = engine.tokenizer.encode(text[: 8 * options.ctx])
        ids = (ids * -(-options.ctx // len(ids)))[: options.ctx]
        rows: list[dict[str, object]] = []
        for depth in depths:
            start, begin = len(session.tokens), time.perf_counter()
            session.feed(ids[start:depth])
            seconds = time.perf_counter() - begin
            row: dict[str, object] = {"depth": depth, "prefill_tps": (depth - start) / seconds}
            for budget in budgets:
                row[budget] = routed(session, ids[depth:], budget)
            row["dense_ms"] = dense(session, ids[depth:])
            row["resident"] = engine.resident_bytes()
            rows.append(row)
            print(json.dumps(row), flush=True)
        bill = total(engine.bill())
        result = {"model": str(values.model), "bill": bill, "io": engine.io, "rows": rows}
        print(json.dumps(result))
    if values.plot:
        plot(rows, budgets, values.plot)


if __name__ == "__main__":
    main()
