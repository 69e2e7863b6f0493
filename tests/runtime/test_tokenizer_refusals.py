"""GGUF metadata and packed specs that must be refused in one line, and never crash."""

import json

import numpy as np
import pytest

from hga.runtime.tokenizer import (
    Tokenizer,
    TokenizerError,
    TokenizerSpec,
    guarded,
    spec_from_gguf,
)

ALPHABET = "".join(chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256)))
ALPHABET += "".join(chr(c) for c in range(256, 256 + 68))


def bytelevel(**changes):
    tokens = [*ALPHABET, "ab", "<|x|>"]
    metadata = {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": tokens,
        "token_type": [1] * (len(tokens) - 1) + [3],
        "merges": ["a b"],
        "eos_token_id": len(tokens) - 1,
        **changes,
    }
    return {f"tokenizer.ggml.{k}": v for k, v in metadata.items() if v is not None}


def scored(**changes):
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "ab", "a", "b"]
    metadata = {
        "model": "llama",
        "tokens": tokens,
        "token_type": [2, *[6] * 256, 1, 1, 1],
        "scores": [0.0] * 257 + [-1.0, -2.0, -3.0],
        **changes,
    }
    return {f"tokenizer.ggml.{k}": v for k, v in metadata.items() if v is not None}


def test_arrays_may_be_numpy():
    plain, arrays = scored(), scored()
    for key in ("scores", "token_type"):
        arrays[f"tokenizer.ggml.{key}"] = np.array(arrays[f"tokenizer.ggml.{key}"])
    arrays["tokenizer.ggml.tokens"] = np.array(plain["tokenizer.ggml.tokens"], dtype=object)
    assert spec_from_gguf(arrays) == spec_from_gguf(plain)


TOKENS = [*ALPHABET, "ab", "<|x|>"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "expected gpt2 or llama, found None"),
        (bytelevel(model="bert"), "found 'bert'"),
        (bytelevel(pre="brand-new"), "'brand-new' is not supported (known: default, gpt-2"),
        (bytelevel(pre=["gpt-2"]), "is not supported"),
        (bytelevel(tokens=None), "tokens: expected an array"),
        (bytelevel(tokens="abc"), "tokens: expected an array"),
        (bytelevel(tokens=[]), "found 0"),
        (bytelevel(tokens=[*TOKENS[:-1], 7]), "tokens[257]: expected str, found 7"),
        (bytelevel(tokens=[*TOKENS[:-1], "ab"]), "'ab' is token 256 and token 257"),
        (bytelevel(token_type=[1, 2]), "token_type: expected 258 numbers, found 2"),
        (bytelevel(token_type=["x"] * 258), "token_type: expected 258 numbers"),
        (bytelevel(merges=None), "merges: expected an array"),
        (bytelevel(merges=["ab"]), "merges[0]: expected two parts"),
        (bytelevel(merges=["a "]), "merges[0]: expected two parts"),
        (bytelevel(merges=["a b", "ab ab"]), "merges[1]: 'ab ab': a part or the result"),
        (bytelevel(merges=["q Q"]), "merges[0]"),
        (bytelevel(eos_token_id=258), "eos_token_id: expected an id below 258, found 258"),
        (bytelevel(bos_token_id=-1), "bos_token_id: expected an id below 258, found -1"),
        (bytelevel(eos_token_id="x"), "eos_token_id: expected a number"),
        (bytelevel(bos_token_id=float("inf")), "bos_token_id: expected a number, found inf"),
        (bytelevel(bos_token_id=1.5), "bos_token_id: expected a number, found 1.5"),
        (bytelevel(token_type=7), "token_type: expected 258 numbers, found 7"),
        (scored(scores=None), "scores: missing"),
        (scored(scores=[0.0] * 10), "scores: expected 260 numbers, found 10"),
        (scored(scores=[0.0] * 259 + [float("nan")]), "scores: expected finite"),
        (scored(token_type=[2, *[6] * 257, 1, 1]), "byte token 257: expected <0x00>"),
    ],
)
def test_damaged_metadata_is_refused_in_one_line(metadata, message):
    with pytest.raises(TokenizerError) as caught:
        spec_from_gguf(metadata)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_template_must_be_text():
    with pytest.raises(TokenizerError, match="chat_template"):
        spec_from_gguf({**bytelevel(), "tokenizer.chat_template": 5})


def test_missing_byte_tokens_are_refused():
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(255)), "ab", "a", "b", "c"]
    types = [2, *[6] * 255, 1, 1, 1, 1]
    with pytest.raises(TokenizerError, match="<0xFF> is missing"):
        spec_from_gguf(scored(tokens=tokens, token_type=types))


def test_merges_of_very_long_tokens_are_refused_soon():
    tokens = scored()["tokenizer.ggml.tokens"][:-3] + ["a" * n for n in (40_000, 39_999, 1)]
    with pytest.raises(TokenizerError, match="too long to derive merges"):
        spec_from_gguf(scored(tokens=tokens))


def test_merges_that_would_make_control_tokens_are_dropped():
    tokens = [*ALPHABET, "<|", "x|", "x|>", "<|x|>"]
    merges = ["< |", "x |", "x| >", "<| x|>"]
    spec = spec_from_gguf(bytelevel(tokens=tokens, token_type=[1] * 259 + [3], merges=merges))
    tokenizer = Tokenizer(spec)
    assert tokenizer.encode("<|x|>") == [256, *tokenizer.encode("x"), *tokenizer.encode("|>")]
    assert tokenizer.encode("<|x|>", special=True) == [259]


def packed(**changes):
    return {**spec_from_gguf(bytelevel()).to_dict(), **changes}


def packed_json(**changes):
    file = json.loads(packed()["json"])
    for name, value in changes.items():
        target, _, key = name.rpartition("__")
        (file[target] if target else file)[key] = value
    return packed(json=json.dumps(file))


SHORTEN = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (packed(surprise=1), "unknown field `surprise`"),
        ({"kind": "gguf"}, "missing required field"),
        (packed(kind="tiktoken"), "Invalid enum value"),
        (packed(n_vocab="many"), "Expected `int`"),
        (packed(n_vocab=0), "found 0"),
        (packed(n_vocab=1 << 40), "expected 1..2,097,152 tokens"),
        (packed(n_vocab=100), "expected an id below 100, found 257"),
        (packed(eos=[9999]), "eos: expected an id below 258, found 9999"),
        (packed(bos=-3), "bos: expected an id below 258, found -3"),
        (packed(add_bos=True), "add_bos is set"),
        (packed(control=[[1, "", False, False]]), "empty or twice"),
        (packed(control=[[1, "x", False, False], [1, "y", False, False]]), "empty or twice"),
        (packed(control=[[1, "x", False, False], [2, "x", False, False]]), "empty or twice"),
        (packed(chat_template="x" * 70_000), "chat template: expected at most 65,536"),
        (packed(json=""), "truncated"),
        (packed(json="[1]"), "Expected `object`"),
        (packed_json(truncation=SHORTEN), "truncation must be null"),
        (packed_json(model__type="Unigram"), "'Unigram' is not supported"),
        (packed_json(model__continuing_subword_prefix="é"), "continuing_subword_prefix"),
        (packed_json(normalizer={"type": "Sequence", "normalizers": 5}), "not a list"),
        (packed_json(pre_tokenizer={"type": "Split", "pattern": "x" * 9999}), "4096 characters"),
        (packed_json(normalizer={"type": "Prepend", "prepend": ""}), "Prepend needs a text"),
        (packed_json(normalizer={"type": "Replace", "pattern": {"Regex": "x*"}}), "Replace needs"),
        (packed_json(normalizer={"type": "Replace", "pattern": {"String": ""}}), "Replace needs"),
    ],
)
def test_damaged_specs_are_refused_in_one_line(values, message):
    with pytest.raises(TokenizerError) as caught:
        TokenizerSpec.from_dict(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (packed_json(model__vocab={"a": -1}), "building failed"),
        (packed_json(model__vocab=[1]), "building failed"),
        (packed_json(model__merges=[["q", "zz"]]), "building failed"),
        (packed_json(model__merges={"a": "b"}), "building failed"),
        (packed_json(pre_tokenizer={"type": "Split"}), "building failed"),
        (
            packed_json(
                pre_tokenizer={
                    "type": "Split",
                    "pattern": {"Regex": "(((("},
                    "behavior": "Isolated",
                    "invert": False,
                }
            ),
            "building failed",
        ),
        (
            packed_json(model__vocab={"a": 999, "b": 1, "ab": 2}),
            "expected ids below 258, found 999",
        ),
        (packed_json(model__vocab={"a": 257, "b": 1, "ab": 2}), "control tokens of plain text"),
    ],
)
def test_vocabularies_that_cannot_be_built_are_refused(values, message):
    with pytest.raises(TokenizerError) as caught:
        Tokenizer(TokenizerSpec.from_dict(values)).encode("a b")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class Panic(BaseException):
    """As the library raises when its own code panics: no Exception."""


def test_panics_of_the_library_become_errors():
    def panic():
        raise Panic("index out of bounds:\n the len is 0")

    with pytest.raises(TokenizerError, match="failed: index out of bounds: the len"):
        guarded("encoding", panic)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded("encoding", stop)


def test_control_tokens_cannot_hide_among_added_tokens():
    hidden = {"id": 5, "content": "x", "single_word": False, "lstrip": False, "rstrip": False}
    values = packed_json(added_tokens=[{**hidden, "normalized": False, "special": True}])
    with pytest.raises(TokenizerError, match="listed as a control token"):
        Tokenizer(TokenizerSpec.from_dict(values)).encode("a")
