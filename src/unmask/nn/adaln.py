"""Adaptive layer norm: one number per row shifts, scales and gates what every layer does to that row.

It knows neither what the number means nor the layers.

Source: Peebles, Xie 2022, DiT, arXiv:2212.09748, sec. 3.2 (adaLN-Zero); the waves are those of Vaswani et al. 2017,
arXiv:1706.03762, sec. 3.5, with the cosines first.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WAVES, LONGEST = 256, 10000.0
"""Waves that a number is told in, and how much slower than the fastest the slowest is (it is not quite reached)."""


class Condition(nn.Module):
    """What layers are told of a number: its cosines and sines at falling frequencies, through a small MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(WAVES, width)
        self.outer = nn.Linear(width, width)

    def forward(self, numbers: Tensor) -> Tensor:
        """(R,) to (R, width)."""
        half = WAVES // 2
        powers = torch.arange(half, dtype=torch.float32, device=numbers.device) / half
        angles = numbers.float()[:, None] * torch.exp(-math.log(LONGEST) * powers)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.inner.weight.dtype)
        return F.silu(self.outer(F.silu(self.inner(waves))))


class Modulation(nn.Linear):
    """A condition as `num` vectors for the positions of its row: shifts, scales and gates."""

    def __init__(self, condition: int, width: int, num: int) -> None:
        super().__init__(condition, num * width)
        self.num = num

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]  # stored as one map
        """(..., condition) to `num` tensors (..., width)."""
        return super().forward(condition).chunk(self.num, dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normed x (R, W, D) scaled by 1 + scale and shifted."""
    return x * (1 + scale) + shift
