"""A turn of a conversation: what was asked, what came back, what it cost."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(slots=True)
class Reply:
    """What one turn produced and what it cost. `prompt_tokens` counts the whole past and the new
    turn, `reused_tokens` those of them that were not computed again; `unfinished_json`: it was to
    satisfy a schema and ended before it did."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    reused_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    stop: Literal["eos", "length", "interrupt"] = "eos"
    context_full: bool = False
    answered: bool = True
    unfinished_json: bool = False

    @property
    def new_tokens(self) -> int:
        """Tokens of the prompt that were prefilled."""
        return self.prompt_tokens - self.reused_tokens


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer; the lengths of the id lists before it, valid in `epoch`."""

    user: str
    reply: str
    n_canonical: int
    n_actual: int
    epoch: int
