"""How fast a model writes: forwards and wall clock apart, beside token-by-token writing by the same weights.

Texts have an exact length and no end, so that every decoder writes equally much. It does not judge what is written.
"""

import copy
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unmask.base.denoiser import Denoiser
from unmask.base.errors import BadInput
from unmask.decode.decoder import build
from unmask.engine import backends
from unmask.engine.engine import Engine
from unmask.engine.request import Request
from unmask.engine.sizes import settle
from unmask.lm.model import LanguageModel
from unmask.text.layout import Fixed, Gap, lay
from unmask.text.tokenizer import Tokenizer

AR = "ar"
"""The baseline's decoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One setting, measured.

    Args:
        decoder: its name and options.
        length, rows: tokens written by each text, and texts that are written at the same time.
        forwards: of the network, for all of them.
        tokens_per_forward: tokens a text gets out of a forward that it takes part in.
        seconds: until all are written; the median of the repetitions.
        tokens_per_s: of all texts.
        network, head, rest: shares of these seconds: reading, logits, and all else (windows, drawing, policies, pages).
        times_ar: tokens per second over those of token-by-token writing at this length and number of rows.
    """

    decoder: str
    length: int
    rows: int
    forwards: int
    tokens_per_forward: float
    seconds: float
    tokens_per_s: float
    network: float
    head: float
    rest: float
    times_ar: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For reports."""
        return asdict(self)


class Timed:
    """A model that knows how long it was asked."""

    def __init__(self, model: Denoiser) -> None:
        self.model, self.network_s, self.head_s = model, 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def read(self, tokens: Tensor, **rest: Any) -> Tensor:
        """As the model's."""
        began = self._now()
        features = self.model.read(tokens, **rest)
        self.network_s += self._now() - began
        return features

    def head(self, features: Tensor) -> Tensor:
        """As the model's."""
        began = self._now()
        logits = self.model.head(features)
        self.head_s += self._now() - began
        return logits

    def _now(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()


def speeds(
    lm: LanguageModel,
    decoders: Mapping[str, Mapping[str, Any]],
    *,
    prompt: Sequence[int],
    lengths: Sequence[int],
    rows: Sequence[int],
    repeat: int = 3,
) -> list[Speed]:
    """Every decoder at every length and number of rows, beside token-by-token writing.

    The settings of one length and number of rows take turns, so that what else the machine does hits all of them.

    Args:
        lm: the model.
        decoders: what to call a setting, to its options (`decoder` among them).
        prompt: ids that every text begins with.
        lengths, rows: what to try.
        repeat: measurements of each; medians are given. One more, which is not counted, comes first.
    Raises:
        BadInput, Unsupported: a setting that this model can't be written with.
    """
    if repeat < 1 or not prompt:
        raise BadInput(f"a measurement needs a prompt and one repetition at least, got repeat={repeat}")
    found = []
    for length in lengths:
        for count in rows:
            settings = {AR: (_token_by_token(lm.runner), {"decoder": AR})} | {
                name: (lm.runner, options) for name, options in decoders.items() if name != AR
            }
            runs: dict[str, list[Speed]] = {name: [] for name in settings}
            for turn in range(repeat + 1):
                for name, (model, options) in settings.items():
                    run = _run(name, (model, lm.tokenizer), options, prompt, length, count)
                    runs[name] += [run] if turn else []
            medians = [_median(some) for some in runs.values()]
            found += [replace(one, times_ar=one.tokens_per_s / medians[0].tokens_per_s) for one in medians]
    return found


def _run(
    name: str,
    writer: tuple[Denoiser, Tokenizer | None],
    options: Mapping[str, Any],
    prompt: Sequence[int],
    length: int,
    rows: int,
) -> Speed:
    model, tokenizer = writer
    timed = Timed(model)
    rest = {key: value for key, value in options.items() if key != "decoder"}
    vocab = model.vocab
    decoder = build(
        options.get("decoder"),
        traits=model.traits,
        vocab=vocab,
        defaults=getattr(model, "defaults", {}),
        internal={"no_end_before": float("inf")},
        **rest,
    )
    decoder = settle(decoder, model, tokenizer)
    chosen = ", ".join(f"{option}={number}" for option, number in decoder.chosen)
    layout = lay([Fixed(ids=tuple(prompt), text=None), Gap(length=length)])
    engine = Engine(timed, rows=rows, share=False, costs=backends.costs(model) if decoder.adapts else None)
    for seed in range(rows):
        engine.add(Request(layout=layout, decoder=decoder, seed=seed))
    began, forwards = time.perf_counter(), 0
    while engine.busy:
        for delta in engine.step():
            if delta.error is not None:
                raise delta.error
            if delta.result is not None:
                forwards += delta.result.forwards
    seconds = time.perf_counter() - began
    return Speed(
        decoder=f"{name} ({chosen})" if chosen else name,
        length=length,
        rows=rows,
        forwards=engine.stats.forwards,
        tokens_per_forward=rows * length / forwards,
        seconds=seconds,
        tokens_per_s=rows * length / seconds,
        network=timed.network_s / seconds,
        head=timed.head_s / seconds,
        rest=1 - (timed.network_s + timed.head_s) / seconds,
    )


def _median(runs: Sequence[Speed]) -> Speed:
    """The run in the middle, by seconds."""
    middle = statistics.median_low(run.seconds for run in runs)
    return next(run for run in runs if run.seconds == middle)


def _token_by_token(model: Denoiser) -> Denoiser:
    """The model where it can write like that; else its weights, read left to right, which is good for timing only."""
    traits = model.traits
    if traits.sees == "left" or 1 in traits.reads or traits.block == 1:
        return model
    other = copy.copy(model)
    other.traits = replace(traits, sees="left", speaks="next", block=None, reads=())
    return other
