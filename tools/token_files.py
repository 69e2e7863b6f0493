"""Token ids for evaluation: from text, from .npy and .npz files.

The files are somebody else's: no pickles, every array is checked for shape, type and vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from hga.tools.errors import UsageError

if TYPE_CHECKING:
    from hga.runtime.engine import Engine

# Of an array: sixteen million ids of eight bytes.
MOST_BYTES = 128 << 20
CASE_TAIL = 64
"""Tokens at the end of a retrieval case that are decoded; the answer lies among them."""


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt that ends with its answer of `n_answer` tokens."""

    name: str
    ids: list[int]
    n_answer: int


def encode_document(engine: "Engine", text: str) -> list[int]:
    """Token ids of a document, with BOS ahead where the model wants one."""
    tokenizer = engine.tokenizer
    ids = tokenizer.encode(text)
    return ids if tokenizer.bos is None else [tokenizer.bos, *ids]


def load_ids(path: Path) -> list[int]:
    """Token ids from a .npy file that holds a one-dimensional array of integers."""
    return _id_list(_load(path), str(path))


def load_cases(path: Path) -> list[Case]:
    """The cases of a .npz file, by name: arrays needle_NAME, integers answer_NAME."""
    archive = _load(path)
    if not hasattr(archive, "files"):
        raise UsageError(f"{path} is not an .npz archive")
    cases = []
    for key in sorted(archive.files):
        if not key.startswith("needle_"):
            continue
        name = key.removeprefix("needle_")
        ids = _id_list(_member(archive, key, path), f"{key} in {path}")
        answer = _member(archive, f"answer_{name}", path)
        if answer.shape != () or answer.dtype.kind not in "iu":
            raise UsageError(f"answer_{name} in {path} is not an integer")
        n_answer = int(answer)
        if not 1 <= n_answer < CASE_TAIL <= len(ids) - 1:
            raise UsageError(
                f"{key} in {path}: {len(ids)} tokens and an answer of {n_answer}; expected more "
                f"than {CASE_TAIL} tokens and an answer from 1 to {CASE_TAIL - 1}"
            )
        cases.append(Case(name, ids, n_answer))
    if not cases:
        raise UsageError(f"{path} holds no array named needle_NAME")
    return cases


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except _damage() as error:
        raise UsageError(f"{path} is not a numpy file: {error!s:.200}") from None


def _member(archive: Any, key: str, path: Path) -> npt.NDArray[Any]:
    try:
        # Packed, a member may be a thousandth of what it unfolds to.
        sizes = {info.filename: info.file_size for info in archive.zip.infolist()}
        n_bytes = max(sizes.get(key, 0), sizes.get(f"{key}.npy", 0))
        if n_bytes > MOST_BYTES:
            raise ValueError(f"expected at most {MOST_BYTES} bytes, found {n_bytes}")
        return cast("npt.NDArray[Any]", archive[key])
    except KeyError:
        raise UsageError(f"{path} holds no {key}") from None
    except _damage() as error:
        raise UsageError(f"{key} in {path} cannot be read: {error!s:.200}") from None


def _damage() -> tuple[type[Exception], ...]:
    """What numpy and zipfile raise for a file that is not theirs, or claims too much."""
    import zipfile
    import zlib

    return (
        ValueError, EOFError, TypeError, OverflowError, MemoryError, RuntimeError, zlib.error,
        zipfile.BadZipFile,
    )  # fmt: skip


def _id_list(array: npt.NDArray[Any], name: str) -> list[int]:
    if getattr(array, "ndim", None) != 1 or array.dtype.kind not in "iu" or not len(array):
        raise UsageError(f"{name} is not a one-dimensional array of integers")
    return [int(token) for token in array]


def check_ids(ids: Sequence[int], vocab_size: int, name: str) -> None:
    """Raise UsageError unless every id is below `vocab_size` and not negative."""
    if not ids:
        raise UsageError(f"{name} is empty")
    low, high = min(ids), max(ids)
    if low < 0 or high >= vocab_size:
        found = low if low < 0 else high
        raise UsageError(f"{name} holds token id {found}; the vocabulary has {vocab_size:,}")
