"""Thousands of short turns in one process: does anything grow?

    python bench/soak.py MODEL [--turns 2000] [--kv ram|disk] [--session]

Turns of a few tokens are asked one after another, the conversation is cleared whenever half of the
context is full, and a named session is saved after every turn. Resident memory, file descriptors,
threads and the arena's bytes at their most in the second tenth (caches are warm by then) are
compared with those in the last. The roofline of a leak is nothing: the exit code is 1 where memory
grew by more than 2 % or anything else at all. The last line is JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from hga.runtime.engine import Engine
from hga.runtime.options import Options
from hga.runtime.sampler import SamplerOptions
from hga.tools.conversation import Conversation

# Of resident memory: the allocator's arenas settle within it.
MOST_GROWTH = 0.02
ASKED = ("Why is the sky blue?", "And the sea?", "Say it in one word.", "Thank you.")


@dataclass(frozen=True, slots=True)
class Sample:
    """What the process holds; `arena_bytes` of keys and values."""

    rss_bytes: int
    n_descriptors: int
    n_threads: int
    arena_bytes: int


def sample(conversation: Conversation) -> Sample:
    """A look at this process."""
    process = psutil.Process()
    n_descriptors = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    return Sample(
        process.memory_info().rss, n_descriptors, process.num_threads(),
        conversation.session.kv_bytes,
    )  # fmt: skip


def most(samples: list[Sample]) -> Sample:
    """The largest of each figure."""
    return Sample(*(max(column) for column in zip(*(asdict(s).values() for s in samples))))


def soak(
    path: Path, n_turns: int, kv: str, named: bool, folder: Path, ctx: int
) -> dict[str, object]:
    """Run the turns; the figures, with `grew` naming what did."""
    options = Options(ctx=ctx, kv=kv, kv_dir=folder, sessions_dir=folder, attention="hga")
    cache = Path(os.environ["HGA_SOAK_CACHE"]) if "HGA_SOAK_CACHE" in os.environ else None
    with Engine.open(path, options, cache) as engine:
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
                early.append(sample(talk))
            elif turn >= n_turns - n_turns // 10:
                late.append(sample(talk))
        seconds = time.perf_counter() - begin
        session.close()
    first, last = most(early), most(late)
    grew = [
        name
        for name, before in asdict(first).items()
        if asdict(last)[name] > before * (1 + MOST_GROWTH * (name == "rss_bytes"))
    ]
    return {
        "turns": n_turns, "tokens": n_tokens, "seconds": round(seconds, 1), "kv": kv,
        "named": named, "longest_tokens": n_peak, "first": asdict(first), "last": asdict(last),
        "rss_growth": round(last.rss_bytes / first.rss_bytes - 1, 5), "grew": grew,
    }  # fmt: skip


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--turns", type=int, default=2000)
    parser.add_argument("--kv", choices=("ram", "disk"), default="ram")
    parser.add_argument("--session", action="store_true", help="a named one, saved every turn")
    parser.add_argument("--ctx", type=int, default=512)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hga-soak-") as folder:
        found = soak(given.model, given.turns, given.kv, given.session, Path(folder), given.ctx)
    print(f"{found['turns']} turns, {found['tokens']} tokens in {found['seconds']} s")
    for name in ("first", "last"):
        print(f"{name:6} {found[name]}")
    print(json.dumps(found))
    return int(bool(found["grew"]))


if __name__ == "__main__":
    sys.exit(main())
