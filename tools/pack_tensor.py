"""One tensor of a checkpoint to the bytes of its format, by row ranges.

Every source type has one exact home among the formats. Another format is reached through the
home's float32 values, and the error it makes is measured on the way.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from hga.kernels.formats import FORMATS, FormatError, pack_fp8
from hga.models.plan import TensorSpec

from .gguf_blocks import GGUF_TYPES
from .sources import SourceError, SourceTensor

U8 = npt.NDArray[np.uint8]

_FP8 = "F8_E4M3"
# Row ranges start at multiples of this: the 128 rows of an FP8 block scale, eight row groups.
_STEP_ROWS = 128
# float32 bytes of one row range. Temporaries are about eight times this.
_RANGE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Some row groups of a tensor, and what storing them cost: the sum of squared differences
    from the source's values and the sum of their squares, both 0 where nothing can differ."""

    role: str
    data: U8
    difference: float = 0.0
    square: float = 0.0


def kind_of(role: str) -> str:
    """The kind that pack reports a tensor under: q, k, v, o, gate, up, down, embed, head, router,
    experts; norms and biases are vectors."""
    if ".experts." in role:
        return "experts"
    name = role.rsplit(".", 1)[-1]
    return "vectors" if name.endswith(("norm", "bias")) else name


def home_of(dtype: str) -> str:
    """The format that holds a source type without loss."""
    return "fp8" if dtype == _FP8 else GGUF_TYPES[dtype].home


def format_for(role: str, tensor: SourceTensor, requested: str) -> str:
    """The format of a tensor's matrix or vector where the user asked for `requested`.

    "auto" is the exact home. Otherwise the router keeps its home (its few bytes decide which
    experts run), and embedding and head get no fewer bits than q8 unless their home has.
    """
    if len(tensor.shape) == 1:
        return "vec"
    home, kind = home_of(tensor.dtype), kind_of(role)
    if requested == "auto" or kind == "router":
        return home
    if kind in ("embed", "head") and FORMATS[requested].bits_per_weight < 8:
        bits = FORMATS[home].bits_per_weight
        return home if bits <= FORMATS["q8"].bits_per_weight else "q8"
    return requested


def pieces(tensor: SourceTensor, spec: TensorSpec, target: str) -> Iterator[Callable[[], Piece]]:
    """Jobs that give the bytes of a tensor in the format `target`, in order when run in order.

    Each job reads and packs some megabytes of rows and may run in any thread. It raises
    SourceError, naming the tensor, for values that no format can hold: NaN, infinities, bad
    scales.
    """
    if target == "vec":
        yield partial(_vector, tensor, spec)
        return
    n_rows, n_cols = tensor.shape
    step = max(1, _RANGE_BYTES // (4 * n_cols * _STEP_ROWS)) * _STEP_ROWS
    for row in range(0, n_rows, step):
        yield partial(_rows, tensor, spec, target, row, min(row + step, n_rows))


def _vector(tensor: SourceTensor, spec: TensorSpec) -> Piece:
    values = tensor.vector()
    if spec.transform == "add_one":
        values += np.float32(1)
    elif spec.transform == "unrope":
        values = values[_source_rows(spec, 0, len(values))]
    return Piece(spec.role, values.astype("<f4").view(np.uint8))


def _rows(tensor: SourceTensor, spec: TensorSpec, target: str, row: int, end: int) -> Piece:
    n_rows, n_cols = end - row, tensor.shape[1]
    home = home_of(tensor.dtype)
    try:
        packed = _exact(tensor, spec, row, end)
        if target == home:
            return Piece(spec.role, packed)
        values = FORMATS[home].unpack(packed, n_rows, n_cols)
        packed = FORMATS[target].pack(values)
        stored = FORMATS[target].unpack(packed, n_rows, n_cols)
        stored -= values
        difference = float(np.square(stored, dtype=np.float64).sum())
        square = float(np.square(values, dtype=np.float64).sum())
        return Piece(spec.role, packed, difference, square)
    except FormatError as problem:
        raise SourceError(
            f"{tensor.file.path}: tensor {tensor.name}, rows {row} to {end}: {problem}"
        ) from None


def _exact(tensor: SourceTensor, spec: TensorSpec, row: int, end: int) -> U8:
    """Rows row..end of the packed matrix in the exact home of the source type."""
    if spec.transform == "add_one":
        raise SourceError(f"{tensor.file.path}: tensor {tensor.name}: add_one is for vectors")
    raw = _raw_rows(tensor, spec, row, end)
    if tensor.dtype != _FP8:
        return GGUF_TYPES[tensor.dtype].pack(raw.view(np.uint8))
    assert tensor.scale is not None
    if spec.transform != "none":
        raise SourceError(f"{tensor.file.path}: tensor {tensor.name}: FP8 rows cannot move")
    return pack_fp8(raw, tensor.scale[row // _STEP_ROWS : -(-end // _STEP_ROWS)])


def _raw_rows(tensor: SourceTensor, spec: TensorSpec, row: int, end: int) -> U8:
    if spec.transform != "unrope":
        return tensor.read(row, end)
    rows = _source_rows(spec, row, end)
    # The rows of a head are contiguous, so this reads at most one head more on either side.
    first = int(rows.min())
    taken: U8 = tensor.read(first, int(rows.max()) + 1)[rows - first]
    return taken


def _source_rows(spec: TensorSpec, row: int, end: int) -> npt.NDArray[np.intp]:
    """Where rows row..end of a q or k matrix with half-split RoPE lie in the interleaved one."""
    dim = spec.shape[0] // spec.n_heads
    head, within = np.divmod(np.arange(row, end), dim)
    half = dim // 2
    return head * dim + np.where(within < half, 2 * within, 2 * (within - half) + 1)
