"""The documents of `hga eval ruler` and what is asked about them.

vt, cwe and fwe are RULER's tasks (arXiv 2404.06654) with its wordings and worked examples, in
haystacks of ours; a vt document holds several chains, all asked for. extract states many facts of
all wordings across one document and asks for each.
"""

import random
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hga.tools.errors import UsageError
from hga.tools.facts import WORDINGS, FactMaker
from hga.tools.haystack import Haystack
from hga.tools.prompts import Prompter
from hga.tools.words import ADJECTIVES, NOUNS

if TYPE_CHECKING:
    from hga.tools.ruler import RulerPlan

_CHAINS = 4
_HOPS = 4
_MIN_TEXT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Enquiry:
    """Tokens that ask, what a right answer holds, and how long it may be."""

    prompt: list[int]
    expected: tuple[str, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Document:
    """Tokens to prefill and the questions about them; no longer than `length` with the longest
    question and answer."""

    task: str
    length: int
    ids: list[int]
    enquiries: list[Enquiry]


@dataclass(frozen=True, slots=True)
class _Maker:
    """What the writers of documents share."""

    length: int
    prompter: Prompter
    haystack: Haystack
    rng: random.Random
    n_facts: int

    def enquiry(
        self, ask: str, lead: str, expected: Sequence[str], max_tokens: int, plain: str = ""
    ) -> Enquiry:
        prompt = self.prompter.question(ask, lead, plain or f"Question: {ask} Answer: {lead}")
        return Enquiry(prompt, tuple(expected), max_tokens)

    def room(self, opening: Sequence[int], enquiries: Sequence[Enquiry]) -> int:
        """Tokens left for the text between opening and question."""
        longest = max(len(enquiry.prompt) + enquiry.max_tokens for enquiry in enquiries)
        return self.length - len(opening) - longest

    def woven(
        self,
        task: str,
        opening: Sequence[int],
        lines: Sequence[tuple[float, str]],
        enquiries: list[Enquiry],
    ) -> Document:
        """A document of haystack text with lines inserted at depths."""
        inserts = [(depth, self.prompter.encode(line)) for depth, line in lines]
        n = self.room(opening, enquiries) - sum(len(ids) for _, ids in inserts)
        if n < _MIN_TEXT_TOKENS:
            raise _too_short(self.length, task, self.length - n + _MIN_TEXT_TOKENS)
        text = self.haystack.window(n, self.rng).weave(inserts)
        return Document(task, self.length, [*opening, *text], enquiries)


def write_documents(
    plan: "RulerPlan", prompter: Prompter, haystacks: Sequence[Haystack]
) -> Iterator[Document]:
    """All documents of a plan, made one at a time; raises UsageError where a length is too
    short for its task."""
    writers: dict[str, Callable[[_Maker], Document]] = {
        "vt": _variable_tracking,
        "cwe": _common_words,
        "fwe": _frequent_words,
        "extract": _extraction,
    }
    for length in plan.lengths:
        for task in plan.tasks:
            for sample in range(plan.samples):
                rng = random.Random(f"{plan.seed} {task} {length} {sample}")
                haystack = haystacks[sample % len(haystacks)]
                yield writers[task](_Maker(length, prompter, haystack, rng, plan.n_facts))


def _variable_tracking(maker: _Maker) -> Document:
    rng = maker.rng
    names: set[str] = set()
    values = rng.sample(range(10_000, 100_000), _CHAINS + 1)
    example = _chain(_new_names(rng, names), values.pop())
    ask = "Find all variables that are assigned the value {} in the text above."
    lead = (
        "According to the chain(s) of variable assignment in the text above, "
        f"{_HOPS + 1} variables are assigned the value {{}}, they are:"
    )
    task = (
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    )
    shown = "".join(f"{line}\n" for line in example.lines)
    opening = maker.prompter.opening(
        f"{task}{shown}Question: {ask.format(example.value)} Answer: {lead.format(example.value)} "
        f"{' '.join(example.names)}\n\n{task}"
    )
    lines = []
    enquiries = []
    for value in values:
        chain = _chain(_new_names(rng, names), value)
        depths = sorted(rng.random() for _ in chain.lines)
        lines += [(depth, line + "\n") for depth, line in zip(depths, chain.lines, strict=True)]
        enquiries.append(maker.enquiry(ask.format(value), lead.format(value), chain.names, 40))
    return maker.woven("vt", opening, lines, enquiries)


@dataclass(frozen=True, slots=True)
class _Chain:
    names: list[str]
    value: int
    lines: list[str]


def _chain(names: list[str], value: int) -> _Chain:
    """VAR A = 12345, VAR B = VAR A, …"""
    sources = [str(value), *(f"VAR {name}" for name in names)]
    lines = [f"VAR {name} = {source}" for name, source in zip(names, sources, strict=False)]
    return _Chain(names, value, lines)


def _new_names(rng: random.Random, used: set[str]) -> list[str]:
    names: list[str] = []
    while len(names) <= _HOPS:
        name = "".join(rng.choices(string.ascii_uppercase, k=5))
        if name not in used:
            used.add(name)
            names.append(name)
    return names


def _common_words(maker: _Maker) -> Document:
    n_common = 10
    task = (
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.\n"
    )
    ask = "What are the 10 most common words in the above list?"
    lead = "The top 10 words that appear most often in the list are:"
    pairs = [f"{a}-{n}" for a in ADJECTIVES for n in NOUNS]
    maker.rng.shuffle(pairs)
    shown, shown_common = _word_list(pairs[:50], n_common, 90, maker.rng)
    opening = maker.prompter.opening(
        f"{task}{shown}\nQuestion: {ask} Answer: {lead} {_numbered(shown_common)}\n\n{task}"
    )
    enquiry = maker.enquiry(ask, lead, pairs[50 : 50 + n_common], 150)

    def write(n_items: int) -> str:
        return _word_list(pairs[50:], n_common, n_items, random.Random(maker.rng.random()))[0]

    return _fitted(maker, "cwe", opening, enquiry, write, 4 * n_common)


def _word_list(
    pool: Sequence[str], n_common: int, n_items: int, rng: random.Random
) -> tuple[str, list[str]]:
    """About `n_items` words, the first of the pool up to 30 times and the others up to 3 times
    each (10 to 1, as RULER), numbered in random order; and the common ones."""
    rare_times = 3 if n_items >= 600 else 1
    common_times = min(30, 10 * rare_times, max(2, n_items // (2 * n_common)))
    n_rare = max(0, (n_items - n_common * common_times) // rare_times)
    if n_rare + n_common > len(pool):
        rare_times = -(-(n_items - n_common * common_times) // (len(pool) - n_common))
        n_rare = (n_items - n_common * common_times) // rare_times
    common = list(pool[:n_common])
    words = common * common_times + list(pool[n_common : n_common + n_rare]) * rare_times
    rng.shuffle(words)
    return _numbered(words), common


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{i + 1}. {word}" for i, word in enumerate(words))


def _frequent_words(maker: _Maker) -> Document:
    rng = maker.rng
    words: list[str] = []
    while len(words) < 2000:
        word = "".join(rng.choices(string.ascii_lowercase, k=6))
        if word not in words:
            words.append(word)
    opening = maker.prompter.opening(
        "Read the following coded text and track the frequency of each coded word. Find the three "
        "most frequently appeared coded words.\n"
    )
    enquiry = maker.enquiry(
        "Do not provide any explanation. Please ignore the dots '....'. What are the three most "
        "frequently appeared words in the above coded text?",
        "According to the coded text above, the three most frequently appeared words are:",
        words[:3],
        50,
    )

    def write(n_items: int) -> str:
        # A zeta distribution of exponent 2; the most frequent word is the dots.
        ranks = ["....", *words]
        scale = n_items / sum(1 / (i + 1) ** 2 for i in range(len(ranks)))
        text = [word for i, word in enumerate(ranks) for _ in range(round(scale / (i + 1) ** 2))]
        rng.shuffle(text)
        return " ".join(text)

    return _fitted(maker, "fwe", opening, enquiry, write, 64)


def _fitted(
    maker: _Maker,
    task: str,
    opening: Sequence[int],
    enquiry: Enquiry,
    write: Callable[[int], str],
    least: int,
) -> Document:
    """A document whose text has as many items as fit, `least` at the fewest."""
    room = maker.room(opening, [enquiry])
    probe = 4 * least
    n_items = int(room * probe / len(maker.prompter.encode(write(probe)))) if room > 0 else 0
    while n_items >= least:
        ids = maker.prompter.encode(write(n_items))
        if len(ids) <= room:
            return Document(task, maker.length, [*opening, *ids], [enquiry])
        # Numbers grow longer with the list, so the probe's words were shorter than the average.
        n_items = min(n_items - 1, int(n_items * room / len(ids)))
    raise _too_short(maker.length, task, maker.length - room + 8 * least)


def _extraction(maker: _Maker) -> Document:
    rng = maker.rng
    facts_of = FactMaker(rng)
    facts = [facts_of.make(WORDINGS[i % len(WORDINGS)]) for i in range(maker.n_facts)]
    task = "Read the following text with care. A question about it follows.\n\n"
    opening = maker.prompter.opening(task if maker.prompter.chat else "")
    lines = [(rng.random(), line) for fact in facts for line in fact.statements]
    enquiries = [maker.enquiry(fact.ask, fact.lead, fact.values, 16, fact.plain) for fact in facts]
    return maker.woven("extract", opening, lines, enquiries)


def _too_short(length: int, task: str, least: int) -> UsageError:
    return UsageError(
        f"--ctx {length:,} is too short for {task}: about {least:,} tokens are needed"
    )
