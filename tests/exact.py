"""Denoisers whose beliefs are known exactly: the yardstick of every test about probabilities.

`ExactDenoiser` holds a joint distribution over V^L and answers with its true conditionals. `RandomConditionals` answers
with arbitrary ones that belong to no joint, which is what a trained network does. Both see what the attention rule lets
them see, so they stand in for bidirectional, block-causal, causal and two-stream networks alike, and both treat their
own token as unseen, as a network does that was only ever asked about masks.

Real tokens are 0 .. V-1, the mask is V. The logit of the mask is higher than all others on purpose: whoever forgets to
take it out of the vocabulary fails.
"""

from abc import ABC, abstractmethod
from itertools import product

import torch
from torch import Tensor

from unmask.base import seeds
from unmask.base.attend import Attend
from unmask.base.vocab import Traits, Vocab
from unmask.noise import clock

UNKNOWN = -1
"""What evidence holds where nothing is visible."""


class TokenCache:
    """What has been read, kept as tokens."""

    def __init__(self, rows: int, length: int) -> None:
        self.tokens = torch.full((rows, length), UNKNOWN)
        self.known = torch.zeros(rows, length, dtype=torch.bool)

    @property
    def held(self) -> Tensor:
        return self.known.int().cumprod(1).sum(1)

    def forget(self, rows=None, start=0) -> None:
        which = slice(None) if rows is None else rows
        self.known[which, start:] = False

    def trim(self, rows, start) -> None:
        self.known[rows] &= torch.arange(self.known.shape[1]) < start[:, None]


class KnownDenoiser(ABC):
    """From what is visible to a belief; a subclass says which belief.

    Args:
        size: V, real tokens.
        length: L, positions.
        traits: how to talk to it.
        eos: one of the real tokens, if the text may end.

    Attributes:
        calls, fed: forwards so far, and slots that were fed in them.
    """

    def __init__(self, size: int, length: int, traits: Traits | None = None, eos: int | None = None) -> None:
        self.vocab = Vocab(size=size + 1, mask=size, eos=eos)
        self.traits = traits or Traits()
        self.size, self.max_length = size, length
        self.calls = self.fed = 0

    @abstractmethod
    def log_prob(self, evidence: Tensor, target: Tensor) -> Tensor:
        """(N, V) float64 log-probabilities of the tokens at `target` (N,), given evidence (N, L)."""

    device = torch.device("cpu")

    def cache(self, rows: int, length: int, spare: int = 0) -> TokenCache:
        return TokenCache(rows, length + spare)

    def read(
        self,
        tokens: Tensor,
        *,
        positions: Tensor,
        attend: Attend,
        t: Tensor | None = None,
        cache: TokenCache | None = None,
        rows: Tensor | None = None,
        keep: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Logits (R, W, V + 1) as features."""
        self.calls, self.fed = self.calls + 1, self.fed + int((positions >= 0).sum())
        here = torch.arange(tokens.shape[1]).expand_as(positions)
        if cache is None:
            queries, keys, held, at, there = here, here, tokens, positions, positions >= 0
        else:
            queries, keys, held, at, there = self._with_cache(
                cache, tokens, positions, positions if slots is None else slots, rows, keep
            )
        seen = attend.allows(queries, keys) & there[:, None] & (held != self.vocab.mask)[:, None]
        evidence = torch.full((*positions.shape, self.max_length), UNKNOWN)
        where = at.clamp(0, self.max_length - 1)[:, None].expand_as(seen)
        evidence.scatter_reduce_(2, where, torch.where(seen, held[:, None], UNKNOWN), "amax")
        target = (positions + (self.traits.speaks == "next")).clamp(0, self.max_length - 1)
        evidence.scatter_(2, target[..., None], UNKNOWN)
        logits = torch.full((*positions.shape, self.vocab.size), 3.0, dtype=torch.float64)
        logits[..., : self.size] = self.log_prob(evidence.flatten(0, 1), target.flatten()).unflatten(0, positions.shape)
        return logits

    def head(self, features: Tensor) -> Tensor:
        return features

    def _with_cache(
        self,
        cache: TokenCache,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        rows: Tensor | None,
        keep: Tensor | None,
    ) -> tuple[Tensor, ...]:
        rows = torch.arange(len(tokens)) if rows is None else rows
        r, w = (slots >= 0).nonzero(as_tuple=True)
        held, there = cache.tokens[rows], cache.known[rows]
        at = torch.arange(held.shape[1]).repeat(len(held), 1)
        at[r, slots[r, w]] = positions[r, w]
        held[r, slots[r, w]], there[r, slots[r, w]] = tokens[r, w], True
        if keep is not None:
            r, w = (keep & (slots >= 0)).nonzero(as_tuple=True)
            cache.tokens[rows[r], slots[r, w]] = tokens[r, w]
            cache.known[rows[r], slots[r, w]] = True
        return slots.clamp(min=0), torch.arange(held.shape[1]).expand_as(held), held, at, there


class ExactDenoiser(KnownDenoiser):
    """The true conditionals of a joint distribution.

    Args:
        joint: probabilities (or weights), one axis of V per position.
        traits, eos: see `KnownDenoiser`.

    Attributes:
        states: (V^L, L) every text.
        log_joint: (V^L,) float64 its log-probability.
    """

    def __init__(self, joint: Tensor, traits: Traits | None = None, eos: int | None = None) -> None:
        super().__init__(joint.shape[0], joint.dim(), traits, eos)
        self.joint = (joint.double() / joint.double().sum()).flatten()
        self.log_joint = self.joint.log()
        self.states = torch.tensor(list(product(range(self.size), repeat=self.max_length)))

    @classmethod
    def random(
        cls,
        size: int = 3,
        length: int = 4,
        seed: int = 0,
        scale: float = 1.5,
        traits: Traits | None = None,
        eos: int | None = None,
    ) -> "ExactDenoiser":
        """A joint of independent log-normal weights; `scale` 0 is the uniform one."""
        draw = torch.Generator().manual_seed(seed)
        joint = torch.exp(scale * torch.randn((size,) * length, generator=draw, dtype=torch.float64))
        return cls(joint, traits, eos)

    def index(self, tokens: Tensor) -> Tensor:
        """(N,) rows of `states` that texts (N, L) are."""
        return (tokens * self.size ** torch.arange(self.max_length - 1, -1, -1)).sum(-1)

    def log_prob(self, evidence: Tensor, target: Tensor) -> Tensor:
        weight = self.joint.expand(len(evidence), -1)
        for i in range(self.max_length):
            known, state = evidence[:, i, None], self.states[:, i]
            weight = weight * ((known == state) | (known == UNKNOWN))
        mass = weight.new_zeros(len(evidence), self.size)
        mass.scatter_add_(1, self.states.T[target], weight)
        total = mass.sum(1, keepdim=True)  # 0: evidence that cannot be; nothing is known then
        return torch.where(total > 0, mass / total.clamp(min=1e-300), 1 / self.size).log()


class RandomConditionals(KnownDenoiser):
    """A belief drawn afresh for every (evidence, position), the same every time it is asked for.

    Args:
        size, length, traits, eos: see `KnownDenoiser`.
        seed: which conditionals.
        scale: how far from uniform.
    """

    def __init__(
        self, size: int = 3, length: int = 5, seed: int = 0, scale: float = 2.0, traits: Traits | None = None
    ) -> None:
        super().__init__(size, length, traits)
        self.seed, self.scale = seed, scale

    def log_prob(self, evidence: Tensor, target: Tensor) -> Tensor:
        keys = seeds.key(self.seed, "conditional", *evidence.unbind(-1), target)
        numbers = seeds.uniform(seeds.key(keys[:, None], "token", torch.arange(self.size)))
        return (self.scale * torch.special.ndtri(numbers)).log_softmax(-1)


class ExactScore(ExactDenoiser):
    """The true score of a joint distribution under absorbing noise: by how much likelier each token is than the mask.

    Args:
        joint, eos: see `ExactDenoiser`.
        traits: with a clock, a schedule and its sigmas.
        factor: what all ratios are multiplied by; 1 is exact, any other one says so in their sum.

    Attributes:
        times: the times that it was asked about, (R,) each.
    """

    def __init__(self, joint: Tensor, traits: Traits, eos: int | None = None, factor: float = 1.0) -> None:
        super().__init__(joint, traits, eos)
        self.factor, self.times = factor, []

    def read(self, tokens: Tensor, *, t: Tensor | None = None, **rest) -> Tensor:
        self.times.append(t)
        logits = super().read(tokens, t=t, **rest)
        ratio = self.factor / clock.sigma(self.traits, t).expm1()  # alpha / (1 - alpha)
        logits[..., : self.size] += ratio.log()[:, None, None]
        return logits
