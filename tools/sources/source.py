"""What both source formats look like to pack: a plan, tensor specs, and rows of raw values.

Reads go through `ByteFile`, whose every range is checked against the size of the file when it was
opened; nothing is mapped, so that a file cut while it is read is an error and not a signal.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Literal, Self

import numpy as np
import numpy.typing as npt

from hga.models.plan import ConfigError, ModelPlan, TensorSpec, UnsupportedError
from hga.runtime.durable import named

if TYPE_CHECKING:
    from hga.runtime.tokenizer import TokenizerSpec


class SourceError(ValueError):
    """A checkpoint is damaged, incomplete or contradicts itself."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the path ahead of a refusal by code that sees values and not where they come from."""
    from hga.runtime.tokenizer_spec import TokenizerError

    try:
        yield
    except (ConfigError, UnsupportedError, TokenizerError) as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


class ByteFile:
    """A file read by ranges, from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("rb", buffering=0)
        self._lock = threading.Lock()
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """A new array of the bytes offset..offset+nbytes; SourceError if the file is shorter."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise SourceError(
                f"{self.path}: {nbytes} bytes at offset {offset} reach past the end of the file "
                f"({self.size} bytes): it is truncated or damaged"
            )
        out = np.empty(nbytes, np.uint8)
        view = out.data
        done = 0
        # A lock and a seek rather than pread, which Windows lacks; pack reads from one thread.
        with self._lock, named(self.path):
            self._file.seek(offset)
            while done < nbytes:
                got = self._file.readinto(view[done:])  # type: ignore[attr-defined]
                if not got:
                    raise SourceError(
                        f"{self.path}: the file ended at {offset + done} while it was read; "
                        f"it had {self.size} bytes when it was opened"
                    )
                done += got
        return out

    def close(self) -> None:
        """Release the descriptor; a second call does nothing."""
        self._file.close()


# GGUF and safetensors name of the plain types -> numpy type; bfloat16 needs ml_dtypes.
PLAIN_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "bfloat16"}


def plain_dtype(name: str) -> np.dtype[np.generic]:
    """The numpy type of F32, F16 or BF16."""
    if name == "BF16":
        import ml_dtypes

        dtype: np.dtype[np.generic] = np.dtype(ml_dtypes.bfloat16)
        return dtype
    return np.dtype(PLAIN_DTYPES[name])


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor of a checkpoint: (rows, columns), or (n,) for a vector.

    `dtype` is the format's own name ("Q4_1", "BF16", "F8_E4M3"). `row_bytes` is what one row
    takes in the file. `scale` holds the float32 block scales [ceil(rows/128), ceil(cols/128)] of
    F8_E4M3 and is None otherwise. Rows come as `element`, or as bytes where it is uint8.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    row_bytes: int
    offset: int
    file: ByteFile
    element: np.dtype[np.generic]
    scale: npt.NDArray[np.float32] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the values in the file."""
        return self.row_bytes * (self.shape[0] if len(self.shape) == 2 else 1)

    def read(self, row0: int, row1: int) -> np.ndarray:
        """Rows row0..row1 of a matrix as a new array [rows, cols] of `element`; for block formats
        and F8_E4M3 uint8 [rows, row_bytes]. Raises SourceError if the file has shrunk."""
        if len(self.shape) != 2 or not 0 <= row0 <= row1 <= self.shape[0]:
            raise IndexError(f"{self.name}: rows {row0}..{row1} of shape {self.shape}")
        raw = self.file.read(self.offset + row0 * self.row_bytes, (row1 - row0) * self.row_bytes)
        n_cols = self.row_bytes // self.element.itemsize
        return raw.view(self.element).reshape(row1 - row0, n_cols)

    def vector(self) -> npt.NDArray[np.float32]:
        """The values of a vector as float32 [n]; raises SourceError if one is not finite."""
        if len(self.shape) != 1 or self.dtype not in PLAIN_DTYPES:
            raise TypeError(f"{self.name}: shape {self.shape}, {self.dtype}: not a float vector")
        out = self.file.read(self.offset, self.row_bytes).view(self.element).astype(np.float32)
        if not np.isfinite(out).all():
            raise SourceError(f"{self.file.path}: {self.name}: expected finite values, found NaN")
        return out

    def rows(self, row0: int, row1: int) -> "SourceTensor":
        """The same tensor cut to rows row0..row1 (one expert of a stack)."""
        shape = (row1 - row0, *self.shape[1:])
        return replace(self, shape=shape, offset=self.offset + row0 * self.row_bytes)


@dataclass(frozen=True, slots=True)
class Source:
    """An opened checkpoint. Its tensors stay valid until `close`.

    `specs` are all tensors that the packed file needs. `notices` are sentences for the user:
    what was found and will not be used. `metadata` is config.json or the GGUF key-value table.
    """

    kind: Literal["gguf", "hf"]
    path: Path
    plan: ModelPlan
    specs: tuple[TensorSpec, ...]
    metadata: Mapping[str, object]
    tensors: Mapping[str, SourceTensor]
    notices: tuple[str, ...]
    files: tuple[ByteFile, ...]
    sampling: Mapping[str, float]
    tokenizer: "Callable[[], TokenizerSpec]"

    def tensor(self, name: str) -> SourceTensor:
        """A tensor by its name in the checkpoint; stacked experts as one matrix of all rows."""
        return self.tensors[name]

    def spec_tensor(self, spec: TensorSpec) -> SourceTensor:
        """The tensor of a spec with exactly the spec's shape: one expert's rows of a stack."""
        tensor = self.tensors[spec.source]
        if spec.expert >= 0:
            tensor = tensor.rows(spec.expert * spec.shape[0], (spec.expert + 1) * spec.shape[0])
        return tensor

    def tokenizer_spec(self) -> "TokenizerSpec":
        """The tokenizer of the checkpoint; raises TokenizerError if it cannot be rebuilt."""
        with naming(self.path):
            return self.tokenizer()

    def generation(self) -> dict[str, float]:
        """Sampling defaults that the checkpoint states: temperature, top_k, top_p, min_p,
        repetition_penalty; empty if it states none."""
        return dict(self.sampling)

    @property
    def nbytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def check_tensors(
    path: Path,
    specs: tuple[TensorSpec, ...],
    shapes: Mapping[str, tuple[int, ...]],
    hint: str,
) -> None:
    """Every spec's source tensor is there with the shape that the configuration implies.

    `shapes` may hold stacked experts as (experts, rows, columns). `hint` ends the message about a
    missing tensor.
    """
    stacks: dict[str, int] = {}
    for spec in specs:
        if spec.expert >= 0:
            stacks[spec.source] = max(stacks.get(spec.source, 0), spec.expert + 1)
    for spec in specs:
        found = shapes.get(spec.source)
        wanted = (stacks[spec.source], *spec.shape) if spec.source in stacks else spec.shape
        if found is None:
            raise SourceError(f"{path}: tensor {spec.source} {list(wanted)} is missing{hint}")
        if found != wanted:
            raise SourceError(
                f"{path}: tensor {spec.source}: expected shape {list(wanted)} from the "
                f"configuration, found {list(found)}"
            )


SAMPLING_RANGES = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 1 << 31),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
}


def sampling_defaults(values: Mapping[str, object], path: Path) -> dict[str, float]:
    """The sampling settings among `values` that are not null; SourceError out of range."""
    out: dict[str, float] = {}
    for name, (low, high) in SAMPLING_RANGES.items():
        value = values.get(name)
        if value is None:
            continue
        whole = name == "top_k"
        if type(value) not in ((int,) if whole else (int, float)) or not low <= value <= high:  # type: ignore[operator]
            kind = "an integer" if whole else "a number"
            raise SourceError(
                f"{path}: {name}: expected {kind} in {low}..{high}, found {value!r:.80}"
            )
        assert isinstance(value, int | float)
        out[name] = value
    return out
