"""A small SIMD vocabulary for Numba: typed vector values, so that kernels read as plain loops.

Types: `f32x16`, `i32x16` and `u8x64` (64 bytes: 16 lanes of 4). Addresses are int64. Every
operation is one or a few LLVM instructions on vectors of 512 bits; LLVM splits them where the
machine's registers are shorter. Loads and stores need no alignment. Bytes: simd_bytes.py.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

from . import target

ISA = target.detect()

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
_F16, _F32 = ir.HalfType(), ir.FloatType()
_F32X16 = ir.VectorType(_F32, 16)
_I32X16 = ir.VectorType(_I32, 16)
_U8X64 = ir.VectorType(_I8, 64)
_F16X16 = ir.VectorType(_F16, 16)


class VectorType(types.Type):  # type: ignore[misc]
    """Numba type of a vector held in registers."""

    def __init__(self, name: str, lowered: ir.Type) -> None:
        self.lowered = lowered
        super().__init__(name=name)


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: VectorType) -> None:
        super().__init__(dmm, fe_type, fe_type.lowered)


f32x16 = VectorType("f32x16", _F32X16)
i32x16 = VectorType("i32x16", _I32X16)
u8x64 = VectorType("u8x64", _U8X64)
_address = types.int64


def _typing_function(arity: int, signature: Any, generate: Any) -> Any:
    """Numba wants one named parameter per argument."""
    return {
        0: lambda typing: (signature, generate),
        1: lambda typing, a: (signature, generate),
        2: lambda typing, a, b: (signature, generate),
        3: lambda typing, a, b, c: (signature, generate),
        4: lambda typing, a, b, c, d: (signature, generate),
        5: lambda typing, a, b, c, d, e: (signature, generate),
        6: lambda typing, a, b, c, d, e, f: (signature, generate),
        7: lambda typing, a, b, c, d, e, f, g: (signature, generate),
    }[arity]


def _op(result: Any, *params: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make an intrinsic of `emit(builder, *llvm_values)` with a fixed signature."""

    def wrap(emit: Callable[..., Any]) -> Any:
        signature = result(*params)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            value = emit(builder, *args)
            return context.get_dummy_value() if sig.return_type == types.void else value

        typed = _typing_function(len(params), signature, generate)
        typed.__name__ = emit.__name__
        typed.__qualname__ = emit.__name__
        typed.__doc__ = emit.__doc__
        typed.__module__ = emit.__module__
        return intrinsic(typed)

    return wrap


def _load(b: Any, address: Any, kind: ir.Type) -> Any:
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def _splat(b: Any, x: Any, lanes: int = 16) -> Any:
    kind = ir.VectorType(x.type, lanes)
    first = b.insert_element(ir.Constant(kind, ir.Undefined), x, _I32(0))
    zeros = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
    return b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)


def _const(kind: ir.VectorType, value: float) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _call(b: Any, name: str, result: ir.Type, *args: Any) -> Any:
    kind = ir.FunctionType(result, [a.type for a in args])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), args)


# --- loads, stores, constants -------------------------------------------------------------------


@_op(f32x16, _address)
def load_f32(b: Any, p: Any) -> Any:
    """16 float32."""
    return _load(b, p, _F32X16)


@_op(types.void, _address, f32x16)
def store_f32(b: Any, p: Any, v: Any) -> Any:
    """Write 16 float32."""
    b.store(v, b.inttoptr(p, _F32X16.as_pointer())).align = 1


@_op(i32x16, _address)
def load_i32(b: Any, p: Any) -> Any:
    """16 int32."""
    return _load(b, p, _I32X16)


@_op(types.void, _address, i32x16)
def store_i32(b: Any, p: Any, v: Any) -> Any:
    """Write 16 int32."""
    b.store(v, b.inttoptr(p, _I32X16.as_pointer())).align = 1


@_op(i32x16, _address)
def load_u8_as_i32(b: Any, p: Any) -> Any:
    """16 unsigned bytes, widened."""
    return b.zext(_load(b, p, ir.VectorType(_I8, 16)), _I32X16)


@_op(i32x16, _address)
def load_i8_as_i32(b: Any, p: Any) -> Any:
    """16 signed bytes, widened."""
    return b.sext(_load(b, p, ir.VectorType(_I8, 16)), _I32X16)


@_op(u8x64, _address)
def load_u8(b: Any, p: Any) -> Any:
    """64 bytes."""
    return _load(b, p, _U8X64)


@_op(types.float32, _address)
def load_scalar_f32(b: Any, p: Any) -> Any:
    """One float32."""
    return _load(b, p, _F32)


@_op(types.int32, _address)
def load_scalar_i32(b: Any, p: Any) -> Any:
    """One int32."""
    return _load(b, p, _I32)


@_op(types.int64, _address)
def load_scalar_i64(b: Any, p: Any) -> Any:
    """One int64."""
    return _load(b, p, _I64)


@_op(types.void, _address, types.float32)
def store_scalar_f32(b: Any, p: Any, v: Any) -> Any:
    """Write one float32."""
    b.store(v, b.inttoptr(p, _F32.as_pointer())).align = 1


@_op(types.void, _address, types.int32)
def store_scalar_i32(b: Any, p: Any, v: Any) -> Any:
    """Write one int32."""
    b.store(v, b.inttoptr(p, _I32.as_pointer())).align = 1


@_op(types.void, _address, types.int64)
def store_scalar_i64(b: Any, p: Any, v: Any) -> Any:
    """Write one int64."""
    b.store(v, b.inttoptr(p, _I64.as_pointer())).align = 1


@_op(f32x16, types.float32)
def splat_f32(b: Any, x: Any) -> Any:
    """One float32 in every lane."""
    return _splat(b, x)


@_op(i32x16, types.int32)
def splat_i32(b: Any, x: Any) -> Any:
    """One int32 in every lane."""
    return _splat(b, x)


@_op(f32x16, _address)
def load_splat_f32(b: Any, p: Any) -> Any:
    """The float32 at p in every lane."""
    return _splat(b, _load(b, p, _F32))


@_op(i32x16, _address)
def load_splat_i32(b: Any, p: Any) -> Any:
    """The four bytes at p in every lane."""
    return _splat(b, _load(b, p, _I32))


@_op(types.void, _address)
def prefetch(b: Any, p: Any) -> Any:
    """Ask for the cache line at p, into the second-level cache; any address will do."""
    line = b.inttoptr(p, _I8.as_pointer())
    _call(b, "llvm.prefetch.p0", ir.VoidType(), line, _I32(0), _I32(2), _I32(1))


# --- float arithmetic ---------------------------------------------------------------------------


@_op(f32x16, f32x16, f32x16, f32x16)
def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once."""
    return _call(b, "llvm.fma.v16f32", _F32X16, x, y, z)


@_op(f32x16, f32x16, f32x16)
def add(b: Any, x: Any, y: Any) -> Any:
    """x + y."""
    return b.fadd(x, y)


@_op(f32x16, f32x16, f32x16)
def sub(b: Any, x: Any, y: Any) -> Any:
    """x - y."""
    return b.fsub(x, y)


@_op(f32x16, f32x16, f32x16)
def mul(b: Any, x: Any, y: Any) -> Any:
    """x * y."""
    return b.fmul(x, y)


@_op(f32x16, f32x16, f32x16)
def div(b: Any, x: Any, y: Any) -> Any:
    """x / y."""
    return b.fdiv(x, y)


@_op(f32x16, f32x16, f32x16)
def maximum(b: Any, x: Any, y: Any) -> Any:
    """The larger; y where either is NaN."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


@_op(f32x16, f32x16)
def absolute(b: Any, x: Any) -> Any:
    """|x|."""
    bits = b.and_(b.bitcast(x, _I32X16), _const(_I32X16, 0x7FFFFFFF))
    return b.bitcast(bits, _F32X16)


@_op(types.float32, f32x16)
def reduce_add(b: Any, v: Any) -> Any:
    """Sum of the lanes, by halves (the same order on every machine)."""
    lanes = 16
    while lanes > 1:
        lanes //= 2
        kind = ir.VectorType(_I32, lanes)
        undefined = ir.Constant(v.type, ir.Undefined)
        low = b.shuffle_vector(v, undefined, ir.Constant(kind, list(range(lanes))))
        high = b.shuffle_vector(v, undefined, ir.Constant(kind, list(range(lanes, 2 * lanes))))
        v = b.fadd(low, high)
    return b.extract_element(v, _I32(0))


@_op(types.float32, f32x16)
def reduce_max(b: Any, v: Any) -> Any:
    """The largest lane."""
    lanes = 16
    while lanes > 1:
        lanes //= 2
        kind = ir.VectorType(_I32, lanes)
        undefined = ir.Constant(v.type, ir.Undefined)
        low = b.shuffle_vector(v, undefined, ir.Constant(kind, list(range(lanes))))
        high = b.shuffle_vector(v, undefined, ir.Constant(kind, list(range(lanes, 2 * lanes))))
        v = b.select(b.fcmp_ordered(">", low, high), low, high)
    return b.extract_element(v, _I32(0))


@_op(f32x16, f32x16)
def exp(b: Any, x: Any) -> Any:
    """e^x to about 2e-7 relative; x is held to -87..88 (so that exp never is 0 or infinite)."""
    low, high = _const(_F32X16, -87.0), _const(_F32X16, 88.0)
    x = b.select(b.fcmp_ordered(">", x, low), x, low)
    x = b.select(b.fcmp_ordered("<", x, high), x, high)

    def fma(x: Any, y: Any, z: Any) -> Any:
        y, z = (_const(_F32X16, c) if isinstance(c, float) else c for c in (y, z))
        return _call(b, "llvm.fma.v16f32", _F32X16, x, y, z)

    # Adding 1.5 * 2^23 rounds to an integer n and leaves it in the low bits.
    shifted = fma(x, 1.4426950408889634, 12582912.0)
    n = b.fsub(shifted, _const(_F32X16, 12582912.0))
    r = fma(n, -1.4286068202862268e-06, fma(n, -0.693145751953125, x))
    # The series to the sixth power, in pairs: a chain of dependent steps is what costs.
    square = b.fmul(r, r)
    high = fma(square, 1.0 / 720, fma(r, 1.0 / 120, 1.0 / 24))
    high = fma(high, square, fma(r, 1.0 / 6, 0.5))
    # The one is added last: the rest is small beside it, and its rounding too.
    series = b.fadd(fma(high, square, r), _const(_F32X16, 1.0))
    power = b.shl(b.bitcast(shifted, _I32X16), _const(_I32X16, 23))
    return b.bitcast(b.add(b.bitcast(series, _I32X16), power), _F32X16)


@_op(f32x16, f32x16)
def log(b: Any, x: Any) -> Any:
    """Natural logarithm to about 1e-7, for normal x >= 1."""
    bits = b.bitcast(x, _I32X16)
    fraction = b.and_(bits, _const(_I32X16, 0x7FFFFF))
    # The mantissa is brought to 0.71..1.41: above the square root of two it is halved.
    high = b.icmp_unsigned(">", fraction, _const(_I32X16, 0x3504F3))
    base = b.select(high, _const(_I32X16, 0x3F000000), _const(_I32X16, 0x3F800000))
    m = b.bitcast(b.or_(fraction, base), _F32X16)
    e = b.sub(b.lshr(bits, _const(_I32X16, 23)), b.lshr(base, _const(_I32X16, 23)))
    one = _const(_F32X16, 1.0)
    t = b.fdiv(b.fsub(m, one), b.fadd(m, one))
    square = b.fmul(t, t)
    poly = _const(_F32X16, 2.0 / 9)
    for c in (2.0 / 7, 2.0 / 5, 2.0 / 3, 2.0):
        poly = _call(b, "llvm.fma.v16f32", _F32X16, poly, square, _const(_F32X16, c))
    whole = b.fmul(b.sitofp(e, _F32X16), _const(_F32X16, 0.6931471805599453))
    return _call(b, "llvm.fma.v16f32", _F32X16, poly, t, whole)


@_op(f32x16, f32x16, types.float32, types.int32, types.int32)
def mask_lanes(b: Any, x: Any, other: Any, low: Any, high: Any) -> Any:
    """x in the lanes low <= i < high, `other` elsewhere."""
    lane = ir.Constant(_I32X16, list(range(16)))
    inside = b.and_(
        b.icmp_signed(">=", lane, _splat(b, low)), b.icmp_signed("<", lane, _splat(b, high))
    )
    return b.select(inside, x, _splat(b, other))


# --- integers and conversions -------------------------------------------------------------------


@_op(i32x16, i32x16, i32x16)
def add_i32(b: Any, x: Any, y: Any) -> Any:
    """x + y."""
    return b.add(x, y)


@_op(f32x16, i32x16)
def to_f32(b: Any, x: Any) -> Any:
    """int32 to float32."""
    return b.sitofp(x, _F32X16)


@_op(i32x16, f32x16)
def round_to_i32(b: Any, x: Any) -> Any:
    """Nearest integer, ties to even."""
    return b.fptosi(_call(b, "llvm.rint.v16f32", _F32X16, x), _I32X16)


@_op(types.void, _address, i32x16)
def store_as_i8(b: Any, p: Any, v: Any) -> Any:
    """Write the low byte of each lane."""
    kind = ir.VectorType(_I8, 16)
    b.store(b.trunc(v, kind), b.inttoptr(p, kind.as_pointer())).align = 1


@_op(types.int32, i32x16)
def reduce_add_i32(b: Any, v: Any) -> Any:
    """Sum of the lanes."""
    return _call(b, "llvm.vector.reduce.add.v16i32", _I32, v)


@_op(types.void, _address, types.int64)
def store_scalar_u8(b: Any, p: Any, v: Any) -> Any:
    """Write the low byte."""
    b.store(b.trunc(v, _I8), b.inttoptr(p, _I8.as_pointer()))


@_op(types.int64, _address)
def load_scalar_u8(b: Any, p: Any) -> Any:
    """One unsigned byte."""
    return b.zext(_load(b, p, _I8), _I64)
