"""Kernels compiled for a card, without one: the compiler refuses what the interpreter lets pass,
and its code tells whether loads are wide. Run as a program it prints the kinds of loads of every
kernel."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (make setup-oracle)")
pytest.importorskip("triton", reason="triton is not installed (Linux alone has it)")

HEAD: dict[str, Any] = {"D": 128, "W": 128}
ATTEND = {
    **{name: "*fp16" for name in ("q", "keys", "values")},
    **{name: "*i32" for name in ("groups", "counts", "state")},
    **{name: "*fp32" for name in ("partial", "tops", "sums")},
    **{name: "i32" for name in ("capacity", "row")},
}
PREPARE = {
    **{n: "*fp32" for n in ("qkv", "q_norm", "k_norm", "cos", "sin", "turn")},
    **{n: "*fp16" for n in ("q_out", "turned_out", "keys", "values", "scales")},
    "state": "*i32",
    "codes": "*u8",
    "capacity": "i32",
    "cells": "i32",
    "scale": "fp32",
    "eps": "fp32",
}
FIND = {
    **{name: "*i32" for name in ("groups", "counts", "state", "used", "found")},
    "cells": "*i64",
    "row": "i32",
    "n_cells": "i32",
    "found_row": "i32",
}


def attend(paged: bool, listed: bool) -> tuple[dict[str, str], dict[str, Any]]:
    constants = {**HEAD, "R": 8, "RP": 16, "PAGED": paged, "LISTED": listed, "WINDOW": 0}
    signature = {**ATTEND, "keys": "*i64"} if paged else ATTEND
    return signature, {**constants, "S": 64, "T": 64}


def prepare(paged: bool) -> tuple[dict[str, str], dict[str, Any]]:
    constants = {**HEAD, "H": 32, "G": 4, "TRUE": 128, "HALF_ROW": 64, "NORMED": True}
    switches = {"PAGED": paged, "SKETCHED": True, "ROUTED": True, "STEP": 1.25}
    signature = {**PREPARE, "keys": "*i64"} if paged else PREPARE
    return signature, {**constants, **switches}


KERNELS = {
    "attention._attend, rows": attend(False, False),
    "attention._attend, cells": attend(True, False),
    "attention._attend, cells of groups": attend(True, True),
    "heads._prepare, rows": prepare(False),
    "heads._prepare, cells": prepare(True),
    "places._find": (FIND, {"N": 1024}),
}


def test_kernels_compile_for_a_card(tmp_path: Path) -> None:
    changes = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    # A module's folder may hold names that others import.
    words = [sys.executable, "-P", __file__]
    done = subprocess.run(words, env={**os.environ, **changes}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert set(found) == set(KERNELS)
    for name, loads in found.items():
        if name.startswith("attention._attend, cells"):
            # Keys and values by 16 bytes, never by two.
            assert loads.get("v4.b32", 0) >= 32, name
            assert not any(kind.endswith("b16") for kind in loads), name


def compiled(name: str) -> dict[str, int]:
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, function = name.partition(",")[0].split(".")
    kernel = getattr(importlib.import_module(f"hga.kernels.triton.{module}"), function)
    signature, constants = KERNELS[name]
    names = kernel.arg_names
    whole = {n: signature.get(n, "constexpr") for n in names}
    # As they are where they matter: tensors and sizes of whole lines.
    aligned = [n for n, kind in signature.items() if kind[0] == "*" or kind == "i32"]
    source = ASTSource(
        fn=kernel,
        signature=whole,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    kinds = re.findall(r"ld\.global\.(\S+)", ptx)
    return {kind: kinds.count(kind) for kind in set(kinds)}


if __name__ == "__main__":
    print(json.dumps({name: compiled(name) for name in KERNELS}))
