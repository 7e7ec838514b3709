"""What the ids of a model mean, and how that model is to be talked to.

Facts that others scatter as flags (logits shifted by one, block-causal, takes a time) are data here, and each is
honoured in one place.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocab:
    """Ids with a meaning. `mask` is None where there is no [MASK] (AR models, uniform noise).

    `stops` are further ids that end a text as `eos` does: what ends a turn of a chat, beside what ends a document.
    Where a model learnt to change the length of what it writes, `expand` says "two positions instead of this one" and
    `delete` "none"; the latter may be `eos`.
    """

    size: int
    mask: int | None = None
    eos: int | None = None
    bos: int | None = None
    pad: int | None = None
    expand: int | None = None
    delete: int | None = None
    stops: tuple[int, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        """Every id that ends a text."""
        return (*(() if self.eos is None else (self.eos,)), *self.stops)

    @property
    def specials(self) -> frozenset[int]:
        """Every id that has a meaning of its own and stands for no text."""
        named = (self.mask, self.bos, self.pad, self.expand, self.delete, *self.ends)
        return frozenset(i for i in named if i is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """How to talk to a model.

    Args:
        sees: attention at inference: "left" causal, "all" bidirectional, "blocks" block-causal, "context-then-canvas"
            a causal context behind which stands one block that sees all of it and all of itself.
        block: tokens a block, where `sees` is "blocks" or "context-then-canvas".
        reads: further block sizes that the same weights were trained to read block-causally (a mixture of block sizes);
            1 is token by token.
        speaks: logits row i is about token i ("here") or about token i + 1 ("next").
        says: log p(x0 | xt) ("clean") or log ratios ("score").
        noise: what ruins a token: a mask ("absorb"), another token ("uniform"), or both ("hybrid").
        clock: whether the network takes a time.
        schedule: how noise grows with that time, a name in `unmask.noise.schedules`.
        sigmas: total noise at time 0 and at time 1 (what is clean at t is exp of its negative); () is the schedule's
            own, which a network with a clock can't do with: noise without end is no number.
        carries: whether it reads what it said about the block the last time (self-conditioning); see `Carrier`.
    """

    sees: Literal["left", "all", "blocks", "context-then-canvas"] = "all"
    block: int | None = None
    reads: tuple[int, ...] = ()
    speaks: Literal["here", "next"] = "here"
    says: Literal["clean", "score"] = "clean"
    noise: Literal["absorb", "uniform", "hybrid"] = "absorb"
    clock: bool = False
    schedule: Literal["log-linear", "linear", "cosine", "geometric"] = "log-linear"
    sigmas: tuple[float, ...] = ()
    carries: bool = False

    @property
    def unit(self) -> int:
        """Positions of a block where none are asked for: the model's own, or the most that it also reads; 0 is none."""
        return self.block or max(self.reads, default=0)
