"""Which numbers matrix products are computed in. Weights, averages and optimiser state are float32 whatever it says."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.base.denoiser import Denoiser

_UNITS = ("avx512_bf16", "amx_bf16", "bf16")


def of(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype that a recipe's `train.precision` means on a device.

    Without units of its own a processor computes bfloat16 a hundred times slower than float32, so "auto" takes it only
    where they are.
    """
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    has: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if any(has.get(unit) for unit in _UNITS) else torch.float32


def products(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Within it, matrix products are computed in `dtype`."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


class EvenRows:
    """A `Denoiser` whose output map only ever sees multiples of so many rows; the rest is zeros, and cut off again.

    A masked objective asks for another number of rows each step. On a CPU, bfloat16 products keep a kernel and its
    buffers for every shape they meet: without this, memory grows by gigabytes over a few thousand steps.
    """

    def __init__(self, model: Denoiser, rows: int = 256) -> None:
        self._model, self._rows = model, rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def head(self, features: Tensor) -> Tensor:
        """Logits (N, V) of features (N, D)."""
        count = len(features)
        return self._model.head(F.pad(features, (0, 0, 0, -count % self._rows)))[:count]
