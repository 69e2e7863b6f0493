"""Device layouts of weights: rows in order, codes of a row together, scales apart.

The packed file's tiles suit vector registers; a GPU reads whole rows. A matrix is repacked once, on
the device, when it is uploaded, without a change of any value. Formats that have no kernel of their
own here are widened to float16 (`repack` says so). q4: 16 bytes for 32 columns, low nibbles first.
"""

from dataclasses import dataclass

import torch

from hga.kernels.formats import Format

# Kinds of codes, constants of the kernels.
F32, F16, BF16, FP8, Q8, Q4 = range(6)
_KINDS = {"f32": F32, "f16": F16, "bf16": BF16, "fp8": FP8, "q8": Q8, "q4": Q4}
_ROWS, _COLS, _BLOCK = 16, 32, 128
# Vectors of a row are loaded 16 bytes at a time.
ALIGN = 16


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix [rows, cols]: uint8 codes and scales of a kind, on the device or in pinned memory.

    Scales: float32 [ceil(rows / 128), ceil(cols / 128)] for fp8, float16 [rows, cols / 32] for q8
    and q4, none otherwise.
    """

    kind: int
    rows: int
    cols: int
    codes: torch.Tensor
    scales: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.numel() + self.scales.numel()


def kind_of(fmt: Format) -> int:
    """The kind that a format of the packed file becomes."""
    return _KINDS.get(fmt.name, F16)


def code_bytes(kind: int, rows: int, cols: int) -> int:
    """Bytes of the codes, a multiple of ALIGN."""
    bits = {F32: 32, F16: 16, BF16: 16, FP8: 8, Q8: 8, Q4: 4}[kind]
    return -(-rows * cols * bits // 8 // ALIGN) * ALIGN


def scale_bytes(kind: int, rows: int, cols: int) -> int:
    """Bytes of the scales, a multiple of ALIGN, and at least ALIGN so that there is an address."""
    n = 0
    if kind == FP8:
        n = 4 * -(-rows // _BLOCK) * -(-cols // _BLOCK)
    elif kind in (Q8, Q4):
        n = 2 * rows * (cols // _COLS)
    return max(ALIGN, -(-n // ALIGN) * ALIGN)


def repack(fmt: Format, data: torch.Tensor, rows: int, cols: int) -> Matrix:
    """A matrix in its device layout; data: uint8 [ceil(rows / 16), group_bytes] as the packed file
    has it, where the result is wanted."""
    n, t = data.shape[0], cols // _COLS
    none = torch.zeros(ALIGN, dtype=torch.uint8, device=data.device)
    kind = kind_of(fmt)
    if fmt.name not in _KINDS:
        values = torch.from_numpy(fmt.unpack(data.cpu().numpy(), rows, cols)).to(torch.float16)
        return Matrix(kind, rows, cols, _bytes(values.to(data.device)), none)
    if kind in (F32, F16):
        size = 4 if kind == F32 else 2
        cells = data.reshape(n, t, _COLS, _ROWS, size).permute(0, 3, 1, 2, 4)
        return Matrix(kind, rows, cols, _rows(cells, n, rows), none)
    if kind == BF16:
        cells = data.reshape(n, t, _COLS // 2, _ROWS, 4).permute(0, 3, 1, 2, 4)
        return Matrix(kind, rows, cols, _rows(cells, n, rows), none)
    if kind == FP8:
        cells = data[:, : _ROWS * cols].reshape(n, t, _COLS, _ROWS).permute(0, 3, 1, 2)
        blocks = 4 * -(-cols // _BLOCK)
        scales = data[:: _BLOCK // _ROWS, _ROWS * cols : _ROWS * cols + blocks]
        return Matrix(kind, rows, cols, _rows(cells, n, rows), _bytes(scales))
    tiles, half = data.reshape(n, t, -1), 8 if kind == Q8 else 4
    size = 64 * half
    cells = tiles[:, :, :size].reshape(n, t, half, _ROWS, 4).permute(0, 3, 1, 2, 4)
    codes = _rows(cells, n, rows)
    if kind == Q8:
        # From 0..255 around 128 to two's complement.
        codes = codes ^ 128
    scales = tiles[:, :, size:].reshape(n, t, _ROWS, 2).permute(0, 2, 1, 3)
    return Matrix(kind, rows, cols, codes, _rows(scales, n, rows))


def _rows(cells: torch.Tensor, n_groups: int, rows: int) -> torch.Tensor:
    """The first rows of cells [groups, 16, …] as flat bytes."""
    return _bytes(cells.reshape(n_groups * _ROWS, -1)[:rows])


def _bytes(values: torch.Tensor) -> torch.Tensor:
    """Flat bytes, filled up to a multiple of ALIGN."""
    flat = values.contiguous().view(torch.uint8).reshape(-1)
    missing = -flat.numel() % ALIGN
    return torch.nn.functional.pad(flat, (0, missing)) if missing else flat


def stack(parts: list[Matrix]) -> Matrix:
    """Matrices of the same kind and columns, one below the other. For fp8 all but the last have
    whole blocks of 128 rows."""
    first = parts[0]
    if len(parts) == 1:
        return first
    codes = [_used(m.codes, code_bits(m.kind) * m.rows * m.cols // 8) for m in parts]
    sizes = [_scale_rows(m) for m in parts]
    scales = [_used(m.scales, n) for m, n in zip(parts, sizes)]
    joined = torch.cat(scales)
    rows = sum(m.rows for m in parts)
    none = joined if joined.numel() else first.scales
    return Matrix(first.kind, rows, first.cols, _bytes(torch.cat(codes)), _bytes(none))


def can_stack(parts: list[Matrix]) -> bool:
    """Whether `stack` can join the matrices."""
    same = len({(m.kind, m.cols) for m in parts}) == 1
    return same and (parts[0].kind != FP8 or all(m.rows % _BLOCK == 0 for m in parts[:-1]))


def code_bits(kind: int) -> int:
    """Bits of a code."""
    return {F32: 32, F16: 16, BF16: 16, FP8: 8, Q8: 8, Q4: 4}[kind]


def _scale_rows(m: Matrix) -> int:
    if m.kind == FP8:
        return 4 * -(-m.rows // _BLOCK) * -(-m.cols // _BLOCK)
    return 2 * m.rows * (m.cols // _COLS) if m.kind in (Q8, Q4) else 0


def _used(flat: torch.Tensor, n_bytes: int) -> torch.Tensor:
    return flat[:n_bytes]
