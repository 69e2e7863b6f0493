"""Thousands of short turns, or one very long reply, in one process: does anything grow?

    python bench/soak.py MODEL [--turns 2000] [--kv ram|disk] [--session] [--mem 600m]
    python bench/soak.py MODEL --generate 200000 [--kv ram|disk] [--session] [--mem 600m]

Turns of a few tokens are asked one after another, the conversation is cleared whenever half of the
context is full, and a named session is saved after every turn. With --generate a single reply of so
many tokens is sampled, and what the context itself is planned to take (keys, values, sketches,
tables, token ids) is counted apart from what is resident beyond it. Resident memory, file
descriptors, threads and the arena's bytes at their most in the second tenth (caches are warm by
then) are compared with those in the last. The roofline of a leak is nothing: the exit code is 1
where memory grew by more than 2 % or anything else at all. The last line is JSON.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from hga.kvstore.disk_arena import DiskArena
from hga.kvstore.geometry import CELLS_PER_BLOCK, n_blocks
from hga.runtime.engine import Engine
from hga.runtime.options import Options, parse_size
from hga.runtime.planning import disk_bytes as planned_on_disk
from hga.runtime.sampler import Sampler, SamplerOptions
from hga.runtime.session import Session
from hga.tools.conversation import Conversation

# Of resident memory: the allocator's arenas settle within it.
MOST_GROWTH = 0.02
ASKED = ("Why is the sky blue?", "And the sea?", "Say it in one word.", "Thank you.")
SAMPLES = 100
# A token's id in a list, where it is one of those that Python keeps once; others take 32 more.
ID_BYTES = 12


@dataclass(frozen=True, slots=True)
class Sample:
    """What the process holds; `arena_bytes` of keys and values in memory."""

    rss_bytes: int
    n_descriptors: int
    n_threads: int
    arena_bytes: int


def sample(session: Session, planned: int = 0) -> Sample:
    """A look at this process; `planned` is left out of what is resident."""
    process = psutil.Process()
    n_descriptors = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    n_descriptors -= segment_descriptors()
    return Sample(
        process.memory_info().rss - planned, n_descriptors, process.num_threads(), session.kv_bytes
    )


def segment_descriptors() -> int:
    """Open files that hold keys and values: some per segment, of which there are by the logarithm
    of the context (kvstore/slots.py)."""
    folder, found = Path("/proc/self/fd"), 0
    for link in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            found += os.readlink(link).endswith(".kv")
    return found


def most(samples: list[Sample]) -> Sample:
    """The largest of each figure."""
    return Sample(*(max(column) for column in zip(*(asdict(s).values() for s in samples))))


def compared(early: list[Sample], late: list[Sample]) -> dict[str, object]:
    """The most of both, and what grew."""
    first, last = most(early), most(late)
    grew = [
        name
        for name, before in asdict(first).items()
        if asdict(last)[name] > before * (1 + MOST_GROWTH * (name == "rss_bytes"))
    ]
    growth = round(last.rss_bytes / first.rss_bytes - 1, 5)
    return {"first": asdict(first), "last": asdict(last), "rss_growth": growth, "grew": grew}


def opened(path: Path, kv: str, mem: int | None, folder: Path, ctx: int) -> Engine:
    """An engine whose files lie in a folder."""
    options = Options(ctx=ctx, kv=kv, kv_dir=folder, sessions_dir=folder, mem=mem, attention="hga")
    cache = Path(os.environ["HGA_SOAK_CACHE"]) if "HGA_SOAK_CACHE" in os.environ else None
    return Engine.open(path, options, cache)


def soak(
    path: Path, n_turns: int, kv: str, named: bool, folder: Path, ctx: int, mem: int | None = None
) -> dict[str, object]:
    """Run the turns; the figures, with `grew` naming what did."""
    with opened(path, kv, mem, folder, ctx) as engine:
        session = engine.session("soak" if named else None)
        talk = Conversation(
            engine, session, SamplerOptions(temperature=0.0), chat=engine.template is not None,
            predict=8,
        )  # fmt: skip
        early, late = [], []
        begin, n_tokens, n_peak = time.perf_counter(), 0, 0
        for turn in range(n_turns):
            if talk.n_tokens > engine.ctx // 2:
                n_peak = max(n_peak, talk.n_tokens)
                talk.clear()
            reply = talk.ask(ASKED[turn % len(ASKED)], lambda piece: None)
            n_tokens += reply.new_tokens + len(reply.tokens)
            if named:
                session.save(talk.note())
            # Over whole conversations: what is held goes up and down within one.
            if n_turns // 10 <= turn < n_turns // 5:
                early.append(sample(talk.session))
            elif turn >= n_turns - n_turns // 10:
                late.append(sample(talk.session))
        seconds = time.perf_counter() - begin
        session.close()
    return {
        "turns": n_turns, "tokens": n_tokens, "seconds": round(seconds, 1), "kv": kv,
        "named": named, "longest_tokens": n_peak, **compared(early, late),
    }  # fmt: skip


def planned_bytes(engine: Engine, session: Session) -> int:
    """Memory that the tokens of a session are planned to take, as far as it grows with them."""
    geometry, n = engine.geometry, len(session.tokens)
    found = geometry.sketch_bytes(n) + geometry.scale_bytes(n) + ID_BYTES * n
    heads = sum(shape.n_kv_heads for shape in geometry.layers)
    if session.on_disk:
        return found + n_blocks(n) * (heads * CELLS_PER_BLOCK * 12 + 24 * len(geometry.layers))
    return found + geometry.kv_bytes(n) + n_blocks(n) * heads * CELLS_PER_BLOCK * 8


def generate(
    path: Path, n_tokens: int, kv: str, named: bool, folder: Path, mem: int | None = None
) -> dict[str, object]:
    """Sample one reply of n_tokens; the figures, with `grew` naming what did. Resident memory
    counts beyond `planned_bytes`."""
    with opened(path, kv, mem, folder, n_tokens + 64) as engine:
        session = engine.session("soak" if named else None)
        session.feed(engine.tokenizer.encode(ASKED[0])[:32])
        decoder, n_chars, samples, disk_bytes = engine.tokenizer.decoder(), 0, [], 0
        peak = n_files = 0
        begin, every = time.perf_counter(), max(1, n_tokens // SAMPLES)
        reply = session.generate(Sampler(SamplerOptions(seed=1)), n_tokens, ())
        for n, token in enumerate(reply, 1):
            n_chars += len(decoder.push(token))
            if n % every == 0:
                samples.append(sample(session, planned_bytes(engine, session)))
                peak = max(peak, psutil.Process().memory_info().rss)
                n_files = max(n_files, segment_descriptors())
                if isinstance(session.arena, DiskArena):
                    disk_bytes = max(disk_bytes, session.arena.store.disk_bytes)
        seconds = time.perf_counter() - begin
        stop, n_kept = session.stop_reason, len(session.tokens)
        if named:
            session.save()
        found = compared(samples[SAMPLES // 10 : SAMPLES // 5], samples[-SAMPLES // 10 :])
        if kv == "ram":
            # That the arena in memory grows is the plan, and counted by it.
            found["grew"] = [name for name in found["grew"] if name != "arena_bytes"]
        announced = planned_on_disk(engine.geometry, engine.ctx)
        session.close()
        bill = sum(line.n_bytes for line in engine.bill())
    return {
        "tokens": n_kept, "stop": stop, "chars": n_chars, "seconds": round(seconds, 1), "kv": kv,
        "named": named, "mem": mem, "bill": bill, "peak_rss": peak, "segment_descriptors": n_files,
        "disk_bytes": disk_bytes, "announced_disk_bytes": announced if kv == "disk" else 0, **found,
    }  # fmt: skip


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--turns", type=int, default=2000)
    parser.add_argument("--generate", type=int, help="one reply of so many tokens instead")
    parser.add_argument("--kv", choices=("ram", "disk"), default="ram")
    parser.add_argument("--mem", type=parse_size)
    parser.add_argument("--session", action="store_true", help="a named one, saved every turn")
    parser.add_argument("--ctx", type=int, default=512)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hga-soak-") as name:
        folder, kind = Path(name), (given.kv, given.session)
        if given.generate:
            found = generate(given.model, given.generate, *kind, folder, given.mem)
        else:
            found = soak(given.model, given.turns, *kind, folder, given.ctx, given.mem)
    print(f"{found['tokens']} tokens in {found['seconds']} s")
    for name in ("first", "last"):
        print(f"{name:6} {found[name]}")
    print(json.dumps(found))
    return int(bool(found["grew"]))


if __name__ == "__main__":
    sys.exit(main())
