"""Normalisation over the last axis: root mean square, or mean and variance.

It knows nothing of the layer that it stands in.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last `size` numbers, at least in float32 whatever the dtype of x.

    Source: Zhang, Sennrich 2019, "Root mean square layer normalization", arXiv:1910.07467, eq. 4.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) to (..., size)."""
        weight = self.weight
        return torch.rms_norm(x, weight.shape, weight if weight.dtype == x.dtype else weight.to(x.dtype), self.eps)


NORMS: dict[str, Callable[[int, float], nn.Module]] = {
    "rms": RMSNorm,
    "layer": nn.LayerNorm,
    "layer_no_bias": partial(nn.LayerNorm, bias=False),
}
