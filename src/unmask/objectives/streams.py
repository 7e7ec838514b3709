"""How a network reads noised rows: whole, or block by block in one forward over [noisy | clean].

Source: two streams: Arriola et al. 2025, BD3-LM, arXiv:2503.09573, sec. 3 and app. B.6.
"""

from dataclasses import replace

import torch
from torch import Tensor

from unmask.base.attend import NOBODY, Attend, Kind
from unmask.base.batch import Batch
from unmask.base.denoiser import Denoiser
from unmask.objectives.loss import Noised


def read(model: Denoiser, noised: Noised, kind: Kind = "full") -> tuple[Tensor, Tensor]:
    """Features, and where to look for those about each position.

    Args:
        model: the network.
        noised: rows of one document or several; `block` says how they are read, None is whole documents.
        kind: who sees whom in whole documents, "full" or "causal".
    Returns:
        (B, S, D) features of the slots fed, (B, L) the slot whose features speak of each position.
    """
    batch, length, block = noised.batch, noised.noisy.shape[1], noised.block
    shift = model.traits.speaks == "next"
    at = batch.places.masked_fill(batch.documents == NOBODY, -1)
    if block is None or (not torch.is_tensor(block) and block >= length):
        return model.read(noised.noisy, positions=at, attend=_packed(batch, kind)), _speaking(batch, shift=shift)
    features = model.read(
        torch.cat([noised.noisy, batch.tokens], dim=1),
        positions=torch.cat([at, at], dim=1),
        attend=replace(_packed(batch, "two_stream"), block=block, length=length),
    )
    slots = _speaking(batch, shift=shift)
    if shift:  # what was read last before a block is the clean block before it
        size = block[:, None] if torch.is_tensor(block) else block
        slots = slots + length * ((batch.places % size == 0) & (batch.places > 0))
    return features, slots


def _packed(batch: Batch, kind: Kind) -> Attend:
    """The rule for rows of documents; plain where each row is one document and full, so that kernels may fuse."""
    alone = (batch.documents == batch.documents[:, :1]) & (batch.documents != NOBODY)
    if bool(alone.all()) and not bool(batch.places[:, 0].any()):
        return Attend(kind=kind)
    return Attend(kind=kind, documents=batch.documents, places=batch.places)


def _speaking(batch: Batch, *, shift: bool) -> Tensor:
    """(B, L) the slot whose features speak of each position: itself, or the one before it in models of the next token.

    The first position of a document has none before it and speaks of itself, as in Dream.
    """
    here = torch.arange(batch.tokens.shape[1], device=batch.tokens.device).expand_as(batch.tokens)
    return here - (batch.places > 0).long() if shift else here
