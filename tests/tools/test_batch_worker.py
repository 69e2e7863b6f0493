"""A worker's answers: what they share, how long documents are cut and merged, what is refused."""

import numpy as np
import pytest

from hga.runtime.sampler import SamplerOptions
from hga.tools.batch import worker as worker_module
from hga.tools.batch.task import Task, load_task
from hga.tools.batch.worker import AnswerError, Stopped, Worker
from hga.tools.errors import UsageError
from hga.tools.interrupt import Interrupt

TASK = Task("test", "Read:\n\n", "Go.", "Answer:")


@pytest.fixture
def make(fake_engine):
    """make(script, ctx=..., **settings) -> (worker, its session, engine)."""

    def go(script=(), *, task=TASK, ctx=400, predict=20, chat=True, reduce=True, template=True):
        engine = fake_engine(script, ctx=ctx, template=template)
        made = Worker(
            engine, task, SamplerOptions(temperature=0.0), predict=predict, chat=chat, reduce=reduce
        )
        return made, engine.sessions[0], engine

    return go


def shown(ids):
    return "".join(chr(i) if i < 256 else "he" if i == 300 else "|" for i in ids)


def test_the_document_stands_between_the_instructions_and_the_closing_line(make, say):
    worker, session, _ = make([say("fine")])
    answer = worker.answer(worker.encode("a doc"))
    assert [shown(ids) for ids in session.fed] == ["||uRead:\n\n", "a doc\nGo.||a"]
    assert (answer.text, answer.n_parts, answer.cut) == ("fine", 1, False)
    assert (answer.document_tokens, answer.reply_tokens, answer.reused_tokens) == (5, 4, 0)
    assert answer.prompt_tokens == sum(map(len, session.fed))


def test_instructions_are_prefilled_once(make, say):
    worker, session, _ = make([say("one"), say("two"), say("three")])
    answers = [worker.answer(worker.encode(text)) for text in ("a", "b", "c")]
    prefix = len(session.fed[0])
    assert len(session.fed) == 4 and [a.reused_tokens for a in answers] == [0, prefix, prefix]
    assert [a.text for a in answers] == ["one", "two", "three"]
    assert session.truncated.count(prefix) == 2


def test_a_base_model_continues_plain_text(make, say):
    worker, session, _ = make([say("fine")], template=False)
    worker.answer(worker.encode("a doc"))
    assert [shown(ids) for ids in session.fed] == ["|Read:\n\n", "a doc\nAnswer:"]


def test_control_text_of_a_document_stays_text(make, say):
    worker, session, _ = make([say("fine")])
    worker.answer(worker.encode("x<|end|>y"))
    assert "x<|end|>y" in shown(session.fed[1])


def test_long_documents_are_cut_at_lines_and_merged(make, say):
    worker, session, _ = make([say("first"), say("second"), say("third"), say("whole")], ctx=420)
    room = worker._room
    lines = [f"line {i:03} of text\n" for i in range(2 * room // 17 - 1)]
    answer = worker.answer(worker.encode("".join(lines)))
    texts = [shown(ids).partition("\nGo.")[0] for ids in session.fed if "line" in shown(ids)]
    assert answer.n_parts == len(texts) == 2 and answer.text == "third"
    assert "".join(texts) == "".join(lines)
    assert all(text.endswith("text\n") for text in texts[:-1])
    assert "Part 1:\nfirst\n\nPart 2:\nsecond\n\n" in shown(session.fed[-1])
    assert all(len(ids) + 20 <= 420 for ids in session.fed)


def test_parts_cover_a_document_without_lines(make, say):
    worker, session, _ = make([say(f"p{i}") for i in range(30)], ctx=420)
    text = "abcdefg" * worker._room
    answer = worker.answer(worker.encode(text))
    texts = [shown(ids).partition("\nGo.")[0] for ids in session.fed if "abcdefg" in shown(ids)]
    assert "".join(texts) == text and answer.n_parts == len(texts) >= 7
    sizes = [len(text) for text in texts]
    assert max(sizes) <= worker._room and max(sizes) - min(sizes) <= len(sizes)


def test_many_answers_are_merged_in_rounds(make, say):
    script = [say("part answer " + "x" * 60) for _ in range(8)] + [say("m1"), say("m2"), say("m3")]
    worker, session, _ = make([*script, *[say("end")] * 5], ctx=600, predict=80)
    answer = worker.answer(worker.encode("y" * (8 * worker._room - 10)))
    merges = [shown(ids) for ids in session.fed if "Part " in shown(ids)]
    assert answer.n_parts == 8 and len(merges) >= 2 and "m1" in merges[-1]
    assert all(f"Part {i}:" in "".join(merges) for i in range(1, 9))


def test_answers_that_cannot_be_merged_are_refused(make, say):
    replies = [say("z" * 200, ends=False) for _ in range(4)]
    worker, _, _ = make(replies, ctx=650, predict=200)
    with pytest.raises(AnswerError, match="cannot be merged in a context of 650: raise --ctx"):
        worker.answer(worker.encode("y" * (2 * worker._room - 10)))


def test_long_documents_may_be_refused(make):
    worker, session, _ = make(reduce=False)
    with pytest.raises(AnswerError, match=r"1,000 tokens, and the context of 400 leaves \d+"):
        worker.answer(worker.encode("y" * 1000))
    assert not session.fed


def test_a_context_without_room_is_refused_at_once(make):
    with pytest.raises(UsageError, match=r"a context of 100 tokens leaves .* raise --ctx or lower"):
        make(ctx=100)


def test_cut_and_empty_replies(make, say):
    worker, _, _ = make([say("x" * 50, ends=False), say(" \n")])
    assert worker.answer(worker.encode("a")).cut
    with pytest.raises(AnswerError, match="the model gave no text"):
        worker.answer(worker.encode("b"))


def test_an_interrupt_leaves_a_worker_that_can_go_on(make, say):
    worker, session, _ = make([say("never seen"), say("fine")])
    stop = Interrupt()

    def press(share):
        stop.requested = True

    with pytest.raises(Stopped):
        worker.answer(worker.encode("a" * 50), press, stop)
    assert worker.answer(worker.encode("b")).text
    assert shown(session.fed[-1]) == "b\nGo.||a"


def test_progress_rises_to_the_end(make, say):
    worker, _, _ = make([say("one"), say("two"), say("all")], ctx=420)
    shares = []
    worker.answer(worker.encode("y" * (2 * worker._room - 10)), shares.append)
    assert shares == sorted(shares) and 0 <= shares[0] < 0.1 and 0.6 < shares[-1] <= 1


def test_long_texts_are_encoded_in_pieces(make, monkeypatch):
    monkeypatch.setattr(worker_module, "_PIECE_CHARS", 10)
    worker, _, engine = make()
    paragraphs = "p1 p1\n\np2 p2 p2\n\np3"
    for text in ("", "short", "one two three four", paragraphs, "x" * 35, "a\n" * 20):
        pieces = list(worker_module._pieces(text))
        assert "".join(pieces) == text and all(len(piece) <= 10 for piece in pieces)
        assert worker.encode(text).tolist() == engine.tokenizer.encode(text)
    assert list(worker_module._pieces(paragraphs)) == ["p1 p1\n\n", "p2 p2 p2\n\n", "p3"]
    assert worker.encode("ab").dtype == np.int32


def test_tasks(tmp_path):
    assert load_task(None, None) == load_task("summarize", None)
    assert load_task(None, None).schema is None and "Summarize" in load_task(None, None).before
    extract = load_task(None, '{"type": "object"}')
    assert extract.name == "extract" and '{"type": "object"}' in extract.before
    assert load_task("summarize", '{"type": "string"}').name == "summarize"
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("List the names.\n")
    assert load_task(str(prompt), None).before == "List the names.\n\n"
    prompt.write_text("Here:\n{document}\nList the names.\n")
    task = load_task(str(prompt), None)
    assert (task.before, task.after) == ("Here:\n\n", "List the names.")
    assert "Here:" in task.merging().before and task.merging().schema is None
    for text, said in (("{document}{document}", "stands 2 times"), (" \n", "prompt is empty")):
        prompt.write_text(text)
        with pytest.raises(UsageError, match=said):
            load_task(str(prompt), None)
    with pytest.raises(UsageError, match="no task 'absent'"):
        load_task("absent", None)
