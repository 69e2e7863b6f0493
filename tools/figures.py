"""The figures of a turn: the JSON object of --json and the line after a reply.

Every key of interface.md is always present; a figure that does not apply is null.
"""

from typing import TYPE_CHECKING

from hga.kernels.system import peak_memory
from hga.kvstore.geometry import BLOCK_TOKENS
from hga.tools.status import rate, size
from hga.tools.turns import Reply

if TYPE_CHECKING:
    from hga.runtime.engine import Engine
    from hga.runtime.session import Session


def reply_json(reply: Reply, session: "Session", engine: "Engine") -> dict[str, object]:
    """The object that --json prints."""
    return {
        "text": reply.text,
        "tokens": reply.tokens,
        "prompt_tokens": reply.prompt_tokens,
        "reused_tokens": reply.reused_tokens,
        "prefill_tps": _rounded(rate(reply.new_tokens, reply.prefill_s)),
        "decode_tps": _rounded(rate(len(reply.tokens), reply.decode_s)),
        "ctx": engine.ctx,
        "attended_mean": _rounded(session.stats.attended_mean),
        "peak_rss": peak_memory(),
        "kv_bytes": session.kv_bytes,
        "read_bytes": session.stats.read_bytes,
        "expert_hit_rate": _rounded(session.stats.expert_hit_rate),
        "kv_hit_rate": _rounded(session.stats.kv_hit_rate),
        "io": engine.io,
        "backend": engine.backend,
        "stop": reply.stop,
        "kv": "disk" if session.on_disk else "ram",
        "disk_bytes": session.stats.disk_bytes,
        "stall_s": _rounded(session.stats.stall_s),
        "index_bytes": session.stats.index_bytes,
        **_expert_figures(session, engine),
    }


def _expert_figures(session: "Session", engine: "Engine") -> dict[str, object]:
    """How well the next layer's experts were foretold in this turn, what was read for nothing, and
    since the engine was opened the share of uses that cost no read by layer; null where experts
    are not read."""
    if engine.experts is None:
        names = ("recall", "precision", "wasted_bytes", "layer_hit_rates")
        return {f"expert_{name}": None for name in names}
    reads = session.stats.experts
    wasted = reads.hints - reads.withdrawn - reads.foreseen
    return {
        "expert_recall": _rounded(reads.recall),
        "expert_precision": _rounded(reads.precision),
        "expert_wasted_bytes": wasted * engine.experts.slot_bytes,
        "expert_layer_hit_rates": [_rounded(rate) for rate in engine.experts.layer_hit_rates],
    }


def turn_line(reply: Reply, session: "Session", engine: "Engine") -> str:
    """The line after a turn: tokens reused and new, speeds, tokens attended, memory."""
    prefill = rate(reply.new_tokens, reply.prefill_s)
    decode = rate(len(reply.tokens), reply.decode_s)
    parts = [f"{reply.reused_tokens:,} reused + {reply.new_tokens:,} new tokens"]
    if prefill is not None:
        parts.append(f"prefill {prefill:,.0f} tok/s")
    if decode is not None:
        parts.append(f"decode {len(reply.tokens):,} at {decode:,.1f} tok/s")
    stats = session.stats
    if stats.attended_mean is not None:
        parts.append(f"attended {stats.attended_mean:,.0f}")
    if stats.read_bytes:
        parts.append(f"read {size(stats.read_bytes)}")
    if stats.kv_hit_rate is not None:
        parts.append(f"{100 * stats.kv_hit_rate:.1f} % in memory")
    if stats.expert_hit_rate is not None:
        parts.append(f"{100 * stats.expert_hit_rate:.1f} % of experts in memory")
    if stats.disk_bytes:
        parts.append(f"disk {size(stats.disk_bytes)}")
    budget = engine.options.mem
    memory = f"memory {size(engine.resident_bytes())}"
    parts.append(memory if budget is None else f"{memory} of {size(budget)}")
    return f"[{', '.join(parts)}]"


def attended_bytes(engine: "Engine", attended: float | None) -> int | None:
    """Keys and values that one decoded token reads, where every layer takes the same bytes for a
    token; None where they differ or nothing was decoded."""
    geometry = engine.geometry
    sizes = {geometry.page_bytes(layer) for layer in range(len(geometry.layers))}
    if attended is None or len(sizes) != 1:
        return None
    return round(attended * geometry.block_kv_bytes / BLOCK_TOKENS)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
