"""Facts to hide in a text and to ask for: a key, its values, and how they are worded.

The wordings are those of the usual needle tests and of program text; values are numbers of five
digits or two words.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hga.tools.words import ADJECTIVES, NOUNS

ValueKind = Literal["digits", "words"]


@dataclass(frozen=True, slots=True)
class Wording:
    """How a fact is stated, and asked in a chat (`ask`, then the reply begins with `lead`) or in
    plain text (`plain`, which ends with `lead`). {key}, {snake}, {upper} and {value} are filled
    in; `prefix` belongs to every value in the answer."""

    name: str
    values: ValueKind
    statement: str
    ask: str
    lead: str
    plain: str
    prefix: str = ""


WORDINGS = (
    Wording(
        "code", "digits",
        "The secret code of the {key} is {value}.",
        "What is the secret code of the {key}?",
        "The secret code of the {key} is",
        "What is the secret code of the {key}? The secret code of the {key} is",
    ),
    Wording(
        "phrase", "words",
        "The pass phrase of the {key} is {value}.",
        "What is the pass phrase of the {key}?",
        "The pass phrase of the {key} is",
        "What is the pass phrase of the {key}? The pass phrase of the {key} is",
    ),
    Wording(
        "assign", "digits",
        "{snake} = {value}",
        "What does print({snake}) print?",
        "print({snake})  # prints",
        "print({snake})  # prints",
    ),
    Wording(
        "remember", "words",
        "Remember that {key} stands for {value}.",
        "What does {key} stand for?",
        "{key} stands for",
        "Recall: {key} stands for",
    ),
    Wording(
        "define", "digits",
        "#define {upper} {value}",
        "What is the value of {upper}?",
        "The value of {upper} is",
        "The value of {upper} is",
        prefix="0x",
    ),
    Wording(
        "magic", "digits",
        "One of the special magic numbers for {key} is: {value}.",
        "What is the special magic number for {key} mentioned in the text?",
        "The special magic number for {key} mentioned above is",
        "What is the special magic number for {key}? The special magic number for {key} mentioned"
        " above is",
    ),
)  # fmt: skip

MULTIVALUE = WORDINGS[-1]
"""The wording whose key has several values."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A key with its values, worded."""

    wording: Wording
    key: str
    values: tuple[str, ...]

    @property
    def statements(self) -> tuple[str, ...]:
        """One line per value."""
        return tuple(self._fill(self.wording.statement, value) + "\n" for value in self.values)

    @property
    def ask(self) -> str:
        """The question in a chat."""
        return self._fill(self.wording.ask)

    @property
    def lead(self) -> str:
        """The beginning of the reply."""
        return self._fill(self.wording.lead)

    @property
    def plain(self) -> str:
        """Question and beginning of the answer in plain text."""
        return self._fill(self.wording.plain)

    def _fill(self, text: str, value: str = "") -> str:
        snake = self.key.replace(" ", "_")
        return text.format(key=self.key, snake=snake, upper=snake.upper(), value=value)


class FactMaker:
    """Makes facts with keys and values that none of its other facts has."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: set[str] = set()

    def make(self, wording: Wording, n_values: int = 1) -> Fact:
        """A new fact of a wording."""
        key = self._new(self._two_words)
        make_value = self._digits if wording.values == "digits" else self._two_words
        values = tuple(wording.prefix + self._new(make_value) for _ in range(n_values))
        return Fact(wording, key, values)

    def _new(self, make: Callable[[], str]) -> str:
        while (text := make()) in self._used:
            pass
        self._used.add(text)
        return text

    def _digits(self) -> str:
        return str(self._rng.randrange(10_000, 100_000))

    def _two_words(self) -> str:
        return f"{self._rng.choice(ADJECTIVES)} {self._rng.choice(NOUNS)}"
