"""What objectives share: noised rows, a loss, and cross-entropy on the positions that are asked for and no others.

It knows networks only as `Denoiser`, and neither noise nor optimisers.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unmask.base.attend import NOBODY
from unmask.base.batch import Batch
from unmask.base.denoiser import Denoiser
from unmask.base.errors import BadInput
from unmask.base.vocab import Vocab

CHUNK = 1 << 24
"""Logits that exist at one time: 64 MiB of float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noised:
    """Rows with noise drawn.

    Args:
        batch: the clean rows.
        noisy: (B, L) int64, the tokens that the network is shown.
        weight: (B, L) float64, what the nats of a position are multiplied by; 0 where no loss is asked.
        counts: (B, L) bool, positions that the bound is about, masked or not.
        block: positions a block, where the objective works in blocks: one number, or one per row (B,).
    """

    batch: Batch
    noisy: Tensor
    weight: Tensor
    counts: Tensor
    block: int | Tensor | None = None

    @property
    def tokens(self) -> int:
        """Positions that count: what a sum of nats is divided by."""
        return int(self.counts.sum())

    def part(self, start: int, stop: int) -> Self:
        """Some of the rows."""
        return self.rows(torch.arange(start, min(stop, len(self.noisy)), device=self.noisy.device))

    def rows(self, index: Tensor) -> Self:
        """The rows (R,) in that order."""
        return self._each(lambda x: x[index.to(x.device)])

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self._each(lambda x: x.to(device))

    def _each(self, change: Any) -> Self:
        b = self.batch
        batch = replace(
            b,
            tokens=change(b.tokens),
            documents=change(b.documents),
            places=change(b.places),
            samples=change(b.samples),
        )
        block = change(self.block) if torch.is_tensor(self.block) else self.block
        return replace(
            self,
            batch=batch,
            noisy=change(self.noisy),
            weight=change(self.weight),
            counts=change(self.counts),
            block=block,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What a part of a batch costs. Parts add up: the totals of all parts of a global batch are its loss.

    Args:
        total: scalar to differentiate: weighted nats over the tokens of the global batch.
        nats: (B, L) detached, each position's contribution to the estimate of the bound; 0 where no loss was asked.
        weight: (B, L) as in `Noised`.
        parts: further numbers by name, each a sum over rows.
    """

    total: Tensor
    nats: Tensor
    weight: Tensor
    parts: dict[str, Tensor]


class Objective(Protocol):
    """What the training loop knows of an objective."""

    def corrupt(self, batch: Batch, vocab: Vocab, seed: int, step: int) -> Noised:
        """Noise for a global batch: a pure function of its arguments."""
        ...

    def __call__(self, model: Denoiser, noised: Noised, tokens: int) -> Loss:
        """The loss of a part; `tokens` counts the whole global batch."""
        ...


def nll(logits: Tensor, targets: Tensor, mask: int | None) -> Tensor:
    """Nats of tokens, with the mask taken out of the vocabulary.

    Args:
        logits: (..., V); computed in float32 at least.
        targets: (...) int64.
        mask: its id, or None where there is none.
    Returns:
        (...) -log p(target).

    Source: zero masking probabilities: Sahoo et al. 2024, MDLM, arXiv:2406.07524, sec. 3.2.3 (SUBS).
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if mask is not None:
        logits = logits.index_fill(-1, torch.tensor([mask], device=logits.device), -torch.inf)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)


def chunked_nll(model: Denoiser, features: Tensor, targets: Tensor, chunk: int = CHUNK) -> Tensor:
    """Nats of targets (N,) from features (N, D), with at most about `chunk` logits in memory at a time.

    Where one chunk does not hold them all, each chunk's logits are computed again for its gradient instead of kept.
    """

    def of(features: Tensor, targets: Tensor) -> Tensor:
        return nll(model.head(features), targets, model.vocab.mask)

    size = max(1, chunk // model.vocab.size)
    if len(features) <= size:
        return of(features, targets)
    again = torch.is_grad_enabled()
    pieces = zip(features.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(of, *piece, use_reentrant=False) if again else of(*piece) for piece in pieces])


def settle(model: Denoiser, noised: Noised, features: Tensor, slots: Tensor, tokens: int, chunk: int = CHUNK) -> Loss:
    """The loss from features.

    Args:
        model: for its head.
        noised: the rows.
        features: (B, S, D) of the slots fed.
        slots: (B, L) the slot whose features speak of each position.
        tokens: positions that count in the global batch.
        chunk: logits in memory at a time.
    """
    r, i = (noised.weight > 0).nonzero(as_tuple=True)
    nats = chunked_nll(model, features[r, slots[r, i]], noised.batch.tokens[r, i], chunk)
    weighted = nats * noised.weight[r, i].to(nats.dtype)
    each = torch.zeros_like(noised.weight, dtype=nats.dtype)
    each[r, i] = weighted.detach()
    return Loss(total=weighted.sum() / max(1, tokens), nats=each, weight=noised.weight, parts={})


def countable(batch: Batch, vocab: Vocab) -> Tensor:
    """(B, L) bool: positions that a bound is about. Padding is not, nor is a begin-of-text token, which is given.

    Raises:
        BadInput: the clean text holds masks.
    """
    there = batch.documents != NOBODY
    if vocab.mask is not None and bool((there & (batch.tokens == vocab.mask)).any()):
        raise BadInput(f"clean text holds the mask token (id {vocab.mask}); encode text without special ids")
    return there if vocab.bos is None else there & (batch.tokens != vocab.bos)
