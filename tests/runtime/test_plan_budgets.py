"""What the bill of a refusal says is enough is enough, and so is more."""

import pytest

from hga.runtime.budget import total
from hga.runtime.options import Options
from hga.runtime.planning import plan_memory
from hga.tools.pack import pack

CTX = 65536


@pytest.fixture(scope="module")
def experts(tiny, tmp_path_factory):
    """A packed model of which neither the experts nor the keys and values are the smaller part."""
    folder = tmp_path_factory.mktemp("experts")
    config = tiny.config(
        "qwen3_moe", num_experts=64, num_hidden_layers=4, hidden_size=256,
        moe_intermediate_size=256, num_attention_heads=8, num_key_value_heads=4, head_dim=64,
        max_position_embeddings=CTX,
    )  # fmt: skip
    return pack(tiny.write_hf(folder / "hf", config, "bf16"), folder / "experts.hga").path


@pytest.mark.parametrize("budget", ["512", "2%", "auto"])
def test_every_budget_from_the_stated_one_on_fits(experts, budget):
    def bill(mem):
        return total(plan_memory(experts, Options(ctx=CTX, budget=budget, mem=mem)).placement.bill)

    needed = bill(1 << 20)
    step = 1 << 20
    for mem in range(needed - 40 * step, needed, 4 * step):
        assert bill(mem) == needed, "another amount for every budget is none that helps"
    refused = [mem for mem in range(needed, needed + 120 * step, step) if bill(mem) > mem]
    assert refused == []
