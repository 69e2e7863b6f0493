"""Needles: facts hidden at given depths of a long text, asked for through every arm.

One densely prefilled text serves as many needles as its kind allows, and every arm. single: the
needles of one text are of different wordings. multikey: nine of the same wording, each asked for
in turn, so that each has eight distractors. multivalue: up to three keys with four values each,
the first at the key's depth and the others anywhere; each value is asked for by its first digits,
as many as tell it from the others, and all four must be found.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hga.tools.arms import Arm
from hga.tools.errors import UsageError
from hga.tools.facts import MULTIVALUE, WORDINGS, Fact, FactMaker
from hga.tools.haystack import Haystack
from hga.tools.prefill import SharedPrefix, Work
from hga.tools.prompts import Prompter
from hga.tools.retrieval import Question, answers
from hga.tools.status import Status
from hga.tools.tally import Grid

if TYPE_CHECKING:
    from hga.runtime.engine import Engine

N_KEYS = 9
"""Keys of a multikey text: the one asked for and eight distractors."""
N_VALUES = 4
"""Values of a multivalue key."""

_NEEDLES_PER_TEXT = {"single": len(WORDINGS), "multikey": N_KEYS, "multivalue": 3}
_CHAT_TASK = "Read the following text with care. A question about it follows.\n\n"
# Shorter stretches of text say nothing about depth.
_MIN_TEXT_TOKENS = 64
# For the progress bar: tokens of a question and its answer.
_QUESTION_TOKENS = 40


@dataclass(frozen=True, slots=True)
class NeedlePlan:
    """Every kind, length and depth is tried `samples` times."""

    lengths: tuple[int, ...]
    kinds: tuple[str, ...]
    n_depths: int
    samples: int
    seed: int

    @property
    def depths(self) -> list[float]:
        """The middles of equal parts of the text, from 0 (its beginning) to 1."""
        return [round((i + 0.5) / self.n_depths, 4) for i in range(self.n_depths)]

    def groups(self, kind: str) -> list[list[float]]:
        """The depths whose needles share a text, spread over it."""
        n = -(-self.n_depths // _NEEDLES_PER_TEXT[kind])
        return [self.depths[i::n] for i in range(n)]

    @property
    def n_texts(self) -> int:
        """Texts per length."""
        return self.samples * sum(len(self.groups(kind)) for kind in self.kinds)

    @property
    def n_questions(self) -> int:
        """Questions per length and arm: one per value."""
        values = sum(N_VALUES if kind == "multivalue" else 1 for kind in self.kinds)
        return self.samples * self.n_depths * values


@dataclass(frozen=True, slots=True)
class Needle:
    """The fact at a depth, and a question for each of its values."""

    depth: float
    wording: str
    questions: list[Question]


@dataclass(frozen=True, slots=True)
class NeedleText:
    """Tokens to prefill and the questions about them; with the longest question and its answer
    they are as long as asked."""

    kind: str
    length: int
    ids: list[int]
    needles: list[Needle]


def needle_texts(
    plan: NeedlePlan, prompter: Prompter, haystacks: Sequence[Haystack]
) -> Iterator[NeedleText]:
    """All texts of a plan, made one at a time; raises UsageError where a length is too short."""
    for length in plan.lengths:
        for kind in plan.kinds:
            for sample in range(plan.samples):
                for number, depths in enumerate(plan.groups(kind)):
                    rng = random.Random(f"{plan.seed} {kind} {length} {sample} {number}")
                    haystack = haystacks[sample % len(haystacks)]
                    yield _text(kind, length, sample, depths, prompter, haystack, rng)


def _text(
    kind: str,
    length: int,
    sample: int,
    depths: Sequence[float],
    prompter: Prompter,
    haystack: Haystack,
    rng: random.Random,
) -> NeedleText:
    facts, distractors = _facts(kind, sample, len(depths), rng)
    needles = [
        Needle(depth, fact.wording.name, questions_of(fact, prompter))
        for depth, fact in zip(depths, facts, strict=True)
    ]
    inserts: list[tuple[float, list[int]]] = []
    for depth, fact in zip(depths, facts, strict=True):
        first, *others = (prompter.encode(line) for line in fact.statements)
        inserts.append((depth, first))
        inserts += ((rng.random(), line) for line in others)
    for fact in distractors:
        inserts += ((rng.random(), prompter.encode(line)) for line in fact.statements)
    opening = prompter.opening(_CHAT_TASK if prompter.chat else "")
    taken = len(opening) + sum(len(ids) for _, ids in inserts)
    taken += max(q.n_tokens for needle in needles for q in needle.questions) + 1
    if length - taken < _MIN_TEXT_TOKENS:
        raise UsageError(
            f"--ctx {length:,} is too short: {taken:,} tokens are needed for the needles of {kind} "
            f"and the question, and {_MIN_TEXT_TOKENS} of text"
        )
    woven = haystack.window(length - taken, rng).weave(inserts)
    return NeedleText(kind, length, [*opening, *woven], needles)


def _facts(kind: str, sample: int, n: int, rng: random.Random) -> tuple[list[Fact], list[Fact]]:
    """The facts to ask for, and others of their wording."""
    maker = FactMaker(rng)
    if kind == "multivalue":
        return [maker.make(MULTIVALUE, N_VALUES) for _ in range(n)], []
    if kind == "single":
        return [maker.make(wording) for wording in rng.sample(WORDINGS, n)], []
    wording = WORDINGS[sample % len(WORDINGS)]
    facts = [maker.make(wording) for _ in range(N_KEYS)]
    return facts[:n], facts[n:]


def questions_of(fact: Fact, prompter: Prompter) -> list[Question]:
    """A question for every value of a fact; where there are several, the tokens that tell a value
    from the others are part of the question."""
    before = fact.lead if prompter.chat else fact.plain
    prompt = prompter.question(fact.ask, fact.lead, fact.plain)
    values = [prompter.answer(before, " " + value) for value in fact.values]
    questions = []
    for value in values:
        shared = max((_n_common(value, other) for other in values if other != value), default=-1)
        cue = min(shared + 1, len(value) - 1)
        questions.append(Question((*prompt, *value[:cue]), tuple(value[cue:])))
    return questions


def _n_common(a: Sequence[int], b: Sequence[int]) -> int:
    same = (x == y for x, y in zip(a, b, strict=False))
    return next((i for i, equal in enumerate(same) if not equal), min(len(a), len(b)))


def find_needles(
    engine: "Engine",
    plan: NeedlePlan,
    haystacks: Sequence[Haystack],
    prompter: Prompter,
    arms: Sequence[Arm],
    status: Status,
    *,
    recall: bool = False,
) -> dict[str, Any]:
    """The JSON object of `hga eval needle`: every text prefilled densely once, its questions
    decoded through every arm. A hit has the right arg-max at every token of every value; `found`
    is the mean share of values found."""
    grid = Grid(("kind", "wording", "ctx", "depth"))
    per_question = len(arms) * _QUESTION_TOKENS
    total = sum(plan.n_texts * n + plan.n_questions * per_question for n in plan.lengths)
    planned = 0
    with engine.session() as session, status.bar("needle", "tokens") as report:
        session.measure_recall = recall
        work = Work(report, total)
        prefix = SharedPrefix(session, work)
        for text in needle_texts(plan, prompter, haystacks):
            prefix.fill(text.ids)
            hits = dict.fromkeys(arms, 0)
            for needle in text.needles:
                for arm in arms:
                    tally = grid.at(arm, text.kind, needle.wording, text.length, needle.depth)
                    found = 0
                    for question in needle.questions:
                        with prefix.arm(arm, tally.costs):
                            found += answers(session, question)
                        work.advance(question.n_tokens)
                    tally.add(found / len(needle.questions))
                    hits[arm] += found == len(needle.questions)
            asked = sum(len(needle.questions) for needle in text.needles)
            planned += text.length + asked * per_question
            work.reach(planned)
            got = ", ".join(f"{arm.label} {n}" for arm, n in hits.items())
            status.detail(f"{text.kind}, {text.length:,} tokens, of {len(text.needles)}: {got}")
    return {
        "ctx": list(plan.lengths),
        "depths": plan.depths,
        "samples": plan.samples,
        "seed": plan.seed,
        "chat": prompter.chat,
        "haystacks": [haystack.name for haystack in haystacks],
        "rows": grid.rows("kind", "ctx", "depth"),
        "totals": grid.rows("kind", "ctx"),
        "wordings": grid.rows("kind", "wording"),
    }
