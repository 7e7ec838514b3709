"""Block diffusion: every block has a noise level of its own and is written given the clean blocks before it.

One forward over [noisy | clean] gives all blocks at once: a noisy block sees itself and the clean blocks before it.
Blocks of one are autoregression, one block is the masked ELBO.
"""

from dataclasses import dataclass

from unmask.base.batch import Batch
from unmask.base.denoiser import Denoiser
from unmask.base.errors import BadRecipe
from unmask.base.vocab import Vocab
from unmask.objectives.corrupt import Masking, mask_out
from unmask.objectives.fit import needs
from unmask.objectives.loss import Loss, Noised, settle
from unmask.objectives.streams import read


@dataclass(frozen=True, slots=True, kw_only=True)
class Block(Masking):
    """An unbiased estimate of the block NELBO in nats (unless `noise.biased`, or weight "none").

    Args:
        block: positions a block, counted from the start of each document.
        times, schedule, clip, weight, chunk: see `Masking`.

    Source: Arriola et al. 2025, BD3-LM, arXiv:2503.09573, eq. 8 and app. B.6 (one pass over two streams).
    """

    block: int

    def __post_init__(self) -> None:
        super(Block, self).__post_init__()  # spelt out: slots make a new class
        if self.block < 1:
            raise BadRecipe(f"a block has 1 position or more, not {self.block}")

    def corrupt(self, batch: Batch, vocab: Vocab, seed: int, step: int) -> Noised:
        """Noise for a global batch: a pure function of its arguments."""
        return mask_out(batch, vocab, self.noise, seed, step, self.block)

    def __call__(self, model: Denoiser, noised: Noised, tokens: int) -> Loss:
        """The loss of a part of it; `tokens` counts the whole global batch."""
        needs("the block objective", model, sees=("all", "blocks"))
        features, slots = read(model, noised)
        return settle(model, noised, features, slots, tokens, self.chunk)
