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
from typing import TYPE_CHECKING

import numpy as np

from hga.kernels.ops import default_threads
from hga.models.plan import MoePlan
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
    `attended` the tokens that a decoded token attended, mean over layers.
    """

    test: str
    depth: int
    tps: float
    tps_std: float
    samples: list[float]
    attended: float | None
    roofline: float | None = None


def bench(model: str | None, values: argparse.Namespace, status: Status) -> int:
    """The command; returns the exit code."""
    prompts, depths = sorted(set(values.n_prompt)), sorted(set(values.n_depth))
    n_gen = values.n_gen
    if not any(prompts) and not n_gen:
        raise UsageError("nothing to measure: -p and -n are both 0")
    values.ctx = max(depths) + max(*prompts, n_gen, 1) + 1
    with open_engine(model, engine_options(values), values, status) as engine:
        bandwidth = memory_bandwidth(engine.options.threads or default_threads())
        weights = weight_bytes(engine)
        if values.output_format == "md":
            print(
                f"{engine.backend}; {size(bandwidth)}/s read; {size(weights)} of weights a token: "
                f"at most {bandwidth / weights:,.0f} tok/s at depth 0\n"
            )
            print("| test | tok/s | attended | of the roofline |\n| --- | ---: | ---: | ---: |")
        rows = []
        for row in _rows(engine, prompts, n_gen, depths, values.repetitions, bandwidth, status):
            rows.append(row)
            if values.output_format == "md":
                print(_markdown(row), flush=True)
        result = {
            "model": model or "demo",
            "backend": engine.backend,
            "attention": engine.options.attention,
            "budget": engine.options.budget,
            "bandwidth": round(bandwidth),
            "weight_bytes_per_token": weights,
            "rows": [asdict(row) for row in rows],
        }
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

                    yield _measure(session, depth, f"pp{count}", count, repetitions, prefill)
            if n_gen:
                tokens = ids(n_gen)

                def decode(tokens: list[int] = tokens) -> None:
                    for token in tokens:
                        session.step(token)

                row = _measure(session, depth, f"tg{n_gen}", n_gen, repetitions, decode)
                read = weight_bytes(engine) + (attended_bytes(engine, row.attended) or 0)
                yield replace(row, roofline=bandwidth / read)


def _measure(
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
    attended = session.stats.attended_mean
    session.truncate(depth)
    return Row(
        test if depth == 0 else f"{test} @ d{depth}",
        depth,
        statistics.fmean(speeds),
        statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        [round(speed, 3) for speed in speeds],
        attended,
    )


def _markdown(row: Row) -> str:
    attended = "" if row.attended is None else f"{row.attended:,.0f}"
    share = "" if row.roofline is None else f"{100 * row.tps / row.roofline:.0f} %"
    return f"| {row.test} | {row.tps:,.1f} ± {row.tps_std:.1f} | {attended} | {share} |"


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
