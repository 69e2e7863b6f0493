"""GGUF vocabularies rebuilt as a TokenizerSpec, with llama.cpp's token ids.

Byte-level BPE ("gpt2") takes its merges from the file and its word splitter from
`tokenizer.ggml.pre`. SentencePiece-style vocabularies ("llama") carry scores alone: their merges
are derived here (see `merges_from_scores`). Facts: llama.cpp src/llama-vocab.cpp.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any, Final, Literal

from .gguf_splits import SPLITS, Splits
from .tokenizer_spec import (
    BYTE_TEXTS,
    MAX_VOCAB,
    STOP_TEXTS,
    ControlToken,
    TokenizerError,
    TokenizerSpec,
    check,
    looks_like_control,
)

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE: Final = "\u2581"
_MAX_MERGES: Final = 4 * MAX_VOCAB
_MAX_TEXT_CHARS: Final = 64 << 20
# Deriving a token's merge takes time in the square of its length: Gemma 3's squares sum to 1.1e7.
_MAX_SQUARES: Final = 100_000_000
_SPLIT_NONE: Final = Splits(())


@dataclass(frozen=True, slots=True)
class _Vocab:
    """The token table, sorted by what a token is for; `scores` is empty where there are none."""

    n_tokens: int
    text: dict[str, int]
    user: dict[str, int]
    control: tuple[ControlToken, ...]
    unknown: int | None
    scores: Sequence[float]


def spec_from_gguf(metadata: Mapping[str, Any]) -> TokenizerSpec:
    """The tokenizer of a GGUF file from its parsed metadata; raises TokenizerError.

    `metadata` maps keys to Python values; token, score and type arrays may be lists or arrays.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise TokenizerError(
            f"tokenizer.ggml.model: expected gpt2 or llama, found {model!r:.40}: not supported"
        )
    vocab = _vocab(metadata)
    pieces: Literal["bytelevel", "spm"]
    if model == "gpt2":
        pieces, splits = "bytelevel", _splits(metadata)
        merges = _stated_merges(metadata, vocab)
        text = _bytelevel_json(vocab, merges, splits)
        space_prefix, add_bos = False, splits.add_bos
        bos, eos = None, None
    else:
        pieces, splits = "spm", _SPLIT_NONE
        space_prefix = _flag(metadata, "add_space_prefix", True)
        text = _spm_json(vocab, merges_from_scores(vocab.text, vocab.scores), space_prefix)
        add_bos = True
        bos, eos = 1, 2
    bos = _id(metadata, "bos_token_id", vocab, bos)
    eos = _id(metadata, "eos_token_id", vocab, eos)
    stops = [eos, _id(metadata, "eot_token_id", vocab), _id(metadata, "eom_token_id", vocab)]
    stops += [token.id for token in vocab.control if token.text in STOP_TEXTS]
    texts = {"bos_token": bos, "eos_token": eos, "unk_token": vocab.unknown}
    texts["pad_token"] = _id(metadata, "padding_token_id", vocab)
    tokens = metadata["tokenizer.ggml.tokens"]
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise TokenizerError("tokenizer.chat_template: expected text")
    spec = TokenizerSpec(
        kind="gguf",
        json=text,
        n_vocab=vocab.n_tokens,
        pieces=pieces,
        control=vocab.control,
        bos=bos,
        eos=tuple(sorted({stop for stop in stops if stop is not None})),
        add_bos=bos is not None and _flag(metadata, "add_bos_token", add_bos),
        space_prefix=space_prefix,
        chat_template=template or None,
        template_variables={
            name: tokens[number] for name, number in texts.items() if number is not None
        },
    )
    check(spec)
    return spec


def _vocab(metadata: Mapping[str, Any]) -> _Vocab:
    tokens = _array(metadata, "tokens", str)
    if not 0 < len(tokens) <= MAX_VOCAB:
        raise TokenizerError(
            f"tokenizer.ggml.tokens: expected 1..{MAX_VOCAB:,} tokens, found {len(tokens):,}"
        )
    if sum(map(len, tokens)) > _MAX_TEXT_CHARS:
        raise TokenizerError(f"tokenizer.ggml.tokens: more than {_MAX_TEXT_CHARS:,} characters")
    types = _column(metadata, "token_type", len(tokens)) or [_NORMAL] * len(tokens)
    ids: dict[str, int] = {}
    text: dict[str, int] = {}
    user: dict[str, int] = {}
    control = []
    unknown = _number(metadata, "unknown_token_id")
    for number, (token, kind) in enumerate(zip(tokens, types)):
        if not token:
            continue
        if ids.setdefault(token, number) != number:
            raise TokenizerError(
                f"tokenizer.ggml.tokens: {token!r:.80} is token {ids[token]} and token {number}"
            )
        if kind in (_CONTROL, _UNKNOWN) or (kind in (_NORMAL, _USER) and looks_like_control(token)):
            control.append(ControlToken(number, token))
            unknown = number if kind == _UNKNOWN and unknown is None else unknown
        elif kind == _USER:
            user[token] = number
        elif kind != _UNUSED:
            if kind == _BYTE and token not in BYTE_TEXTS:
                raise TokenizerError(
                    f"tokenizer.ggml.tokens: byte token {number}: expected <0x00>..<0xFF>, "
                    f"found {token!r:.80}"
                )
            text[token] = number
    if unknown is not None and not 0 <= unknown < len(tokens):
        unknown = None
    scores = _column(metadata, "scores", len(tokens))
    return _Vocab(len(tokens), text, user, tuple(control), unknown, scores)


def merges_from_scores(text: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges, best first, with which BPE makes the pieces that the scores make.

    SentencePiece merges the adjacent pair whose joined text has the best score, the leftmost of
    equals. Whenever that ends in a token T, no merge crossed T's borders, so the merges within T
    were those of T's text on its own, the last one always of the same two parts: one merge a
    token is enough, and since a token has one merge, ties go to the leftmost as they should.
    """
    if not scores:
        raise TokenizerError("tokenizer.ggml.scores: missing; a llama vocabulary needs them")
    if sum(len(token) ** 2 for token in text) > _MAX_SQUARES:
        raise TokenizerError("tokenizer.ggml.tokens: tokens too long to derive merges from")
    score = {token: scores[number] for token, number in text.items() if token not in BYTE_TEXTS}
    if not all(map(math.isfinite, score.values())):
        raise TokenizerError("tokenizer.ggml.scores: expected finite numbers")
    merges = []
    for token, value in score.items():
        parts = _last_merge(token, score)
        if parts is not None:
            merges.append((-value, text[token], parts))
    merges.sort()
    return [parts for _, _, parts in merges]


def _last_merge(token: str, score: Mapping[str, float]) -> tuple[str, str] | None:
    """The two pieces that SentencePiece joins last to make the token, None if it never does."""
    pieces = list(token)
    # joins[i]: the score of pieces[i] and pieces[i + 1] as one.
    joins = [score.get(left + right, -math.inf) for left, right in pairwise(pieces)]
    while len(joins) > 1:
        best = max(joins)
        if best == -math.inf:
            return None
        at = joins.index(best)
        joined = pieces[at] + pieces[at + 1]
        pieces[at : at + 2] = [joined]
        del joins[at]
        if at > 0:
            joins[at - 1] = score.get(pieces[at - 1] + joined, -math.inf)
        if at < len(joins):
            joins[at] = score.get(joined + pieces[at + 1], -math.inf)
    if not joins or pieces[0] not in score or pieces[1] not in score:
        return None
    return pieces[0], pieces[1]


def _stated_merges(metadata: Mapping[str, Any], vocab: _Vocab) -> list[tuple[str, str]]:
    lines = _array(metadata, "merges", str)
    if len(lines) > _MAX_MERGES:
        raise TokenizerError(
            f"tokenizer.ggml.merges: expected at most {_MAX_MERGES:,}, found {len(lines):,}"
        )
    steering = {token.text for token in vocab.control}
    merges: dict[tuple[str, str], None] = {}
    for number, line in enumerate(lines):
        # A part may begin with a space of its own, so the first character never separates.
        cut = line.find(" ", 1)
        left, right = line[:cut], line[cut + 1 :]
        if cut < 0 or not right:
            raise TokenizerError(
                f"tokenizer.ggml.merges[{number}]: expected two parts, found {line!r:.80}"
            )
        if left in vocab.text and right in vocab.text and left + right in vocab.text:
            merges.setdefault((left, right))
        elif not steering.intersection((left, right, left + right)):
            raise TokenizerError(
                f"tokenizer.ggml.merges[{number}]: {line!r:.80}: a part or the result is not "
                "among the tokens"
            )
    return list(merges)


def _splits(metadata: Mapping[str, Any]) -> Splits:
    name = metadata.get("tokenizer.ggml.pre", "default")
    splits = SPLITS.get(name) if isinstance(name, str) else None
    if splits is None:
        raise TokenizerError(
            f"tokenizer.ggml.pre: {name!r:.40} is not supported (known: {', '.join(SPLITS)})"
        )
    return splits


def _bytelevel_json(vocab: _Vocab, merges: list[tuple[str, str]], splits: Splits) -> str:
    stages: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in splits.patterns
    ]
    stages.append(
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    )
    model = {"byte_fallback": False, "ignore_merges": splits.whole_words}
    split = {"type": "Sequence", "pretokenizers": stages}
    return _json(vocab, merges, model, None, split)


def _spm_json(vocab: _Vocab, merges: list[tuple[str, str]], space_prefix: bool) -> str:
    if missing := BYTE_TEXTS - vocab.text.keys():
        raise TokenizerError(
            f"tokenizer.ggml.tokens: byte token {min(missing)} is missing "
            f"({len(missing)} of 256): characters outside the vocabulary would be lost"
        )
    steps: list[dict[str, Any]] = [{"type": "Prepend", "prepend": _SPACE}] if space_prefix else []
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    model = {"byte_fallback": True, "ignore_merges": False}
    return _json(vocab, merges, model, {"type": "Sequence", "normalizers": steps}, None)


def _json(
    vocab: _Vocab,
    merges: list[tuple[str, str]],
    model: Mapping[str, Any],
    normalizer: Mapping[str, Any] | None,
    split: Mapping[str, Any] | None,
) -> str:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    file = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": token, **plain, "special": False}
            for token, number in vocab.user.items()
        ],
        "normalizer": normalizer,
        "pre_tokenizer": split,
        # The library numbers added tokens by the model's table, so they stand in it as well.
        "model": {"type": "BPE", **model, "vocab": {**vocab.text, **vocab.user}, "merges": merges},
    }
    return json.dumps(file, ensure_ascii=False, separators=(",", ":"))


def _array(metadata: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    values = metadata.get(f"tokenizer.ggml.{key}")
    if values is None or isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise TokenizerError(f"tokenizer.ggml.{key}: expected an array")
    values = list(values)
    for number, value in enumerate(values):
        if not isinstance(value, kind):
            raise TokenizerError(
                f"tokenizer.ggml.{key}[{number}]: expected {kind.__name__}, found {value!r:.40}"
            )
    return values


def _column(metadata: Mapping[str, Any], key: str, n_tokens: int) -> list[float]:
    """The numbers of one per-token array, empty where it is absent."""
    values = metadata.get(f"tokenizer.ggml.{key}")
    if values is None:
        return []
    numbers = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(numbers, list | tuple):
        raise TokenizerError(
            f"tokenizer.ggml.{key}: expected {n_tokens} numbers, found {numbers!r:.40}"
        )
    if len(numbers) != n_tokens or not all(isinstance(x, int | float) for x in numbers):
        raise TokenizerError(
            f"tokenizer.ggml.{key}: expected {n_tokens} numbers, found {len(numbers)} values"
        )
    return list(numbers)


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    return bool(metadata.get(f"tokenizer.ggml.{key}", default))


def _number(metadata: Mapping[str, Any], key: str) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is None:
        return None
    # Of any integer type, numpy's too; a float may be infinite, or 1.5.
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TokenizerError(f"tokenizer.ggml.{key}: expected a number, found {value!r:.40}")
    return int(value)


def _id(
    metadata: Mapping[str, Any], key: str, vocab: _Vocab, default: int | None = None
) -> int | None:
    number = _number(metadata, key)
    if number is None:
        return default if default is not None and default < vocab.n_tokens else None
    if not 0 <= number < vocab.n_tokens:
        raise TokenizerError(
            f"tokenizer.ggml.{key}: expected an id below {vocab.n_tokens}, found {number}"
        )
    return number
