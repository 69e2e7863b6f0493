"""Needles and RULER's tasks: how documents are made, what is asked, how answers are scored."""

import json
import random

import numpy as np
import pytest

from hga.tools.arms import DENSE, Arm
from hga.tools.errors import UsageError
from hga.tools.facts import MULTIVALUE, WORDINGS, FactMaker
from hga.tools.haystack import Haystack, load_haystacks
from hga.tools.needle import (
    N_KEYS,
    N_VALUES,
    NeedlePlan,
    find_needles,
    needle_texts,
    questions_of,
)
from hga.tools.prompts import Prompter
from hga.tools.retrieval import Question, answers
from hga.tools.ruler import RulerPlan
from hga.tools.ruler_tasks import write_documents
from hga.tools.status import Status

QUIET = Status(quiet=True)
TEXT = "".join(f"Line {i} says nothing.\n" for i in range(200))


@pytest.fixture
def prompter(fake_engine):
    """prompter(chat) of a fake model whose tokens are bytes."""
    return lambda chat=False: Prompter(fake_engine(), chat=chat)


@pytest.fixture
def haystack(fake_engine):
    """200 lines of plain text."""
    return Haystack("lines", TEXT, fake_engine().tokenizer)


def read(engine, ids):
    return engine.tokenizer.decode(ids)


def test_a_window_has_its_length_and_facts_stand_on_lines_of_their_own(fake_engine, haystack):
    engine = fake_engine()
    for n_tokens in (100, 1000, len(haystack), 3 * len(haystack)):
        window = haystack.window(n_tokens, random.Random(1))
        fact = engine.tokenizer.encode("FACT\n")
        woven = window.weave([(0.75, fact), (0.25, fact)])
        assert len(woven) == n_tokens + 2 * len(fact)
        lines = read(engine, woven).split("\n")
        assert lines.count("FACT") == 2
        places = [at / len(lines) for at, line in enumerate(lines) if line == "FACT"]
        assert places == pytest.approx([0.25, 0.75], abs=0.2 if n_tokens < 1000 else 0.03)


def test_haystacks_from_files_and_from_python(fake_engine, tmp_path):
    tokenizer = fake_engine().tokenizer
    (tmp_path / "a.txt").write_text("one line without end")
    assert [h.name for h in load_haystacks([tmp_path / "a.txt"], tokenizer)] == ["a.txt"]
    assert len(load_haystacks(None, tokenizer)[0]) > 100_000
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(UsageError, match=r"b\.txt is empty"):
        load_haystacks([tmp_path / "b.txt"], tokenizer)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("kind", ["single", "multikey", "multivalue"])
def test_texts_hold_their_needles_at_their_depths(fake_engine, prompter, haystack, kind, chat):
    engine = fake_engine()
    plan = NeedlePlan((4000,), (kind,), 7, 2, 5)
    texts = list(needle_texts(plan, prompter(chat), [haystack]))
    assert len(texts) == plan.n_texts
    assert sum(len(n.questions) for t in texts for n in t.needles) == plan.n_questions
    assert sorted(n.depth for t in texts for n in t.needles) == sorted(2 * plan.depths)
    for text in texts:
        longest = max(q.n_tokens for needle in text.needles for q in needle.questions)
        assert len(text.ids) + longest + 1 == 4000
        document = read(engine, text.ids)
        for needle in text.needles:
            assert len(needle.questions) == (N_VALUES if kind == "multivalue" else 1)
            asked = [read(engine, [*q.prompt, *q.answer]) for q in needle.questions]
            value = asked[0].rsplit(" is", 1)[-1].rsplit("for", 1)[-1].rsplit("prints", 1)[-1]
            place = document.index(value.strip()) / len(document)
            assert abs(place - needle.depth) < 0.12
        if kind == "multikey":
            words = next(w for w in WORDINGS if w.name == text.needles[0].wording)
            assert document.count(words.statement.split("{")[0]) == N_KEYS
    again = list(needle_texts(plan, prompter(chat), [haystack]))
    assert [text.ids for text in again] == [text.ids for text in texts]


def test_values_of_one_key_are_asked_for_by_what_tells_them_apart(prompter):
    fact = FactMaker(random.Random(1)).make(MULTIVALUE, 2)
    fact = type(fact)(fact.wording, fact.key, ("12345", "12945", "70000"))
    asked = questions_of(fact, prompter())
    assert [bytes(q.answer) for q in asked] == [b"45", b"45", b"0000"]
    assert bytes(asked[0].prompt[-4:]) == b" 123" and bytes(asked[2].prompt[-2:]) == b" 7"


def test_a_chat_template_frames_the_document(fake_engine, prompter):
    chat, plain = prompter(True), prompter(False)
    assert chat.chat and not plain.chat
    assert chat.opening("ab") == [256, 257, ord("u"), *b"ab"] and plain.opening("") == [256]
    assert chat.question("Q?", "A is", "-") == [*b"\nQ?", 258, 257, ord("a"), *b"A is"]
    assert plain.question("-", "-", "Q? A is") == [*b"\nQ? A is"]
    assert plain.answer("A is", " 12") == [*b" 12"]
    # `he` is one token of the fake model, so this lead has no end of its own.
    with pytest.raises(UsageError, match="no answer can be scored"):
        plain.answer("h", "e")


def test_an_answer_is_right_token_by_token(fake_engine):
    # The fake model expects the last token plus one.
    session = fake_engine().session()
    assert answers(session, Question((1, 5), (6, 7, 8))) and session.tokens == [1, 5, 6, 7]
    assert not answers(session, Question((1, 5), (6, 8, 9))) and session.tokens[-1] == 6


def test_one_prefill_serves_every_arm_and_nothing_routed_is_reused(fake_engine, prompter, haystack):
    engine = fake_engine(ctx=4000)
    plan = NeedlePlan((3000,), ("single", "multikey"), 9, 1, 0)
    arms = [Arm("hga", "64"), DENSE]
    found = find_needles(engine, plan, [haystack], prompter(), arms, QUIET, recall=True)
    assert len(engine.sessions[0].fed) == plan.n_texts == 3
    assert len(found["rows"]) == 2 * 2 * 9 and len(found["totals"]) == 4
    assert {row["total"] for row in found["totals"]} == {9}
    assert found["totals"][0]["mass_recall"] == 0.5
    assert [row["attention"] for row in found["totals"]] == ["hga", "hga", "dense", "dense"]
    assert sum(row["total"] for row in found["wordings"] if row["attention"] == "hga") == 18


def test_needle_command(hga_eval, tmp_path):
    picture = tmp_path / "needle.png"
    code, found, err = hga_eval(
        "needle", "--ctx", "2k,3k", "--depths", 3, "--attention", "dense,hga", "--budget", "2%",
        "--plot", picture, ctx=4000,
    )  # fmt: skip
    assert code == 0 and found["ctx"] == [2048, 3072] and found["chat"] is True
    assert "36 questions for each of 2 arms" in err and picture.stat().st_size > 10_000
    assert set(found["rows"][0]) == {
        "attention", "budget", "kind", "ctx", "depth", "hits", "total", "found", "attended_mean",
        "bytes_per_token", "index_bytes_per_token", "mass_recall",
    }  # fmt: skip
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("needle",), "--ctx LIST is needed"),
        (("needle", "--ctx", "300"), "--ctx 300 is too short"),
        (("needle", "--ctx", "2k", "--kind", "double"), "'double' is unknown"),
        (("needle", "--ctx", "2k", "--depths", "0"), "expected a whole number from 1"),
        (("needle", "--ctx", "2k", "--haystack", "none.txt"), "none.txt: No such file"),
        (("ruler", "--ctx", "300"), "--ctx 300 is too short for vt"),
        (("ruler", "--ctx", "300", "--task", "cwe"), "--ctx 300 is too short for cwe"),
        (("ruler", "--ctx", "2k", "--task", "vt,qa"), "'qa' is unknown"),
    ],
)
def test_refusals(hga_eval, words, said):
    code, found, err = hga_eval(*words, "--quiet")
    assert code == 2 and found is None and said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("task", ["vt", "cwe", "fwe", "extract"])
@pytest.mark.parametrize("length", [6000, 30_000])
def test_ruler_documents_fit_and_hold_their_answers(fake_engine, prompter, haystack, task, length):
    engine = fake_engine()
    plan = RulerPlan((length,), (task,), 2, 0, 12)
    first, second = write_documents(plan, prompter(), [haystack])
    assert first.ids != second.ids
    for document in (first, second):
        text = read(engine, document.ids)
        needed = max(len(e.prompt) + e.max_tokens for e in document.enquiries)
        assert 0.9 * length < len(document.ids) + needed <= length
        assert len(document.enquiries) == {"vt": 4, "extract": 12}.get(task, 1)
        for enquiry in document.enquiries:
            assert all(word in text for word in enquiry.expected)
    if task in ("cwe", "fwe"):
        words = [word for word in read(engine, first.ids).split() if word.isalpha() or "-" in word]
        counts = {word: words.count(word) for word in set(words) if len(word) > 5}
        answer = first.enquiries[0].expected
        rare = [n for word, n in counts.items() if word not in answer]
        assert min(counts[word] for word in answer) > np.quantile(rare, 0.95)


def test_ruler_command(hga_eval, tmp_path):
    picture = tmp_path / "ruler.png"
    code, found, _ = hga_eval(
        "ruler", "--ctx", "6000,4000", "--facts", 5, "--no-chat", "--task", "extract,vt",
        "--attention", "hga,dense", "--plot", picture, ctx=6000,
    )  # fmt: skip
    assert code == 0 and found["ctx"] == [4000, 6000] and found["tasks"] == ["vt", "extract"]
    assert len(found["rows"]) == 2 * 2 * 2 and picture.stat().st_size > 10_000
    assert {row["questions"] for row in found["rows"]} == {4, 5}
    json.dumps(found, allow_nan=False)


@pytest.mark.slow
def test_the_trained_checkpoint_finds_needles(needle_moe, tmp_path, kernel_cache):
    from hga.runtime.engine import Engine
    from hga.runtime.options import Options
    from hga.tools.pack import pack

    packed = pack(needle_moe, tmp_path / "needle.hga").path
    plan = NeedlePlan((1024,), ("single", "multikey", "multivalue"), 9, 1, 3)
    with Engine.open(packed, Options(ctx=1024), kernel_cache) as engine:
        prompter = Prompter(engine, chat=True)
        haystacks = load_haystacks(None, engine.tokenizer)
        found = find_needles(engine, plan, haystacks, prompter, [DENSE], QUIET)
    assert not prompter.chat
    assert [row["hits"] for row in found["totals"][:2]] == [9, 9]
    assert found["totals"][2]["found"] > 0.7
