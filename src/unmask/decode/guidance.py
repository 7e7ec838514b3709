"""Classifier-free guidance: a denoiser around a denoiser.

The batch is doubled: once as it is, once with the prompt (and nothing else) masked. Both halves travel in one forward,
which counts as one, as published.

Source: Nie et al. 2025, LLaDA, arXiv:2502.09992, sec. 2.4 and generate.py: u + (w + 1)(c - u).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.base.attend import Attend
from unmask.base.denoiser import Cache, Denoiser
from unmask.base.errors import Unsupported


@dataclass
class Guided:
    """`model` with its logits pushed away from what it would say without the prompt.

    Args:
        model: the network.
        weight: w; 0 changes nothing.
        prompt: (B, L) bool, the positions to mask in the unconditional half.
    Raises:
        Unsupported: the vocabulary has no mask, or the network carries what it said, of which there would be two.
    """

    model: Denoiser
    weight: float
    prompt: Tensor

    def __post_init__(self) -> None:
        if self.model.vocab.mask is None:
            raise Unsupported("guidance masks the prompt, and this model has no mask token; leave guidance at 0")
        if self.model.traits.carries:
            raise Unsupported("guidance has no place in a model that is conditioned on itself; leave it at 0")
        self.vocab, self.traits, self.max_length = self.model.vocab, self.model.traits, self.model.max_length

    @property
    def device(self) -> torch.device:
        """Where its inputs have to be."""
        return self.model.device

    def cache(self, rows: int, length: int) -> Cache:
        """A cache for both halves: rows 0 to B-1 as they are, rows B to 2B-1 without the prompt."""
        return self.model.cache(2 * rows, length)

    def read(
        self,
        tokens: Tensor,
        *,
        positions: Tensor,
        attend: Attend,
        t: Tensor | None = None,
        cache: Cache | None = None,
        rows: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Features (R, W, 2D): with the prompt, then without it."""
        rows = torch.arange(len(tokens), device=tokens.device) if rows is None else rows
        hidden = self.prompt[rows[:, None], positions.clamp(min=0)] & (positions >= 0)
        mask = self.model.vocab.mask
        assert mask is not None
        both = torch.arange(len(tokens), device=tokens.device).repeat(2)
        features = self.model.read(
            torch.cat([tokens, tokens.masked_fill(hidden, mask)]),
            positions=positions[both],
            attend=attend.rows(both),
            t=None if t is None else t[both],
            cache=cache,
            rows=torch.cat([rows, rows + len(self.prompt)]),
            keep=None if keep is None else keep[both],
        )
        return torch.cat(features.chunk(2), dim=-1)

    def head(self, features: Tensor) -> Tensor:
        """Guided logits (N, V) of features (N, 2D)."""
        given, free = (self.model.head(half) for half in features.chunk(2, dim=-1))
        return free + (self.weight + 1) * (given - free)
