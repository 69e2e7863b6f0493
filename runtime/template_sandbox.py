"""Rendering untrusted Jinja templates with bounds on time, memory and reach.

Jinja's immutable sandbox keeps a template away from Python's internals; this module bounds what it
may compute. Invariant: every string, list, tuple and dict that a template makes is measured as it
is made, so none unfolds to more than the cap whatever is later done with it; and every loop step,
call, filter and operator looks at the clock. So nothing between two looks takes long.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from jinja2 import Undefined, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import FILTERS, do_indent, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context
from jinja2.visitor import NodeTransformer

# Jinja's filters that chat templates use; the others are of no use to them, and several of those
# (center, round, format) make large values of small ones in one step.
_FILTERS: Final = (
    *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first"),
    *("float", "groupby", "int", "items", "last", "length", "list", "lower", "map", "max", "min"),
    *("reject", "rejectattr", "reverse", "safe", "select", "selectattr", "sort", "title", "trim"),
    *("truncate", "unique", "upper", "wordcount"),
)
_STRING_METHODS: Final = frozenset(
    (
        *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha"),
        *("isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle"),
        *("isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix"),
        *("replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines"),
        *("startswith", "strip", "swapcase", "title", "upper"),
    )
)
# Filters of our own that _Guards puts into the tree; a template cannot name them.
_LOOP, _VALUE, _CONCAT = "%loop", "%value", "%concat"
_MAX_BITS: Final = 4096
_MAX_INDENT: Final = 64
# All strings ever made, in caps: bounds what a template can hold on to.
_TOTAL_CAPS: Final = 16
_CLOCK_EVERY: Final = 4096

Render = Callable[[Mapping[str, Any], int, float], str]


class LimitError(RuntimeError):
    """A template ran past its time or size cap."""


class RaisedError(ValueError):
    """The template called raise_exception."""


class _GenerationBlock(Extension):
    """{% generation %} marks what a trainer learns from; it renders as its contents."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Guards(NodeTransformer):
    """Wraps what the compiler would turn into plain Python: loops, literals, concatenation."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _LOOP)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _VALUE)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _VALUE) if node.ctx == "load" else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _CONCAT)


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment for templates that run one at a time."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlock, LoopControlExtension],
            finalize=self._text,
        )
        self._deadline = float("inf")
        self._cap_chars = self._left_chars = 1 << 20
        calls: dict[str, Callable[..., Any]] = {name: FILTERS[name] for name in _FILTERS}
        calls |= {"tojson": _tojson, "indent": self._indent, "replace": self._replace}
        calls |= {"join": self._join_filter, "string": self._text}
        self.filters = {name: self._measured(call) for name, call in calls.items()}
        # With a context argument, a filter is never run at compile time.
        self.filters[_LOOP] = pass_context(lambda _, items: self._steps(items))
        self.filters[_VALUE] = pass_context(lambda _, value: self._bounded(value))
        self.filters[_CONCAT] = pass_context(lambda _, parts: self._join(parts, ""))
        self.concat = lambda parts: self._join(parts, "")  # type: ignore[method-assign]
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def load(self, tree: nodes.Template) -> Render:
        """Compile a template from what `parse` made of it; the tree is changed. Raises Jinja's
        errors, SyntaxError or RecursionError.

        Returns render(variables, cap_chars, cap_s), which raises LimitError past a cap (characters
        of the output or of any value; seconds) and whatever a wrong template makes Jinja raise.
        """
        _Guards().visit(tree)
        tree.set_environment(self)
        code = self.compile(tree)
        template = self.template_class.from_code(self, code, self.make_globals(None))

        def render(variables: Mapping[str, Any], cap_chars: int, cap_s: float) -> str:
            self._cap_chars, self._left_chars = cap_chars, _TOTAL_CAPS * cap_chars
            self._deadline = time.monotonic() + cap_s
            return template.render(variables)

        return render

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Methods of numbers and some of strings make values of any size: those are refused."""
        if isinstance(obj, str):
            return attr in _STRING_METHODS
        if isinstance(obj, int | float | bytes):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """No str.format at all: its field widths make strings of any size."""
        return None

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call an object from a template, in time and with a bounded result."""
        __self._look_at_clock()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str) and __obj.__name__ == "join":
            return __self._join(args[0] if args else (), owner)
        if isinstance(owner, str) and __obj.__name__ == "replace":
            return __self._replace(owner, *args)
        if isinstance(__obj, LoopContext) and args:
            args = (__self._steps(args[0]), *args[1:])
        return __self._bounded(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operators that can make large values, refused before they do."""
        self._look_at_clock()
        if operator == "%" and isinstance(left, str) and re.search(r"\*|\d{4}", left):
            raise LimitError(f"a format as wide as {left!r:.40} is not allowed")
        if operator in ("*", "**"):
            for value, other in ((left, right), (right, left)):
                if isinstance(value, int) and value.bit_length() > _MAX_BITS:
                    raise LimitError("a number this large is not allowed")
                if isinstance(value, str | list | tuple) and isinstance(other, int):
                    self._check_size(self._measure(value) * other)
        if (
            operator == "**"
            and isinstance(left, int)
            and isinstance(right, int)
            and left.bit_length() * right > _MAX_BITS
        ):
            raise LimitError("a power this large is not allowed")
        return self._bounded(super().call_binop(context, operator, left, right))

    def _look_at_clock(self) -> None:
        if time.monotonic() > self._deadline:
            raise LimitError("it took too long")

    def _check_size(self, size: int) -> None:
        if size > self._cap_chars:
            raise LimitError(f"it made more than {self._cap_chars:,} characters")

    def _spend(self, size: int) -> None:
        self._check_size(size)
        self._left_chars -= size
        if self._left_chars < 0:
            raise LimitError(f"it made more than {_TOTAL_CAPS * self._cap_chars:,} characters")

    def _measure(self, value: Any) -> int:
        """Characters and elements of a value and of all that it holds, refused past the cap."""
        size = n_steps = 0
        pending = [value]
        while pending:
            item = pending.pop()
            size += 1
            n_steps += 1
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, dict):
                pending += item.keys()
                pending += item.values()
            elif isinstance(item, list | tuple):
                pending += item
            elif not isinstance(item, int | float | Undefined | None):
                raise RaisedError(f"a {type(item).__name__} cannot be shown or kept in a list")
            self._check_size(size + len(pending))
            if n_steps % _CLOCK_EVERY == 0:
                self._look_at_clock()
        return size

    def _bounded(self, value: Any) -> Any:
        self._look_at_clock()
        if isinstance(value, str):
            self._spend(len(value))
        elif isinstance(value, dict | list | tuple):
            self._measure(value)
            self._spend(len(value))
        return value

    def _measured(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The filter with a bounded result; Jinja's mark for what it is passed is kept."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self._look_at_clock()
            return self._bounded(call(*args, **kwargs))

        if mark := getattr(call, "jinja_pass_arg", None):
            run.jinja_pass_arg = mark  # type: ignore[attr-defined]
        return run

    def _steps(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._look_at_clock()
            yield item

    def _text(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        self._measure(value)
        return str(value)

    def _join(self, parts: Iterable[Any], separator: str) -> str:
        texts = []
        size = 0
        for part in self._steps(parts):
            texts.append(self._text(part))
            size += len(texts[-1]) + len(separator)
            self._check_size(size)
        self._spend(size)
        return separator.join(texts)

    def _join_filter(self, value: Any, d: str = "", attribute: str | int | None = None) -> str:
        parts = value if attribute is None else map(make_attrgetter(self, attribute), value)
        return self._join(parts, self._text(d))

    def _replace(self, s: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = self._text(s), self._text(old), self._text(new)
        self._check_size(len(text) + text.count(old) * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def _indent(
        self, s: Any, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        text = self._text(s)
        n_columns = len(width) if isinstance(width, str) else width
        if n_columns > _MAX_INDENT:
            raise LimitError(f"an indent of {n_columns} is not allowed, {_MAX_INDENT} at most")
        self._check_size(len(text) + (len(text.splitlines()) + 1) * max(n_columns, 0))
        return do_indent(text, width, first, blank)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates are written for: not escaped for HTML, which Jinja's own is."""
    if indent is not None and not 0 <= indent <= _MAX_INDENT:
        raise LimitError(f"an indent of {indent} is not allowed, {_MAX_INDENT} at most")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: Any) -> None:
    raise RaisedError(f"{message!s:.500}")


def _strftime_now(form: str) -> str:
    if not isinstance(form, str) or len(form) > 200 or re.search(r"\d{3}", form):
        raise LimitError("such a date format is not allowed")
    return datetime.now().strftime(form)
