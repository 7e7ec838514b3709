"""What the ids of a model mean, and how that model is to be talked to.

Facts that others scatter as flags (logits shifted by one, block-causal, takes a time) are data here, and each is
honoured in one place.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocab:
    """Ids with a meaning. `mask` is None where there is no [MASK] (AR models, uniform noise)."""

    size: int
    mask: int | None = None
    eos: int | None = None
    bos: int | None = None
    pad: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """How to talk to a model.

    Args:
        sees: attention at inference: "left" causal, "all" bidirectional, "blocks" block-causal.
        block: tokens a block, where `sees` is "blocks".
        reads: further block sizes that the same weights were trained to read block-causally (a mixture of block sizes);
            1 is token by token.
        speaks: logits row i is about token i ("here") or about token i + 1 ("next").
        says: log p(x0 | xt) ("clean") or log ratios ("score").
        noise: what ruins a token: a mask ("absorb"), another token ("uniform"), or both ("hybrid").
        clock: whether the network takes a time.
    """

    sees: Literal["left", "all", "blocks"] = "all"
    block: int | None = None
    reads: tuple[int, ...] = ()
    speaks: Literal["here", "next"] = "here"
    says: Literal["clean", "score"] = "clean"
    noise: Literal["absorb", "uniform", "hybrid"] = "absorb"
    clock: bool = False
