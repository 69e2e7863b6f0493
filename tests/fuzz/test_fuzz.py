"""Seeded mutations of the seed corpus through every parser; `make fuzz` goes on by coverage.

HGA_TEST_FUZZ_S is how long each parser is tried (default: 1.5 s), HGA_TEST_FUZZ_SEED where the
random numbers begin.
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

_HERE = Path(__file__).parent
_NAMES = (
    "gguf", "safetensors", "config", "tokenizer", "index", "container", "head", "state", "template",
)  # fmt: skip
SECONDS = float(os.environ.get("HGA_TEST_FUZZ_S", "1.5"))
SEED = int(os.environ.get("HGA_TEST_FUZZ_SEED", "0"))
# One input: the templates' own cap and a slow machine.
MOST_SECONDS = 10.0


@pytest.fixture(scope="module")
def targets(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    return load_module(_HERE / "targets.py")


@pytest.fixture(scope="module")
def built(targets, load_module, tiny, tmp_path_factory) -> dict[str, Callable[[bytes], None]]:
    forge = load_module(_HERE.parent / "hostile" / "forge.py")
    found = targets.build(tiny, forge, tmp_path_factory.mktemp("fuzz"))
    assert tuple(found) == _NAMES
    return found


def seeds(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((_HERE / "corpus" / name).iterdir())]


@pytest.mark.parametrize("name", _NAMES)
def test_the_seeds_are_taken_or_refused(targets, built, name) -> None:
    taken = [targets.run(built[name], seed) for seed in seeds(name)]
    # A header without its file is refused; of every other kind something must get through, or the
    # mutations would never leave the first check.
    assert any(taken) or name == "container"


@pytest.mark.parametrize("name", _NAMES)
def test_mutations_are_taken_or_refused(targets, built, load_module, name) -> None:
    mutate = load_module(_HERE / "mutate.py")
    own = seeds(name)
    deadline, n = time.monotonic() + SECONDS, 0
    while time.monotonic() < deadline or n < 50:
        draw = random.Random(f"{SEED} {name} {n}")
        data = mutate.mutated(draw.choice(own), draw, own)
        begin = time.monotonic()
        try:
            targets.run(built[name], data)
        except BaseException as error:
            path = Path(os.environ.get("TMPDIR", "/tmp")) / f"crash-{name}-{SEED}-{n}"
            path.write_bytes(data)
            pytest.fail(f"mutation {n} of seed {SEED} ({path}): {type(error).__name__}: {error}")
        assert time.monotonic() - begin < MOST_SECONDS, (name, n)
        n += 1
