"""Chat templates: messages to token ids, with no message able to pose as a turn.

Control tokens are read in what the template writes and never in what a message says. To tell the
two apart in the rendered text, every character of a message that could begin a control token is
replaced by a stand-in (a private-use character found nowhere else) before rendering, and put back,
as plain text, afterwards. The rendering of the messages as they are is made too and compared.
Roles are the caller's: a template may build `<|user|>` from the role user.
"""

import re
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from .tokenizer_spec import MAX_TEMPLATE_CHARS, TokenizerSpec

if TYPE_CHECKING:
    from .template_sandbox import Render
    from .tokenizer import Tokenizer

# Beyond what the messages themselves take.
MAX_OUTPUT_CHARS: Final = 10_000_000
MAX_RENDER_S: Final = 5.0
_MAX_NESTING: Final = 64
_STAND_INS: Final = range(0xE000, 0xF900)

Part = tuple[str, bool]


class TemplateError(ValueError):
    """A chat template is wrong, refuses the messages, or ran past its limits."""


class ChatTemplate:
    """The chat template of a model. Methods may be called from several threads."""

    def __init__(self, spec: TokenizerSpec, *, max_render_s: float = MAX_RENDER_S) -> None:
        """Compiles the template of the spec; raises TemplateError if it is missing or wrong."""
        source = spec.chat_template
        if source is None:
            raise TemplateError("the model has no chat template (use raw completion: --no-chat)")
        if len(source) > MAX_TEMPLATE_CHARS:
            raise TemplateError(
                f"chat template: expected at most {MAX_TEMPLATE_CHARS:,} characters, "
                f"found {len(source):,}"
            )
        self.source = source
        self._variables = dict(spec.template_variables)
        self._max_render_s = max_render_s
        self._lock = threading.Lock()
        self._literals: tuple[str, ...]
        self._render: Render = self._compile()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation as the template writes it; for people, not for encoding.

        `messages` and `tools` are JSON-like values, `variables` more names for the template
        (enable_thinking, …). Raises TemplateError.
        """
        values = self._values(messages, add_generation_prompt, tools, variables)
        return self._run({**self._variables, **values})

    def render_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: "Tokenizer",
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids of a conversation, BOS included where the model wants one.

        Arguments as for `render`. Raises TemplateError, or TokenizerError from encoding.
        """
        values = self._values(messages, add_generation_prompt, tools, variables)
        ids = tokenizer.encode_parts(self._parts(values, tokenizer.control_texts))
        if tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:
            ids.insert(0, tokenizer.bos)
        return ids

    def _parts(self, values: Mapping[str, Any], control: frozenset[str]) -> list[Part]:
        """The rendering cut into (text, whether control tokens may be read in it)."""
        openings = {text[0] for text in control}
        real = self._run({**self._variables, **values})
        if not openings & set(_characters(values)):
            return [(real, True)]
        stand_ins = _stand_ins(openings, self.source + real + "".join(_texts(values)))
        # First every such character is masked; where the template looks for some of them itself
        # (a reply's </think>), those literals are left, unless they could begin a control token.
        first: list[Part] | None = None
        for kept in ((), _harmless(self._literals, control)):
            try:
                text = self._run({**self._variables, **_masked(values, stand_ins, kept)})
            except TemplateError:
                continue
            parts = _split(text, stand_ins)
            if "".join(piece for piece, _ in parts) == real:
                return parts
            first = first or parts
        if first is None:
            raise TemplateError("chat template: it fails when message text is kept apart")
        # A template that treats such characters in a way of its own: it saw the stand-ins.
        return first

    def _values(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        values = {"documents": None, **(variables or {}), "messages": messages, "tools": tools}
        plain: dict[str, Any] = _plain(values, 0)
        return {**plain, "add_generation_prompt": add_generation_prompt}

    def _compile(self) -> "Render":
        from jinja2 import TemplateError as JinjaError
        from jinja2 import nodes

        from .template_sandbox import Sandbox

        sandbox = Sandbox()
        try:
            tree = sandbox.parse(self.source)
            constants = (node.value for node in tree.find_all(nodes.Const))
            texts = {value for value in constants if isinstance(value, str)}
            self._literals = tuple(sorted(texts, key=len, reverse=True))
            return sandbox.load(tree)
        except (JinjaError, SyntaxError, ValueError, RecursionError, MemoryError) as e:
            line = getattr(e, "lineno", None)
            raise TemplateError(
                f"chat template: {_one_line(e)}{f' (line {line})' if line else ''}"
            ) from None

    def _run(self, variables: Mapping[str, Any]) -> str:
        size = sum(map(len, _texts(variables)))
        with self._lock:
            try:
                return self._render(variables, MAX_OUTPUT_CHARS + 2 * size, self._max_render_s)
            except Exception as error:
                raise TemplateError(f"chat template: {_one_line(error)}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


def _plain(value: Any, depth: int) -> Any:
    """The value as plain JSON-like objects of Python's own types."""
    if depth > _MAX_NESTING:
        raise TemplateError(f"messages: nested deeper than {_MAX_NESTING}")
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item, depth + 1) for item in value]
    raise TemplateError(
        f"messages: expected texts, numbers, lists and dicts, found {type(value).__name__}"
    )


def _texts(value: Any) -> list[str]:
    """Every string in a plain value, keys included."""
    found: list[str] = []
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, dict):
            pending += item.keys()
            pending += item.values()
        elif isinstance(item, list):
            pending += item
    return found


def _characters(value: Any) -> set[str]:
    return set().union(*_texts(value))


def _stand_ins(openings: set[str], text: str) -> dict[str, str]:
    """A private-use character for each opening one, none of them in the text."""
    used = set(text)
    free = (chr(code) for code in _STAND_INS if chr(code) not in used)
    found = dict(zip(sorted(openings), free))
    if len(found) < len(openings):
        raise TemplateError("messages: they use up Unicode's private characters")
    return found


def _harmless(literals: Sequence[str], control: frozenset[str]) -> tuple[str, ...]:
    """The template's literals that a message may keep: nothing in them begins a control token."""
    beginnings = {text[:n] for text in control for n in range(1, len(text) + 1)}

    def steers(literal: str) -> bool:
        tails = (literal[i:] for i in range(len(literal)))
        return any(tail in beginnings or _begins_with(tail, control) for tail in tails)

    return tuple(literal for literal in literals if len(literal) > 1 and not steers(literal))


def _begins_with(text: str, control: frozenset[str]) -> bool:
    return any(text[:n] in control for n in range(1, len(text)))


def _masked(value: Any, stand_ins: Mapping[str, str], kept: Sequence[str]) -> Any:
    """The value with stand-ins in its strings, except within a kept literal.

    Keys that are identifiers are names for the template, not text.
    """
    opening = "".join(map(re.escape, stand_ins))
    pattern = re.compile("|".join([*map(re.escape, kept), f"([{opening}])"]))

    def mask(text: str) -> str:
        return pattern.sub(lambda match: stand_ins[match[1]] if match[1] else match[0], text)

    def walk(item: Any) -> Any:
        if isinstance(item, str):
            return mask(item)
        if isinstance(item, dict):
            return {k if k.isidentifier() else mask(k): walk(v) for k, v in item.items()}
        return [walk(element) for element in item] if isinstance(item, list) else item

    return walk(value)


def _split(text: str, stand_ins: Mapping[str, str]) -> list[Part]:
    """The text with every stand-in put back as a part without control tokens."""
    restored = {stand_in: char for char, stand_in in stand_ins.items()}
    pieces = re.split(f"([{''.join(restored)}])", text)
    return [(restored.get(piece, piece), piece not in restored) for piece in pieces if piece]
