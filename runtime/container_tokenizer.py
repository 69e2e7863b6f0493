"""The tokenizer inside a packed file: its long texts in segments, the rest in the index.

A field whose value is {"text": NAME} stands for the text of that name; docs/format.md.
"""

from collections.abc import Callable
from typing import Any

from .tokenizer_spec import TokenizerSpec

# Strings up to this length stay in the index, where `hga inspect` shows them.
_INLINE_CHARACTERS = 256


def split_tokenizer(spec: TokenizerSpec) -> tuple[dict[str, Any], dict[str, str]]:
    """The index entry of a tokenizer, and the texts to be stored beside it."""
    entry = spec.to_dict()
    texts: dict[str, str] = {}
    for field, value in entry.items():
        if isinstance(value, str) and len(value) > _INLINE_CHARACTERS:
            texts[f"tokenizer.{field}"] = value
            entry[field] = {"text": f"tokenizer.{field}"}
    return entry, texts


def join_tokenizer(entry: dict[str, Any], text: Callable[[str], str]) -> TokenizerSpec:
    """The tokenizer of an index entry; `text` gives a text by its name.

    Raises TokenizerError for a field that is unknown or wrong.
    """
    fields = dict(entry)
    for field, value in entry.items():
        name = f"tokenizer.{field}"
        if value == {"text": name}:
            fields[field] = text(name)
    return TokenizerSpec.from_dict(fields)
