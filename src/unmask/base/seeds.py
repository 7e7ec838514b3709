"""One seed, any number of independent and addressable random numbers.

Noise is a pure function of (seed, stream, counters), so the same request gets the same numbers whatever its batch,
its neighbours, the order of arrival or the number of workers. No generator is ever shared or advanced.

Source: Steele, Lea, Flood 2014, SplitMix (the finaliser); Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3" (the idea of counters instead of state).
"""

import zlib
from functools import cache

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch only has the arithmetic one for int64."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _finalise(x: Tensor) -> Tensor:
    x = _shift(x, 30).bitwise_xor_(x).mul_(_MIX1)  # in place, for these are as many numbers as a vocabulary has tokens
    x = _shift(x, 27).bitwise_xor_(x).mul_(_MIX2)
    return _shift(x, 31).bitwise_xor_(x)


def key(seed: int | Tensor, stream: str, *counters: int | Tensor) -> Tensor:
    """A 64-bit key per element.

    Args:
        seed: the user's seed, or a tensor of seeds.
        stream: the purpose ("token", "unmask", "corrupt" ...), so that two uses never share numbers.
        counters: ints or int64 tensors that broadcast against each other.
    Returns:
        int64 tensor of the broadcast shape.
    """
    device = next((x.device for x in (seed, *counters) if torch.is_tensor(x)), None)
    state = _finalise(torch.as_tensor(seed, dtype=torch.int64, device=device) + _purpose(stream))
    for counter in counters:
        state = _finalise((state ^ torch.as_tensor(counter, dtype=torch.int64, device=device)) + _GOLDEN)
    return state


@cache
def _purpose(stream: str) -> int:
    """What a stream adds to seeds, modulo 2^64."""
    return (zlib.crc32(stream.encode()) * _GOLDEN + (1 << 63)) % (1 << 64) - (1 << 63)


def uniform(keys: Tensor) -> Tensor:
    """Float64 numbers in the open interval (0, 1), one per key."""
    numbers = _shift(_finalise(keys + _GOLDEN), 11).to(torch.float64).add_(0.5).mul_(2.0**-53)
    return numbers.clamp_(max=1 - 2.0**-53)  # to which the last half is rounded up
