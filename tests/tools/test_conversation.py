"""Turns, token reuse, undo and interrupts of a conversation, over a fake engine."""

import pytest

from hga.runtime.sampler import SamplerOptions
from hga.tools.conversation import Conversation
from hga.tools.errors import UsageError
from hga.tools.interrupt import Interrupt

GREEDY = SamplerOptions(temperature=0.0)


def talk(engine, **options):
    chat = options.pop("chat", engine.template is not None)
    return Conversation(engine, engine.session(), GREEDY, chat=chat, **options)


def ask(conversation, text, **options):
    pieces = []
    reply = conversation.ask(text, pieces.append, **options)
    assert "".join(pieces) == reply.text
    return reply


def test_second_turn_prefills_only_what_is_new(fake_engine, say):
    engine = fake_engine([say("hello"), say("fine")])
    conversation = talk(engine)
    first = ask(conversation, "hi")
    assert (first.text, first.reused_tokens, first.stop) == ("hello", 0, "eos")
    timeline = list(conversation.session.tokens)
    second = ask(conversation, "how")
    # END is in the timeline; the template goes on with the next user message.
    assert second.reused_tokens == len(timeline)
    assert conversation.session.fed[-1] == [257, ord("u"), *b"how", 258, 257, ord("a")]


def test_sampled_tokens_are_kept_where_encoding_the_text_gives_others(fake_engine, say):
    engine = fake_engine([say("the hen"), say("ok")])
    conversation = talk(engine)
    ask(conversation, "x")
    assert engine.tokenizer.encode("the hen") != list(b"the hen")
    before = list(conversation.session.tokens)
    ask(conversation, "y")
    assert conversation.session.tokens[: len(before)] == before


def test_a_template_that_rewrites_the_past_wins(fake_engine, say):
    engine = fake_engine([say("aaa"), say("bbb"), say("ccc")], strips=True)
    conversation = talk(engine)
    ask(conversation, "x")
    second = ask(conversation, "y")
    rendered = engine.template.render_ids(
        [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "aaa"},
            {"role": "user", "content": "y"},
        ],
        engine.tokenizer,
    )
    assert conversation.session.tokens[: len(rendered)] == rendered
    assert 0 < second.reused_tokens < second.prompt_tokens
    assert conversation.undo() == "y"
    assert conversation.undo() == "x"
    assert ask(conversation, "z").text == "ccc"


def test_undo_and_regenerate_truncate(fake_engine, say):
    engine = fake_engine([say("one"), say("two"), say("TWO"), say("three")])
    conversation = talk(engine)
    ask(conversation, "a")
    after_first = list(conversation.session.tokens)
    ask(conversation, "b")
    pieces = []
    again = conversation.regenerate(pieces.append)
    assert again.text == "TWO" and conversation.n_turns == 2
    # All of the prompt but its last token is still there.
    assert again.new_tokens == 1
    assert conversation.undo() == "b"
    assert conversation.session.tokens == after_first[:-1]
    assert conversation.undo() == "a"
    assert conversation.session.tokens == []
    with pytest.raises(UsageError):
        conversation.undo()


def test_interrupt_keeps_the_reply_so_far(fake_engine, say):
    engine = fake_engine([say("hello"), say("again")])
    conversation = talk(engine)
    interrupt = Interrupt()

    def stop_after(token):
        interrupt.requested = token == ord("e")

    conversation.session.on_token = stop_after
    reply = ask(conversation, "hi", interrupt=interrupt)
    assert reply.stop == "interrupt" and reply.answered
    assert reply.text in ("he", "hel")
    conversation.session.on_token = None
    before = reply.prompt_tokens + len(reply.tokens)
    assert ask(conversation, "go on").reused_tokens >= before - 1


def test_interrupt_during_prefill_drops_the_turn(fake_engine, say):
    engine = fake_engine([say("hello")])
    conversation = talk(engine)
    interrupt = Interrupt()

    def report(done, total):
        interrupt.requested = done == 3

    reply = ask(conversation, "hi there", interrupt=interrupt, report=report)
    assert not reply.answered and conversation.n_turns == 0
    assert ask(conversation, "hi there").text == "hello"


def test_prompt_beyond_the_context_is_refused_with_both_numbers(fake_engine, say):
    engine = fake_engine([say("ok")], ctx=30)
    conversation = talk(engine)
    ask(conversation, "hi")
    before = list(conversation.session.tokens)
    with pytest.raises(UsageError, match=r"makes \d+ tokens .* holds 30"):
        conversation.ask("x" * 40, print)
    assert conversation.session.tokens == before and conversation.n_turns == 1


def test_full_context_ends_the_reply_and_is_told(fake_engine, say):
    conversation = talk(fake_engine([say("x" * 100)], ctx=20))
    reply = ask(conversation, "hi")
    assert reply.stop == "length" and reply.context_full
    assert len(conversation.session.tokens) == 20
    limited = talk(
        fake_engine([say("x" * 100)], ctx=50),
        predict=5,
    )
    reply = ask(limited, "hi")
    assert (len(reply.tokens), reply.stop, reply.context_full) == (5, "length", False)


def test_characters_split_over_tokens_arrive_whole(fake_engine, say):
    conversation = talk(fake_engine([say("a€😀")]))
    pieces = []
    conversation.ask("hi", pieces.append)
    assert pieces == ["a", "€", "😀"]


def test_without_template_the_text_goes_on(fake_engine, say):
    engine = fake_engine([say("cd"), say("gh")], template=False)
    conversation = talk(engine)
    ask(conversation, "ab")
    assert conversation.session.fed[0] == [256, *b"ab"]
    second = ask(conversation, "ef")
    assert conversation.session.tokens[:-1] == [256, *b"abcdefgh"]
    assert second.reused_tokens == len(b"abcd") + 1
    with pytest.raises(UsageError):
        conversation.system = "be brief"


def test_system_prompt_changes_the_start(fake_engine, say):
    engine = fake_engine([say("a"), say("b")])
    conversation = talk(engine, system="old")
    ask(conversation, "x")
    conversation.system = "new"
    ask(conversation, "y")
    assert conversation.session.tokens[1:6] == [257, ord("s"), *b"new"]
    with pytest.raises(UsageError):
        talk(fake_engine(template=False), system="s")


def test_clear_keeps_the_system_prompt(fake_engine, say):
    engine = fake_engine([say("a"), say("b")])
    conversation = talk(engine, system="sys")
    ask(conversation, "x")
    conversation.clear()
    assert conversation.n_tokens == 0 and conversation.n_turns == 0
    assert ask(conversation, "y").reused_tokens == 0
    assert conversation.system == "sys"


def test_count_is_what_a_turn_adds(fake_engine, say):
    engine = fake_engine([say("a")])
    conversation = talk(engine)
    ask(conversation, "x")
    assert conversation.count("abc") == conversation.count("") + 3
