"""What must not be written, whatever the network says: taken out of logits before anything is made of them."""

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.base.vocab import Vocab
from unmask.decode.knobs import numbers

if TYPE_CHECKING:
    from unmask.decode.propose import Sampling


def forbid(logits: Tensor, vocab: Vocab, sampling: "Sampling", positions: Tensor, rows: Tensor) -> None:
    """Take out of logits (N, V), in place, what must not stand at positions (N,) of rows (N,).

    That is the mask, forbidden ids, an end of text that comes too early, and tokens that resize where nothing may be.
    """
    never = sampling.forbidden if vocab.mask is None else (*sampling.forbidden, vocab.mask)
    logits.index_fill_(1, _ids(never, logits.device), -torch.inf)
    before = {token: logits[:, token].clone() for token in (vocab.expand, vocab.delete) if token is not None}
    early = (positions < numbers(sampling.no_end_before, rows)).nonzero()
    if len(early):
        logits[early, _ids(vocab.ends, logits.device)] = -torch.inf
    for token, knob in ((vocab.expand, sampling.expands), (vocab.delete, sampling.deletes)):
        if token is not None:
            other = logits[:, token] if token in vocab.ends else torch.full_like(before[token], -torch.inf)
            logits[:, token] = torch.where(numbers(knob, rows) > 0, before[token], other)


@lru_cache(maxsize=64)  # they are the same at every step
def _ids(ids: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(ids, dtype=torch.int64, device=device)
