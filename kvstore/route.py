"""Router: how much of the past a decoded token reads, and the Route that says which groups.

Always read: the sink tokens at the start and the local window at the end. Between them the blocks
of 16 tokens (two groups) with the largest share of the attention mass, as key sketches estimate it,
are chosen per KV head up to the budget (kernels/cpu/sketch.py, routing.py; docs/method.md). A
context within the budget is read whole.
"""

import re
from dataclasses import dataclass

from .geometry import GROUP_TOKENS, SKETCH_GROUP

SINK_TOKENS = 64
WINDOW_TOKENS = 256
# `auto`: everything up to this many tokens, then this share of the context.
AUTO_TOKENS = 2048
AUTO_SHARE = 1 / 16

_BUDGET = re.compile(r"(?:(\d+(?:\.\d+)?)%|(\d+)(k?))", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Route:
    """The groups (of 8 tokens, counted from position 0, ascending) that each KV head reads."""

    groups: tuple[tuple[int, ...], ...]

    @property
    def attended_tokens(self) -> float:
        """Mean tokens read by a KV head."""
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

    def tokens_at(self, n_tokens: int) -> int:
        """Tokens to attend when n_tokens are cached."""
        if self.tokens:
            return self.tokens
        if self.share:
            return int(self.share * n_tokens)
        return max(AUTO_TOKENS, int(AUTO_SHARE * n_tokens))


@dataclass(frozen=True, slots=True)
class Router:
    """Turns a budget into counts of blocks of SKETCH_GROUP tokens for the routing kernel."""

    budget: Budget
    sink_groups: int = SINK_TOKENS // SKETCH_GROUP
    window_groups: int = WINDOW_TOKENS // SKETCH_GROUP

    @property
    def minimum_tokens(self) -> int:
        """What a routed token reads at least: sinks, window and one group."""
        return (self.sink_groups + self.window_groups + 1) * SKETCH_GROUP

    def selected_groups(self, n_tokens: int) -> int:
        """Groups to choose between sinks and window when n_tokens are cached; at least one.

        The kernel reads the whole context where that is no more than sinks, window and these.
        """
        always = self.sink_groups + self.window_groups
        # Rounded up, so that a context within the budget is read whole.
        return max(1, -(-self.budget.tokens_at(n_tokens) // SKETCH_GROUP) - always)
