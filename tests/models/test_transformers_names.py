"""Tensor names and configuration keys against transformers: what it writes, we read, and back."""

import numpy as np
import pytest

from hga.tools.sources import open_source

pytestmark = pytest.mark.oracle
ARCHS = ["llama", "qwen2", "qwen3", "qwen3_moe", "gemma3"]


@pytest.mark.parametrize("arch", ARCHS)
def test_transformers_round_trip(tiny_hf, tmp_path, arch):
    pytest.importorskip("torch", reason="see make setup-oracle")
    transformers = pytest.importorskip("transformers", reason="see make setup-oracle")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_hf(arch), output_loading_info=True
    )
    assert not any(info.values()), info
    model.save_pretrained(tmp_path)
    with open_source(tiny_hf(arch)) as ours, open_source(tmp_path) as theirs:
        assert theirs.plan == ours.plan
        assert theirs.specs == ours.specs
        assert theirs.notices == ()
        for spec in ours.specs:
            a, b = ours.spec_tensor(spec), theirs.spec_tensor(spec)
            if len(spec.shape) == 1:
                assert np.array_equal(a.vector(), b.vector())
            else:
                assert np.array_equal(a.read(0, spec.shape[0]), b.read(0, spec.shape[0]))
