"""A `Denoiser` whose network runs elsewhere: rows, masks and caches here, tensors there.

It does not know which runtime that is.
"""

from collections.abc import Callable, Iterator
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
Fit = Callable[[int, int, int], tuple[int, int, int]]
"""(rows, width, slots) that are needed to those that a graph is run with; rows may be fewer, and then it runs again."""


def loose(rows: int, width: int, slots: int, *, least: int = 1) -> tuple[int, int, int]:
    """For graphs of any size: slots in whole lanes, and `least` positions at least (fillers make up for the rest)."""
    return rows, max(width, -(-least // rows)), -(-slots // LANES) * LANES


class Compiled:
    """A `Denoiser` around two graphs.

    Args:
        model: whose graphs these are; its weights are not kept.
        body, head: the graphs of features and of logits.
        fit: which sizes graphs run with.

    Attributes:
        device: where its inputs have to be, and where the graphs run.
    """

    def __init__(self, model: Transformer, body: Run, head: Run, *, fit: Fit = loose) -> None:
        self.vocab, self.traits, self.max_length = model.vocab, model.traits, model.max_length
        self.shape, self.defaults, self.device = model.shape, model.defaults, model.device
        self._body, self._head, self._fit = body, head, fit
        self._like = model.embed_tokens.weight.new_empty(0)
        self._blank = self._like.new_zeros(self.shape.depth, 1, self.shape.kv_heads, self.shape.head_dim)

    def cache(self, rows: int, length: int, spare: int = 0) -> KVCache:
        """An empty cache for `rows` rows of `length` positions and `spare` slots; TooLong beyond `max_length`."""
        if length > self.max_length:
            raise TooLong(f"this model holds at most {self.max_length} positions, got {length}")
        s = self.shape
        return KVCache(s.depth, rows, length + spare, s.kv_heads, s.head_dim, like=self._like)

    @torch.inference_mode()
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
            here = torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
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
        found: list[tuple[Tensor, ...]] = []
        for part, known, reach in self._parts(pack, flat_positions, visit):
            rows, width, size = self._fit(len(part.rows), part.width, reach + 1)  # with a slot that is nobody's
            narrow, part = part, replace(part, width=width)
            places = part.spread(flat_positions + 1) - 1
            fed, device = places >= 0, places.device
            slots = part.spread(flat_slots + 1) - 1
            keys = torch.arange(reach, device=device).expand(len(places), reach)
            seen = attend.rows(part.rows).allows(slots.clamp(min=0), keys) & known[:, None, :reach]
            more = rows - len(places)  # rows that are nobody's see nothing, and all of theirs is filler
            stores = (self._blank, self._blank) if visit is None else (visit.cache.k, visit.cache.v)
            out, *made = self._body(
                F.pad(part.spread(flat_tokens), (0, 0, 0, more)),
                F.pad(places.clamp(min=0), (0, 0, 0, more)),
                F.pad(slots.where(fed, size - 1), (0, 0, 0, more), value=size - 1),
                F.pad(seen, (0, size - reach, 0, 0, 0, more)),
                *(store.view(s.depth, -1, s.kv_heads, s.head_dim) for store in stores),
                F.pad(_places(visit, part, size, self.device), (0, 0, 0, more)),
            )
            found.append((part.at, _fed(out, narrow, 0), *(_fed(new, narrow, 1) for new in made)))
        _, features, *fresh = found[0]
        if len(found) > 1:
            order = torch.cat([at for at, *_ in found]).argsort()
            features, *fresh = (
                torch.cat([x[i] for x in found], axis).index_select(axis, order) for i, axis in ((1, 0), (2, 1), (3, 1))
            )
        if visit is not None:
            _write(visit, fresh)
        return pack.back(features)

    def _parts(self, pack: Pack, positions: Tensor, visit: Visit | None) -> Iterator[tuple[Part, Tensor, int]]:
        """Parts that a graph has rows for, which slots of theirs hold something, and slots up to the last of these."""
        for part in pack.parts:
            known = part.spread(positions + 1) > 0 if visit is None else visit.there[part.rows]
            reach = int(known.any(0).nonzero()[-1]) + 1
            most = self._fit(len(part.rows), part.width, reach + 1)[0]
            for start in range(0, len(part.rows), most):
                yield _slice(part, start, start + most), known[start : start + most], reach


def _slice(part: Part, start: int, stop: int) -> Part:
    """Some of a part's rows."""
    if start == 0 and stop >= len(part.rows):
        return part
    p, w = part.place
    inside = (p >= start) & (p < stop)
    return replace(part, rows=part.rows[start:stop], at=part.at[inside], place=(p[inside] - start, w[inside]))


def _fed(x: Tensor, part: Part, axis: int) -> Tensor:
    """Of a graph's rows and positions, two axes from `axis` on, those that are fed, as one axis."""
    rows, width = len(part.rows), part.width
    if len(part.at) == rows * width:
        return x.narrow(axis, 0, rows).narrow(axis + 1, 0, width).flatten(axis, axis + 1)
    p, w = part.place
    return x.flatten(axis, axis + 1).index_select(axis, p * x.shape[axis + 1] + w)


def _places(visit: Visit | None, part: Part, size: int, device: torch.device) -> Tensor:
    """Where in the stores of a forward the first slots (P, size) of a part's rows lie; behind the last, any will do."""
    rows = len(part.rows)
    if visit is None:
        return torch.zeros(rows, size, dtype=torch.int64, device=device)
    slots = torch.arange(size, device=device).clamp(max=visit.cache.known.shape[1] - 1)
    return visit.cache.place(visit.rows[part.rows].repeat_interleave(size), slots.repeat(rows)).view(rows, size)


def _write(visit: Visit, fresh: list[Tensor]) -> None:
    """Put fresh keys and values (layers, N, K, d) of the fed positions into their slots, of all layers at once."""
    for store, new in zip((visit.cache.k, visit.cache.v), fresh, strict=True):
        store.view(store.shape[0], -1, *store.shape[3:]).index_copy_(1, visit.slots, new)
