"""Weights in 8 bits: a matrix as whole numbers and one scale for each of its outputs.

Only weights are rounded, never what flows through them, so no row of a batch depends on its neighbours: a row has the
numbers that a plain linear map with the rounded weights gives it, up to the order in which floats are summed. That
order is the matrix library's; as with plain maps, the last bits may change with the number of rows.

A matrix becomes floats again at each use, on a CPU a few outputs at a time, so that they stay in the processor's cache.
torch's own product of packed weights is faster for one row in bfloat16, but rounds differently and is far slower for
many rows, and rows must not change with their company. It knows neither families nor files.

Source: absmax rounding of each output's weights: Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339, sec. 2.1 (there of
inputs too, which are left alone here).
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CACHE_BYTES = 1 << 20
"""Weights that become floats at a time on a CPU."""


def int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round to 255 levels, symmetric about zero.

    Args:
        weight: (..., outputs, inputs).
    Returns:
        int8 of the same shape, and float32 scales (..., outputs); weight is about the one times the other.
    """
    weight = weight.float()
    scale = weight.abs().amax(-1) / 127
    return (weight / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).round().to(torch.int8), scale


FORMATS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {"int8": int8}
"""How weights can be rounded, by name."""


class RoundedLinear(nn.Module):
    """A linear map with rounded weights; its bias is not rounded."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: nn.Parameter | None) -> None:
        """From (outputs, inputs) int8 and scales (outputs,)."""
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        rows = len(self.weight)
        if x.device.type == "cpu":
            rows = max(1, CACHE_BYTES // (x.dtype.itemsize * self.weight.shape[1]))
        early = x.dtype == torch.float16  # there sums of whole numbers could overflow; elsewhere scaling last is faster
        parts = []
        for weight, scale in zip(self.weight.split(rows), self.scale.split(rows), strict=True):
            parts.append(F.linear(x, (weight * scale[:, None] if early else weight).to(x.dtype)))
        out = torch.cat(parts, -1)
        out = out if early else (out * self.scale).to(x.dtype)
        return out if self.bias is None else out + self.bias


class RoundedStack(nn.Module):
    """Matrices (n, outputs, inputs) with rounded weights; each is floats again when it is asked for."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        """From int8 and scales (n, outputs); `dtype` is that of the matrices given out."""
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.dtype = dtype

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, index: int) -> Tensor:
        return (self.weight[index] * self.scale[index][:, None]).to(self.dtype)


def rounds(model: nn.Module, name: str) -> bool:
    """Whether a parameter is rounded: the linear maps and the stacked ones of layers.

    Not the maps that choose experts, nor those that say how much of a layer counts (adaLN). Embeddings and the output
    map stay as they are too: there errors are heard directly, and most of them are tied.
    """
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if not name.startswith("layers.") or ".router." in name:
        return False
    return (type(module) is nn.Linear and leaf == "weight") or getattr(module, leaf).dim() == 3


def place(model: nn.Module, name: str, parts: Iterable[Tensor], format: str, dtype: torch.dtype) -> None:
    """Put a module with rounded weights where a parameter was.

    Args:
        model: has the parameter, whose numbers are not looked at.
        name: of the parameter.
        parts: its numbers; the matrices of a stack may come in any number of parts, so that one at a time is in memory.
        format: a key of `FORMATS`.
        dtype: in which a stack gives its matrices out.
    """
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    *_, outputs, inputs = shape = getattr(module, leaf).shape
    done = [FORMATS[format](matrix) for part in parts for matrix in part.reshape(-1, outputs, inputs)]
    weight = torch.stack([weight for weight, _ in done]).view(shape)
    scale = torch.stack([scale for _, scale in done]).view(shape[:-1])
    if isinstance(module, nn.Linear):
        above, _, last = owner.rpartition(".")
        setattr(model.get_submodule(above), last, RoundedLinear(weight, scale, module.bias))
    else:
        delattr(module, leaf)
        setattr(module, leaf, RoundedStack(weight, scale, dtype))
