"""Prompts around a document: what stands before it, and how a question and the beginning of its
answer follow, in a model's chat template or as plain text.

A chat template is used at the level of tokens: it is rendered around two different messages, and
what both renderings begin and end with is the frame. So a document keeps its exact tokens, and all
questions about it share them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hga.tools.errors import UsageError

if TYPE_CHECKING:
    from hga.runtime.engine import Engine


class Prompter:
    """Builds prompts for one model."""

    def __init__(self, engine: "Engine", *, chat: bool) -> None:
        """`chat`: use the chat template, where the model has one."""
        self._tokenizer = engine.tokenizer
        self.chat = chat and engine.template is not None
        bos = engine.tokenizer.bos
        self._head: list[int] = [] if bos is None else [bos]
        self._tail: list[int] = []
        if self.chat:
            self._head, self._tail = _frame(engine)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return self._tokenizer.encode(text)

    def opening(self, text: str) -> list[int]:
        """What stands before the document: BOS or the head of a message, then `text`."""
        return [*self._head, *(self.encode(text) if text else [])]

    def question(self, ask: str, lead: str, plain: str) -> list[int]:
        """What follows the document: `ask` as the end of the message and `lead` as the beginning
        of the reply, or, without a template, `plain`; both on a new line."""
        if self.chat:
            return [*self.encode("\n" + ask), *self._tail, *self.encode(lead)]
        return self.encode("\n" + plain)

    def answer(self, lead: str, text: str) -> list[int]:
        """The tokens by which `text` continues `lead`."""
        before, whole = self.encode(lead), self.encode(lead + text)
        same = 0
        while same < min(len(before), len(whole)) and before[same] == whole[same]:
            same += 1
        if same < len(before) or same == len(whole):
            raise UsageError(
                f"the tokenizer joins {lead[-12:]!r} and {text!r}: no answer can be scored"
            )
        return whole[same:]


def _frame(engine: "Engine") -> tuple[list[int], list[int]]:
    """The tokens of the chat template before and after a user's message."""
    template = engine.template
    assert template is not None
    first, second = (
        template.render_ids([{"role": "user", "content": text}], engine.tokenizer)
        for text in ("Zebra", "quick!")
    )
    head = _common(first, second)
    tail = _common(first[::-1], second[::-1])[::-1]
    return head, tail


def _common(a: Sequence[int], b: Sequence[int]) -> list[int]:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return list(a[:n])
