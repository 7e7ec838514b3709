"""Linear maps in floats of 8 bits on a GPU, through torchao.

What flows in is rounded too, each row by a scale of its own, so no row depends on its neighbours; products run in 8
bits, with or without torch.compile. Whole numbers of 8 bits are not torchao's business: its formula for them is that of
`unmask.nn.quantize`, but its scales are others, and a model should say the same on every device.

It knows neither families nor files. No GPU has run this yet: tests see what is asked of torchao, and run its format
that rounds weights alone on a CPU.
"""

import warnings
from typing import Any

import torch
from torch import nn

from unmask.base.errors import Unsupported

NAME = "fp8"
CAPABILITY = (8, 9)
"""The compute capability from which GPUs multiply numbers of 8 bits."""
MULTIPLE = 16
"""What the sizes of a map have to be multiples of."""


def check(device: torch.device, dtype: torch.dtype | None) -> None:
    """Raise Unsupported where maps can't be in 8 bits.

    Args:
        device: where the model will stay.
        dtype: of all that is not rounded; None is the stored one.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
        needed = ".".join(map(str, CAPABILITY))
        raise Unsupported(
            f"quantize='fp8' needs a GPU of compute capability {needed} at least, and {device} is none; "
            "use quantize='int8'"
        )
    if dtype not in (None, torch.bfloat16):
        raise Unsupported(f"quantize='fp8' goes with dtype='bfloat16', not {dtype}")
    _library()


def place(module: nn.Module, leaf: str) -> None:
    """Round the weights of a linear map, in place.

    Raises:
        Unsupported: what is no linear map, or a size or dtype that it can't have.
    """
    weight = getattr(module, leaf)
    if not isinstance(module, nn.Linear):
        raise Unsupported("experts can't be in fp8; use quantize='int8'")
    if any(size % MULTIPLE for size in weight.shape):
        raise Unsupported(f"quantize='fp8' needs maps in multiples of {MULTIPLE}, not {(*weight.shape,)}; use 'int8'")
    if weight.dtype != torch.bfloat16:
        raise Unsupported(f"quantize='fp8' goes with dtype='bfloat16', and the stored one is {weight.dtype}; give it")
    ao = _library()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it does itself
        ao.quantize_(module, ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow()))


def _library() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchao.quantization
    except ImportError as error:
        raise Unsupported("quantize='fp8' needs torchao; install it with: pip install 'unmask[gpu]'") from error
    return torchao.quantization
