"""Parsers of flag values: text to value, or UsageError saying what was expected."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from hga.tools.errors import UsageError


def parse_switch(text: str) -> bool:
    """1/true/yes/on or 0/false/no/off."""
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off", ""):
        return False
    raise UsageError(f"{text!r} is neither true nor false")


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A parser of whole numbers between `low` and `high`, both included."""
    bounds = f"from {low}" if high is None else f"from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise UsageError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            raise UsageError(f"{value} is out of range: expected a whole number {bounds}")
        return value

    return parse


def number(low: float, high: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    """A parser of finite numbers between `low` (not itself allowed when `above`) and `high`."""
    bounds = f"{'above' if above else 'from'} {low:g}"
    bounds += "" if math.isinf(high) else f" to {high:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise UsageError(f"{text!r} is not a number") from None
        if not math.isfinite(value) or value > high or value < low or (above and value == low):
            raise UsageError(f"{value:g} is out of range: expected a number {bounds}")
        return value

    return parse


@dataclass(frozen=True, slots=True)
class Choice:
    """A parser that takes one of `words`, which completion scripts read."""

    words: tuple[str, ...]

    def __call__(self, text: str) -> str:
        """The word; raises UsageError for any other."""
        if text not in self.words:
            raise UsageError(f"{text!r} is unknown: expected {', '.join(self.words)}")
        return text


def choice(*offered: str) -> Choice:
    """A parser that takes one of the words offered."""
    return Choice(offered)


@dataclass(frozen=True, slots=True)
class ListOf:
    """A parser of comma-separated values, at least one, each by `parse_one`."""

    parse_one: Callable[[str], object]

    def __call__(self, text: str) -> tuple[object, ...]:
        """The values; raises UsageError."""
        parts = [part.strip() for part in text.split(",")]
        if not all(parts):
            raise UsageError(f"{text!r} is not a list: expected values separated by commas")
        return tuple(self.parse_one(part) for part in parts)


def list_of(parse_one: Callable[[str], object]) -> ListOf:
    """A parser of comma-separated values, at least one."""
    return ListOf(parse_one)


@dataclass(frozen=True, slots=True)
class OneOrAll:
    """A parser of a list of some of `offered`, or `all` of them."""

    offered: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """What may be written."""
        return (*self.offered, "all")

    def __call__(self, text: str) -> tuple[object, ...]:
        """The words, in the order in which they are offered; raises UsageError."""
        found = ListOf(Choice(self.words))(text)
        return tuple(word for word in self.offered if word in found or "all" in found)


def one_or_all(offered: tuple[str, ...]) -> OneOrAll:
    """A parser of a list of the words offered, or `all` of them."""
    return OneOrAll(offered)


def parse_text(text: str) -> str:
    """Text as it is; refuses bytes that are not UTF-8 (they arrive as lone surrogates), and zero
    bytes, which a configuration file can spell and no path can have."""
    if "\0" in text:
        raise UsageError("the text holds a zero byte")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("the text is not valid UTF-8") from None
    return text
