"""docs/format.md and the registry of formats state the same numbers."""

import re
from pathlib import Path

import pytest

from hga.kernels.formats import BY_CODE
from hga.tools.gguf_blocks import GGUF_TYPES

ROW = re.compile(r"^\| (\d+) \| (\w+) \| (.+?) \| ([\d.]+) \| .* \| (.+?) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def rows(repo_root: Path) -> list[tuple[str, ...]]:
    return ROW.findall((repo_root / "docs" / "format.md").read_text(encoding="utf-8"))


def test_every_format_has_its_row(rows: list[tuple[str, ...]]) -> None:
    assert [(int(code), name) for code, name, *_ in rows] == [
        (code, fmt.name) for code, fmt in sorted(BY_CODE.items())
    ]


def test_sizes_and_costs(rows: list[tuple[str, ...]]) -> None:
    for code, name, tile, bits, _ in rows:
        fmt = BY_CODE[int(code)]
        assert float(bits) == pytest.approx(fmt.bits_per_weight, abs=0.005)
        if name == "vec":
            continue
        # "288 + 8": a tile, and its share of what ends the 256 columns.
        tile_bytes = sum(int(part) for part in tile.split("+"))
        tail = 64 if name == "fp8" else 0
        assert fmt.group_bytes(256) == 8 * tile_bytes + tail


def test_homes(rows: list[tuple[str, ...]]) -> None:
    homes = {name: home for _, name, _, _, home in rows}
    for kind in GGUF_TYPES.values():
        assert homes[kind.home] == kind.name
