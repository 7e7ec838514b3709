"""Whether texts are the same to the bit whoever else is written beside them: tried out, on this machine and backend.

What an engine says about company rests on kernels: a row of a product must have the same bits whatever the number of
rows. MKL's strict mode gives that, other libraries promise nothing, so they are asked: the same requests go through an
engine alone and in several companies, over the pages, parts of prompts and widths that they would have anyway, and
every log-probability has to be the same number. It finds what differs, and does not know why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unmask.base.denoiser import Denoiser
from unmask.base.errors import UnmaskError
from unmask.decode.decoder import Decoder, build
from unmask.decode.trace import Change
from unmask.engine.engine import Engine
from unmask.engine.request import Request
from unmask.text.layout import Fixed, Gap, lay

WAYS: tuple[tuple[str | None, Mapping[str, Any]], ...] = (
    (None, {}),
    ("ar", {}),
    ("block x quota", {"steps": 4}),
    ("whole x quota", {"steps": 4}),
    ("vicinity x quota", {"steps": 4}),
)
"""Decoders that are tried, those of them that a model can be written with; None is its own."""
BEFORE = (3, 36, 180, 250, 516, 1030)
"""Positions of the prompts: below and above where known libraries cut their sums."""
LENGTH = 16
"""Tokens of each text."""
COMPANIES: dict[str, tuple[int, int, int]] = {
    "all at once": (64, 2048, 1),
    "three at a time, prompts in parts": (3, 40, 1),
    "in pairs, from the other end": (2, 2048, -1),
}
"""What they are called: rows, positions of a forward, and the order of the requests."""


@dataclass(frozen=True, slots=True)
class Unlike:
    """A text that company has changed.

    Args:
        way: its decoder; "default" is the model's own.
        before: positions of its prompt.
        company: a key of `COMPANIES`.
        apart: nats between the first two log-probabilities that differ.
        text: whether a token differs too.
    """

    way: str
    before: int
    company: str
    apart: float
    text: bool


@dataclass(frozen=True, slots=True)
class Bits:
    """What was found.

    Args:
        texts, tokens: that were compared.
        unlike: those of the texts that company has changed; with none of them, the engine's law holds to the bit.
    """

    texts: int
    tokens: int
    unlike: list[Unlike]


def probe(model: Denoiser) -> Bits:
    """Write the same texts alone and in company, and compare every log-probability."""
    asked = _requests(model)
    alone = [_written(model, [request], rows=1, positions=2048)[0] for _, _, request in asked]
    compared, unlike = 0, []
    for company, (rows, positions, order) in COMPANIES.items():
        found = _written(model, [one for _, _, one in asked[::order]], rows=rows, positions=positions)[::order]
        for (way, before, _), own, other in zip(asked, alone, found, strict=True):
            compared += len(own)
            if (apart := _apart(own, other)) is not None:
                text = [change.token for change in own] != [change.token for change in other]
                unlike.append(Unlike(way, before, company, apart, text))
    return Bits(len(asked) * len(COMPANIES), compared, unlike)


def _requests(model: Denoiser) -> list[tuple[str, int, Request]]:
    """How each is written, positions of its prompt, and the request."""
    ids = torch.tensor([i for i in range(model.vocab.size) if i not in model.vocab.specials])
    draw, found = torch.Generator().manual_seed(0), []
    length = min(LENGTH, model.max_length - 1)
    for before in sorted({min(before, model.max_length - length) for before in BEFORE}):
        prompt = ids[torch.randint(len(ids), (before,), generator=draw)].tolist()
        layout = lay([Fixed(ids=tuple(prompt), text=None), Gap(length=length)])
        for way, decoder in _decoders(model).items():
            found.append((way, before, Request(layout=layout, decoder=decoder, seed=before)))
    return found


def _decoders(model: Denoiser) -> dict[str, Decoder]:
    """Those of `WAYS` that the model can be written with."""
    found = {}
    for way, options in WAYS:
        defaults = getattr(model, "defaults", {})
        try:
            made = build(way, traits=model.traits, vocab=model.vocab, defaults=defaults, **options)
        except UnmaskError:  # not a way for this model
            continue
        found[way or "default"] = made
    return found


def _written(model: Denoiser, requests: Sequence[Request], *, rows: int, positions: int) -> list[list[Change]]:
    """What wrote each text, in the order of the requests; a text that could not be written raises what it was told."""
    engine = Engine(model, rows=min(rows, len(requests)), positions=positions, share=False)
    ids, done = [engine.add(request) for request in requests], {}
    while engine.busy:
        for delta in engine.step():
            if delta.error is not None:
                raise delta.error
            if delta.result is not None:
                done[delta.id] = list(delta.result.trace)
    return [done[id] for id in ids]


def _apart(own: Sequence[Change], other: Sequence[Change]) -> float | None:
    """Nats between the first two changes that differ in a bit; None where none do."""
    for one, two in zip(own, other, strict=False):
        if one != two:
            return abs(one.log_prob - two.log_prob)
    return None if len(own) == len(other) else 0.0
