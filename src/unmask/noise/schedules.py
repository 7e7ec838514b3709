"""How much of a text is left at time t.

alpha(t) is the probability that a token is still clean: 1 at t = 0, (about) 0 at t = 1. Everything is float64. The
bound of a network that takes no time is an integral over 1 - alpha, so it does not depend on the schedule as long as
that runs from 0 to 1 (`complete`); some published constants stop a little short of it.

It does not know tokens or losses.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """A falling function of time and what belongs to it. Tensors of any shape, float64."""

    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is still clean at time t."""
        ...

    def slope(self, t: Tensor) -> Tensor:
        """The derivative of alpha by t, never positive."""
        ...

    def time(self, alpha: Tensor) -> Tensor:
        """The t in [0, 1] at which that much is clean; the nearest end where the schedule never gets there."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLinear:
    """alpha = 1 - (1 - eps) t.

    Args:
        eps: what is still clean at t = 1. 0 is the exact form, 1e-3 the published constant of SEDD and MDLM.

    Source: Lou et al. 2024, SEDD, arXiv:2310.16834, app. C (total noise -log(1 - (1 - eps) t)); with eps = 0 the linear
    schedule of MD4, Shi et al. 2024, arXiv:2406.04329.
    """

    eps: float = 0.0

    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is still clean at time t."""
        return 1 - (1 - self.eps) * t

    def slope(self, t: Tensor) -> Tensor:
        """The derivative of alpha by t."""
        return torch.full_like(t, self.eps - 1)

    def time(self, alpha: Tensor) -> Tensor:
        """The inverse of alpha."""
        return ((1 - alpha) / (1 - self.eps)).clamp(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """alpha = exp(-sigma), with sigma linear in t.

    Args:
        sigma_min, sigma_max: total noise at t = 0 and t = 1.

    Source: Sahoo et al. 2024, MDLM, arXiv:2406.07524, app. E (noise schedules).
    """

    sigma_min: float = 0.0
    sigma_max: float = 10.0

    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is still clean at time t."""
        return torch.exp(-(self.sigma_min + (self.sigma_max - self.sigma_min) * t))

    def slope(self, t: Tensor) -> Tensor:
        """The derivative of alpha by t."""
        return -(self.sigma_max - self.sigma_min) * self.alpha(t)

    def time(self, alpha: Tensor) -> Tensor:
        """The inverse of alpha."""
        return ((-alpha.log() - self.sigma_min) / (self.sigma_max - self.sigma_min)).clamp(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """alpha = eps + (1 - eps) cos(pi t / 2).

    Args:
        eps: what is still clean at t = 1. 0 is the exact form, 1e-3 the published constant.

    Source: Sahoo et al. 2024, MDLM, arXiv:2406.07524, app. E; Han et al. 2022, SSD-LM, arXiv:2210.17432.
    """

    eps: float = 0.0

    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is still clean at time t."""
        return self.eps + (1 - self.eps) * torch.cos(math.pi / 2 * t)

    def slope(self, t: Tensor) -> Tensor:
        """The derivative of alpha by t."""
        return -(1 - self.eps) * math.pi / 2 * torch.sin(math.pi / 2 * t)

    def time(self, alpha: Tensor) -> Tensor:
        """The inverse of alpha."""
        return 2 / math.pi * torch.arccos(((alpha - self.eps) / (1 - self.eps)).clamp(0, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometric:
    """alpha = exp(-sigma), with sigma = sigma_min^(1 - t) sigma_max^t.

    Args:
        sigma_min, sigma_max: total noise at t = 0 and t = 1, both above 0.

    Source: Lou et al. 2024, SEDD, arXiv:2310.16834, app. C; the constants are those of its released configuration.
    """

    sigma_min: float = 1e-4
    sigma_max: float = 20.0

    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is still clean at time t."""
        return torch.exp(-self._sigma(t))

    def slope(self, t: Tensor) -> Tensor:
        """The derivative of alpha by t."""
        return -math.log(self.sigma_max / self.sigma_min) * self._sigma(t) * self.alpha(t)

    def time(self, alpha: Tensor) -> Tensor:
        """The inverse of alpha."""
        sigma = (-alpha.log()).clamp(min=self.sigma_min)
        return (torch.log(sigma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)).clamp(0, 1)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min ** (1 - t) * self.sigma_max**t


def covers(schedule: Schedule) -> tuple[float, float]:
    """The mask probabilities at t = 0 and t = 1."""
    start, end = (1 - schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))).tolist()
    return start, end


def complete(schedule: Schedule) -> bool:
    """Whether it runs from all clean to all masked, up to rounding; if not, a mean over its times is not the bound."""
    start, end = covers(schedule)
    return start < 1e-12 and end > 1 - 1e-12


TABLE: dict[str, Schedule] = {
    "log-linear": LogLinear(),
    "linear": Linear(),
    "cosine": Cosine(),
    "geometric": Geometric(),
}
