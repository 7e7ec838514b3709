"""One transformer over several processes: each has some of the heads and a part of every MLP (tensor parallelism).

Maps into heads and into an MLP are split by outputs, maps out of them by inputs, so a layer needs two sums over all
processes. The residual stream and the logits are whole everywhere: each process runs the same program on the same
requests in the same order, and decides the same. Embeddings stay whole; an output map of its own is split by tokens.

It does not know launchers, devices or decoding.

Source: Shoeybi et al. 2019, Megatron-LM, arXiv:1909.08053, sec. 3.
"""

from dataclasses import replace

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from unmask.base.errors import Unsupported
from unmask.models.backbone import Transformer

BY_OUTPUTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
BY_INPUTS = ("self_attn.o_proj", "mlp.down_proj")


def plan(model: Transformer, count: int) -> dict[str, ParallelStyle]:
    """How each map of a model is split over `count` processes, by name.

    Raises:
        Unsupported: a network that can't be split like that.
    """
    if type(model) is not Transformer:
        raise Unsupported(f"only plain transformers can be split over processes, not {type(model).__name__}")
    shape, done = model.shape, model.kv_heads != model.shape.kv_heads
    if done or shape.experts is not None:
        what = "is split already" if done else "has a mixture of experts"
        raise Unsupported(f"a model that {what} can't be split over processes; run it in one")
    for name in ("heads", "kv_heads", "hidden"):
        if getattr(shape, name) % count:
            raise Unsupported(f"{count} processes can't share {name}={getattr(shape, name)} equally; use a divisor")
    styles: dict[str, ParallelStyle] = {}
    for name, module in model.named_modules():
        for ends, style in ((BY_OUTPUTS, ColwiseParallel), (BY_INPUTS, RowwiseParallel)):
            if name.startswith("layers.") and name.endswith(ends):
                if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter:
                    raise Unsupported("rounded weights can't be split over processes; load the model without quantize")
                styles[name] = style()
    if not shape.tied and not shape.head_bias:
        styles["lm_head"] = ColwiseParallel(output_layouts=Replicate())
    return styles


def parallelize(model: Transformer, mesh: DeviceMesh) -> Transformer:
    """Split a model, in place, over the processes of a mesh of one dimension; all of them have to call it.

    Each process brings the whole model and keeps its part, on the mesh's kind of device. A model that is loaded onto
    the CPU first is split tensor by tensor, so no device ever holds it whole.

    Returns:
        The model; its caches hold the keys and values of this process's heads.
    Raises:
        Unsupported: see `plan`.
    """
    if mesh.ndim != 1:
        raise Unsupported(f"a model is split over a mesh of 1 dimension, not {mesh.ndim}; give one of its submeshes")
    styles = plan(model, mesh.size())
    parallelize_module(model, mesh, styles)
    model.kv_heads //= mesh.size()
    if model.origin is not None:
        model.origin = replace(model.origin, lossy="it is split over processes; load it again, and save that")
    return model.to(mesh.device_type)
