"""Tokens per second of hga and llama.cpp on one GGUF, in turns, with the ratios and their spread.

    python bench/vs_llama_cpp.py MODEL.gguf [-p 512,4096] [-d 0,4096,16384] [-n 32] [-r 5] [-t 2]
        [-f TEXT] [--requantize q4_0]

Each engine has a process of its own that holds its model and waits while the other one is measured:
hga with its default attention, hga with dense attention, llama.cpp with flash attention and without
(which is faster depends on its version and the depth), float16 keys and values. A round takes all
of them once; a ratio is of one round, to the faster llama.cpp. Depths are filled once by a prompt
of real text (by default the documentation that comes with Python): what routing reads depends on
it. `--requantize` adds llama.cpp on its own conversion of the file, which it can repack for
this processor. llama.cpp comes from llama-cpp-python, built for this processor:

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python llama-cpp-python

Prints a table and one JSON object.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from pydoc_data import topics
from typing import Any, Protocol

_CTX_ROOM = 64
_PEER, _FLASH = "llama.cpp", " fa"
_N_BATCH = 512


class Runner(Protocol):
    """One engine with one timeline of tokens, those of a text; ids holds as many as may be asked
    for."""

    ids: list[int]

    def reach(self, depth: int) -> None:
        """Have so many tokens of the text cached."""

    def prefill(self, tokens: list[int]) -> None:
        """Append a prompt."""

    def decode(self, tokens: list[int]) -> None:
        """Append tokens one by one."""


class HgaRunner:
    """hga, by its Python interface; `text` may be token ids."""

    def __init__(
        self, model: str, ctx: int, threads: int, text: str | list[int], **options: Any
    ) -> None:
        from hga.runtime import Engine, Options
        from hga.tools.resolve import resolve
        from hga.tools.status import Status

        path = resolve(model, Status(quiet=True))
        self._engine = Engine.open(path, Options(ctx=ctx, threads=threads, **options))
        self.session = self._engine.session()
        self.ids = self._engine.tokenizer.encode(text) if isinstance(text, str) else text
        self.backend = self._engine.backend

    def reach(self, depth: int) -> None:
        self.session.truncate(min(depth, len(self.session.tokens)))
        if depth > len(self.session.tokens):
            self.session.feed(self.ids[len(self.session.tokens) : depth])

    def prefill(self, tokens: list[int]) -> None:
        self.session.feed(tokens)

    def decode(self, tokens: list[int]) -> None:
        for token in tokens:
            self.session.step(token)


_kept: list[Any] = []


def silence(llama_cpp: Any) -> None:
    """Drop what llama.cpp says while it loads."""
    _kept.append(llama_cpp.llama_log_callback(lambda level, text, data: None))
    llama_cpp.llama_log_set(_kept[-1], None)


class LlamaRunner:
    """llama.cpp, by llama-cpp-python; one call of llama_decode a token; `text` may be token ids."""

    def __init__(
        self,
        model: str,
        ctx: int,
        threads: int,
        text: str | list[int],
        flash: bool,
        repack: bool = True,
    ) -> None:
        import llama_cpp

        silence(llama_cpp)
        if not repack:
            # Repacked weights are a copy in memory, of which nothing can be given up.
            params = llama_cpp.llama_model_default_params()
            params.use_extra_bufts = False
            llama_cpp.llama_cpp.llama_model_default_params = lambda: params
        self._llama = llama_cpp.Llama(
            model,
            n_ctx=ctx,
            n_threads=threads,
            n_threads_batch=threads,
            n_batch=_N_BATCH,
            n_ubatch=_N_BATCH,
            flash_attn=flash,
            verbose=False,
        )
        is_text = isinstance(text, str)
        self.ids = self._llama.tokenize(text.encode(), add_bos=False) if is_text else text
        self.backend = f"llama-cpp-python {llama_cpp.__version__}"

    def reach(self, depth: int) -> None:
        # What lies behind n_tokens is dropped by the next call.
        self._llama.n_tokens = min(depth, self._llama.n_tokens)
        if depth > self._llama.n_tokens:
            self._llama.eval(self.ids[self._llama.n_tokens : depth])

    def prefill(self, tokens: list[int]) -> None:
        self._llama.eval(tokens)

    def decode(self, tokens: list[int]) -> None:
        for token in tokens:
            self._llama.eval([token])


def _serve(
    pipe: Connection, group: Path | None, make: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
    *plain, options = arguments
    runner = make(*plain, **options)
    pipe.send((runner.backend, len(runner.ids)))
    while True:
        try:
            name, depth, count = pipe.recv()
        except EOFError:
            return
        runner.reach(depth)
        tokens = runner.ids[depth : depth + count]
        begin = time.perf_counter()
        getattr(runner, name)(tokens)
        pipe.send(time.perf_counter() - begin)


class Worker:
    """A runner in a process of its own, which enters the control group `group` first."""

    def __init__(
        self, make: Callable[..., Any], *arguments: Any, group: Path | None = None, **options: Any
    ) -> None:
        self._pipe, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        given = (other, group, make, (*arguments, options))
        self._process = context.Process(target=_serve, args=given, daemon=True)
        self._process.start()
        other.close()
        try:
            self.backend, self.n_ids = self._pipe.recv()
        except EOFError:
            self.close()
            raise SystemExit(f"{make.__name__} ended with {self._process.exitcode}") from None

    def seconds(self, test: str, depth: int, count: int) -> float:
        """Time of one `prefill` or `decode` of count tokens at a depth."""
        self._pipe.send((test, depth, count))
        return float(self._pipe.recv())

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)


@contextlib.contextmanager
def requantized(model: str, kind: str | None) -> Iterator[str | None]:
    """A copy of a GGUF whose tensors llama.cpp converted."""
    if kind is None:
        yield None
        return
    import llama_cpp

    silence(llama_cpp)
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / f"{Path(model).stem}.{kind}.gguf")
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
        params.allow_requantize = True
        if llama_cpp.llama_model_quantize(model.encode(), out.encode(), params):
            raise SystemExit(f"llama.cpp cannot convert {model} to {kind}")
        yield out


def measure(
    workers: dict[str, Worker], test: str, depth: int, count: int, rounds: int
) -> dict[str, Any]:
    """Median tokens per second by engine; for each of ours and each file that llama.cpp runs the
    median, least and most of the ratios to the faster llama.cpp of the round."""
    speeds: dict[str, list[float]] = {name: [] for name in workers}
    for worker in workers.values():
        worker.seconds(test, depth, count)
    for _ in range(rounds):
        for name, worker in workers.items():
            speeds[name].append(count / worker.seconds(test, depth, count))
    row: dict[str, Any] = {"test": test, "depth": depth, "tokens": count, "ratios": {}}
    row["speeds"] = {name: round(statistics.median(s), 1) for name, s in speeds.items()}
    peers = sorted({name.removesuffix(_FLASH) for name in workers if name.startswith(_PEER)})
    for ours in (name for name in workers if not name.startswith(_PEER)):
        for peer in peers:
            best = [max(pair) for pair in zip(speeds[peer], speeds[peer + _FLASH])]
            ratios = [a / b for a, b in zip(speeds[ours], best)]
            spread = (statistics.median(ratios), min(ratios), max(ratios))
            row["ratios"][f"{ours} / {peer}"] = [round(x, 2) for x in spread]
    return row


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a GGUF file")

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",") if part]

    parser.add_argument("-p", "--prompts", type=numbers, default=[512, 4096])
    parser.add_argument("-d", "--depths", type=numbers, default=[0, 4096])
    parser.add_argument("-n", "--tokens", type=int, default=32)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("-f", "--file", type=Path, help="a text, of as many tokens as asked for")
    parser.add_argument("--requantize", metavar="KIND", help="such as q4_0")
    values = parser.parse_args()
    most = max([*values.prompts, *(d + values.tokens for d in values.depths)])
    ctx = most + _CTX_ROOM
    text = values.file.read_text("utf-8") if values.file else "\n\n".join(topics.topics.values())
    # More bytes than tokens of any vocabulary have; the rest need not be encoded.
    text = text[: 16 * ctx]
    with requantized(values.model, values.requantize) as converted:
        common = (ctx, values.threads, text)
        workers = {
            "hga": Worker(HgaRunner, values.model, *common, attention="hga"),
            "hga dense": Worker(HgaRunner, values.model, *common, attention="dense"),
        }
        for name, file in ((_PEER, values.model), (f"{_PEER} {values.requantize}", converted)):
            if file:
                for flash in (False, True):
                    label = name + _FLASH * flash
                    workers[label] = Worker(LlamaRunner, file, *common, flash=flash)
        if min(worker.n_ids for worker in workers.values()) < most:
            parser.error(f"the text has fewer than {most} tokens (-f names another)")
        tests = [("decode", depth, values.tokens) for depth in sorted(values.depths)]
        # A prompt is computed alike by both of hga's attentions.
        tests += [("prefill", 0, count) for count in values.prompts]
        backends = sorted({worker.backend for worker in workers.values()})
        print(f"{', '.join(backends)}; {values.threads} threads")
        print(f"| test | {' | '.join(workers)} | ratio (least, most of {values.rounds} rounds) |")
        print("| --- |" + " ---: |" * len(workers) + " --- |")
        rows = []
        for test, depth, count in tests:
            taking = {n: w for n, w in workers.items() if test == "decode" or n != "hga dense"}
            rows.append(row := measure(taking, test, depth, count, values.rounds))
            label = f"{test} {count}" + (f" @ {depth}" if depth else "")
            found = "; ".join(f"{k} {v[0]} ({v[1]}, {v[2]})" for k, v in row["ratios"].items())
            speeds = [row["speeds"].get(name) for name in workers]
            cells = " | ".join("" if s is None else f"{s:,.1f}" for s in speeds)
            print(f"| {label} | {cells} | {found} |", flush=True)
        for worker in workers.values():
            worker.close()
    print(json.dumps({"model": Path(values.model).name, "threads": values.threads, "rows": rows}))


if __name__ == "__main__":
    main()
