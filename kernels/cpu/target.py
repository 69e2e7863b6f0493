"""Which instruction set the CPU kernels are compiled for, and where the compiled code is kept.

`select` runs once, before any kernel module is imported. Compiled code goes to a folder whose name
is a digest of the kernel sources, the library versions and the processor, so that a cached kernel
is never a stale one; two processes may fill it at the same time.
"""

import hashlib
import mmap
import os
import sys
import tempfile
from pathlib import Path

from hga.kernels.system import MACHINE, arm_products

ISAS = ("avx512", "avx2", "neon", "generic")

# What Numba's name for a processor, where one is forced, means for the kernels.
_CPU_NAMES = {"avx2": "x86-64-v3", "generic": "generic"}
_MACHINES = {"avx512": ("x86_64",), "avx2": ("x86_64",), "neon": ("aarch64",)}
_NAMED_ISAS = {"x86-64-v3": "avx2", "x86-64-v4": "avx2"}


def select(cache_root: Path, isa: str | None = None) -> tuple[Path, str | None]:
    """Choose the instruction set (None: the best of the host) and the folder of compiled kernels.

    Returns the folder and, where `cache_root` cannot be written and a temporary folder is used
    instead, why. RuntimeError if kernels were imported before; ValueError on an unknown isa.
    """
    from llvmlite import binding
    from numba import config

    if isa is not None and isa not in ISAS:
        raise ValueError(f"unknown instruction set {isa!r}: expected one of {', '.join(ISAS)}")
    if isa is not None and MACHINE not in _MACHINES.get(isa, (MACHINE,)):
        raise ValueError(f"instruction set {isa!r} is not that of {MACHINE}")
    if __package__ + ".simd" in sys.modules:
        raise RuntimeError("the kernel target must be selected before kernels are imported")
    if isa in _CPU_NAMES:
        config.CPU_NAME, config.CPU_FEATURES = _CPU_NAMES[isa], ""
    elif dot_products() and not config.CPU_FEATURES:
        # LLVM must be told of them where it does not know the processor by name.
        known = binding.get_host_cpu_features().flatten()
        config.CPU_FEATURES = ",".join(filter(None, (known, f"+{dot_products()}")))
    folder, problem = cache_root / cache_key(), None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} is not writable")
    except OSError as error:
        folder = Path(tempfile.mkdtemp(prefix="hga-kernels-"))
        problem = f"compiled kernels cannot be kept ({error}): they are compiled at every start"
    config.CACHE_DIR = str(folder)
    return folder, problem


def cache_key() -> str:
    """Name of the kernel cache folder: kernel sources, where they lie, library versions and
    processor."""
    from importlib.metadata import version

    from numba import config

    # Numba keeps the code of every copy of a source apart: so does the folder, so that an empty one
    # tells that a compilation is ahead.
    digest = hashlib.blake2b(str(Path(__file__).parent).encode(), digest_size=8)
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    cpu = config.CPU_NAME or ""
    # The version names the compiler, and so the system.
    system = (sys.version, MACHINE, str(mmap.PAGESIZE))
    for part in (version("numba"), version("llvmlite"), *system, cpu):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def detect() -> str:
    """The instruction set in force: "avx512" (VNNI), "avx2", "neon" or "generic"."""
    from llvmlite import binding
    from numba import config

    named = config.CPU_NAME
    if named:
        return _NAMED_ISAS.get(named, "generic")
    if MACHINE == "aarch64":
        # Every processor of this architecture has it.
        return "neon"
    if MACHINE != "x86_64":
        return "generic"
    features = binding.get_host_cpu_features()
    if all(features.get(f) for f in ("avx512f", "avx512bw", "avx512vl", "avx512vnni")):
        return "avx512"
    if all(features.get(f) for f in ("avx2", "fma", "f16c")):
        return "avx2"
    return "generic"


def dot_products() -> str:
    """The extension that multiplies bytes four at a time on NEON: "i8mm" (unsigned by signed),
    "dotprod" (signed by signed), or "" (neither, or another instruction set)."""
    if detect() != "neon":
        return ""
    return next((name for name in ("i8mm", "dotprod") if name in arm_products()), "")


def has_byte_tables() -> bool:
    """Whether 64 bytes can be looked up at once (AVX-512 VBMI)."""
    from llvmlite import binding

    return detect() == "avx512" and bool(binding.get_host_cpu_features().get("avx512vbmi"))


def shortfall() -> str | None:
    """Why the best instruction set is not in force, or None if it is."""
    from numba import config

    isa = detect()
    if isa == "avx512":
        return None
    if config.CPU_NAME:
        return f"{isa} kernels, as asked for"
    if isa == "neon":
        if dot_products():
            return None
        return "this processor has no dot products of bytes: plain neon kernels are used"
    if MACHINE != "x86_64":
        return f"{isa} kernels: there are none for {MACHINE}"
    return f"this processor has no AVX-512 VNNI: {isa} kernels are used"
