"""One set of weights for several block sizes: every row is read in blocks of one size, which size is drawn.

Blocks of 1 teach writing token by token, `null` (the whole canvas) teaches writing with both contexts. Rows share the
sizes out evenly over the global batch.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.base import seeds
from unmask.base.batch import Batch
from unmask.base.denoiser import Denoiser
from unmask.base.errors import BadRecipe
from unmask.base.vocab import Vocab
from unmask.objectives.corrupt import Masking, mask_out
from unmask.objectives.fit import needs
from unmask.objectives.loss import Loss, Noised, settle
from unmask.objectives.streams import read


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture(Masking):
    """The mean, over sizes, of the bounds of `Block` and `Masked`.

    Args:
        blocks: sizes; null is the whole canvas.
        shares: how much of the rows each size gets; even shares if empty.
        times, schedule, clip, weight, chunk: see `Masking`.

    Source: mixtures of block sizes: BlockGen, 2026, arXiv:2606.02241; Arriola et al. 2025, BD3-LM, arXiv:2503.09573.
    """

    blocks: tuple[int | None, ...] = (1, 16, None)
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super(Mixture, self).__post_init__()  # spelt out: slots make a new class
        if not self.blocks or any(b is not None and b < 1 for b in self.blocks):
            raise BadRecipe(f"blocks are sizes from 1, or null for the whole canvas, not {self.blocks}")
        if self.shares and (len(self.shares) != len(self.blocks) or min(self.shares) <= 0):
            raise BadRecipe(f"shares need one positive number for each of the {len(self.blocks)} sizes")

    def corrupt(self, batch: Batch, vocab: Vocab, seed: int, step: int) -> Noised:
        """Sizes and noise for a global batch: a pure function of its arguments."""
        length = batch.tokens.shape[1]
        sizes = torch.tensor([length if b is None else min(b, length) for b in self.blocks])
        shares = torch.tensor(self.shares or [1.0] * len(self.blocks), dtype=torch.float64)
        coins = seeds.uniform(seeds.key(seed, "sizes", step, batch.epoch, batch.samples.cpu()))
        rank = coins.argsort(stable=True).argsort()
        # One offset for all rows: each row alone is of each size as often as its share says, however few the rows.
        place = (rank + seeds.uniform(seeds.key(seed, "sizes-offset", step))) / len(rank)
        chosen = torch.searchsorted((shares / shares.sum()).cumsum(0)[:-1].contiguous(), place, right=True)
        return mask_out(batch, vocab, self.noise, seed, step, sizes[chosen].to(batch.tokens.device))

    def __call__(self, model: Denoiser, noised: Noised, tokens: int) -> Loss:
        """The loss of a part of it; `tokens` counts the whole global batch.

        `parts` has the weighted nats and the tokens of every size: "nats 16" and "tokens 16", "nats whole" ...
        """
        needs("a mixture of block sizes", model, sees=("all", "blocks"))
        assert torch.is_tensor(noised.block)
        whole = noised.block >= noised.noisy.shape[1]
        total, nats = torch.zeros((), device=noised.noisy.device), torch.zeros_like(noised.weight)
        for index, in_blocks in ((whole.nonzero()[:, 0], False), ((~whole).nonzero()[:, 0], True)):
            if len(index):
                rows = noised.rows(index)
                features, slots = read(model, rows if in_blocks else replace(rows, block=None))
                loss = settle(model, rows, features, slots, tokens, self.chunk)
                total = total + loss.total
                nats[index] = loss.nats.to(nats.dtype)
        return Loss(total=total, nats=nats, weight=noised.weight, parts=self._parts(noised, nats))

    def _parts(self, noised: Noised, nats: Tensor) -> dict[str, Tensor]:
        assert torch.is_tensor(noised.block)
        length = noised.noisy.shape[1]
        parts: dict[str, Tensor] = {}
        for size in self.blocks:
            rows = noised.block >= length if size is None or size >= length else noised.block == size
            name = "whole" if size is None else str(size)
            parts |= {f"nats {name}": nats[rows].sum(), f"tokens {name}": noised.counts[rows].sum()}
        return parts
