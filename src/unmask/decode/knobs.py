"""Settings that may differ from row to row of one batch: numbers, or one value per canvas row."""

import torch
from torch import Tensor

Knob = float | Tensor
"""A number for all rows, or (B,) one per row of the canvas."""


def column(knob: Knob, rows: Tensor) -> Tensor:
    """A knob as a float64 column (N, 1) for canvas rows (N,)."""
    if torch.is_tensor(knob):
        return knob.to(rows.device, torch.float64)[rows, None]
    return torch.full((len(rows), 1), float(knob), dtype=torch.float64, device=rows.device)
