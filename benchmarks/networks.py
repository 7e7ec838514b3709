"""Networks for benchmarks of speed: published shapes with random weights, and tiny."""

import copy
import itertools
import json
import string
from dataclasses import replace
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from unmask.base.denoiser import Denoiser
from unmask.base.vocab import Traits, Vocab
from unmask.lm.load import load
from unmask.models.backbone import Shape, Transformer
from unmask.text.tokenizer import MASK, Tokenizer

BLOCK = 32
"""Positions a block, in LLaDA's and Fast-dLLM's published settings."""


def llada() -> Transformer:
    """LLaDA-8B scaled down to 112 M parameters: all proportions but depth, and 32k tokens in the place of 126k.

    Source: Nie et al. 2025, arXiv:2502.09992, table 5 (no grouped heads, inner width 3 times the width, untied head).
    """
    shape = Shape(
        vocab_size=32768, width=768, depth=8, heads=6, hidden=2304, max_length=2048, rope_theta=5e5, tied=False
    )
    return Transformer(shape, Vocab(size=32768, mask=32767), Traits(reads=(1, BLOCK))).eval()


def smollm2() -> Transformer:
    """The shape of SmolLM2-135M."""
    shape = Shape(
        vocab_size=49152, width=576, depth=30, heads=9, kv_heads=3, hidden=1536, max_length=8192, rope_theta=1e5
    )
    return Transformer(shape, Vocab(size=49152, mask=0), Traits(sees="left", speaks="next")).eval()


def tiny() -> Transformer:
    """The bundled one, which is trained."""
    return load("tiny", device="cpu").model


NETWORKS = {"llada": llada, "smollm2": smollm2, "tiny": tiny}


def spelling(vocab: Vocab) -> Tokenizer:
    """Words for a network with random weights: bytes, pairs and runs of three letters; the mask is its last id."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = [letter for letter in letters if letter in string.printable]
    pairs = [(a, b) for a, b in itertools.product(plain, plain)]
    runs = [(a + b, c) for (a, b), c in itertools.product(pairs, plain)]
    merges = [*pairs, *runs][: vocab.size - 1 - len(letters)]
    words = {word: i for i, word in enumerate([*letters, *(a + b for a, b in merges)])}
    inner = tokenizers.Tokenizer(models.BPE(vocab=words, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(MASK, normalized=False, special=True)])
    return Tokenizer(json.loads(inner.to_str()), vocab)


def read_as(model: Denoiser, **traits: Any) -> Denoiser:
    """The same weights, read in another way: good for timing, whatever the model was trained for."""
    other = copy.copy(model)
    other.traits = replace(model.traits, **traits)
    return other
