"""Replies held to a JSON schema: every vocabulary kind, greedy and sampled, and the refusals."""

import json
import sys
import time

import numpy as np
import pytest

from hga.runtime.grammar import (
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_DEPTH,
    ConstrainedSampler,
    GrammarCompiler,
    GrammarError,
)
from hga.runtime.sampler import Sampler, SamplerOptions
from hga.runtime.tokenizer import _BYTELEVEL as ALPHABET
from hga.runtime.tokenizer import Tokenizer, spec_from_gguf

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
WORDS = ("true", "false", "null", "ti", "tle", "title", "day", "is", "it", "red", "blue")
REPORT = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 12},
        "day": {"type": "integer", "minimum": 1, "maximum": 31},
        "good": {"type": "boolean"},
        "colour": {"enum": ["red", "blue", "grün"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
    },
    "required": ["title", "day", "good", "colour", "tags"],
    "additionalProperties": False,
}


def bytelevel():
    """256 bytes, some words, and two control tokens."""
    merges, joined = [], []
    for word in WORDS:
        for n in range(1, len(word)):
            merge = f"{word[:n]} {word[n]}"
            if merge not in merges:
                merges.append(merge)
                joined.append(word[: n + 1])
    tokens = [*ALPHABET, *joined, "<|im_start|>", "<|im_end|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * (len(tokens) - 2) + [CONTROL] * 2,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }


def sentencepiece(space_prefix):
    """<unk> <s> </s>, the bytes, and pieces with scores."""
    pieces = ["▁" + word for word in WORDS] + [*WORDS, '{"', '":', "▁", "▁▁"]
    chars = [c for c in dict.fromkeys("".join(pieces) + '{}[]":,.-0123456789') if c not in pieces]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    scores = [0.0] * len(tokens) + [-1.0 - i for i in range(len(pieces) + len(chars))]
    tokens += [*pieces, *chars]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types + [NORMAL] * (len(tokens) - len(types)),
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": space_prefix,
        "tokenizer.ggml.eos_token_id": 2,
    }


VOCABULARIES = {
    "bytelevel": bytelevel(),
    "sentencepiece": sentencepiece(False),
    "sentencepiece with a space before": sentencepiece(True),
}


@pytest.fixture(scope="module", params=VOCABULARIES)
def tokenizer(request):
    return Tokenizer(spec_from_gguf(VOCABULARIES[request.param]))


@pytest.fixture(scope="module")
def compiler(tokenizer):
    return GrammarCompiler(tokenizer)


def write(tokenizer, grammar, options, seed, padding=5, limit=400):
    """A reply of a model that babbles: random logits at every step."""
    random = np.random.default_rng(seed)
    sampler = ConstrainedSampler(Sampler(options), grammar.start())
    ids = []
    while len(ids) < limit:
        logits = random.normal(0, 4, tokenizer.n_vocab + padding).astype(np.float32)
        token = sampler.sample(logits, ids)
        if token in tokenizer.eos:
            assert sampler.constraint.complete
            return b"".join(map(tokenizer.piece, ids)).decode()
        assert token < tokenizer.n_vocab
        ids.append(token)
    raise AssertionError(f"no end after {limit} tokens: {tokenizer.decode(ids)!r}")


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "repeat_penalty": 1.3},
        {"temperature": 100.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"temperature": 0.8, "top_k": 40, "repeat_penalty": 1.1, "presence_penalty": 0.5},
    ],
)
def test_whatever_the_model_wants_the_reply_satisfies_the_schema(tokenizer, compiler, options):
    grammar = compiler.from_json_schema(REPORT)
    for seed in range(15):
        text = write(tokenizer, grammar, SamplerOptions(seed=seed, **options), seed)
        assert "\n" not in text
        value = json.loads(text)
        assert list(value) == list(REPORT["properties"])
        assert isinstance(value["title"], str) and len(value["title"]) <= 12
        assert type(value["day"]) is int and 1 <= value["day"] <= 31
        assert isinstance(value["good"], bool) and value["colour"] in ("red", "blue", "grün")
        assert len(value["tags"]) <= 2 and all(len(tag) <= 4 for tag in value["tags"])


def test_replies_of_one_grammar_do_not_know_of_each_other(tokenizer, compiler):
    grammar = compiler.from_json_schema(json.dumps(REPORT))
    first, second = grammar.start(), grammar.start()
    begins = first.allowed().tolist()
    first.accept(begins[0])
    assert first.allowed().tolist() != begins
    assert second.allowed().tolist() == grammar.start().allowed().tolist() == begins
    assert not second.complete


def test_control_tokens_and_ids_without_text_are_never_allowed(tokenizer, compiler):
    constraint = compiler.from_json_schema({"type": "string"}).start()
    quote = tokenizer.encode('"')[-1]
    constraint.accept(quote)
    inside = set(constraint.allowed().tolist())
    silent = {i for i in range(tokenizer.n_vocab) if not tokenizer.piece(i)}
    assert silent and not inside & silent and len(inside) > 100
    constraint.accept(quote)
    assert constraint.complete and set(constraint.allowed().tolist()) == set(tokenizer.eos)


def test_a_token_that_is_not_allowed_is_refused(tokenizer, compiler):
    constraint = compiler.from_json_schema({"type": "boolean"}).start()
    with pytest.raises(GrammarError, match="not allowed by the JSON schema"):
        constraint.accept(tokenizer.encode("9")[-1])


def nested(depth):
    """A schema of objects within objects."""
    text = '{"type": "string"}'
    for _ in range(depth):
        text = '{"properties": {"a": ' + text + "}}"
    return text


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[]", "expected an object, found '\\[\\]'"),
        ('{"type": "strin"}', "Invalid type: strin"),
        ('{"type": "string", "pattern": "(["}', "regex"),
        ('{"uniqueItems": true, "type": "array"}', "uniqueItems"),
        ('{"$ref": "http://localhost:1/x.json"}', "does not fetch"),
        ('{"$ref": "#/$defs/a"}', "JSON schema"),
        ('{"enum": []}', "JSON schema"),
        ('{"type": "integer", "minimum": 5, "maximum": 4}', "JSON schema"),
        (nested(MAX_SCHEMA_DEPTH), f"nested deeper than {MAX_SCHEMA_DEPTH}"),
        (nested(20_000)[: MAX_SCHEMA_BYTES - 1], "not JSON|nested deeper"),
        (json.dumps({"description": "x" * MAX_SCHEMA_BYTES}), "at most 65,536 bytes, found 65,5"),
        ("{\udc80}", "not JSON"),
        ({"type": object()}, "not JSON"),
    ],
)
def test_bad_schemas_are_refused_in_one_line(compiler, schema, said):
    with pytest.raises(GrammarError, match=said) as failure:
        compiler.from_json_schema(schema).start().allowed()
    assert "\n" not in str(failure.value) and len(str(failure.value)) < 400


def test_references_that_lead_nowhere_are_refused(compiler):
    loop = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    with pytest.raises(GrammarError):
        compiler.from_json_schema(loop)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(2400)}},
        {"enum": [f"value-{i}" for i in range(4000)]},
        {"type": "string", "pattern": "^((a{0,1000}){0,1000}b{0,1000}){0,1000}$"},
        {"allOf": [{"oneOf": [{"properties": {f"p{i}{j}": {} for j in range(9)}}
                              for i in range(10)]} for _ in range(6)]},
        {"type": "array", "maxItems": 10**8, "items": {"type": "string", "maxLength": 10**8}},
    ],
)  # fmt: skip
def test_hostile_schemas_cost_seconds_at_most(compiler, schema):
    begin = time.monotonic()
    try:
        constraint = compiler.from_json_schema(schema).start()
        constraint.accept(int(constraint.allowed()[0]))
        constraint.allowed()
    except GrammarError as error:
        assert "\n" not in str(error)
    assert time.monotonic() - begin < 20


def test_a_vocabulary_without_an_end_is_refused():
    class Endless:
        n_vocab = 300
        eos = frozenset()

        def piece(self, number):
            return bytes([number]) if number < 256 else b""

        def encode(self, text):
            return list(text.encode())

    with pytest.raises(GrammarError, match="end-of-text token"):
        GrammarCompiler(Endless()).from_json_schema({"type": "string"})


def test_without_the_library_the_error_names_the_command(compiler, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(GrammarError, match="pip install llguidance"):
        compiler.from_json_schema({"type": "string"})


def test_a_sampler_chooses_among_the_allowed():
    logits = np.arange(100, dtype=np.float32)
    allowed = np.array([3, 7, 90])
    greedy = Sampler(SamplerOptions(temperature=0.0))
    assert greedy.sample(logits, (), allowed) == 90
    # The penalty weighs on the true ids, not on places among the allowed.
    penal = Sampler(SamplerOptions(temperature=0.0, presence_penalty=89.0))
    assert penal.sample(logits, [90], allowed) == 7
    wild = Sampler(SamplerOptions(temperature=100.0, top_k=2, top_p=1.0, min_p=0.0, seed=1))
    assert {wild.sample(logits, (), allowed) for _ in range(200)} == {7, 90}


def test_a_session_writes_json(engine):
    """The tiny model has the vocabulary of a tokenizer that the schema is compiled for."""
    grammar = engine.grammars.from_json_schema(
        {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3}
    )
    assert engine.grammars is engine.grammars
    for options in (SamplerOptions(temperature=0.0), SamplerOptions(seed=3)):
        sampler = ConstrainedSampler(Sampler(options), grammar.start())
        with engine.session() as session:
            session.feed(engine.tokenizer.encode("list"))
            ids = list(session.generate(sampler, 100, engine.tokenizer.eos))
            assert session.stop_reason == "eos"
        value = json.loads(b"".join(map(engine.tokenizer.piece, ids)))
        assert len(value) == 3 and all(isinstance(item, bool) for item in value)
