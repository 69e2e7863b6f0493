"""The tokenizer of a Hugging Face folder as a TokenizerSpec.

tokenizer.json holds the vocabulary; tokenizer_config.json, generation_config.json and config.json
name the tokens with a role, the chat template comes from the first or from chat_template.jinja.
What would change ids behind the caller's back (post-processor, truncation, padding) is taken out.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from .durable import named
from .tokenizer_spec import (
    BYTE_TEXTS,
    MAX_JSON_BYTES,
    MAX_TEMPLATE_CHARS,
    STOP_TEXTS,
    ControlToken,
    TokenizerError,
    TokenizerSpec,
    check,
    check_size,
    looks_like_control,
)

_MAX_CONFIG_BYTES: Final = 16 << 20
_SPACE: Final = "\u2581"
_ROLES: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


def spec_from_hf(folder: Path) -> TokenizerSpec:
    """The tokenizer of a checkpoint folder; raises TokenizerError for files that contradict one
    another and for a folder without tokenizer.json."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(f"{path} is missing: no other form of a tokenizer is read")
    file = _load(path, MAX_JSON_BYTES)
    config = _load_optional(folder / "tokenizer_config.json")
    generation = _load_optional(folder / "generation_config.json")
    model_config = _load_optional(folder / "config.json")
    pieces, space_prefix = _pieces(file, path)
    starts = _starting_tokens(file.get("post_processor"))
    control, n_vocab = _separate(file, path)
    _check_size(model_config, n_vocab, path)
    ids = {**file["model"]["vocab"], **{token.text: token.id for token in control}}

    variables = {role: text for role in _ROLES if (text := _token_text(config.get(role)))}
    bos = ids.get(variables.get("bos_token", ""))
    for source in (generation, model_config):
        if bos is None:
            bos = next(iter(_ids(source, "bos_token_id", folder)), None)
    if bos is None and starts:
        bos = ids.get(starts[0])
    add_bos = config.get("add_bos_token")
    if not isinstance(add_bos, bool):
        add_bos = bool(starts) and ids.get(starts[0]) == bos
    stops = {ids[text] for text in (variables.get("eos_token"),) if text in ids}
    for source in (generation, model_config):
        stops.update(_ids(source, "eos_token_id", folder))
    stops.update(token.id for token in control if token.text in STOP_TEXTS)
    spec = TokenizerSpec(
        kind="json",
        json=json.dumps(file, ensure_ascii=False, separators=(",", ":")),
        n_vocab=n_vocab,
        pieces=pieces,
        control=control,
        bos=bos,
        eos=tuple(sorted(stops)),
        add_bos=add_bos and bos is not None,
        space_prefix=space_prefix,
        chat_template=_chat_template(folder, config),
        template_variables=variables,
    )
    check(spec)
    return spec


def _separate(file: dict[str, Any], path: Path) -> tuple[tuple[ControlToken, ...], int]:
    """Take the control tokens out of the file's tables; the tokens, and the vocabulary's size.

    Mutates `file` into the form that TokenizerSpec asks for.
    """
    vocab, merges = _model_tables(file, path)
    control: list[ControlToken] = []
    kept = []
    for entry in _entries(file.get("added_tokens"), path):
        text, number = entry["content"], entry["id"]
        if vocab.setdefault(text, number) != number:
            raise TokenizerError(
                f"{path}: added token {text!r:.80}: expected id {vocab[text]}, found {number}"
            )
        if not (entry.get("special") is True or looks_like_control(text)):
            kept.append({**entry, "special": False})
            continue
        if entry.get("single_word") is True:
            raise TokenizerError(f"{path}: added token {text!r:.80}: single_word is not supported")
        sides = entry.get("lstrip") is True, entry.get("rstrip") is True
        control.append(ControlToken(number, text, *sides))
    # Ids tie the tables together: the same one twice would make decoding ambiguous.
    if len(set(vocab.values())) != len(vocab):
        raise TokenizerError(f"{path}: two tokens have the same id")
    n_vocab = max(vocab.values()) + 1
    steering = {token.text for token in control}
    model = file["model"]
    covered = model.get("byte_fallback") is True and vocab.keys() >= BYTE_TEXTS
    if not covered and not _names(file.get("pre_tokenizer"), "ByteLevel"):
        raise TokenizerError(
            f"{path}: neither byte-level nor with all 256 byte tokens: characters outside the "
            "vocabulary would be lost"
        )
    model["unk_token"] = None
    model["vocab"] = {text: number for text, number in vocab.items() if text not in steering}
    model["merges"] = [
        merge for merge in merges if steering.isdisjoint((*merge, merge[0] + merge[1]))
    ]
    file["added_tokens"] = kept
    for name in ("truncation", "padding", "post_processor", "decoder"):
        file[name] = None
    return tuple(control), n_vocab


def _model_tables(file: dict[str, Any], path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = file.get("model")
    if not isinstance(model, dict) or model.setdefault("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise TokenizerError(f"{path}: model {kind!r:.40} is not supported, BPE is")
    vocab, lines = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(lines, list) or not vocab:
        raise TokenizerError(f"{path}: model needs a vocab table and a list of merges")
    for text, number in vocab.items():
        if type(number) is not int or number < 0:
            raise TokenizerError(
                f"{path}: token {text!r:.80}: expected an id, found {number!r:.40}"
            )
    merges: dict[tuple[str, str], None] = {}
    for number, line in enumerate(lines):
        parts = line.split(" ") if isinstance(line, str) else line
        if (
            not isinstance(parts, list)
            or len(parts) != 2
            or not all(isinstance(part, str) and part for part in parts)
        ):
            raise TokenizerError(f"{path}: merge {number}: expected two parts, found {line!r:.80}")
        left, right = parts
        for text in (left, right, left + right):
            if text not in vocab:
                raise TokenizerError(f"{path}: merge {number}: {text!r:.80} is not a token")
        merges.setdefault((left, right))
    return vocab, list(merges)


def _entries(entries: object, path: Path) -> list[dict[str, Any]]:
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise TokenizerError(f"{path}: added_tokens is not a list")
    for entry in entries:
        text = entry.get("content") if isinstance(entry, dict) else None
        number = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not text or type(number) is not int or number < 0:
            raise TokenizerError(f"{path}: added token {entry!r:.80}: expected content and id")
    return entries


def _check_size(config: Mapping[str, Any], n_vocab: int, path: Path) -> None:
    """Every id needs a row of the embedding table."""
    inner = config.get("text_config")
    size = (inner if isinstance(inner, dict) else config).get("vocab_size")
    if type(size) is int and n_vocab > size:
        raise TokenizerError(
            f"{path}: token id {n_vocab - 1} is past the model's vocabulary "
            f"(config.json: vocab_size {size})"
        )


def _pieces(file: dict[str, Any], path: Path) -> tuple[Literal["bytelevel", "spm"], bool]:
    """How tokens stand for bytes, and whether the first one carries an added space."""
    decoder, normalizer, split = (file.get(k) for k in ("decoder", "normalizer", "pre_tokenizer"))
    if _names(decoder, "ByteLevel") or (decoder is None and _names(split, "ByteLevel")):
        return "bytelevel", False
    metaspace = [part for part in _parts(split) if part.get("type") == "Metaspace"]
    if _SPACE in json.dumps([decoder, normalizer, split], ensure_ascii=False):
        prefix = _names(normalizer, "Prepend") or any(
            part.get("prepend_scheme", "always") != "never"
            and part.get("add_prefix_space", True) is not False
            for part in metaspace
        )
        return "spm", prefix
    kind = decoder.get("type") if isinstance(decoder, dict) else decoder
    raise TokenizerError(f"{path}: decoder {kind!r:.40} is not supported")


def _parts(part: object) -> list[dict[str, Any]]:
    """A component and, for a sequence, what it consists of."""
    if not isinstance(part, dict):
        return []
    found = [part]
    for value in part.values():
        if isinstance(value, list):
            found += [item for item in value if isinstance(item, dict)]
    return found


def _names(part: object, kind: str) -> bool:
    return any(item.get("type") == kind for item in _parts(part))


def _starting_tokens(processor: object) -> list[str]:
    """The texts of the special tokens that a post-processor puts before a single text."""
    for part in _parts(processor):
        single = part.get("single")
        if part.get("type") != "TemplateProcessing" or not isinstance(single, list):
            continue
        texts = []
        for item in single:
            special = item.get("SpecialToken") if isinstance(item, dict) else None
            if not isinstance(special, dict) or not isinstance(special.get("id"), str):
                break
            texts.append(special["id"])
        return texts
    return []


def _token_text(value: object) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None


def _ids(config: Mapping[str, Any], key: str, folder: Path) -> list[int]:
    value = config.get(key)
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    for number in numbers:
        if type(number) is not int:
            raise TokenizerError(f"{folder}: {key}: expected token ids, found {value!r:.80}")
    return numbers


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return _read(path, 4 * MAX_TEMPLATE_CHARS) or None
    value = config.get("chat_template")
    if isinstance(value, list):
        named = [item for item in value if isinstance(item, dict)]
        chosen = [item.get("template") for item in named if item.get("name") == "default"]
        # Of two the last, as in any JSON object.
        value = chosen[-1] if chosen else None
    if value is not None and not isinstance(value, str):
        raise TokenizerError(f"{folder}: chat_template: expected text, found {value!r:.40}")
    return value or None


def _load_optional(path: Path) -> dict[str, Any]:
    return _load(path, _MAX_CONFIG_BYTES) if path.is_file() else {}


def _load(path: Path, limit: int) -> dict[str, Any]:
    try:
        text = _read(path, limit)
        check_size(text, str(path))
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: expected an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        count = Counter(key for key, _ in pairs)
        twice = max(count, key=count.__getitem__)
        raise ValueError(f"{twice!r:.80} occurs twice")
    return table


def _read(path: Path, limit: int) -> str:
    size = path.stat().st_size
    if size > limit:
        raise TokenizerError(f"{path}: expected at most {limit:,} bytes, found {size:,}")
    try:
        with named(path):
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8: {error.reason}") from None
