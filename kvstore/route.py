"""Router: how much of the past a decoded token reads, and the Route that says which groups.

Always read: the sink tokens at the start and the local window at the end. Between them the groups
of 8 tokens with the largest share of the attention mass, as key sketches estimate it, are chosen
per KV head: as many as the budget says, or all that have a share worth reading (`auto`;
kernels/cpu/layer_route.py, docs/method.md). A context within the budget is read whole.
"""

import re
from dataclasses import dataclass

from .geometry import CHUNK_TOKENS, GROUP_TOKENS

# Always read, where the budget has room for more (`always_read`).
SINK_TOKENS = 16
WINDOW_TOKENS = 64
# `auto` reads every group with this share of a query head's attention mass, as estimated, but no
# fewer tokens than the second number and no more than the third, or that share of the context, up
# to the fifth number.
AUTO_SHARE = 0.0005
AUTO_LEAST = 512
AUTO_MOST = 4096
AUTO_MOST_SHARE = 1 / 4
AUTO_MOST_EVER = 16384
# The published rule reads two chunks at the start and the last eight, and opens 20 chunks for
# 32 groups of 16 tokens (arXiv 2606.30709, the reference code's defaults).
PAPER_SINK_CHUNKS, PAPER_RECENT_CHUNKS = 2, 8
PAPER_CHUNKS, PAPER_GROUPS, PAPER_GROUP_TOKENS = 20, 32, 16

RULES = ("dense", "hga", "hga-paper", "oracle")

_BUDGET = re.compile(r"(?:(\d+(?:\.\d+)?)%|(\d+)(k?))", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Route:
    """The groups (of 8 tokens, counted from position 0, ascending) that each KV head reads, or
    each query head under the published rule."""

    groups: tuple[tuple[int, ...], ...]

    @property
    def attended_tokens(self) -> float:
        """Mean tokens read by a head."""
        return GROUP_TOKENS * sum(map(len, self.groups)) / len(self.groups)


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens attended per query: a count, a share of the context, or automatic."""

    tokens: int = 0
    share: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """ "auto", "2%", "1024" or "4k"; ValueError otherwise."""
        if text == "auto":
            return cls()
        match = _BUDGET.fullmatch(text.strip())
        if match and match[1] is not None:
            share = float(match[1]) / 100
            if 0 < share <= 1:
                return cls(share=share)
        elif match and int(match[2]) > 0:
            return cls(tokens=int(match[2]) * (1024 if match[3] else 1))
        raise ValueError(
            f"budget {text!r} is neither auto, a number of tokens (1024) nor a share (2%)"
        )

    @property
    def automatic(self) -> bool:
        """Whether the attention mass decides."""
        return not self.tokens and not self.share

    def tokens_at(self, n_tokens: int) -> int:
        """The most tokens to attend when n_tokens are cached."""
        if self.tokens:
            return self.tokens
        if self.share:
            return int(self.share * n_tokens)
        return max(AUTO_MOST, min(int(AUTO_MOST_SHARE * n_tokens), AUTO_MOST_EVER))


@dataclass(frozen=True, slots=True)
class Limits:
    """What the routing kernel is told for one token; counts are of groups of 8 tokens.

    rule: an index of RULES; least and most: groups chosen between sinks and window, most is of
    groups of 16 tokens for the published rule, which opens `chunks`; least_share: see
    AUTO_SHARE.
    """

    rule: int = 0
    sinks: int = 0
    window: int = 0
    least: int = 0
    most: int = 0
    chunks: int = 0
    least_share: float = 1.0


EVERYTHING = Limits()


@dataclass(frozen=True, slots=True)
class Units:
    """What every unit of 64 prompt tokens reads besides itself (kernels/cpu/block_route.py).

    sinks and least count groups of 8 tokens; share: part of the past that is chosen, at least
    `least` groups. Up to exact_tokens, and with a share of 0, everything is read.
    """

    sinks: int = 0
    window_tokens: int = 0
    least: int = 0
    share: float = 0.0
    exact_tokens: int = 0


NO_UNITS = Units()
# `--prefill hga`.
PREFILL_UNITS = Units(SINK_TOKENS // GROUP_TOKENS, 128, 2048 // GROUP_TOKENS, 0.05, 4096)
PREFILLS = {"exact": NO_UNITS, "hga": PREFILL_UNITS}


def always_read(tokens: int) -> tuple[int, int]:
    """Sink and window tokens of a budget: half of a small one, so that routing has the rest."""
    if tokens >= 2 * (SINK_TOKENS + WINDOW_TOKENS):
        return SINK_TOKENS, WINDOW_TOKENS
    sinks = max(GROUP_TOKENS, tokens // 6 // GROUP_TOKENS * GROUP_TOKENS)
    window = max(4 * GROUP_TOKENS, tokens // 3 // GROUP_TOKENS * GROUP_TOKENS)
    return sinks, window


@dataclass(frozen=True, slots=True)
class Router:
    """Turns a rule and a budget into the limits of one token."""

    rule: str
    budget: Budget

    def limits(self, n_tokens: int) -> Limits:
        """What to read when n_tokens are cached, the new one among them."""
        if self.rule == "dense":
            return EVERYTHING
        tokens = self.budget.tokens_at(n_tokens)
        if self.rule == "hga-paper":
            return _published(tokens)
        sinks, window = (n // GROUP_TOKENS for n in always_read(tokens))
        # Rounded up, so that a context within the budget is read whole; at least one group.
        most = max(1, -(-tokens // GROUP_TOKENS) - sinks - window)
        rule = RULES.index(self.rule)
        if not self.budget.automatic:
            return Limits(rule, sinks, window, most, most)
        least = max(1, AUTO_LEAST // GROUP_TOKENS - sinks - window)
        return Limits(rule, sinks, window, least, most, least_share=AUTO_SHARE)

    def least_tokens(self, n_tokens: int) -> int:
        """What a routed token reads at least when n_tokens are cached."""
        limits = self.limits(n_tokens)
        return (limits.sinks + limits.window + limits.least) * GROUP_TOKENS


def _published(tokens: int) -> Limits:
    """The published windows where the budget has room for them and 32 groups, else in proportion;
    chunks are opened in the published proportion to groups."""
    full = (PAPER_SINK_CHUNKS + PAPER_RECENT_CHUNKS + 1) * CHUNK_TOKENS
    full += PAPER_GROUPS * PAPER_GROUP_TOKENS
    sinks, recent = PAPER_SINK_CHUNKS, PAPER_RECENT_CHUNKS
    if tokens < full:
        sinks = 1
        recent = max(1, recent * tokens // full)
    # Half of the active chunk counts: it holds from 1 to 64 tokens.
    free = tokens - (sinks + recent) * CHUNK_TOKENS - CHUNK_TOKENS // 2
    groups = max(1, free // PAPER_GROUP_TOKENS)
    chunks = max(1, -(-groups * PAPER_CHUNKS // PAPER_GROUPS))
    per_chunk = CHUNK_TOKENS // GROUP_TOKENS
    return Limits(
        RULES.index("hga-paper"),
        sinks * per_chunk,
        recent * per_chunk,
        groups * PAPER_GROUP_TOKENS // GROUP_TOKENS,
        groups,
        chunks,
    )
