"""Tile geometry shared by every matrix format, and the `Format` value that describes one.

A matrix [R, K] is stored as ceil(R / 16) row groups, each contiguous: K / 32 tiles of 16 rows by
32 columns, all little-endian. Rows past R are zero bytes. docs/format.md has the byte diagrams;
the kernels read exactly this layout.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
Array = npt.NDArray[np.generic]

ROWS = 16
COLS = 32


class FormatError(ValueError):
    """A shape, size or value that the weight format cannot hold."""


@dataclass(frozen=True, slots=True)
class Format:
    """One weight format: how many bytes a matrix takes and how values get in and out.

    `code` is the number that kernels dispatch on, `step` the column multiple that a matrix needs
    (0 for vectors, which have no tiles), `bits_per_weight` the storage cost without row padding.
    """

    name: str
    code: int
    step: int
    bits_per_weight: float
    _group_bytes: Callable[[int], int]
    _pack: Callable[[F32], U8] | None
    _unpack: Callable[[U8, int], F32]

    def group_bytes(self, n_cols: int) -> int:
        """Bytes of one 16-row group of `n_cols` columns; FormatError unless n_cols % step == 0."""
        if self.step == 0:
            raise FormatError(f"format {self.name} holds vectors, not rows of a matrix")
        if n_cols <= 0 or n_cols % self.step:
            raise FormatError(
                f"format {self.name} needs a column count that is a positive multiple of "
                f"{self.step}, found {n_cols}"
            )
        return self._group_bytes(n_cols)

    def nbytes(self, n_rows: int, n_cols: int) -> int:
        """Bytes of the whole matrix [n_rows, n_cols]; of a vector, n_rows values and n_cols 1."""
        if n_rows <= 0:
            raise FormatError(f"format {self.name} needs at least one row, found {n_rows}")
        if self.step == 0:
            if n_cols != 1:
                raise FormatError(f"format {self.name} holds vectors, found {n_cols} columns")
            return 4 * n_rows
        return n_groups(n_rows) * self.group_bytes(n_cols)

    def pack(self, values: F32) -> U8:
        """Quantise values [R, K] float32 to uint8 [ceil(R / 16), group_bytes(K)].

        Streaming a matrix by row ranges (multiples of 16 rows, of 128 for fp8) gives the same
        bytes. Raises FormatError for formats that are only packed from their own parts, for a
        value that is not finite and for one out of the format's range.
        """
        if self._pack is None:
            raise FormatError(f"format {self.name} is packed from its parts, not from floats")
        values = np.asarray(values, np.float32)
        require_matrix(self, values.shape)
        if not np.isfinite(values).all():
            raise FormatError(f"format {self.name} refuses values that are not finite")
        return self._pack(values)

    def unpack(self, data: U8, n_rows: int, n_cols: int) -> F32:
        """Values [n_rows, n_cols] float32 (a new array) of packed bytes of any shape.

        Raises FormatError unless `data` holds exactly nbytes(n_rows, n_cols) bytes.
        """
        expected = self.nbytes(n_rows, n_cols)
        if data.dtype != np.uint8 or data.size != expected:
            raise FormatError(
                f"format {self.name}: [{n_rows}, {n_cols}] takes {expected} bytes, "
                f"found {data.size} of {data.dtype}"
            )
        if self.step == 0:
            return self._unpack(data, n_rows)
        groups = data.reshape(n_groups(n_rows), self.group_bytes(n_cols))
        return np.ascontiguousarray(self._unpack(groups, n_cols)[:n_rows])


def n_groups(n_rows: int) -> int:
    """Row groups that hold n_rows rows."""
    return -(-n_rows // ROWS)


def require_matrix(fmt: Format, shape: tuple[int, ...]) -> None:
    """Raise FormatError unless `shape` is a matrix that `fmt` can hold."""
    if len(shape) != 2:
        raise FormatError(f"format {fmt.name} holds matrices, found shape {list(shape)}")
    fmt.nbytes(*shape)


def require_parts(
    codes: Array, step: int, scales: tuple[Array, ...], block: int, limit: int = 256
) -> None:
    """Check the parts of a matrix: codes [R, K] below `limit`, finite scales [R, K / block]."""
    if codes.ndim != 2 or codes.shape[0] == 0 or codes.shape[1] == 0 or codes.shape[1] % step:
        raise FormatError(f"codes need shape [R, multiple of {step}], found {list(codes.shape)}")
    if limit < 256 and int(codes.max()) >= limit:
        raise FormatError(f"codes need to be below {limit}, found {codes.max()}")
    expected = (codes.shape[0], codes.shape[1] // block)
    for scale in scales:
        if scale.shape != expected:
            raise FormatError(
                f"scales need shape {list(expected)}, one per {block} columns, "
                f"found {list(scale.shape)}"
            )
        if scale.dtype == np.float16 and not np.isfinite(scale.astype(np.float32)).all():
            raise FormatError("a block scale is not finite")


def to_groups(array: Array, dtype: str | None = None) -> Array:
    """[R, N] as [ceil(R / 16), 16, N], the missing rows zero."""
    n_rows, n_cols = array.shape
    kind = array.dtype if dtype is None else np.dtype(dtype)
    if n_rows % ROWS == 0:
        return array.astype(kind, copy=False).reshape(n_rows // ROWS, ROWS, n_cols)
    padded = np.zeros((n_groups(n_rows) * ROWS, n_cols), kind)
    padded[:n_rows] = array
    return padded.reshape(-1, ROWS, n_cols)


def as_bytes(array: Array) -> U8:
    """The last axis of an array as bytes: [..., n] of any little-endian type as [..., n * size]."""
    return np.ascontiguousarray(array).view(np.uint8)
