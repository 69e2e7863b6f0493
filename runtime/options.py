"""Options: what a caller may ask of an engine, parsed once and never changed.

Invariant: an Options value exists only if this version can honour it; a value that it knows but
cannot honour yet is refused by name. Sizes are bytes, lengths are tokens; `k`, `m` and `g` are
powers of 1024, as llama.cpp's users and the design write them (64k = 65,536).
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hga.kvstore.route import Budget

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", re.IGNORECASE)
# More of either is a slip of the fingers, and sizes of tables would not be numbers any more.
_MOST_BYTES, _MOST_TOKENS = (1 << 60) - 1, (1 << 32) - 1
_TOKENS = re.compile(r"(\d+(?:\.\d+)?)([km]?)", re.IGNORECASE)

# What this version offers, and what design has a name for but no code yet.
_OFFERED = {
    "attention": ("hga", "hga-paper", "dense"),
    "prefill": ("exact", "hga"),
    "device": ("cpu", "cuda"),
    "kv_type": ("bf16", "q8"),
    "kv": ("auto", "ram", "disk"),
    "io": ("auto", "uring", "threads", "mmap"),
    "expert_hints": ("auto", "on", "off"),
}
_LATER: dict[str, tuple[str, ...]] = {}


class OptionError(ValueError):
    """An option has a value that is malformed, out of range or not available in this version."""


def parse_size(text: str) -> int:
    """Bytes of a size such as `6g`, `512MiB` or `4096`; raises OptionError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise OptionError(f"invalid size {text!r}: expected a number and k, m, g or t, such as 6g")
    size = float(match[1]) * _UNITS[match[2].lower()]
    if not 1 <= size <= _MOST_BYTES or size != math.floor(size):
        raise OptionError(
            f"invalid size {text!r:.80}: expected a whole, positive number of bytes, below 2^60"
        )
    return int(size)


def parse_tokens(text: str) -> int:
    """A length in tokens such as `4096`, `64k` or `1m`; raises OptionError."""
    match = _TOKENS.fullmatch(text.strip())
    if match is None:
        raise OptionError(f"invalid number of tokens {text!r}: expected for example 4096, 64k, 1m")
    tokens = float(match[1]) * _UNITS[match[2].lower()]
    if not 1 <= tokens <= _MOST_TOKENS or tokens != math.floor(tokens):
        raise OptionError(
            f"invalid number of tokens {text!r:.80}: expected a whole, positive number, below 2^32"
        )
    return int(tokens)


def parse_budget(text: str) -> Budget:
    """Tokens attended per query: `auto`, a percentage of the context such as `2%`, or a number of
    tokens such as `1024` or `2k`; raises OptionError."""
    try:
        return Budget.parse(text)
    except ValueError:
        raise OptionError(
            f"invalid budget {text!r}: expected auto, a percentage up to 100% such as 2%, "
            "or a number of tokens such as 1024"
        ) from None


def offered_for(name: str) -> tuple[str, ...]:
    """What this version offers for the option `name`."""
    return _OFFERED[name]


def require_available(name: str, value: str) -> None:
    """Raise OptionError unless this version offers `value` for the option `name`."""
    if value in _OFFERED[name]:
        return
    supported = f"supported: {', '.join(_OFFERED[name])}"
    if value in _LATER.get(name, ()):
        raise OptionError(f"{name} {value!r} is not available in this version ({supported})")
    raise OptionError(f"unknown {name} {value!r} ({supported})")


@dataclass(frozen=True, slots=True)
class Options:
    """What an engine is opened with.

    `ctx` is the longest timeline in tokens (None: the model's own, bounded by memory), `threads`
    the compute threads (None: the machine's cores), `mem` the byte budget for weights, KV, indices
    and scratch together (None: no limit), `attention` how single tokens attend (hga,
    hga-paper or dense), `budget` what `parse_budget` takes,
    `prefill` how prompts attend (exact or hga), `kv_type` how keys and values are stored (bf16: two
    bytes each, in fact float16, which rounds eight times more finely; q8: int8 with a scale for
    each token's key and value of a head, half the memory), `kv` where they lie (ram, disk, or
    auto: in memory if the budget holds them), `kv_dir` the folder for those on disk (None: one in
    the user's cache), `sessions_dir` that for named sessions (None: `kv_dir`, or one in the user's
    state folder), `io` how the disk is read (auto, uring, threads or mmap), `expert_cache` the
    bytes that hold experts of a mixture of experts (None: what the budget leaves, and no cache
    where that holds them all), `expert_hints` whether the next layer's experts are read ahead (on,
    off, or auto: while that is measured to help), and `sketch_bits` the bits per dimension of the
    sketches that routing reads (2, or 1 for half the index at some loss). `device` is where all is
    computed (cpu or cuda), `gpu_mem` the cap on a card's memory in bytes (None: no limit); with
    cuda, `mem` covers the host's and `kv` "ram" means pinned host memory.
    Raises OptionError on a value that this version cannot honour.
    """

    ctx: int | None = None
    threads: int | None = None
    attention: str = "hga"
    budget: str = "auto"
    mem: int | None = None
    device: str = "cpu"
    gpu_mem: int | None = None
    prefill: str = "exact"
    sketch_bits: int = 2
    kv_type: str = "bf16"
    kv: str = "auto"
    kv_dir: Path | None = None
    sessions_dir: Path | None = None
    io: str = "auto"
    expert_cache: int | None = None
    expert_hints: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        for name, value in (
            ("ctx", self.ctx),
            ("threads", self.threads),
            ("mem", self.mem),
            ("gpu_mem", self.gpu_mem),
            ("expert_cache", self.expert_cache),
        ):
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}: expected at least 1")
        require_available("attention", self.attention)
        require_available("device", self.device)
        require_available("prefill", self.prefill)
        require_available("kv_type", self.kv_type)
        require_available("kv", self.kv)
        require_available("io", self.io)
        require_available("expert_hints", self.expert_hints)
        if self.kv == "disk" and self.attention == "hga-paper":
            raise OptionError("attention 'hga-paper' reads every key: kv 'disk' cannot serve it")
        if self.sketch_bits not in (1, 2):
            raise OptionError(f"sketch_bits is {self.sketch_bits}: expected 1 or 2")
        parse_budget(self.budget)
