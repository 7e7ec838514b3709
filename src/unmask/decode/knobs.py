"""Settings that may differ from row to row of one batch: numbers, or one value per canvas row.

Where a setting may be None ("as the rest says"), a row's value for that is 0.
"""

import torch
from torch import Tensor

Knob = float | Tensor
"""A number for all rows, or (B,) one per row of the canvas."""


def column(knob: Knob, rows: Tensor) -> Tensor:
    """A knob as a float64 column (N, 1) for canvas rows (N,)."""
    return numbers(knob, rows)[:, None]


def numbers(knob: Knob, rows: Tensor) -> Tensor:
    """A knob as float64 (N,) for canvas rows (N,)."""
    if torch.is_tensor(knob):
        return knob.to(rows.device, torch.float64).index_select(0, rows)
    return torch.full((len(rows),), float(knob), dtype=torch.float64, device=rows.device)


def count(knob: int | Tensor | None, rows: Tensor) -> Tensor:
    """A whole number as int64 (N,) for canvas rows (N,); 0 for None."""
    if torch.is_tensor(knob):
        return knob.to(rows.device, torch.int64).index_select(0, rows)
    return torch.full_like(rows, knob or 0)
