"""The kernels' vocabulary on aarch64, by the assembly that LLVM makes of it on any machine: one or
a few instructions for every operation, no call of a library. What the instructions compute is tried
on such a processor, or in emulation (bench/aarch64.py).
"""

import importlib
import re
from collections import Counter
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from llvmlite import binding, ir

TRIPLE = "aarch64-unknown-linux-gnu"
MODULES = ("simd", "simd_bits", "simd_bytes", "simd_half", "simd_lanes", "sync", "system_calls")
# Made for the processor at hand: dot products have three forms for NEON, tried below.
OF_THE_HOST = {"dot_u8i8", "dot_u7i8", "pause"}
# Calls are what they are there for.
CALLS = {"yield_thread", "sleep", "call_kernel", "call_preadv", "call_errno", "call_clock",
         "call_futex"}  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary(cpu: ModuleType) -> dict[str, Any]:
    """All operations by name."""
    from numba.extending import _Intrinsic

    found = {}
    for name in MODULES:
        module = importlib.import_module(f"hga.kernels.cpu.{name}")
        found |= {k: v for k, v in vars(module).items() if isinstance(v, _Intrinsic)}
    return found


def assembly(emit: Callable[..., Any], kinds: list[ir.Type], features: str) -> Counter[str]:
    """Instructions of a function of such parameters, counted; one that takes the address of what
    it loads and stores."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        target = binding.Target.from_triple(TRIPLE)
    except RuntimeError as error:
        pytest.skip(f"this LLVM makes no code for aarch64: {error}")
    module = ir.Module()
    module.triple = TRIPLE
    types = [kind.as_pointer() if isinstance(kind, ir.VectorType) else kind for kind in kinds]
    pointer = ir.IntType(8).as_pointer()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [*types, pointer]), "f")
    b = ir.IRBuilder(function.append_basic_block())
    *given, out = function.args
    values = [
        b.load(value) if isinstance(kind, ir.VectorType) else value
        for kind, value in zip(kinds, given, strict=True)
    ]
    result = emit(b, *values)
    if result is not None and not isinstance(result.type, ir.VoidType):
        b.store(result, b.bitcast(out, result.type.as_pointer()))
    b.ret_void()
    machine = target.create_target_machine(features=features, opt=3)
    text = machine.emit_assembly(binding.parse_assembly(str(module)))
    return Counter(re.findall(r"^\t([a-z][\w.]*)", text, re.MULTILINE))


def lowered(numba_type: Any) -> ir.Type:
    from numba.core import types

    known = {
        types.int64: ir.IntType(64),
        types.int32: ir.IntType(32),
        types.float32: ir.FloatType(),
    }
    if numba_type in known:
        return known[numba_type]
    found: ir.Type = numba_type.lowered
    return found


def test_every_operation_is_instructions_alone(vocabulary: dict[str, Any]) -> None:
    context = SimpleNamespace(get_dummy_value=lambda: None)
    calling, tried = {}, 0
    for name, operation in vocabulary.items():
        if name in OF_THE_HOST or name == "reserve":
            continue
        code = operation._defn.__code__
        signature, generate = operation._defn(None, *[None] * (code.co_argcount - 1))
        kinds = [lowered(kind) for kind in signature.args]
        count = assembly(lambda b, *v, g=generate, s=signature: g(context, b, s, v), kinds, "")
        tried += 1
        if (count["bl"] or count["blr"] or count["b"] or count["br"]) and name not in CALLS:
            calling[name] = dict(count)
    assert tried > 80
    assert not calling


@pytest.mark.parametrize(
    ("extension", "expected"),
    [
        ("i8mm", {"usdot": 4}),
        ("dotprod", {"sdot": 12, "eor": 4}),
        ("", {"smull": 4, "smull2": 4, "smlal": 4, "smlal2": 4, "addp": 4}),
    ],
)
def test_bytes_are_multiplied_by_the_instructions_there_are(
    cpu: ModuleType, extension: str, expected: dict[str, int]
) -> None:
    from hga.kernels.cpu import simd, simd_bytes

    def emit(b: Any, acc: Any, u: Any, s: Any) -> Any:
        return simd_bytes._by_quarters(b, simd_bytes._QUARTERS[extension], acc, u, s)

    kinds = [simd._I32X16, simd._U8X64, simd._I32X16]
    count = assembly(emit, kinds, f"+{extension}" if extension else "")
    assert {name: count[name] for name in expected} == expected
    assert not count["bl"] and not count["mul"]


def test_a_load_may_not_pass_an_earlier_atomic_write(vocabulary: dict[str, Any]) -> None:
    """With the extension rcpc an "acquire" load is `ldapr`, which may pass an earlier `stlr`: a
    sleeper and the one who wakes it would each miss the other."""
    signature, generate = vocabulary["atomic_load"]._defn(None, None)
    count = assembly(
        lambda b, address: generate(None, b, signature, [address]), [ir.IntType(64)], "+rcpc,+lse"
    )
    assert count["ldar"] == 1 and not count["ldapr"] and not count["ldapur"]
