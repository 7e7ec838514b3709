"""Rotary position embedding, in the half-split layout of Llama and its descendants.

It takes positions as they come: packed rows restart them, rows with a cache continue them.

Source: Su et al. 2021, RoFormer, arXiv:2104.09864, eq. 34; the half-split order of pairs is that of GPT-NeoX.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How the wavelengths of a short training are stretched for longer rows.

    Args:
        kind: "linear" divides all frequencies; "llama3" divides the slow ones, with a ramp between; "yarn" the same,
            with its ramp over dimensions, and warmer attention; "proportional" divides all and stops the slowest.
        factor: by how much.
        original: positions of the first training ("llama3", "yarn").
        low, high: full turns over `original` below which a frequency is divided, and above which it is left alone.
        warmth: what cosines and sines are multiplied by ("yarn"); None is 0.1 ln(factor) + 1.
        whole: whether the ramp begins and ends at whole dimensions ("yarn").
        share: which share of the pairs, the fastest, turns at all ("proportional").

    Source: linear: Chen et al. 2023, arXiv:2306.15595. llama3: Llama 3.1, Grattafiori et al. 2024, arXiv:2407.21783.
    yarn: Peng et al. 2023, arXiv:2309.00071, sec. 3.2 to 3.4. proportional: Gemma 4, transformers 5.24.
    """

    kind: Literal["linear", "llama3", "yarn", "proportional"]
    factor: float
    original: int = 0
    low: float = 1.0
    high: float = 4.0
    warmth: float | None = None
    whole: bool = True
    share: float = 1.0

    @property
    def temperature(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.kind != "yarn":
            return 1.0
        return self.warmth if self.warmth is not None else 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


def _linear(scaling: Scaling, powers: Tensor, theta: float) -> Tensor:
    return theta**-powers / scaling.factor


def _llama3(scaling: Scaling, powers: Tensor, theta: float) -> Tensor:
    frequencies = theta**-powers
    turns = scaling.original * frequencies / (2 * math.pi)
    kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def _yarn(scaling: Scaling, powers: Tensor, theta: float) -> Tensor:
    size, frequencies = 2 * len(powers), theta**-powers

    def dimension(turns: float) -> float:
        """The pair that turns this often over the original length."""
        return size * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = dimension(scaling.high), dimension(scaling.low)
    if scaling.whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    pairs = torch.arange(len(powers), dtype=torch.float32, device=powers.device)
    divided = ((pairs - first) / (last - first or 0.001)).clamp(0, 1)
    return divided * frequencies / scaling.factor + (1 - divided) * frequencies


def _proportional(scaling: Scaling, powers: Tensor, theta: float) -> Tensor:
    turning = torch.arange(len(powers), device=powers.device) < int(scaling.share * len(powers))
    return torch.where(turning, theta**-powers / scaling.factor, 0.0)


SCALINGS: dict[str, Callable[[Scaling, Tensor, float], Tensor]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "proportional": _proportional,
}
"""(scaling, exponents of theta (size / 2,), theta) to radians a position (size / 2,)."""


def turns(positions: Tensor, size: int, theta: float, scaling: Scaling | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation at each position.

    Args:
        positions: (R, W) int64; negative ones (fillers) are turned like position 0.
        size: how many numbers of a head are rotated; even.
        theta: the base of the wavelengths.
        scaling: for rows longer than those of the first training.
    Returns:
        Two float32 tensors (R, W, 1, size), with room for the heads: the cosines twice, and the sines once with their
        sign turned and once as they are, so that `rotate` is two products and a sum.
    """
    powers = torch.arange(0, size, 2, dtype=torch.float32, device=positions.device) / size
    places = positions.clamp(min=0)[..., None, None].float()
    if scaling is None:
        angles = places * (1.0 / theta**powers)  # in this order as published: rounding grows with the position
        cos, sin = angles.cos(), angles.sin()
    else:
        angles = places * SCALINGS[scaling.kind](scaling, powers, theta)
        cos, sin = angles.cos() * scaling.temperature, angles.sin() * scaling.temperature
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, whole: bool = True) -> Tensor:
    """Rotate the numbers of each head, or, if not the whole of it, the leading ones; the rest passes as it is.

    Args:
        x: (R, W, H, head_dim).
        cos, sin: from `turns`.
    Returns:
        The same shape and dtype; computed in float32 at least.
    """
    if not whole:
        size = cos.shape[-1]
        return torch.cat([rotate(x[..., :size], cos, sin), x[..., size:]], dim=-1)
    first, second = x.chunk(2, dim=-1)
    turned = x * cos + torch.cat([second, first], dim=-1) * sin
    return turned if turned.dtype == x.dtype else turned.to(x.dtype)
