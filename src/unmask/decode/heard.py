"""A denoiser whose last answer can be looked at again, by who wants to know more than was asked."""

from typing import Any

import torch
from torch import Tensor

from unmask.base.denoiser import Denoiser


class Heard:
    """A model, and the features that it last gave."""

    def __init__(self, model: Denoiser) -> None:
        self.model, self.features = model, torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def read(self, tokens: Tensor, **rest: Any) -> Tensor:
        """As the model's."""
        self.features = self.model.read(tokens, **rest)
        return self.features
