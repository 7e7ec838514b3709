"""Blocks of the size that is written fastest here, and as many at a time, for requests that leave that open.

Another block is another text, so nobody gets this unasked, and what is taken must not depend on who else is there or on
what was written before. It follows from three things that stay as they are: the decoder with its numbers, a few fixed
texts that this model writes with each choice (how many forwards of how many positions that takes), and what forwards
cost here, measured once. Costs differ between machines, and the choice may: it is told with the answer (`chosen`), and
the request with that number in the place of "auto" is the same anywhere.

It judges speed, not text, and the speed of a request alone: in a full batch a forward costs more, but not the tokens of
a request its company.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from unmask.base.denoiser import Denoiser
from unmask.base.errors import Unsupported
from unmask.decode.decoder import Decoder
from unmask.decode.session import Session
from unmask.engine import backends
from unmask.engine.request import Request
from unmask.engine.widths import between
from unmask.text.layout import Fixed, Gap, lay
from unmask.text.tokenizer import Tokenizer

TEXTS = ("def main(", "import os\n", "It was a fine morning, and ")
"""What the texts begin with that choices are tried on; where there is no tokenizer they begin with nothing."""
LENGTH = 64
"""Tokens that each of them is written for: some blocks of most models."""
KINDS = 64
"""Decoders that one model tries choices for; each takes about as long as a request does."""

_TAKEN: WeakKeyDictionary[Denoiser, dict[Decoder, Decoder]] = WeakKeyDictionary()


def settled(requests: Sequence[Request], model: Denoiser, tokenizer: Tokenizer | None) -> list[Request]:
    """The same requests, with nothing left open; whoever calls it owns the network.

    Raises:
        Unsupported: more kinds of decoders than there are tried.
    """
    return [
        replace(one, decoder=settle(one.decoder, model, tokenizer)) if one.decoder.choices else one for one in requests
    ]


def settle(decoder: Decoder, model: Denoiser, tokenizer: Tokenizer | None) -> Decoder:
    """The choice of a decoder that writes most a second here; a decoder without choices is what it is.

    Raises:
        Unsupported: see `settled`.
    """
    if not decoder.choices:
        return decoder
    taken, plain = _TAKEN.setdefault(model, {}), _endless(decoder)
    if plain not in taken:
        if len(taken) >= KINDS:
            raise Unsupported(
                f"block=auto and blocks=auto were measured for {KINDS} decoders here, and this would be another one; "
                "give numbers"
            )
        work = [fed(one, model, openings(model, tokenizer)) for one in plain.choices]
        costs = backends.costs(model, max(max(widths) for widths in work))
        taken[plain] = plain.choices[fastest(work, costs)]
    at = plain.choices.index(taken[plain])
    return decoder.choices[at]


def fastest(work: Sequence[Sequence[int]], seconds: Mapping[int, float]) -> int:
    """Which choice takes the least time for the same tokens; of equals the first.

    Args:
        work: of each choice, the positions fed in each forward.
        seconds: of a forward, by positions fed.
    """
    total_s = [math.fsum(between(seconds, width) for width in widths) for widths in work]
    return total_s.index(min(total_s))


def fed(decoder: Decoder, model: Denoiser, prompts: Sequence[Sequence[int]]) -> list[int]:
    """Positions that each row feeds in each forward while these prompts are continued; each counts as if it were alone.

    Args:
        decoder: how to write; no end of text may be proposed, so that all choices write equally much.
        model: the network.
        prompts: ids.
    """
    layouts = []
    for prompt in prompts:
        gap = Gap(length=min(LENGTH, model.max_length - len(prompt)))
        layouts.append(lay([Fixed(ids=tuple(prompt), text=None), gap]))
    counted: list[int] = []
    for _ in Session(_Counting(model, counted.extend), layouts, decoder, range(len(layouts))).run():
        pass
    return counted


def openings(model: Denoiser, tokenizer: Tokenizer | None) -> list[list[int]]:
    """What the texts begin with, as ids; half of a row at most."""
    bare = [] if model.vocab.bos is None else [model.vocab.bos]
    found = [bare if tokenizer is None else [*tokenizer.start, *tokenizer.encode(text)] for text in TEXTS]
    return [ids[: model.max_length // 2] for ids in found]


def _endless(decoder: Decoder) -> Decoder:
    """The decoder, and its choices, with no end of text, and without what each request has of its own."""
    return replace(
        decoder,
        sampling=replace(decoder.sampling, no_end_before=math.inf, bias=(), top_logprobs=0),
        choices=tuple(_endless(choice) for choice in decoder.choices),
    )


class _Counting:
    """A model that tells what its forwards are fed."""

    def __init__(self, model: Denoiser, tell: Callable[[list[int]], None]) -> None:
        self.model, self.tell = model, tell

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def read(self, tokens: Tensor, *, positions: Tensor, **rest: Any) -> Tensor:
        """As the model's."""
        widths = (positions >= 0).sum(1)
        self.tell(widths[widths > 0].tolist())
        return self.model.read(tokens, positions=positions, **rest)
