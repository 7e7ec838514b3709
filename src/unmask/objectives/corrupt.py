"""Noise for a global batch: which law, and which numbers.

Every number is keyed by (seed, step, epoch, row's identity, position), never by the row's place in the batch.
"""

from dataclasses import dataclass, replace
from typing import Self, get_args

import torch
from torch import Tensor

from unmask.base import seeds
from unmask.base.batch import Batch
from unmask.base.errors import BadRecipe, UnknownName, Unsupported
from unmask.base.vocab import Vocab
from unmask.noise import schedules, times
from unmask.noise.absorb import Units, Weight, absorb, levels
from unmask.objectives.loss import CHUNK, Noised, countable


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """A law of noise levels, ready to draw."""

    times: times.Times
    schedule: schedules.Schedule
    weight: Weight

    @classmethod
    def of(cls, law: str, schedule: str | None, clip: tuple[float, float] | None, weight: Weight) -> Self:
        """From the names in a recipe.

        Raises:
            UnknownName, BadRecipe: a name that no table has, or a setting that this law does not use.
        """
        if law not in times.TABLE:
            raise UnknownName("law of times", law, times.TABLE)
        if schedule is not None and schedule not in schedules.TABLE:
            raise UnknownName("schedule", schedule, schedules.TABLE)
        if weight not in get_args(Weight):
            raise UnknownName("weight", weight, get_args(Weight))
        drawn = times.TABLE[law]
        for name, value in (("schedule", schedule), ("clip", clip)):
            if drawn.counts and value is not None:
                raise BadRecipe(f"times: {law} draws counts, its bound has no {name}; leave {name} out, or draw times")
        if clip is not None:
            drawn = replace(drawn, low=clip[0], high=clip[1])
        return cls(times=drawn, schedule=schedules.TABLE[schedule or "log-linear"], weight=weight)

    @property
    def biased(self) -> bool:
        """Whether the expected loss is something else than the bound."""
        incomplete = not self.times.counts and not schedules.complete(self.schedule)
        return self.weight != "elbo" or self.times.biased or incomplete


@dataclass(frozen=True, slots=True, kw_only=True)
class Masking:
    """What every objective that puts masks takes.

    Args:
        times: the law of noise levels, a name in `unmask.noise.times`.
        schedule: a name in `unmask.noise.schedules`; only for laws that draw times, None is "log-linear".
        clip: (low, high) mask probabilities; only for laws that draw times, None is the law's own.
        weight: "elbo", or "none" for the plain mean over masked positions' nats.
        chunk: logits in memory at a time.
    """

    times: str = "exact-k-stratified"
    schedule: str | None = None
    clip: tuple[float, float] | None = None
    weight: Weight = "elbo"
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        _ = self.noise

    @property
    def noise(self) -> Noise:
        """How noise is drawn."""
        return Noise.of(self.times, self.schedule, self.clip, self.weight)


def mask_out(
    batch: Batch, vocab: Vocab, noise: Noise, seed: int, step: int, block: int | Tensor | None = None
) -> Noised:
    """Draw noise and put masks.

    Args:
        batch: a global batch.
        vocab: for its mask.
        noise: the law.
        seed, step: which noise.
        block: positions a block, one number or one per row (B,); None is whole documents.
    Raises:
        Unsupported: there is no mask token.
    """
    if vocab.mask is None:
        raise Unsupported("a masked objective needs a vocabulary with a mask token, and this one has none")
    counts = countable(batch, vocab)
    units = Units.of(batch.documents, batch.places, counts, block)
    row = seeds.key(seed, "corrupt", step, batch.epoch, batch.samples)
    numbers = _draw(noise, seeds.key(row[units.row], "unit", units.first), units, block)
    level = levels(units.size, noise.times, noise.schedule, numbers, noise.weight)
    slot = torch.arange(batch.tokens.shape[1], device=row.device)
    hidden = absorb(units, level, seeds.uniform(seeds.key(row[:, None], "position", slot)))
    return Noised(
        batch=batch,
        noisy=batch.tokens.masked_fill(hidden, vocab.mask),
        weight=units.spread(level.weight).masked_fill(~hidden, 0),
        counts=counts,
        block=block,
    )


def _draw(noise: Noise, keys: Tensor, units: Units, block: int | Tensor | None) -> Tensor:
    """(U,) the law's numbers. Units of different block sizes are drawn apart, so that each size is stratified."""
    if not torch.is_tensor(block):
        return noise.times.draw(keys)
    numbers, size = torch.empty(len(keys), dtype=torch.float64, device=keys.device), block[units.row]
    for value in size.unique():
        numbers[size == value] = noise.times.draw(keys[size == value])
    return numbers
