"""The position-wise half of a layer: gated (SwiGLU and relatives) or plain.

It knows nothing of attention or of the layer that it stands in.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)).

    Source: Shazeer 2020, "GLU variants improve transformer", arXiv:2002.05202, eq. 6.
    """

    def __init__(self, width: int, hidden: int, activation: str, *, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=bias)
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, width, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class PlainMLP(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, width: int, hidden: int, activation: str, *, bias: bool) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, width, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        return self.down_proj(self.activation(self.up_proj(x)))


MLPS: dict[str, type[nn.Module]] = {"gated": GatedMLP, "plain": PlainMLP}
