"""Replies held to a JSON schema: before each token, which ids may come next (llguidance).

Invariant: text that a constraint has accepted is always the beginning of a JSON value of the
schema, on one line, and end tokens are offered only where the value is complete. A schema is not
trusted: its size and depth, and the work of compiling and of every token, are bounded.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from .sampler import Sampler

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# The slowest schema found of this length, thousands of optional properties, compiles in a second.
MAX_SCHEMA_BYTES: Final = 64 << 10
MAX_SCHEMA_DEPTH: Final = 64
# White space without bound is what small models get lost in: a value is one line.
_FORM: Final[Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
}


class GrammarError(ValueError):
    """A schema is malformed, too large, not supported or not satisfiable."""


class Vocabulary(Protocol):
    """What of a tokenizer a grammar needs (runtime.tokenizer.Tokenizer)."""

    @property
    def n_vocab(self) -> int:
        """How many ids there are."""
        ...

    @property
    def eos(self) -> frozenset[int]:
        """Every token that ends a reply."""
        ...

    def piece(self, number: int) -> bytes:
        """The bytes that a token stands for, b"" for control tokens."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        ...


class GrammarCompiler:
    """Compiles schemas for one vocabulary, which it prepares at first use (a second for 262,144
    tokens). May be used from several threads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._prepared: LLTokenizer | None = None
        self._lock = threading.Lock()

    def from_json_schema(self, schema: str | Mapping[str, Any]) -> "Grammar":
        """The grammar of a JSON schema, given as its text or its value. Raises GrammarError."""
        text = _checked_text(schema)
        llguidance = _library()
        limits = llguidance.LLParserLimits(verbose_errors=False)
        with self._lock:
            if self._prepared is None:
                self._prepared = _prepare(self._vocabulary)
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=_FORM)
        except ValueError as error:
            raise GrammarError(f"JSON schema: {_one_line(error)}") from None
        matcher = llguidance.LLMatcher(self._prepared, grammar, log_level=0, limits=limits)
        _require_sound(matcher, "JSON schema")
        compiled = Grammar(matcher)
        # A schema that admits nothing shows here, before a prompt is read.
        compiled.start().allowed()
        return compiled


class Grammar:
    """A compiled schema, for any number of replies."""

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher

    def start(self) -> "Constraint":
        """The constraint of one reply, at its beginning."""
        return Constraint(self._matcher.deep_copy())


class Constraint:
    """Where one reply is in its grammar."""

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Whether the text so far is a whole value of the schema."""
        return self._matcher.is_accepting()

    def allowed(self) -> NDArray[np.int64]:
        """Ids that may come next, ascending: int64 [N], at least one. Raises GrammarError where
        the schema admits nothing more or its bounds are passed."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        _require_sound(self._matcher, "the reply cannot go on in its JSON schema")
        ids = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        if not ids.size:
            raise GrammarError("JSON schema: no value satisfies it")
        return ids

    def accept(self, token: int) -> None:
        """Go on by one of the `allowed` ids; raises GrammarError for any other."""
        self._matcher.consume_token(token)
        _require_sound(self._matcher, f"token {token} is not allowed by the JSON schema")


class ConstrainedSampler:
    """A sampler, greedy or not, that chooses among what a constraint allows: what
    `Session.generate` takes. One reply long."""

    def __init__(self, sampler: Sampler, constraint: Constraint) -> None:
        self._sampler = sampler
        self.constraint = constraint

    def sample(self, logits: NDArray[np.float32], recent: Sequence[int] = ()) -> int:
        """The id of the next token; logits: f32 [V]. Raises SamplerError, GrammarError."""
        token = self._sampler.sample(logits, recent, self.constraint.allowed())
        self.constraint.accept(token)
        return token


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise GrammarError(
            "JSON schemas need the package llguidance: pip install llguidance"
        ) from None
    return llguidance


def _prepare(vocabulary: Vocabulary) -> "LLTokenizer":
    """The vocabulary as the library wants it; tokens without text are never allowed."""
    llguidance = _library()
    stops = sorted(vocabulary.eos)
    if not stops:
        raise GrammarError(
            "JSON schemas need a model with an end-of-text token, which would end the reply"
        )
    tokens = _Tokens(vocabulary, stops[0])
    prepared: LLTokenizer = llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(tokens),
        n_vocab=vocabulary.n_vocab,
        eos_token=stops,
        slices=llguidance.LLTokenizer.json_slices(),
    )
    tokens.prepared = prepared
    return prepared


class _Tokens:
    """What the library reads of a vocabulary, and its way to spell what a schema leaves no choice
    about."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, stop: int) -> None:
        self._vocabulary = vocabulary
        self.prepared: LLTokenizer | None = None
        self.eos_token_id = stop
        self.tokens = [vocabulary.piece(number) for number in range(vocabulary.n_vocab)]
        self.special_token_ids = [i for i, piece in enumerate(self.tokens) if not piece]

    def __call__(self, text: bytes) -> list[int]:
        ids = self._vocabulary.encode(text.decode("utf-8", "replace"))
        if b"".join(self._vocabulary.piece(i) for i in ids) == text:
            return ids
        # A vocabulary that puts a space before a text, or changes it.
        return self.prepared.greedy_tokenize(text.decode()) if self.prepared else []


def _checked_text(schema: str | Mapping[str, Any]) -> str:
    """The text of a schema within the limits of size and depth."""
    try:
        given = schema.encode() if isinstance(schema, str) else msgspec.json.encode(schema)
        if len(given) > MAX_SCHEMA_BYTES:
            raise GrammarError(
                f"JSON schema: expected at most {MAX_SCHEMA_BYTES:,} bytes, found {len(given):,}"
            )
        value = msgspec.json.decode(given)
    except RecursionError:
        raise GrammarError(f"JSON schema: nested deeper than {MAX_SCHEMA_DEPTH}") from None
    except (msgspec.MsgspecError, UnicodeError, TypeError) as error:
        raise GrammarError(f"JSON schema: not JSON: {_one_line(error)}") from None
    if not isinstance(value, dict):
        raise GrammarError(f"JSON schema: expected an object, found {given[:40].decode()!r}")
    _check_depth(value)
    return given.decode()


def _check_depth(value: dict[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_SCHEMA_DEPTH):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [each for items in inner for each in items if isinstance(each, dict | list)]
        if not level:
            return
    raise GrammarError(f"JSON schema: nested deeper than {MAX_SCHEMA_DEPTH}")


def _require_sound(matcher: "LLMatcher", what: str) -> None:
    if matcher.is_error():
        raise GrammarError(f"{what}: {_one_line(matcher.get_error())}")


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]
