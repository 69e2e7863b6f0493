"""The card: whether there is one, what it is, and a model and forward pass on it."""

import importlib.util

from hga.kvstore.geometry import Geometry

from .budget import BudgetError, total
from .container import ModelFile
from .cuda_plan import CudaPlan, require_known
from .options import OptionError, Options


def require_cuda(options: Options) -> None:
    """OptionError, in one line, where `--device cuda` cannot be had or cannot do what is asked."""
    for name in ("torch", "triton"):
        if importlib.util.find_spec(name) is None:
            raise OptionError(
                f"device 'cuda' needs {name}, which is not installed: pip install 'hga[gpu]'"
            )
    require_known(options)
    import torch

    if torch.version.cuda is None:
        raise OptionError(f"device 'cuda' needs a CUDA build of torch, found {torch.__version__}")
    if not torch.cuda.is_available():
        raise OptionError("device 'cuda': torch finds no usable NVIDIA GPU (see `hga doctor`)")
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        name = torch.cuda.get_device_name()
        raise OptionError(
            f"device 'cuda': {name} is sm_{major}{minor}, kernels need sm_80 or newer"
        )


class CudaBackend:
    """A card that an engine uses; `close` frees the weights. `device` "cpu" is for Triton's
    interpreter, in tests."""

    def __init__(
        self,
        model: ModelFile,
        plan: CudaPlan,
        geometry: Geometry,
        ctx: int,
        options: Options,
        device: str = "cuda",
    ) -> None:
        import torch

        from .cuda_forward import CudaForward
        from .cuda_weights import CudaWeights

        self.plan = plan
        self.notices: list[str] = []
        self.description = "cuda: Triton's interpreter"
        if device != "cpu":
            self._check_room(plan, options)
        self.weights = CudaWeights(model, device, plan.n_resident)
        if self.weights.widened:
            self.notices.append("some formats of this file have no GPU kernels: held as float16")
        self.forward_pass = CudaForward(
            self.weights, geometry, ctx, device, plan.kv_on_host, plan.part_tokens
        )
        if device != "cpu":
            used = torch.cuda.memory_allocated() / 2**30
            where = "in host memory" if plan.kv_on_host else "in GPU memory"
            if plan.host.on_disk:
                where = "on disk"
            self.description = (
                f"cuda: {torch.cuda.get_device_name()}, {used:.1f} GiB of weights and buffers,"
                f" keys and values {where}"
            )

    def _check_room(self, plan: CudaPlan, options: Options) -> None:
        import torch

        from .cuda_plan import CONTEXT_BYTES

        free, whole = torch.cuda.mem_get_info()
        # The context exists by now: what it takes is not free any more.
        needed = total(plan.card) - CONTEXT_BYTES
        if needed > free:
            raise BudgetError(
                f"{needed >> 20} MiB of GPU memory are needed, {free >> 20} MiB are free of"
                f" {whole >> 20} (--gpu-mem, such as --gpu-mem {max(1, free >> 30)}g, puts keys,"
                " values and experts into host memory; a smaller --ctx needs less)"
            )
        if options.gpu_mem is not None:
            # Allocations beyond the cap fail instead of passing it.
            cap = max(0, options.gpu_mem - CONTEXT_BYTES)
            torch.cuda.set_per_process_memory_fraction(min(1.0, cap / whole))

    def close(self) -> None:
        """Free what lies on the card and unpin host memory."""
        self.weights.close()
