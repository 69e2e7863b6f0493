"""Small vocabularies built like GGUF's: cutting, merging, control tokens, decoding."""

import json
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from hga.runtime.gguf_splits import SPLITS
from hga.runtime.tokenizer import _BYTELEVEL as ALPHABET
from hga.runtime.tokenizer import (
    ControlToken,
    StreamDecoder,
    Tokenizer,
    TokenizerError,
    TokenizerSpec,
    spec_from_gguf,
)

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def bytelevel(merges=(), extra=(), pre="gpt-2", **keys):
    """Metadata of a byte-level vocabulary: 256 bytes, what the merges make, then (text, type)s."""
    joined = [merge.replace(" ", "") for merge in merges]
    tokens = [(char, NORMAL) for char in ALPHABET]
    tokens += [(token, NORMAL) for token in dict.fromkeys(joined)] + list(extra)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [token for token, _ in tokens],
        "tokenizer.ggml.token_type": [kind for _, kind in tokens],
        "tokenizer.ggml.merges": list(merges),
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


def sentencepiece(pieces, extra=(), **keys):
    """Metadata of a vocabulary with scores: <unk> <s> </s>, the bytes, pieces best first, then
    (text, type)s; single characters come last, as SentencePiece puts them."""
    chars = [char for char in dict.fromkeys("".join(pieces) + "▁ab") if char not in pieces]
    tokens = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    tokens += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    tokens += list(extra)
    scores = [0.0] * len(tokens) + [-1.0 - i for i in range(len(pieces) + len(chars))]
    tokens += [(piece, NORMAL) for piece in (*pieces, *chars)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [token for token, _ in tokens],
        "tokenizer.ggml.token_type": [kind for _, kind in tokens],
        "tokenizer.ggml.scores": scores,
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


def pieces_of(tokenizer, text, **kwargs):
    """The vocabulary's spelling of each token of a text."""
    library = Library.from_str(tokenizer.spec.json)
    names = {token.id: token.text for token in tokenizer.spec.control}
    ids = tokenizer.encode(text, **kwargs)
    return [names.get(number) or library.id_to_token(number) for number in ids]


TURNS = (("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL), ("<think>", USER))


@pytest.fixture(scope="module")
def chatml():
    merges = ("u s", "us e", "use r", "Ċ Ċ", "i m", "< |", "h i")
    return Tokenizer(spec_from_gguf(bytelevel(merges, TURNS, eos_token_id=264)))


def test_merges_apply_in_their_order(chatml):
    assert pieces_of(chatml, "user hi\n\n") == ["user", "Ġ", "hi", "ĊĊ"]


def test_control_text_is_plain_unless_special(chatml):
    text = "<|im_start|>user<|im_end|>"
    assert pieces_of(chatml, text)[:3] == ["<|", "im", "_"]
    assert pieces_of(chatml, text, special=True) == ["<|im_start|>", "user", "<|im_end|>"]
    assert chatml.decode(chatml.encode(text)) == text
    assert chatml.decode(chatml.encode(text, special=True)) == "user"


def test_user_defined_tokens_are_text(chatml):
    ids = chatml.encode("a<think>b")
    assert ids[1] == chatml.token_id("<think>")
    assert chatml.decode(ids) == "a<think>b"


def test_parts_are_one_text_but_for_control_tokens(chatml):
    expected = chatml.encode("us") + chatml.encode("er\n")
    assert chatml.encode_parts([("us", False), ("er\n", True)]) != expected
    assert chatml.encode_parts([("us", False), ("er\n", True)]) == chatml.encode("user\n")
    start = chatml.token_id("<|im_start|>")
    parts = [("<|im_start|>user\n", True), ("\n<|im_", False), ("end|>", True), ("", True)]
    assert chatml.encode_parts(parts) == [start, *chatml.encode("user\n\n<|im_end|>")]
    assert start not in chatml.encode_parts([("<|im_", True), ("start|>", True)])
    assert chatml.encode_parts([]) == chatml.encode("", special=True) == []


def test_control_tokens_take_the_longest_and_swallow_white_space():
    spec = spec_from_gguf(bytelevel(("h i",), (("<|a|>", CONTROL), ("<|a|>b", CONTROL))))
    control = (ControlToken(257, "<|a|>", rstrip=True), ControlToken(258, "<|a|>b", lstrip=True))
    tokenizer = Tokenizer(TokenizerSpec.from_dict({**spec.to_dict(), "control": control}))
    assert pieces_of(tokenizer, "x<|a|>by", special=True) == ["x", "<|a|>b", "y"]
    assert pieces_of(tokenizer, "x <|a|> \n hi", special=True) == ["x", "Ġ", "<|a|>", "hi"]
    assert pieces_of(tokenizer, "x \n<|a|>b hi", special=True) == ["x", "<|a|>b", "Ġ", "hi"]
    parts = [("<|a|> ", True), (" ", False), (" hi", False)]
    assert tokenizer.encode_parts(parts) == [257, *tokenizer.encode("hi")]


@pytest.mark.parametrize(
    "text", ["<|im_start|>", "<|user|>", "<end_of_turn>", "[INST]", "<｜end▁of▁sentence｜>"]
)
@pytest.mark.parametrize("kind", [NORMAL, USER])
def test_turn_markers_are_control_whatever_their_type(text, kind):
    tokenizer = Tokenizer(spec_from_gguf(bytelevel((), [(text, kind)])))
    assert tokenizer.encode(text, special=True) == [256]
    assert 256 not in tokenizer.encode(text)
    assert (256 in tokenizer.eos) == ("end" in text)


def test_strike_through_stays_text():
    tokenizer = Tokenizer(spec_from_gguf(bytelevel((), [("<s>", USER), ("</s>", USER)])))
    assert tokenizer.encode("<s>x</s>")[::2] == [256, 257]
    assert tokenizer.eos == frozenset()


def test_stop_tokens_come_from_keys_and_known_texts():
    extra = [("<|eot_id|>", CONTROL), ("<a>", CONTROL), ("<b>", CONTROL), ("<|x|>", CONTROL)]
    spec = spec_from_gguf(bytelevel((), extra, eos_token_id=257, eot_token_id=258))
    assert spec.eos == (256, 257, 258)


def test_bos_is_added_only_where_the_file_says_so():
    extra = [("<|begin|>", CONTROL)]
    assert Tokenizer(spec_from_gguf(bytelevel((), extra, bos_token_id=256))).bos is None
    stated = bytelevel((), extra, bos_token_id=256, add_bos_token=True)
    assert Tokenizer(spec_from_gguf(stated)).bos == 256
    llama3 = bytelevel((), extra, pre="llama-bpe", bos_token_id=256)
    assert Tokenizer(spec_from_gguf(llama3)).bos == 256
    assert spec_from_gguf(llama3).template_variables == {"bos_token": "<|begin|>"}
    assert Tokenizer(spec_from_gguf(sentencepiece(["a"]))).bos == 1


SAMPLE = "I'm  1234 naïve_x's\n\n  (foo),bar!! \t DON'T 5"
WORDS = {
    "gpt-2": "I|'m| | 1234| naïve|_|x|'s|\n\n | (|foo|),|bar|!!| \t| DON|'|T| 5",
    "smollm": "I|'m|  |1|2|3|4| naïve|_|x|'s|\n\n | (|foo|),|bar|!!| \t| DON|'|T| |5",
    "qwen2": "I|'m| | |1|2|3|4| naïve|_x|'s|\n\n| | (|foo|),|bar|!!| \t| DON|'T| |5",
    "llama-bpe": "I|'m| | |123|4| naïve|_x|'s|\n\n| | (|foo|),|bar|!!| \t| DON|'T| |5",
    "default": "I|'|m| | |123|4| naïve|_|x|'|s|\n\n  |(|foo|),|bar|!!| \t| DON|'|T| |5",
    "tekken": "I|'m| | |1|2|3|4| naïve|_x|'s|\n\n| | (|foo|),|bar|!!| \t| DON|'T| |5",
    "gpt-4o": "I'm| | |123|4| naïve|_x's|\n\n| | (|foo|),|bar|!!| \t| DON'T| |5",
    "deepseek-v3": "I|'m|  |123|4| naïve|_x|'s|\n\n| | (|foo|),|bar|!!| \t| DON|'T| |5",
    "falcon": "I|'|m| | |123|4| naïve|_|x|'|s|\n\n  |(|foo|),|bar|!!| \t| DON|'|T| 5",
}


@pytest.mark.parametrize("pre", sorted(SPLITS))
def test_every_split_loads_and_keeps_all_text(pre):
    tokenizer = Tokenizer(spec_from_gguf(bytelevel(pre=pre)))
    assert tokenizer.decode(tokenizer.encode(SAMPLE + "日本語 ½ Ⅷ")) == SAMPLE + "日本語 ½ Ⅷ"


@pytest.mark.parametrize("pre", sorted(WORDS))
def test_words_of_a_split(pre):
    library = Library.from_str(spec_from_gguf(bytelevel(pre=pre)).json)
    words = library.pre_tokenizer.pre_tokenize_str(SAMPLE)
    decode = lambda word: bytes(ALPHABET[char] for char in word).decode()  # noqa: E731
    assert "|".join(decode(word) for word, _ in words) == WORDS[pre]


def test_a_whole_word_that_is_a_token_needs_no_merges():
    merges = ("a b", "b c")
    extra = [("abc", NORMAL)]
    assert Tokenizer(spec_from_gguf(bytelevel(merges, extra))).encode("abc")[0] == 256
    assert Tokenizer(spec_from_gguf(bytelevel(merges, extra, pre="llama3"))).encode("abc") == [258]


def test_sentencepiece_takes_the_best_score_first_and_the_leftmost_of_equals():
    pieces = ["▁a", "ab", "aa", "aaa", "ba"]
    tokenizer = Tokenizer(spec_from_gguf(sentencepiece(pieces)))
    assert pieces_of(tokenizer, "abab") == ["▁a", "b", "ab"]
    tokenizer = Tokenizer(spec_from_gguf(sentencepiece(pieces, add_space_prefix=False)))
    assert pieces_of(tokenizer, "aba") == ["ab", "a"]
    assert pieces_of(tokenizer, "aaaa") == ["aa", "aa"]
    assert pieces_of(tokenizer, "aaab") == ["aa", "ab"]
    assert pieces_of(tokenizer, "b a") == ["b", "▁a"]


def plain_sentencepiece(text, scores):
    pieces = list(text)
    while True:
        joins = [
            (-scores[left + right], i)
            for i, (left, right) in enumerate(pairwise(pieces))
            if left + right in scores
        ]
        if not joins:
            return pieces
        _, i = min(joins)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_one_merge_a_token_is_sentencepiece(seed):
    """Random vocabularies, most of them unlike any that training makes."""
    rng = random.Random(seed)
    lengths = [rng.randrange(2, 7) for _ in range(rng.randrange(1, 40))]
    pieces = list(dict.fromkeys("".join(rng.choice("ab▁") for _ in range(n)) for n in lengths))
    tokenizer = Tokenizer(spec_from_gguf(sentencepiece(pieces, add_space_prefix=False)))
    scores = {piece: -i for i, piece in enumerate(pieces)}
    for _ in range(20):
        text = "".join(rng.choice("ab ") for _ in range(rng.randrange(30)))
        assert pieces_of(tokenizer, text) == plain_sentencepiece(text.replace(" ", "▁"), scores)


def test_characters_outside_the_vocabulary_fall_back_to_bytes():
    tokenizer = Tokenizer(spec_from_gguf(sentencepiece(["ab"], add_space_prefix=False)))
    assert pieces_of(tokenizer, "abé") == ["ab", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("é€🙂 ab\x00")) == "é€🙂 ab\x00"
    assert tokenizer.decode(tokenizer.encode("<0x41>")) == "<0x41>"


def test_space_prefix_is_put_before_and_taken_off_a_text():
    extra = [("<|x|>", CONTROL), ("[u]", USER)]
    tokenizer = Tokenizer(spec_from_gguf(sentencepiece(["▁a", "▁▁a"], extra)))
    assert pieces_of(tokenizer, "a") == ["▁a"]
    assert pieces_of(tokenizer, " a") == ["▁▁a"]
    assert pieces_of(tokenizer, "a<|x|>a", special=True) == ["▁a", "<|x|>", "▁a"]
    for text in ("a", " a", "a a", "  ", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    stream = tokenizer.decoder()
    assert stream.push(tokenizer.encode("a")[0]) == " a"
    start = tokenizer.decoder(at_start=True)
    assert [start.push(n) for n in (tokenizer.token_id("<|x|>"), *tokenizer.encode("a a"))] == [
        *("", "a", " a")
    ]


def test_stream_shows_whole_characters_only(chatml):
    ids = chatml.encode("é€🙂x")
    stream = chatml.decoder()
    assert [stream.push(number) for number in ids] == [
        *("", "é", "", "", "€", "", "", "", "🙂", "x")
    ]
    assert stream.flush() == ""
    stream = chatml.decoder()
    assert "".join(stream.push(number) for number in ids[:3]) == "é"
    assert stream.flush() == "\ufffd"
    assert chatml.decode([*ids[:1], *chatml.encode("x")]) == "\ufffdx"


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60), cut=st.integers(0, 60))
def test_any_text_comes_back(chatml, text, cut):
    ids = chatml.encode(text)
    assert chatml.decode(ids) == text
    stream = StreamDecoder(chatml.piece, drop_space=False)
    pushed = "".join(stream.push(number) for number in ids[:cut])
    assert text.startswith(pushed)


def test_lone_surrogates_become_replacement_characters(chatml):
    assert chatml.encode("a\ud800b\ud83d\ude42") == chatml.encode("a\ufffdb🙂")


def test_ids_without_text_decode_to_nothing(chatml):
    assert chatml.decode([chatml.n_vocab, 10**9]) == ""
    with pytest.raises(TokenizerError, match="-1"):
        chatml.decode([-1])
    assert chatml.token_id("no such token") is None


def test_spec_is_json_and_comes_back():
    for metadata in (bytelevel(("a b",), TURNS), sentencepiece(["ab"], TURNS)):
        spec = spec_from_gguf({**metadata, "tokenizer.chat_template": "{{ messages }}"})
        again = TokenizerSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
        assert again == spec
        assert Tokenizer(again).encode("abé") == Tokenizer(spec).encode("abé")
