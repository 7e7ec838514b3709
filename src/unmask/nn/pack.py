"""Rows of unlike length in one forward: a flat row of positions for all maps, rectangles of like rows for attention.

A row that reads a prompt may be a hundred times as wide as one that writes a token. Maps see only positions that are
fed; attention sees rows of about one width together.

It does not know caches beyond `Visit`, nor who may see whom.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from unmask.nn.attention import Look, Sight
from unmask.nn.cache import Visit, rounded

Mix = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries, fresh keys, fresh values) to values, all as the maps give and take them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows of about one width.

    Args:
        rows: (P,) which rows of the batch.
        at: (M,) which of the flat positions are theirs.
        place: (p, w), (M,) each: where those stand in the rectangle.
        width: of the rectangle.
        size: of that of keys and values where nothing else is seen: wider, so that sums are cut alike.
    """

    rows: Tensor
    at: Tensor
    place: tuple[Tensor, Tensor]
    width: int
    size: int

    def spread(self, flat: Tensor, width: int | None = None) -> Tensor:
        """(N, ...) to the rectangle (P, width, ...), zeros where nothing is fed."""
        rectangle = flat.new_zeros(len(self.rows), width or self.width, *flat.shape[1:])
        rectangle[self.place] = flat[self.at]
        return rectangle


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Positions (R, W) without their fillers.

    Args:
        shape: (R, W).
        fed: (r, w), (N,) each.
        parts: rows by width.
    """

    shape: tuple[int, int]
    fed: tuple[Tensor, Tensor]
    parts: list[Part]

    @classmethod
    def of(cls, positions: Tensor, *, alone: bool = False) -> Self:
        """For positions (R, W), -1 where nothing is fed.

        With `alone` the keys are what is fed and nothing else, so their number is `rounded` where there is room.
        """
        there = positions >= 0
        r, w = there.nonzero(as_tuple=True)
        places = torch.arange(1, positions.shape[1] + 1, device=positions.device)
        reach = (there * places).amax(1)
        kinds = reach.clamp(min=1).double().log2().ceil().long()
        parts = []
        for kind in kinds[reach > 0].unique().tolist():
            rows = ((kinds == kind) & (reach > 0)).nonzero()[:, 0]
            index = torch.full_like(reach, -1).index_copy(0, rows, torch.arange(len(rows), device=rows.device))
            at = (index[r] >= 0).nonzero()[:, 0]
            width = int(reach[rows].max())
            size = min(rounded(width), positions.shape[1]) if alone else width
            parts.append(Part(rows=rows, at=at, place=(index[r[at]], w[at]), width=width, size=size))
        return cls(shape=(positions.shape[0], positions.shape[1]), fed=(r, w), parts=parts)

    def flat(self, x: Tensor) -> Tensor:
        """(R, W, ...) to (N, ...)."""
        return x[self.fed]

    def back(self, x: Tensor) -> Tensor:
        """(N, ...) to (R, W, ...), zeros where nothing is fed."""
        if len(x) == self.shape[0] * self.shape[1]:
            return x.view(*self.shape, *x.shape[1:])
        out = x.new_zeros(*self.shape, *x.shape[1:])
        out[self.fed] = x
        return out

    def mix(self, sight: Sight, visit: Visit | None, backend: Callable[[Sight], Look]) -> Mix:
        """Attention of flat positions, part by part."""
        looks = []
        for part in self.parts:
            view = _narrowed(sight, part)
            shelf = None if visit is None else visit.shelf(part.rows, view.size)
            looks.append((part, view.size, shelf, backend(view)))

        def mixed(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = torch.empty_like(q)
            if visit is not None:
                visit.write(layer, k, v)
            for part, size, shelf, look in looks:
                keys = (part.spread(k, size), part.spread(v, size)) if shelf is None else shelf(layer)
                out[part.at] = look(part.spread(q), *keys)[part.place]
            return out

        return mixed


def whole(sight: Sight, visit: Visit | None, backend: Callable[[Sight], Look]) -> Mix:
    """Attention of a batch (R, W) as it stands."""
    look = backend(sight)

    def mixed(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return look(q, k, v) if visit is None else look(q, *visit.swap(layer, k, v))

    return mixed


def _narrowed(sight: Sight, part: Part) -> Sight:
    """What the rows of a part see: no further than the last slot that any of them has."""
    there = None if sight.there is None else sight.there[part.rows]
    if sight.aligned:
        size = part.size
    else:
        assert there is not None
        size = rounded(int(there.any(0).nonzero()[-1]) + 1)
    return replace(
        sight,
        attend=sight.attend.rows(part.rows),
        queries=sight.queries[part.rows, : part.width],
        size=size,
        there=None if there is None else there[:, :size],
    )
