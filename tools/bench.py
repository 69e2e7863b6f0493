"""`hga bench`: prefill and decode speed at given depths, in the shape of llama-bench.

The roofline comes first: bytes that a decoded token must read over the memory bandwidth measured
here and now, so that a figure can be judged on any machine. Tokens are random; every repetition
starts from the same cached depth. Standard output gets the table, and the JSON object last.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hga.kernels.ops import default_threads
from hga.models.plan import MoePlan
from hga.tools import plots
from hga.tools.errors import OK, UsageError
from hga.tools.figures import attended_bytes
from hga.tools.run import engine_options, open_engine
from hga.tools.status import Status, size

if TYPE_CHECKING:
    from hga.runtime.engine import Engine
    from hga.runtime.session import Session

_BANDWIDTH_BYTES = 256 << 20
_BANDWIDTH_TRIES = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One test: `pp512` prefills, `tg128` decodes, `@ d4096` after so many cached tokens.

    Speeds are tokens per second; `roofline` is what memory bandwidth allows (decode alone),
    `attended` the tokens that a decoded token attended, mean over layers. What was read is of the
    last repetition.
    """

    test: str
    depth: int
    tps: float
    tps_std: float
    samples: list[float]
    attended: float | None
    roofline: float | None = None
    # Where keys and values, or experts, lie on disk: bytes read a token, the share of the time that
    # was spent waiting for them, and how much was found in memory.
    disk_bytes: int = 0
    stall_share: float | None = None
    kv_hit_rate: float | None = None
    expert_hit_rate: float | None = None
    expert_recall: float | None = None
    expert_precision: float | None = None


def bench(model: str | None, values: argparse.Namespace, status: Status) -> int:
    """The command; returns the exit code."""
    prompts, depths = sorted(set(values.n_prompt)), sorted(set(values.n_depth))
    n_gen = values.n_gen
    if not any(prompts) and not n_gen:
        raise UsageError("nothing to measure: -p and -n are both 0")
    plots.check(values.plot)
    values.ctx = max(depths) + max(*prompts, n_gen, 1) + 1
    with open_engine(model, engine_options(values), values, status) as engine:
        bandwidth = memory_bandwidth(engine.options.threads or default_threads())
        weights = weight_bytes(engine)
        if values.output_format == "md":
            print(
                f"{engine.backend}; {size(bandwidth)}/s read; {size(weights)} of weights a token: "
                f"at most {bandwidth / weights:,.0f} tok/s at depth 0\n"
            )
            print(_head(_reads_disk(engine)))
        rows = []
        for row in _rows(engine, prompts, n_gen, depths, values.repetitions, bandwidth, status):
            rows.append(row)
            if values.output_format == "md":
                print(_markdown(row, _reads_disk(engine)), flush=True)
        result = {
            "model": model or "demo",
            "backend": engine.backend,
            "attention": engine.options.attention,
            "budget": engine.options.budget,
            "bandwidth": round(bandwidth),
            "weight_bytes_per_token": weights,
            "rows": [asdict(row) for row in rows],
        }
        if engine.experts is not None:
            result["expert_layer_hit_rates"] = engine.experts.layer_hit_rates
    if values.plot is not None:
        plots.bench(result, values.plot)
    sys.stdout.write(("\n" if values.output_format == "md" else "") + json.dumps(result) + "\n")
    return OK


def _rows(
    engine: "Engine",
    prompts: Sequence[int],
    n_gen: int,
    depths: Sequence[int],
    repetitions: int,
    bandwidth: float,
    status: Status,
) -> Iterator[Row]:
    random = np.random.default_rng(0)
    measure = partial(_measure, engine)

    def ids(count: int) -> list[int]:
        return [int(i) for i in random.integers(0, engine.plan.vocab_size, count)]

    with engine.session() as session:
        for depth in depths:
            missing = depth - len(session.tokens)
            if missing > 0:
                with status.bar(f"depth {depth:,}", "tokens") as report:
                    session.feed(ids(missing), report)
            for count in prompts:
                if count:
                    block = ids(count)

                    def prefill(block: list[int] = block) -> None:
                        session.feed(block)

                    yield measure(session, depth, f"pp{count}", count, repetitions, prefill)
            if n_gen:
                tokens = ids(n_gen)

                def decode(tokens: list[int] = tokens) -> None:
                    for token in tokens:
                        session.step(token)

                row = measure(session, depth, f"tg{n_gen}", n_gen, repetitions, decode)
                read = weight_bytes(engine) + (attended_bytes(engine, row.attended) or 0)
                yield replace(row, roofline=bandwidth / read)


def _measure(
    engine: "Engine",
    session: "Session",
    depth: int,
    test: str,
    n_tokens: int,
    repetitions: int,
    run: Callable[[], None],
) -> Row:
    """Time `run` from the depth again and again; the first time only warms up."""
    speeds = []
    for repetition in range(repetitions + 1):
        session.truncate(depth)
        session.reset_stats()
        begin = time.perf_counter()
        run()
        if repetition:
            speeds.append(n_tokens / (time.perf_counter() - begin))
    stats = session.stats
    # All threads wait for keys and values; for experts the first one, on behalf of all, and on a
    # card's behalf the only one.
    all_wait = engine.placement.on_disk and not engine.on_card
    waiting = engine.options.threads or default_threads() if all_wait else 1
    seconds = waiting * n_tokens / speeds[-1]
    session.truncate(depth)
    return Row(
        test if depth == 0 else f"{test} @ d{depth}",
        depth,
        statistics.fmean(speeds),
        statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        [round(speed, 3) for speed in speeds],
        stats.attended_mean,
        disk_bytes=stats.disk_bytes // n_tokens,
        stall_share=stats.stall_s / seconds if stats.disk_bytes else None,
        kv_hit_rate=stats.kv_hit_rate,
        expert_hit_rate=stats.expert_hit_rate,
        expert_recall=stats.experts.recall,
        expert_precision=stats.experts.precision,
    )


def _reads_disk(engine: "Engine") -> bool:
    return engine.placement.on_disk or engine.experts is not None


def _head(disk: bool) -> str:
    names = ["test", "tok/s", "attended", "of the roofline"]
    if disk:
        names += ["disk a token", "waiting", "in memory"]
    return f"| {' | '.join(names)} |\n| --- |{' ---: |' * (len(names) - 1)}"


def _markdown(row: Row, disk: bool) -> str:
    def percent(share: float | None) -> str:
        return "" if share is None else f"{100 * share:.0f} %"

    attended = "" if row.attended is None else f"{row.attended:,.0f}"
    share = "" if row.roofline is None else percent(row.tps / row.roofline)
    cells = [row.test, f"{row.tps:,.1f} ± {row.tps_std:.1f}", attended, share]
    if disk:
        rates = {"experts": row.expert_hit_rate, "keys and values": row.kv_hit_rate}
        found = [f"{percent(rate)} of {name}" for name, rate in rates.items() if rate is not None]
        cells += [size(row.disk_bytes), percent(row.stall_share), ", ".join(found)]
    return f"| {' | '.join(cells)} |"


def weight_bytes(engine: "Engine") -> int:
    """Bytes of weights that one decoded token reads: all of the trunk but the rows of the input
    embedding that it does not look up, and the experts that run."""
    model, plan = engine.model, engine.plan
    total = 0.0
    for role in model.roles:
        if role == "embed" and not plan.tied_head:
            continue
        share = 1.0
        if ".experts." in role:
            mlp = plan.layers[int(role.split(".")[1])].mlp
            if isinstance(mlp, MoePlan):
                share = mlp.n_experts_used / mlp.n_experts
        total += share * model.tensor(role).data.nbytes
    return round(total)


def memory_bandwidth(n_threads: int) -> float:
    """Bytes per second that so many threads read from memory, the best of some tries."""
    data = np.ones(_BANDWIDTH_BYTES // 8, np.int64)
    parts = np.array_split(data, n_threads)
    best = 0.0
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in range(_BANDWIDTH_TRIES):
            begin = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = max(best, data.nbytes / (time.perf_counter() - begin))
    return best
