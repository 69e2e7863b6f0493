"""Products of one row of activations with matrices, and matrices widened for cuBLAS.

A program computes some rows of the result; it reads each weight once, and the row of activations,
normed on the way where the model norms it, from the cache. Sums are float32.
"""

import os

import torch
import triton
import triton.language as tl

from .layouts import Matrix

F32: tl.constexpr = tl.constexpr(0)
F16: tl.constexpr = tl.constexpr(1)
BF16: tl.constexpr = tl.constexpr(2)
FP8: tl.constexpr = tl.constexpr(3)
Q8: tl.constexpr = tl.constexpr(4)
Q4: tl.constexpr = tl.constexpr(5)
# Rows of a program; 32-column blocks that it takes at a time.
ROWS, BLOCKS = 8, 16


def _converts_e4m3() -> bool:
    """Whether the card has an instruction that widens e4m3 (sm_89 and newer)."""
    if os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability() >= (8, 9)


_INSTRUCTION: tl.constexpr = tl.constexpr(_converts_e4m3())


@triton.jit
def e4m3(bits):
    """float32 of e4m3 codes."""
    if _INSTRUCTION:
        return bits.to(tl.float8e4nv, bitcast=True).to(tl.float16).to(tl.float32)
    # The bits of a float16 with another bias of the exponent: 256 times too small.
    wide = bits.to(tl.uint16)
    half = (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True)
    return half.to(tl.float32) * 256.0


@triton.jit
def small_int(bits):
    """float32 of uint8: put into the fraction of 2^23, which is taken off. A conversion runs at a
    quarter of the rate of these two, and products of q4 and q8 would wait for it."""
    return (bits.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def inverse_rms(x, n, eps, WIDTH: tl.constexpr):
    """1 / sqrt(mean(x^2) + eps) of float32 x [n], n <= WIDTH."""
    i = tl.arange(0, WIDTH)
    values = tl.load(x + i, mask=i < n, other=0.0)
    return 1.0 / tl.sqrt(tl.sum(values * values, 0) / n + eps)


@triton.jit
def activations(x, norm, k, mask, NORM: tl.constexpr):
    """x at k, times norm at k where NORM."""
    values = tl.load(x + k, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        values = values * tl.load(norm + k, mask=mask, other=0.0)
    return values


@triton.jit
def row_products(
    codes,
    scales,
    x,
    norm,
    r,
    rows,
    cols,
    KIND: tl.constexpr,
    NORM: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
):
    """float32 [R]: rows r of a matrix times x [cols]; N blocks of 32 columns at a time."""
    total = tl.zeros([R], tl.float32)
    seen = r < rows
    if KIND == Q4:
        i = tl.arange(0, 16)
        for first in range(0, cols // 32, N):
            b = first + tl.arange(0, N)
            inside = b < cols // 32
            k = b[:, None] * 32 + i[None, :]
            low = activations(x, norm, k, inside[:, None], NORM)
            high = activations(x, norm, k + 16, inside[:, None], NORM)
            at = r[:, None, None] * (cols // 2) + b[None, :, None] * 16 + i[None, None, :]
            mask = seen[:, None, None] & inside[None, :, None]
            w = tl.load(codes + at, mask=mask, other=0)
            part = (small_int(w & 15) - 8.0) * low[None, :, :]
            part += (small_int(w >> 4) - 8.0) * high[None, :, :]
            at_scale = r[:, None] * (cols // 32) + b[None, :]
            scale = tl.load(
                scales.to(tl.pointer_type(tl.float16)) + at_scale,
                mask=seen[:, None] & inside[None, :],
                other=0.0,
            )
            total += tl.sum(tl.sum(part, 2) * scale.to(tl.float32), 1)
    else:
        # fp8 has scales of 128 columns, four blocks.
        WIDTH: tl.constexpr = 128 if KIND == FP8 else 32
        M: tl.constexpr = N // 4 if KIND == FP8 else N
        i = tl.arange(0, WIDTH)
        for first in range(0, (cols + WIDTH - 1) // WIDTH, M):
            b = first + tl.arange(0, M)
            k = b[:, None] * WIDTH + i[None, :]
            inside = k < cols
            values = activations(x, norm, k, inside, NORM)
            at = r[:, None, None] * cols + k[None, :, :]
            mask = seen[:, None, None] & inside[None, :, :]
            if KIND == FP8:
                w = e4m3(tl.load(codes + at, mask=mask, other=0))
                at_scale = r[:, None] // 128 * ((cols + 127) // 128) + b[None, :]
                scale = tl.load(
                    scales.to(tl.pointer_type(tl.float32)) + at_scale,
                    mask=seen[:, None] & (b * WIDTH < cols)[None, :],
                    other=0.0,
                )
                total += tl.sum(tl.sum(w * values[None, :, :], 2) * scale, 1)
            elif KIND == Q8:
                w = small_int(tl.load(codes + at, mask=mask, other=0) ^ 0x80) - 128.0
                at_scale = r[:, None] * (cols // 32) + b[None, :]
                scale = tl.load(
                    scales.to(tl.pointer_type(tl.float16)) + at_scale,
                    mask=seen[:, None] & (b * WIDTH < cols)[None, :],
                    other=0.0,
                )
                part = tl.sum(w * values[None, :, :], 2)
                total += tl.sum(part * scale.to(tl.float32), 1)
            else:
                if KIND == F32:
                    w = tl.load(codes.to(tl.pointer_type(tl.float32)) + at, mask=mask, other=0)
                elif KIND == F16:
                    w = tl.load(codes.to(tl.pointer_type(tl.float16)) + at, mask=mask, other=0)
                else:
                    w = tl.load(codes.to(tl.pointer_type(tl.bfloat16)) + at, mask=mask, other=0)
                total += tl.sum(tl.sum(w.to(tl.float32) * values[None, :, :], 2), 1)
    return total


@triton.jit
def _matvec(
    codes,
    scales,
    x,
    norm,
    bias,
    out,
    rows,
    cols,
    eps,
    KIND: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    WIDTH: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
):
    r = tl.program_id(0) * R + tl.arange(0, R)
    y = row_products(codes, scales, x, norm, r, rows, cols, KIND, NORM, R, N)
    if NORM:
        # Last, so that no weight waits for it.
        y *= inverse_rms(x, cols, eps, WIDTH)
    if BIAS:
        y += tl.load(bias + r, mask=r < rows, other=0.0)
    if ADD:
        y += tl.load(out + r, mask=r < rows, other=0.0)
    tl.store(out + r, y, mask=r < rows)


def matvec(
    m: Matrix,
    x: torch.Tensor,
    out: torch.Tensor,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    bias: torch.Tensor | None = None,
    add: bool = False,
) -> None:
    """out [rows] = m x, or out += m x; x, out: float32. With `norm` [cols] of the RMS norm of x,
    with `bias` [rows] added."""
    # Measured on an H100 with cold weights: tall matrices want rows, wide ones columns.
    rows, blocks = (ROWS, BLOCKS) if m.rows > m.cols else (4, 64)
    _matvec[(triton.cdiv(m.rows, rows),)](
        m.codes,
        m.scales,
        x,
        x if norm is None else norm,
        x if bias is None else bias,
        out,
        m.rows,
        m.cols,
        eps,
        KIND=m.kind,
        NORM=norm is not None,
        BIAS=bias is not None,
        ADD=add,
        WIDTH=triton.next_power_of_2(m.cols),
        R=rows,
        N=blocks,
    )


@triton.jit
def row_values(
    codes,
    scales,
    r,
    k,
    mask,
    cols,
    KIND: tl.constexpr,
):
    """float32 values at rows r [R, 1] and columns k [1, K] of a matrix of a KIND."""
    at = r * cols + k
    if KIND == Q4:
        w = tl.load(codes + r * (cols // 2) + k // 32 * 16 + k % 16, mask=mask, other=0)
        w = (w >> (k % 32 // 16 * 4).to(tl.uint8)) & 15
        scale = tl.load(
            scales.to(tl.pointer_type(tl.float16)) + r * (cols // 32) + k // 32,
            mask=mask,
            other=0.0,
        )
        return (w.to(tl.float32) - 8.0) * scale.to(tl.float32)
    elif KIND == Q8:
        w = tl.load(codes.to(tl.pointer_type(tl.int8)) + at, mask=mask, other=0)
        scale = tl.load(
            scales.to(tl.pointer_type(tl.float16)) + r * (cols // 32) + k // 32,
            mask=mask,
            other=0.0,
        )
        return w.to(tl.float32) * scale.to(tl.float32)
    elif KIND == FP8:
        w = e4m3(tl.load(codes + at, mask=mask, other=0))
        scale = tl.load(
            scales.to(tl.pointer_type(tl.float32)) + r // 128 * ((cols + 127) // 128) + k // 128,
            mask=mask,
            other=0.0,
        )
        return w * scale
    elif KIND == F32:
        return tl.load(codes.to(tl.pointer_type(tl.float32)) + at, mask=mask, other=0)
    elif KIND == F16:
        w = tl.load(codes.to(tl.pointer_type(tl.float16)) + at, mask=mask, other=0)
        return w.to(tl.float32)
    else:
        w = tl.load(codes.to(tl.pointer_type(tl.bfloat16)) + at, mask=mask, other=0)
        return w.to(tl.float32)


@triton.jit(do_not_specialize=["first", "end"])
def _widen(
    codes,
    scales,
    first,
    end,
    cols,
    out,
    KIND: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
):
    r = tl.program_id(0) * R + tl.arange(0, R)
    k = tl.program_id(1) * K + tl.arange(0, K)
    mask = (r[:, None] + first < end) & (k[None, :] < cols)
    values = row_values(codes, scales, r[:, None] + first, k[None, :], mask, cols, KIND)
    tl.store(out + r[:, None] * cols + k[None, :], values.to(out.dtype.element_ty), mask=mask)


def widen(m: Matrix, first: int, end: int, out: torch.Tensor) -> None:
    """out [end - first, cols] = rows first..end of a matrix, in out's type."""
    grid = (triton.cdiv(end - first, 16), triton.cdiv(m.cols, 128))
    _widen[grid](m.codes, m.scales, first, end, m.cols, out, KIND=m.kind, R=16, K=128)


def matmul(m: Matrix, x: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    """float32 [T, rows] = x m^T through cuBLAS; x [T, cols]; scratch: its type, for parts of m."""
    step = max(16, scratch.numel() // m.cols)
    out = torch.empty((len(x), m.rows), dtype=torch.float32, device=x.device)
    for first in range(0, m.rows, step):
        end = min(first + step, m.rows)
        part = scratch[: (end - first) * m.cols].view(end - first, m.cols)
        widen(m, first, end, part)
        out[:, first:end] = x @ part.T
    return out


@triton.jit
def _embed(
    codes,
    scales,
    tokens,
    factor,
    cols,
    out,
    KIND: tl.constexpr,
    K: tl.constexpr,
):
    t = tl.program_id(0)
    k = tl.program_id(1) * K + tl.arange(0, K)
    token = tl.load(tokens + t)
    mask = (k < cols)[None, :]
    row = token + tl.zeros([1, 1], tl.int32)
    values = row_values(codes, scales, row, k[None, :], mask, cols, KIND) * factor
    tl.store(out + t * cols + k[None, :], values, mask=mask)


def embed(m: Matrix, tokens: torch.Tensor, factor: float, out: torch.Tensor) -> None:
    """out [T, cols] float32 = factor times the rows of m that tokens, int32 [T], name."""
    grid = (out.numel() // m.cols, triton.cdiv(m.cols, 256))
    _embed[grid](m.codes, m.scales, tokens, factor, m.cols, out, KIND=m.kind, K=256)


@triton.jit
def _add_normed(x, norm, out, n, eps, WIDTH: tl.constexpr):
    i = tl.arange(0, WIDTH)
    mask = i < n
    y = tl.load(x + i, mask=mask, other=0.0) * inverse_rms(x, n, eps, WIDTH)
    y = y * tl.load(norm + i, mask=mask, other=0.0) + tl.load(out + i, mask=mask, other=0.0)
    tl.store(out + i, y, mask=mask)


def add_normed(x: torch.Tensor, norm: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    """out [n] += RMS norm of x [n], float32."""
    width = triton.next_power_of_2(x.numel())
    _add_normed[(1,)](x, norm, out, x.numel(), eps, WIDTH=width)
