"""TokenizerSpec: a tokenizer as plain data, the form in which a packed file keeps it.

The vocabulary is the text of a `tokenizers` file that holds the BPE model and the text-like added
tokens, but no control token: those stand in `control`, and only the caller's say-so turns their
text into their ids. Nothing here is trusted when it comes from a file: `check` refuses everything
that the library would crash on rather than report.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from .json_size import most_values

# Gemma 3's vocabulary, the largest of a supported model, takes 33 MB as an indented file.
MAX_JSON_BYTES: Final = 64 << 20
# ... and 2.3 million values, with the pairs of its merges.
_MOST_JSON_VALUES: Final = 6 << 20
# Compiling a hostile template of this length takes two seconds; real ones have at most half.
MAX_TEMPLATE_CHARS: Final = 64 << 10
MAX_VOCAB: Final = 2 << 20

# The tokens of single bytes in a vocabulary with byte fallback.
BYTE_TEXTS: Final = frozenset(f"<0x{value:02X}>" for value in range(256))
# Control tokens that end a turn or a document (llama.cpp's list).
STOP_TEXTS: Final = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>"),
        *("<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<eos>"),
        *("<end_of_utterance>", "<｜end▁of▁sentence｜>"),
        *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
    )
)
# Texts that open a turn: control tokens even where a converter typed them as ordinary text.
_TURN_TEXTS: Final = frozenset(
    ("<bos>", "<start_of_turn>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
)

_NORMALIZERS: Final = frozenset(
    ("Sequence", "NFC", "NFD", "NFKC", "NFKD", "Replace", "Prepend", "Lowercase", "Strip")
)
_PRE_TOKENIZERS: Final = frozenset(
    ("Sequence", "ByteLevel", "Split", "Digits", "Metaspace", "Punctuation", "Whitespace")
)
_MAX_PATTERN_CHARS: Final = 4096
_MAX_NESTING: Final = 8


class TokenizerError(ValueError):
    """A vocabulary is damaged, contradictory, or of a kind that is not supported."""


class ControlToken(msgspec.Struct, frozen=True, array_like=True):
    """A token that text may name only where the caller allows it; `lstrip` and `rstrip` say that
    it swallows the white space on that side. Stored as an array: Gemma 3 has 6,249 of them."""

    id: int
    text: str
    lstrip: bool = False
    rstrip: bool = False


class TokenizerSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything needed to rebuild a tokenizer, JSON-able by `to_dict`.

    `json` is the text of a `tokenizers` file without control tokens; ids are below `n_vocab`.
    `pieces` tells how a token's text stands for bytes: "bytelevel" (GPT-2's alphabet) or "spm"
    (U+2581 for a space, <0xNN> for a byte). `space_prefix`: a text's first piece carries a space
    that the text had not. `template_variables` are the texts a chat template may ask for.
    """

    kind: Literal["gguf", "json"]
    json: str
    n_vocab: int
    pieces: Literal["bytelevel", "spm"]
    control: tuple[ControlToken, ...] = ()
    bos: int | None = None
    eos: tuple[int, ...] = ()
    add_bos: bool = False
    space_prefix: bool = False
    chat_template: str | None = None
    template_variables: dict[str, str] = msgspec.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TokenizerSpec":
        """The checked spec of `to_dict`'s values; raises TokenizerError."""
        try:
            spec = msgspec.convert(dict(values), cls)
        except (msgspec.ValidationError, RecursionError) as error:
            raise TokenizerError(f"tokenizer: {error}") from None
        check(spec)
        return spec


def looks_like_control(text: str) -> bool:
    """Whether a token of this text steers the model, however a file has typed it.

    Not so <s> and </s>: Gemma has them as HTML's strike-through.
    """
    if text in _TURN_TEXTS or (text in STOP_TEXTS and text != "</s>"):
        return True
    opens, closes = text[:2], text[-2:]
    framed = (opens, closes) in (("<|", "|>"), ("<｜", "｜>"))
    return framed and any(char.isalnum() for char in text)


def check(spec: TokenizerSpec) -> None:
    """Raise TokenizerError for a spec whose parts contradict one another."""
    if not 0 < spec.n_vocab <= MAX_VOCAB:
        raise TokenizerError(f"tokenizer: expected 1..{MAX_VOCAB:,} tokens, found {spec.n_vocab:,}")
    ids: set[int] = set()
    texts: set[str] = set()
    for token in spec.control:
        if not 0 <= token.id < spec.n_vocab:
            raise TokenizerError(
                f"tokenizer: control token {token.text!r:.80}: expected an id below "
                f"{spec.n_vocab}, found {token.id}"
            )
        if not token.text or token.id in ids or token.text in texts:
            raise TokenizerError(
                f"tokenizer: control token {token.text!r:.80} (id {token.id}) is empty or twice"
            )
        ids.add(token.id)
        texts.add(token.text)
    named = [("bos", spec.bos)] if spec.bos is not None else []
    for name, number in [*named, *(("eos", stop) for stop in spec.eos)]:
        if number is None or not 0 <= number < spec.n_vocab:
            raise TokenizerError(
                f"tokenizer: {name}: expected an id below {spec.n_vocab}, found {number}"
            )
    if spec.add_bos and spec.bos is None:
        raise TokenizerError("tokenizer: add_bos is set and there is no bos token")
    if spec.chat_template is not None and len(spec.chat_template) > MAX_TEMPLATE_CHARS:
        raise TokenizerError(
            f"tokenizer: chat template: expected at most {MAX_TEMPLATE_CHARS:,} characters, "
            f"found {len(spec.chat_template):,}"
        )
    check_json(spec.json)


class _Model(msgspec.Struct):
    """The parts of a BPE model that the library is not safe against; the large ones unparsed."""

    vocab: msgspec.Raw
    merges: msgspec.Raw
    type: str = "BPE"
    dropout: float | None = None
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class _File(msgspec.Struct):
    model: _Model
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    truncation: Any = None
    padding: Any = None
    post_processor: Any = None
    decoder: Any = None


def check_size(text: str, where: str) -> None:
    """Raise TokenizerError where a JSON text would unfold to more than any tokenizer holds."""
    if (n_values := most_values(text)) > _MOST_JSON_VALUES:
        raise TokenizerError(
            f"{where}: expected at most {_MOST_JSON_VALUES:,} JSON values, found {n_values:,}"
        )


def check_json(text: str) -> None:
    """Raise TokenizerError unless the `tokenizers` text has only parts that are supported.

    The library cuts merged texts at the length of a subword prefix without looking at character
    boundaries (the process aborts), and truncation or padding would change ids in silence.
    """
    if len(text) > MAX_JSON_BYTES:
        raise TokenizerError(
            f"tokenizer: expected at most {MAX_JSON_BYTES:,} characters, found {len(text):,}"
        )
    check_size(text, "tokenizer")
    try:
        file = msgspec.json.decode(text, type=_File)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"tokenizer: {error}") from None
    if file.model.type != "BPE":
        raise TokenizerError(f"tokenizer: model {file.model.type!r:.40} is not supported, BPE is")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if value := getattr(file.model, name):
            raise TokenizerError(f"tokenizer: model.{name} is not supported, found {value!r:.40}")
    for name in ("truncation", "padding", "post_processor", "decoder"):
        if getattr(file, name) is not None:
            raise TokenizerError(f"tokenizer: {name} must be null")
    _check_part(file.normalizer, "normalizer", "normalizers", _NORMALIZERS)
    _check_part(file.pre_tokenizer, "pre_tokenizer", "pretokenizers", _PRE_TOKENIZERS)


def _check_part(
    part: object, name: str, children: str, known: frozenset[str], depth: int = 0
) -> None:
    if part is None:
        return
    kind = part.get("type") if isinstance(part, dict) else part
    if not isinstance(part, dict) or kind not in known or depth > _MAX_NESTING:
        raise TokenizerError(f"tokenizer: {name} {kind!r:.40} is not supported")
    pattern = part.get("pattern")
    if kind in ("Replace", "Prepend"):
        # The library panics where a pattern matches nothing at all.
        text = pattern.get("String") if isinstance(pattern, dict) else part.get("prepend")
        if not isinstance(text, str) or not text:
            raise TokenizerError(f"tokenizer: {name} {kind} needs a text that is not empty")
    if len(str(pattern)) > _MAX_PATTERN_CHARS:
        raise TokenizerError(
            f"tokenizer: {name}: expected a pattern of at most {_MAX_PATTERN_CHARS} characters"
        )
    if kind == "Sequence":
        items = part.get(children)
        if not isinstance(items, list):
            raise TokenizerError(f"tokenizer: {name}: {children} is not a list")
        for item in items:
            _check_part(item, name, children, known, depth + 1)
