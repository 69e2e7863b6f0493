"""The packed file: what is written comes back, nothing else is read, and interruptions are safe."""

import errno
import json
import mmap
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hga.kernels.formats import FORMATS
from hga.models.plan import (
    AttentionPlan,
    LayerPlan,
    MlpPlan,
    ModelPlan,
    MoePlan,
    RopePlan,
    tensor_roles,
)
from hga.runtime.container import ContainerError, ModelFile, is_packed
from hga.runtime.container_index import PAGE_BYTES
from hga.runtime.container_layout import plan_layout
from hga.runtime.container_plan import decode_plan, encode_plan
from hga.runtime.container_writer import ContainerWriter

TEXTS = {"tokenizer.json": "{" + " " * 5000 + "}", "short": "é"}


def attention(**changes) -> AttentionPlan:
    fields = {"n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "scale": 0.25, "window": 0}
    return AttentionPlan(**{**fields, "rope": RopePlan(10000.0), **changes})


def model_plan(tied: bool = True, **changes) -> ModelPlan:
    """One dense layer with everything optional in it, one mixture layer."""
    dense = LayerPlan(
        attention(qk_norm=True, qkv_bias=True, o_bias=True),
        MlpPlan(64, "silu"),
        post_norms=True,
    )
    moe = LayerPlan(attention(window=8), MoePlan(3, 2, 32, "gelu_tanh", True))
    fields = {
        "architecture": "test",
        "vocab_size": 40,
        "hidden": 32,
        "ctx_train": 128,
        "norm_eps": 1e-5,
        "embed_scale": 1.0,
        "tied_head": tied,
        "layers": (dense, moe),
    }
    return ModelPlan(**{**fields, **changes})


def random_weights(plan: ModelPlan, fmt: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Packed bytes by role; every byte random, which no exact copy depends on."""
    rng = np.random.default_rng(seed)
    out = {}
    for role, shape in tensor_roles(plan):
        kind = FORMATS["vec" if len(shape) == 1 else fmt]
        nbytes = kind.nbytes(shape[0], shape[1] if len(shape) == 2 else 1)
        out[role] = rng.integers(0, 256, nbytes, dtype=np.uint8)
    return out


def matrix_formats(plan: ModelPlan, fmt: str) -> dict[str, str]:
    return {role: fmt for role, shape in tensor_roles(plan) if len(shape) == 2}


def write(path: Path, plan: ModelPlan, fmt: str = "q8", seed: int = 0, stop: int = -1) -> dict:
    """Write a file of random weights, or stop after `stop` segments; returns the weights."""
    weights = random_weights(plan, fmt, seed)
    layout = plan_layout(plan, matrix_formats(plan, fmt), TEXTS)
    with ContainerWriter(path, layout, {"seed": seed}) as writer:
        writer.write_text_segments()
        for segment in layout.segments:
            if segment.name in writer.done:
                continue
            if len(writer.done) == stop:
                return weights
            parts = [(t.role, weights[t.role]) for t in segment.tensors]
            writer.write_segment(segment.name, parts, lambda: {"n": 1})
        writer.finish({}, {"top_k": 40}, {"name": "test"}, [])
    return weights


@settings(max_examples=25, deadline=None)
@given(
    tied=st.booleans(),
    fmt=st.sampled_from(["f32", "bf16", "fp8", "q8", "q4", "q5m"]),
    vocab=st.integers(1, 70),
    seed=st.integers(0, 99),
    load=st.sampled_from(["mmap", "ram"]),
)
def test_round_trip(tmp_path_factory, tied, fmt, vocab, seed, load) -> None:
    path = tmp_path_factory.mktemp("pack") / "m.hga"
    plan = model_plan(tied, vocab_size=vocab)
    weights = write(path, plan, fmt, seed)
    with ModelFile.open(path, verify=True, load=load) as model:
        assert model.plan == plan
        assert model.generation == {"top_k": 40}
        assert model.source == {"name": "test"}
        assert {name: model.text(name) for name in TEXTS} == TEXTS
        assert set(model.roles) == set(weights)
        assert model.has("head") is not tied
        for role, shape in tensor_roles(plan):
            view = model.tensor(role)
            assert view.role == role and view.shape == shape
            assert view.format.name == ("vec" if len(shape) == 1 else fmt)
            assert not view.data.flags.writeable
            np.testing.assert_array_equal(view.data.reshape(-1), weights[role])
            assert path.read_bytes()[view.offset : view.offset + 8] == bytes(weights[role][:8])


def test_views_come_in_groups_and_vectors(tmp_path: Path) -> None:
    write(tmp_path / "m.hga", model_plan())
    with ModelFile.open(tmp_path / "m.hga") as model:
        embed = model.tensor("embed")
        assert embed.data.shape == (3, FORMATS["q8"].group_bytes(32))
        norm = model.tensor("final_norm")
        assert norm.vector().shape == (32,)
        with pytest.raises(TypeError, match="not a vector"):
            embed.vector()
        with pytest.raises(KeyError):
            model.tensor("head")


def test_segments_are_page_aligned_and_experts_are_one_blob(tmp_path: Path) -> None:
    write(tmp_path / "m.hga", model_plan())
    with ModelFile.open(tmp_path / "m.hga") as model:
        assert all(segment.offset % PAGE_BYTES == 0 for segment in model.segments)
        blob = model.segment("layers.1.experts.2")
        parts = [model.tensor(f"layers.1.experts.2.{part}") for part in ("gate", "up", "down")]
        assert parts[0].offset == blob.offset
        assert parts[1].offset == parts[0].offset + parts[0].data.size
        assert parts[2].offset + parts[2].data.size == blob.offset + blob.nbytes
        vectors = {model.record(r).segment for r in model.roles if r.endswith("norm")}
        assert vectors == {"final_norm", "layers.0.vectors", "layers.1.vectors"}


def test_the_digest_is_of_weights_and_plan(tmp_path: Path) -> None:
    def digest(name: str, plan: ModelPlan, seed: int) -> str:
        write(tmp_path / name, plan, seed=seed)
        with ModelFile.open(tmp_path / name) as model:
            return model.digest

    first = digest("a", model_plan(), 0)
    assert first == digest("b", model_plan(), 0)
    assert (
        len({first, digest("c", model_plan(), 1), digest("d", model_plan(norm_eps=1e-6), 0)}) == 3
    )


def test_every_plan_survives_the_file() -> None:
    plan = model_plan(embed_scale=45.25, norm_eps=1e-6)
    assert decode_plan(json.loads(json.dumps(encode_plan(plan)))) == plan


def test_views_outlive_close(tmp_path: Path) -> None:
    weights = write(tmp_path / "m.hga", model_plan())
    model = ModelFile.open(tmp_path / "m.hga")
    view = model.tensor("embed").data
    model.close()
    model.close()
    np.testing.assert_array_equal(view.reshape(-1), weights["embed"])
    with pytest.raises(ValueError, match="closed"):
        model.tensor("embed")


def test_verify_finds_one_flipped_bit(tmp_path: Path) -> None:
    path = tmp_path / "m.hga"
    write(path, model_plan())
    with ModelFile.open(path) as model:
        segment = model.segment("layers.1.experts.1")
        model.verify()
    raw = bytearray(path.read_bytes())
    raw[segment.offset + 5] ^= 4
    path.write_bytes(raw)
    with pytest.raises(ContainerError, match=r"layers\.1\.experts\.1.*checksum"):
        ModelFile.open(path, verify=True)
    ModelFile.open(path).close()


def test_verify_reports_progress(tmp_path: Path) -> None:
    write(tmp_path / "m.hga", model_plan())
    seen = []
    with ModelFile.open(tmp_path / "m.hga") as model:
        model.verify(lambda done, total: seen.append((done, total)))
        assert seen[-1] == (sum(s.nbytes for s in model.segments),) * 2
    assert seen == sorted(seen)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_size_change_after_open_is_noticed(tmp_path: Path, change: int) -> None:
    path = tmp_path / "m.hga"
    write(path, model_plan())
    with ModelFile.open(path) as model:
        model.check_size()
        os.truncate(path, path.stat().st_size + change)
        with pytest.raises(ContainerError, match="when it was opened"):
            model.check_size()
        with pytest.raises(ContainerError, match="when it was opened"):
            model.verify()


def test_opening_needs_no_huge_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    weights = write(tmp_path / "m.hga", model_plan())
    with ModelFile.open(tmp_path / "m.hga", load="ram") as model:
        data = model.tensor("layers.0.q").data
        np.testing.assert_array_equal(data.reshape(-1), weights["layers.0.q"])
        expert = model.tensor("layers.1.experts.0.up").data
        np.testing.assert_array_equal(expert.reshape(-1), weights["layers.1.experts.0.up"])


def test_is_packed(tmp_path: Path) -> None:
    write(tmp_path / "m.hga", model_plan())
    (tmp_path / "other").write_bytes(b"GGUF")
    assert is_packed(tmp_path / "m.hga")
    assert not is_packed(tmp_path / "other")


# Writing


def partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def journal(path: Path) -> Path:
    return path.with_name(path.name + ".partial.journal")


@pytest.mark.parametrize("stop", [2, 3, 9, 20])
def test_a_stopped_writer_goes_on(tmp_path: Path, stop: int) -> None:
    whole, path = tmp_path / "whole", tmp_path / "m.hga"
    write(whole, model_plan())
    write(path, model_plan(), stop=stop)
    assert not path.exists()
    assert len(journal(path).read_bytes().splitlines()) == stop + 1
    with pytest.raises(ContainerError):
        ModelFile.open(partial(path))
    write(path, model_plan())
    assert path.read_bytes() == whole.read_bytes()
    assert not partial(path).exists() and not journal(path).exists()


def resumed(path: Path, source: dict, **changes) -> int:
    layout = plan_layout(model_plan(), matrix_formats(model_plan(), "q8"), TEXTS)
    with ContainerWriter(path, layout, source, **changes) as writer:
        return len(writer.done)


def test_what_a_resume_believes(tmp_path: Path) -> None:
    path = tmp_path / "m.hga"
    write(path, model_plan(), stop=9)
    assert resumed(path, {"seed": 0}) == 9
    # A line cut by a crash, and one that is not ours, end the journal.
    text = journal(path).read_bytes()
    journal(path).write_bytes(text[:-20])
    assert resumed(path, {"seed": 0}) == 8
    journal(path).write_bytes(text.replace(b'"segment"', b'"other"', 1))
    assert resumed(path, {"seed": 0}) == 0


def test_a_resume_rereads_what_the_journal_claims(tmp_path: Path) -> None:
    path = tmp_path / "m.hga"
    write(path, model_plan(), stop=9)
    raw = bytearray(partial(path).read_bytes())
    offset = plan_layout(model_plan(), matrix_formats(model_plan(), "q8"), TEXTS).segments[4].offset
    raw[offset] ^= 1
    partial(path).write_bytes(raw)
    assert resumed(path, {"seed": 0}) == 8
    partial(path).unlink()
    assert resumed(path, {"seed": 0}) == 0


@pytest.mark.parametrize("changes", [{"resume": False}, {"source": {"seed": 1}}])
def test_another_source_or_no_resume_starts_over(tmp_path: Path, changes: dict) -> None:
    path = tmp_path / "m.hga"
    write(path, model_plan(), stop=9)
    assert resumed(path, **{"source": {"seed": 0}, **changes}) == 0


def test_another_layout_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "m.hga"
    write(path, model_plan(), fmt="q4", stop=9)
    assert resumed(path, {"seed": 0}) == 0


def test_two_writers_of_one_file_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="no file locks on this system")
    layout = plan_layout(model_plan(), matrix_formats(model_plan(), "q8"), TEXTS)
    with (
        ContainerWriter(tmp_path / "m.hga", layout, {}),
        pytest.raises(BlockingIOError, match="another process"),
    ):
        ContainerWriter(tmp_path / "m.hga", layout, {})


def test_a_small_disk_is_refused_before_writing(tmp_path: Path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(OSError, match=r"\d+ bytes needed.*1 free") as caught:
        write(tmp_path / "m.hga", model_plan())
    assert caught.value.errno == errno.ENOSPC


def test_a_disk_that_fills_up_leaves_a_resumable_state(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "m.hga"

    class Full:
        """The partial file on a disk with room for `left` more bytes."""

        def __init__(self, file, left: int) -> None:
            self.file, self.left = file, left

        def write(self, view) -> int:
            if self.left <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            n = self.file.write(view[: self.left])
            self.left -= n
            return n

        def __getattr__(self, name: str):
            return getattr(self.file, name)

    layout = plan_layout(model_plan(), matrix_formats(model_plan(), "q8"), TEXTS)
    weights = random_weights(model_plan(), "q8")
    with ContainerWriter(path, layout, {"seed": 0}) as writer:
        writer.write_text_segments()
        writer._file = Full(writer._file, 5000)
        with pytest.raises(OSError, match="the disk is full at byte") as caught:
            for segment in layout.segments[2:]:
                parts = [(t.role, weights[t.role]) for t in segment.tensors]
                writer.write_segment(segment.name, parts)
    assert caught.value.errno == errno.ENOSPC
    assert 2 < resumed(path, {"seed": 0}) < len(layout.segments)
    write(path, model_plan())
    ModelFile.open(path, verify=True).close()


@pytest.mark.parametrize("fault", ["short", "long", "order", "unknown"])
def test_a_segment_of_the_wrong_bytes_is_refused(tmp_path: Path, fault: str) -> None:
    layout = plan_layout(model_plan(), matrix_formats(model_plan(), "q8"), TEXTS)
    weights = random_weights(model_plan(), "q8")
    blob = next(s for s in layout.segments if ".experts." in s.name)
    parts = [(t.role, weights[t.role]) for t in blob.tensors]
    if fault == "short":
        parts[-1] = (parts[-1][0], parts[-1][1][:-1])
    elif fault == "long":
        parts[0] = (parts[0][0], np.append(parts[0][1], np.uint8(0)))
    elif fault == "order":
        parts.reverse()
    else:
        parts[1] = ("layers.9.q", parts[1][1])
    with ContainerWriter(tmp_path / "m.hga", layout, {}) as writer:
        with pytest.raises(ContainerError):
            writer.write_segment(blob.name, parts)
        assert blob.name not in writer.done


def test_an_unfinished_file_gets_no_name(tmp_path: Path) -> None:
    layout = plan_layout(model_plan(), matrix_formats(model_plan(), "q8"), TEXTS)
    with ContainerWriter(tmp_path / "m.hga", layout, {}) as writer:
        writer.write_text_segments()
        with pytest.raises(ContainerError, match="never written"):
            writer.finish({}, {}, {}, [])
    assert not (tmp_path / "m.hga").exists()


def test_a_finished_file_replaces_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "m.hga"
    write(path, model_plan(), seed=1)
    with ModelFile.open(path) as old:
        write(path, model_plan(), seed=2)
        # The old file lives on for whoever has it open.
        old.verify()
    assert sorted(p.name for p in path.parent.iterdir()) == ["m.hga"]
