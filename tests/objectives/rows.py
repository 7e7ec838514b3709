"""Small batches and networks that the tests of this folder share."""

import torch

from unmask.base.attend import NOBODY
from unmask.base.batch import Batch
from unmask.base.vocab import Traits, Vocab
from unmask.models.backbone import Shape, Transformer

VOCAB = Vocab(size=24, mask=0, eos=1, bos=2, pad=3)
NEXT = Traits(sees="left", speaks="next")


def batch(*rows: list[int], length: int = 16, seed: int = 0, first: int = 0) -> Batch:
    """Random rows of documents of these lengths; what is left of a row is padding."""
    draw = torch.Generator().manual_seed(seed)
    shape = (len(rows), length)
    tokens = torch.randint(4, VOCAB.size, shape, generator=draw)
    documents, places = torch.full(shape, NOBODY), torch.zeros(shape, dtype=torch.int64)
    for b, sizes in enumerate(rows):
        at = 0
        for number, size in enumerate(sizes):
            documents[b, at : at + size] = number
            places[b, at : at + size] = torch.arange(size)
            at += size
    tokens[documents == NOBODY] = VOCAB.pad
    return Batch(tokens=tokens, documents=documents, places=places, samples=torch.arange(first, first + len(rows)))


def net(traits: Traits | None = None, seed: int = 0) -> Transformer:
    """A small network in float64."""
    shape = Shape(vocab_size=VOCAB.size, width=16, depth=2, heads=2, hidden=32, max_length=64)
    return Transformer(shape, VOCAB, traits or Traits(), seed=seed).double()


def gradient(model: Transformer) -> torch.Tensor:
    """All gradients, one after the other; they are gone afterwards."""
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return found
