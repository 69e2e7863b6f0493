"""Where keys and values go between a card, the host's memory and the disk, and what is billed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hga.runtime.budget import total
from hga.runtime.options import OptionError, Options
from hga.runtime.planning import MemoryPlan, plan_memory

CTX = 1 << 20


@pytest.fixture
def plan(packed_tiny: Callable[..., Path]) -> Callable[..., MemoryPlan]:
    path = packed_tiny("qwen3", num_hidden_layers=12)

    def planned(**options: Any) -> MemoryPlan:
        return plan_memory(path, Options(**{"device": "cuda", "ctx": CTX, **options}))

    return planned


def lines(bill: Any) -> dict[str, int]:
    return {line.name: line.n_bytes for line in bill}


def test_keys_and_values_go_to_disk_where_neither_card_nor_host_holds_them(
    plan: Callable[..., MemoryPlan],
) -> None:
    cap = 2 << 30
    ram = plan(kv="ram", gpu_mem=cap)
    size = lines(ram.placement.bill)["keys and values"]
    assert not ram.placement.on_disk and ram.disk_bytes == 0
    mem = total(ram.placement.bill) - 1
    auto, asked = (plan(kv=kv, gpu_mem=cap, mem=mem) for kv in ("auto", "disk"))
    assert auto == asked and auto.placement.on_disk and auto.disk_bytes > size
    assert auto.card is not None and total(auto.card.card) <= cap
    assert total(auto.placement.bill) <= mem
    # All that is left of the budget is for frames, up to half of all cells.
    frames = lines(auto.placement.bill)["frames for keys and values"]
    assert frames == min(mem - total(auto.placement.bill) + frames, size // 2)
    assert not plan(gpu_mem=cap, mem=mem + 1).placement.on_disk
    assert plan(gpu_mem=16 << 30, mem=mem).card.kv_on_host is False


def test_what_lies_on_the_card_is_not_billed_to_the_host(plan: Callable[..., MemoryPlan]) -> None:
    disk = plan(kv="disk", gpu_mem=4 << 30)
    assert disk.card is not None
    card, host = lines(disk.card.card), lines(disk.placement.bill)
    for name in ("key sketches", "a part of a prompt", "keys and values of a layer"):
        assert card[name] > 0 and name not in host
    assert host["a layer of a prompt, twice"] == 2 * card["keys and values of a layer"]


def test_a_large_card_takes_more_of_a_prompt_at_a_time(plan: Callable[..., MemoryPlan]) -> None:
    parts = []
    for cap in (3 << 30, 8 << 30, 80 << 30):
        card = plan(kv="disk", gpu_mem=cap).card
        assert card is not None and card.part_tokens % 2048 == 0
        parts.append(card.part_tokens)
        assert lines(card.card)["a part of a prompt"] <= max(cap // 50, 100 * 8192 * 8)
    assert 8192 <= parts[0] < parts[1] < parts[2]
    short = plan(kv="disk", ctx=5000).card
    assert short is not None and 5000 + 63 <= short.part_tokens < 8192


def test_what_reads_every_key_is_refused() -> None:
    with pytest.raises(OptionError, match="hga-paper"):
        Options(device="cuda", kv="disk", attention="hga-paper")
