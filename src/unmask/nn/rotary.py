"""Rotary position embedding, in the half-split layout of Llama and its descendants.

It takes positions as they come: packed rows restart them, rows with a cache continue them.

Source: Su et al. 2021, RoFormer, arXiv:2104.09864, eq. 34; the half-split order of pairs is that of GPT-NeoX.
"""

import torch
from torch import Tensor


def turns(positions: Tensor, size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation at each position.

    Args:
        positions: (R, W) int64; negative ones (fillers) are turned like position 0.
        size: how many numbers of a head are rotated; even.
        theta: the base of the wavelengths.
    Returns:
        Two float32 tensors (R, W, 1, size / 2), with room for the heads.
    """
    powers = torch.arange(0, size, 2, dtype=torch.float32, device=positions.device) / size
    angles = positions.clamp(min=0)[..., None, None].float() / theta**powers
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading numbers of each head; the rest, if any, passes as it is.

    Args:
        x: (R, W, H, head_dim).
        cos, sin: from `turns`.
    Returns:
        The same shape and dtype; computed in float32 at least.
    """
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat([*(part.to(x.dtype) for part in turned), rest], dim=-1)
