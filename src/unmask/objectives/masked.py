"""The masked ELBO: whole documents, both sides visible, one noise level a document.

MDLM, LLaDA and RADD optimise this one bound; they differ in the law of the noise level (`times`), the schedule and
constants. With exact counts it is the any-order bound. The mask is always taken out of the vocabulary, as in MDLM and
RADD; LLaDA leaves it in and learns that it never occurs.
"""

from dataclasses import dataclass

from unmask.base.batch import Batch
from unmask.base.denoiser import Denoiser
from unmask.base.vocab import Vocab
from unmask.objectives.corrupt import Masking, mask_out
from unmask.objectives.fit import needs
from unmask.objectives.loss import Loss, Noised, settle
from unmask.objectives.streams import read


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked(Masking):
    """An unbiased estimate of the NELBO in nats (unless `noise.biased`, or weight "none"); settings: see `Masking`.

    Source: Sahoo et al. 2024, MDLM, arXiv:2406.07524, eq. 10; Nie et al. 2025, LLaDA, arXiv:2502.09992, eq. 3;
    Ou et al. 2024, RADD, arXiv:2406.03736, eq. 3.7 to 3.9.
    """

    def corrupt(self, batch: Batch, vocab: Vocab, seed: int, step: int) -> Noised:
        """Noise for a global batch: a pure function of its arguments."""
        return mask_out(batch, vocab, self.noise, seed, step)

    def __call__(self, model: Denoiser, noised: Noised, tokens: int) -> Loss:
        """The loss of a part of it; `tokens` counts the whole global batch."""
        needs("the masked objective", model, sees=("all", "blocks"))
        features, slots = read(model, noised)
        return settle(model, noised, features, slots, tokens, self.chunk)
