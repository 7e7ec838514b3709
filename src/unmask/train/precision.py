"""Which numbers matrix products are computed in. Weights, averages and optimiser state are float32 whatever it says."""

from contextlib import AbstractContextManager, nullcontext

import torch

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
