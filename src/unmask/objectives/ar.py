"""Plain next-token prediction, for honest twins: the same network, data and loop, without diffusion."""

from dataclasses import dataclass

from unmask.base.batch import Batch
from unmask.base.denoiser import Denoiser
from unmask.base.vocab import Vocab
from unmask.objectives.fit import needs
from unmask.objectives.loss import CHUNK, Loss, Noised, countable, settle
from unmask.objectives.streams import read


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoregressive:
    """Exact nats of every token given those before it in its document. The first one is given.

    Args:
        chunk: logits in memory at a time.

    Source: Bengio et al. 2003, "A neural probabilistic language model".
    """

    chunk: int = CHUNK

    def corrupt(self, batch: Batch, vocab: Vocab, seed: int, step: int) -> Noised:
        """No noise; every token that has one before it is asked for."""
        counts = countable(batch, vocab) & (batch.places > 0)
        return Noised(batch=batch, noisy=batch.tokens, weight=counts.double(), counts=counts)

    def __call__(self, model: Denoiser, noised: Noised, tokens: int) -> Loss:
        """The loss of a part of it; `tokens` counts the whole global batch."""
        needs("the autoregressive objective", model, sees=("left", "all", "blocks"), speaks=("next",))
        features, slots = read(model, noised, "causal")
        return settle(model, noised, features, slots, tokens, self.chunk)
