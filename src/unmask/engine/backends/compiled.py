"""A `Denoiser` whose network runs elsewhere: rows, masks and caches here, tensors there.

It does not know which runtime that is.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.base.attend import Attend
from unmask.base.denoiser import Cache
from unmask.base.errors import TooLong
from unmask.models.backbone import Transformer
from unmask.nn.cache import LANES, KVCache, Visit
from unmask.nn.pack import Pack, Part

Run = Callable[..., tuple[Tensor, ...]]
"""Inputs of a graph to its outputs; see `unmask.engine.backends.graph`."""


class Compiled:
    """A `Denoiser` around two graphs.

    Args:
        model: whose graphs these are; its weights are not kept.
        body, head: the graphs of features and of logits.
        least: positions that a forward has at least; fillers make up for those that lack.
    """

    def __init__(self, model: Transformer, body: Run, head: Run, *, least: int = 1) -> None:
        self.vocab, self.traits, self.max_length = model.vocab, model.traits, model.max_length
        self.shape, self.defaults = model.shape, model.defaults
        self._body, self._head, self._least = body, head, least

    @property
    def device(self) -> torch.device:
        """Where its inputs have to be: the CPU."""
        return torch.device("cpu")

    def cache(self, rows: int, length: int, spare: int = 0) -> KVCache:
        """An empty cache for `rows` rows of `length` positions and `spare` slots; TooLong beyond `max_length`."""
        if length > self.max_length:
            raise TooLong(f"this model holds at most {self.max_length} positions, got {length}")
        s = self.shape
        return KVCache(s.depth, rows, length + spare, s.kv_heads, s.head_dim, like=torch.empty(0))

    @torch.no_grad()
    def read(
        self,
        tokens: Tensor,
        *,
        positions: Tensor,
        attend: Attend,
        t: Tensor | None = None,
        cache: Cache | None = None,
        rows: Tensor | None = None,
        keep: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Features (R, W, D) of every position fed, zeros at fillers; see `Denoiser.read`. No gradients.

        `t` is for networks with a clock, which these are not.
        """
        if cache is None:
            here = torch.arange(positions.shape[1]).expand_as(positions)
            return self._read(tokens, positions, here, attend, None)
        assert isinstance(cache, KVCache)
        slots = positions if slots is None else slots
        with cache.visit(slots, rows, keep) as visit:
            return self._read(tokens, positions, slots, attend, visit)

    @torch.no_grad()
    def head(self, features: Tensor) -> Tensor:
        """Logits (..., V) of features (..., D)."""
        return self._head(features.reshape(-1, features.shape[-1]))[0].view(*features.shape[:-1], -1)

    def _read(self, tokens: Tensor, positions: Tensor, stand: Tensor, attend: Attend, visit: Visit | None) -> Tensor:
        """Rows of about one width run together; what is fresh is written when all have run."""
        pack, s = Pack.of(positions), self.shape
        flat_tokens, flat_positions, flat_slots = pack.flat(tokens), pack.flat(positions), pack.flat(stand)
        count = len(flat_tokens)
        features = torch.empty(count, s.width)
        fresh = [torch.empty(s.depth, count, s.kv_heads, s.head_dim) for _ in range(2)]
        for part in pack.parts:
            part = replace(part, width=max(part.width, -(-self._least // len(part.rows))))
            places = part.spread(flat_positions + 1) - 1
            fed = places >= 0
            slots = part.spread(flat_slots + 1) - 1
            known = fed if visit is None else visit.there[part.rows]
            reach = int(known.any(0).nonzero()[-1]) + 1
            rows, size = len(places), -(-(reach + 1) // LANES) * LANES  # with a spare slot that is nobody's
            seen = attend.rows(part.rows).allows(slots.clamp(min=0), torch.arange(reach).expand(rows, reach))
            mask = F.pad(seen & known[:, None, :reach], (0, size - reach))
            at = slots.where(fed, size - 1) + size * torch.arange(rows)[:, None]  # a filler's keys go to the spare one
            past = _past(visit, part, (s.depth, rows, size, s.kv_heads, s.head_dim))
            out, *keys = self._body(part.spread(flat_tokens), places.clamp(min=0), at.flatten(), mask, *past)
            features[part.at] = out[part.place]
            for store, new in zip(fresh, keys, strict=True):
                store[:, part.at] = new[:, part.place[0], part.place[1]]
        if visit is not None:
            _write(visit, fresh)
        return pack.back(features)


def _past(visit: Visit | None, part: Part, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Keys and values (layers, P, T, K, d) of a part's rows, of all layers at once; zeros behind the last slot."""
    if visit is None:
        return torch.zeros(shape), torch.zeros(shape)
    cache, size = visit.cache, min(shape[2], visit.cache.known.shape[1])
    places = torch.arange(size).repeat(shape[1])
    slots = cache.place(visit.rows[part.rows].repeat_interleave(size), places)
    found = (x.flatten(1, 2).index_select(1, slots).view(*shape[:2], size, *shape[3:]) for x in (cache.k, cache.v))
    k, v = (x if size == shape[2] else F.pad(x, (0, 0, 0, 0, 0, shape[2] - size)) for x in found)
    return k, v


def _write(visit: Visit, fresh: list[Tensor]) -> None:
    """Put fresh keys and values (layers, N, K, d) of the fed positions into their slots, of all layers at once."""
    for store, new in zip((visit.cache.k, visit.cache.v), fresh, strict=True):
        store.view(store.shape[0], -1, *store.shape[3:]).index_copy_(1, visit.slots, new)
