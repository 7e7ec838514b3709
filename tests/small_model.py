"""A tiny random network for tests: read by name, as every folder's `conftest` answers to the same one."""

import torch


def model_of(tokenizer, **traits):
    """A tiny random network whose beliefs are sharp enough to differ from each other."""
    from unmask.base.vocab import Traits
    from unmask.models.backbone import Shape, Transformer

    size = tokenizer.vocab.size
    shape = Shape(vocab_size=size, width=32, depth=2, heads=4, hidden=48, max_length=96, qk_norm=True)
    model = Transformer(shape, tokenizer.vocab, Traits(**traits), seed=5)
    with torch.no_grad():
        model.embed_tokens.weight.mul_(20)
    return model.eval()
