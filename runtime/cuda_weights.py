"""The packed file's tensors as a model on the card (kernels/triton/model.py).

Tensors are uploaded one by one and repacked there; experts that the plan leaves to the host are
copied back into pinned memory in the same layout, so that one table of addresses serves both.
"""

import warnings

import torch

from hga.kernels.triton import layouts
from hga.kernels.triton.bank import pinned, unpin
from hga.kernels.triton.experts import Blob, Mlp
from hga.kernels.triton.layouts import Matrix
from hga.kernels.triton.model import Layer, Model
from hga.kvstore.geometry import padded_head_dim
from hga.models.plan import LayerPlan, MlpPlan, MoePlan

from .container import ModelFile


class CudaWeights:
    """Owner of a model's tensors on a device; `close` unpins what lies in host memory."""

    def __init__(self, file: ModelFile, device: str, n_resident: int) -> None:
        self._file, self._device, self._n_resident = file, device, n_resident
        self._pinned: list[torch.Tensor] = []
        self.widened = False
        plan = file.plan
        ropes = [(x.attention.rope, x.attention.head_dim) for x in plan.layers]
        self.ropes = tuple(dict.fromkeys(ropes))
        embed = self._matrix("embed")
        self.model = Model(
            tuple(self._layer(i, layer) for i, layer in enumerate(plan.layers)),
            embed,
            embed if plan.tied_head else self._matrix("head"),
            self._vector("final_norm"),
            plan.norm_eps,
            plan.embed_scale,
            len(self.ropes),
        )

    def _upload(self, role: str) -> torch.Tensor:
        with warnings.catch_warnings():
            # The file is mapped read-only, and nothing writes to it through the tensor.
            warnings.filterwarnings("ignore", message=".*not writable.*")
            return torch.from_numpy(self._file.tensor(role).data).to(self._device)

    def _matrix(self, role: str) -> Matrix:
        view = self._file.tensor(role)
        rows, cols = view.shape
        self.widened |= layouts.kind_of(view.format) == layouts.F16 and view.format.name != "f16"
        return layouts.repack(view.format, self._upload(role), rows, cols)

    def _vector(self, role: str) -> torch.Tensor:
        return self._upload(role).view(torch.float32)

    def _optional(self, role: str) -> torch.Tensor | None:
        return self._vector(role) if self._file.has(role) else None

    def _layer(self, i: int, layer: LayerPlan) -> Layer:
        at, a = f"layers.{i}.", layer.attention
        qkv = [self._matrix(at + name) for name in ("q", "k", "v")]
        biases = [self._vector(f"{at}{name}_bias") for name in ("q", "k", "v") if a.qkv_bias]
        return Layer(
            qkv=(layouts.stack(qkv),) if layouts.can_stack(qkv) else tuple(qkv),
            o=self._matrix(at + "o"),
            attn_norm=self._vector(at + "attn_norm"),
            mlp_norm=self._vector(at + "mlp_norm"),
            post_attn_norm=self._optional(at + "post_attn_norm"),
            post_mlp_norm=self._optional(at + "post_mlp_norm"),
            qk_norms=(self._vector(at + "q_norm"), self._vector(at + "k_norm"))
            if a.qk_norm
            else None,
            qkv_bias=torch.cat(biases) if biases else None,
            o_bias=self._optional(at + "o_bias"),
            router=self._matrix(at + "router") if isinstance(layer.mlp, MoePlan) else None,
            mlp=self._mlp(at, layer.mlp),
            n_heads=a.n_heads,
            n_kv_heads=a.n_kv_heads,
            true_dim=a.head_dim,
            head_dim=padded_head_dim(a.head_dim),
            window=a.window,
            scale=a.scale,
            rope_index=self.ropes.index((a.rope, a.head_dim)),
        )

    def _blob(self, prefix: str) -> Blob:
        """The layout that all experts of a layer share."""
        offsets, kinds, at = [], [], 0
        for name in ("gate", "up", "down"):
            view = self._file.tensor(prefix + name)
            kind = layouts.kind_of(view.format)
            offsets.append(at)
            at += layouts.code_bytes(kind, *view.shape)
            offsets.append(at)
            at += layouts.scale_bytes(kind, *view.shape)
            kinds.append(kind)
        o, k = offsets, kinds
        return Blob((o[0], o[1], o[2], o[3], o[4], o[5]), (k[0], k[1], k[2]), at)

    def _mlp(self, prefix: str, mlp: MlpPlan | MoePlan) -> Mlp:
        n, used, norm = 1, 1, False
        names = [prefix]
        if isinstance(mlp, MoePlan):
            n, used, norm = mlp.n_experts, mlp.n_experts_used, mlp.norm_topk
            names = [f"{prefix}experts.{e}." for e in range(n)]
        blob = self._blob(names[0])
        resident = min(n, self._n_resident) if isinstance(mlp, MoePlan) else n
        here = torch.empty((resident, blob.nbytes), dtype=torch.uint8, device=self._device)
        there = torch.empty((0, blob.nbytes), dtype=torch.uint8)
        if resident < n:
            there = pinned((n - resident, blob.nbytes), torch.uint8)
            self._pinned.append(there)
        for e, name in enumerate(names):
            target = here[e] if e < resident else there[e - resident]
            self._fill(target, blob, name)
        starts = [here[e].data_ptr() for e in range(resident)]
        starts += [there[e].data_ptr() for e in range(n - resident)]
        return Mlp(
            torch.tensor(starts, dtype=torch.int64, device=self._device),
            blob,
            n,
            used,
            self._file.plan.hidden,
            mlp.width,
            mlp.activation == "gelu_tanh",
            norm,
            (here, there),
        )

    def _fill(self, target: torch.Tensor, blob: Blob, prefix: str) -> None:
        for i, name in enumerate(("gate", "up", "down")):
            m = self._matrix(prefix + name)
            if m.kind != blob.kinds[i]:
                raise NotImplementedError(f"{prefix}{name} has another format than expert 0's")
            for at, part in zip(blob.offsets[2 * i : 2 * i + 2], (m.codes, m.scales)):
                target[at : at + part.numel()].copy_(part)

    @property
    def host_bytes(self) -> int:
        """Bytes of experts in pinned host memory."""
        return sum(t.numel() for t in self._pinned)

    def close(self) -> None:
        """Unpin host memory; the tensors go with this object."""
        for tensor in self._pinned:
            unpin(tensor)
        self._pinned.clear()
