"""Classifier-free guidance: a denoiser around a denoiser.

Guided rows travel twice: once as they are, once with the prompt (and nothing else) masked. Both go in one forward,
which counts as one, as published.

Source: Nie et al. 2025, LLaDA, arXiv:2502.09992, sec. 2.4 and generate.py: u + (w + 1)(c - u).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.base.attend import Attend
from unmask.base.denoiser import Cache, Denoiser
from unmask.base.errors import Unsupported
from unmask.base.vocab import Traits, Vocab
from unmask.decode.knobs import Knob, column


def check(traits: Traits, vocab: Vocab) -> None:
    """Raise Unsupported for a vocabulary without a mask, or a network that carries what it said: there would be two."""
    if vocab.mask is None:
        raise Unsupported("guidance masks the prompt, and this model has no mask token; leave guidance at 0")
    if traits.carries:
        raise Unsupported("guidance has no place in a model that is conditioned on itself; leave it at 0")


@dataclass
class Guided:
    """`model` with its logits pushed away from what it would say without the prompt.

    Args:
        model: the network.
        weight: w, of all rows or of each (B,); a row with 0 travels once, and nothing changes for it.
        prompt: (B, L) bool, the positions to mask in the unconditional half.
    Raises:
        Unsupported: see `check`.
    """

    model: Denoiser
    weight: Knob
    prompt: Tensor

    def __post_init__(self) -> None:
        check(self.model.traits, self.model.vocab)
        self.vocab, self.traits, self.max_length = self.model.vocab, self.model.traits, self.model.max_length

    @property
    def device(self) -> torch.device:
        """Where its inputs have to be."""
        return self.model.device

    def cache(self, rows: int, length: int, spare: int = 0) -> Cache:
        """A cache for both halves: rows 0 to B-1 as they are, rows B to 2B-1 without the prompt."""
        return self.model.cache(2 * rows, length, spare)

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
        slots: Tensor | None = None,
    ) -> Tensor:
        """Features (R, W, 2D + 1): with the prompt, without it, and the weight."""
        every = torch.arange(len(tokens), device=tokens.device)
        rows = every if rows is None else rows
        weight = column(self.weight, rows)
        guided = weight[:, 0].nonzero()[:, 0]
        both = torch.cat([every, guided])
        hidden = self.prompt[rows[guided, None], positions[guided].clamp(min=0)] & (positions[guided] >= 0)
        mask = self.vocab.mask
        assert mask is not None
        features = self.model.read(
            torch.cat([tokens, tokens[guided].masked_fill(hidden, mask)]),
            positions=positions[both],
            attend=attend.rows(both),
            t=None if t is None else t[both],
            cache=cache,
            rows=torch.cat([rows, rows[guided] + len(self.prompt)]),
            keep=None if keep is None else keep[both],
            slots=None if slots is None else slots[both],
        )
        given, free = features[: len(tokens)], features[len(tokens) :]
        weights = weight.to(features.dtype)[:, :, None].expand(*given.shape[:2], 1)
        return torch.cat([given, given.index_copy(0, guided, free), weights], dim=-1)

    def head(self, features: Tensor) -> Tensor:
        """Guided logits (N, V) of features (N, 2D + 1)."""
        size = features.shape[-1] // 2
        given, free = self.model.head(features[:, :size]), self.model.head(features[:, size : 2 * size])
        return free + (features[:, -1:] + 1) * (given - free)
