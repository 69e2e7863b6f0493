"""JSON from files that are not trusted: bounded in bytes and values, no duplicate keys, no NaN, an
object."""

import json
from collections import Counter
from pathlib import Path
from typing import Final, NoReturn

from hga.runtime.durable import named
from hga.runtime.json_size import most_values

from .source import SourceError

# The table of a hundred thousand tensors has a million; as objects these take 200 MiB at worst.
_MOST_VALUES: Final = 1 << 21


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    out = dict(pairs)
    if len(out) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"key {twice!r:.80} stands there twice")
    return out


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def parse_object(data: bytes, where: str) -> dict[str, object]:
    """Parse UTF-8 JSON whose top level is an object; SourceError says what is wrong where."""
    if (n_values := most_values(data)) > _MOST_VALUES:
        raise SourceError(f"{where}: expected at most {_MOST_VALUES} JSON values, found {n_values}")
    try:
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        reason = str(error) or "nested too deeply"
        raise SourceError(f"{where}: expected JSON, found: {reason}") from error
    if not isinstance(found, dict):
        raise SourceError(f"{where}: expected a JSON object, found {type(found).__name__}")
    return found


def load_object(path: Path, limit_bytes: int) -> dict[str, object]:
    """Read a JSON file of at most limit_bytes; SourceError if it is larger or malformed."""
    size = path.stat().st_size
    if size > limit_bytes:
        raise SourceError(f"{path}: expected at most {limit_bytes} bytes, found {size}")
    with named(path):
        data = path.read_bytes()
    return parse_object(data, str(path))
