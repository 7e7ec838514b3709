"""What top-k and top-p keep of a vocabulary: exactly, and without sorting it.

Most distributions are so sharp that a few tokens are all that is kept, and topk finds these. In a flat one the last
token that is kept is looked for by a histogram of the logits: in one bin lies the border, and only what lies in it is
looked at again, and sorted once it is little.

Probabilities are added up as whole numbers, so their sums are the same in any order. All ways of looking therefore
agree to the token with what a sort of the whole vocabulary says (`tests/decode/test_nucleus.py`), and a row is told the
same in any company.

It does not know how tokens are drawn.

Source: Holtzman et al. 2020, nucleus sampling, arXiv:1904.09751; Alabi et al. 2012, "Fast k-selection algorithms for
graphics processing units" (looking for a rank by histograms of values).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

FEW, GROWTH = 64, 8
"""Tokens that are looked for by topk; what is kept is told in arrays of so many, of so many times more, or of all."""

BINS, SORTED = 2048, 512
"""Of a histogram, and tokens of a bin that are sorted rather than counted again."""

UNIT, BITS = 2.0**62, 43.0
"""What a probability of 1 is as a whole number, and nats, rounded up, from it down to a probability of one unit."""


def kept(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """What rows of logits (N, V) float64 keep, some rows at a time; for what is kept see `outside`.

    Returns:
        Which rows (R,), M of their logits (R, M) with all that is not kept at -inf, and the ids of these tokens (R, M),
        -1 where there are no more; None stands for all tokens in order. M depends on the row alone; of equal logits the
        one with the lower id comes first.
    """
    highest, weight, total = _scale(logits)
    rows = torch.arange(len(logits), device=logits.device)
    # a nucleus has no fewer tokens than it would have if all were as probable as the best
    least = torch.minimum(_or(top_p * total, top_p < 1, torch.inf), _or(top_k, top_k > 0, torch.inf))
    some = ((least <= FEW) & total.isfinite())[:, 0].nonzero()[:, 0]
    done = torch.zeros_like(rows, dtype=torch.bool)
    if len(some):
        ranked, ids = _ranked(_of(logits, some), FEW)
        shares = _units((ranked - highest[some]).exp_(), total[some])
        left = ranked.masked_fill(_behind(ranked, shares, top_k[some], top_p[some]), -torch.inf)
        # all is told once the last of these is taken out, and so are all that equal it
        over = (left.isinf() | (ranked > ranked[:, -1:])).all(1) | (ranked.shape[1] == logits.shape[1])
        done[some] = over
        if bool(over.any()):
            yield some[over], left[over], ids[over]
    rest = (~done).nonzero()[:, 0]
    if len(rest):
        wide = _of(logits, rest)
        there = ~_outside(wide, (_of(weight, rest), total[rest]), top_k[rest], top_p[rest])
        for part, told in _told(there):
            ours = rest[part]
            if told is None:
                yield ours, torch.where(_of(there, part), _of(wide, part), -torch.inf), None
            else:
                yield ours, _of(wide, part).gather(1, told.clamp(min=0)).masked_fill(told < 0, -torch.inf), told


def outside(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """(N, V) bool: what top-k or top-p take out of logits (N, V) float64; both look at the distribution as it came.

    Tokens are ranked by falling logits, equal ones by rising id. Top-p keeps those before which less than `top_p` of
    the probability lies, each probability rounded down to whole units; top-k keeps the k-th and what is as probable.

    Args:
        logits: of rows that are no numbers nothing is taken out.
        top_k: (N, 1) float64; 0 keeps all.
        top_p: (N, 1) float64, above 0; 1 keeps all.
    """
    return _outside(logits, _scale(logits)[1:], top_k, top_p)


def _outside(logits: Tensor, scale: tuple[Tensor, Tensor], top_k: Tensor, top_p: Tensor) -> Tensor:
    (weight, total), out = scale, torch.zeros_like(logits, dtype=torch.bool)
    numbers = total.isfinite()
    some = (numbers & (top_p < 1))[:, 0].nonzero()[:, 0]
    if len(some):
        x = _of(logits, some)
        floor = x.amax(1, keepdim=True) + total[some].log() - BITS
        value, last = _last(x, _units(_of(weight, some), total[some]), _bar(top_p[some]), floor)
        ids = torch.arange(x.shape[1], device=x.device)
        out[some] = (x < value) | ((x == value) & (ids > last))
    some = (numbers & (top_k > 0))[:, 0].nonzero()[:, 0]
    if len(some):
        x = _of(logits, some)
        there = x > -torch.inf
        floor = torch.where(there, x, torch.inf).amin(1, keepdim=True)
        out[some] |= x < _last(x, there.long(), top_k[some].long(), floor)[0]
    return out


def _behind(ranked: Tensor, units: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """(N, M) bool: what is taken out of the M best logits, in falling order, with their probabilities in units."""
    beyond = (units.cumsum(1) - units >= _bar(top_p)) & (top_p < 1)
    kth = ranked.gather(1, (top_k.long() - 1).clamp(0, ranked.shape[1] - 1))
    return beyond | ((ranked < kth) & (top_k > 0))


def _last(x: Tensor, weight: Tensor, bar: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """The last token of each row before which the weights sum to less than `bar`, by falling value and rising id.

    Args:
        x: values (N, M).
        weight: (N, M) int64, 0 or more; some token of each row has one.
        bar: (N, 1) int64, at least 1.
        floor: (N, 1), finite; what lies below it weighs nothing.
    Returns:
        Its value and its id, (N, 1) each; -inf and M where all weights together are less.
    """
    every = weight.sum(1, keepdim=True)
    short, asked, size = every < bar, torch.minimum(bar, every), x.shape[1]
    before, ids = torch.zeros_like(bar), None
    while x.shape[1] > SORTED:
        bins = _bins(x, floor)
        upto = x.new_zeros(len(x), BINS + 1, dtype=torch.int64).scatter_add_(1, bins, weight).cumsum_(1).add_(before)
        at = (upto < asked).sum(1, keepdim=True)
        inside = _places(bins == at)
        if inside.shape[1] == x.shape[1]:  # they are all alike
            break
        before = upto.gather(1, (at - 1).clamp(min=0)).where(at > 0, before)
        here = torch.where(inside < 0, inside[:, :1], inside)  # rows are filled up with one of theirs, without a weight
        x, weight = x.gather(1, here), weight.gather(1, here).masked_fill_(inside < 0, 0)
        ids = here if ids is None else ids.gather(1, here)
    ranked, order = x.sort(dim=1, descending=True, stable=True)
    at = (weight.gather(1, order).cumsum_(1).add_(before) < asked).sum(1, keepdim=True)
    value, last = ranked.gather(1, at), order.gather(1, at)
    last = last if ids is None else ids.gather(1, last)
    return value.masked_fill(short, -torch.inf), last.masked_fill(short, size)


def _bins(x: Tensor, floor: Tensor) -> Tensor:
    """(N, M) the bin of each value: the higher, the earlier; those below the floor are in the last one."""
    top, low = x.amax(1, keepdim=True), torch.maximum(x.amin(1, keepdim=True), floor)
    finest = (BINS - 1) / (top - low).clamp(min=1e-290)  # where all are alike the first bin has them
    return (top - x).mul_(finest).clamp_(max=BINS).long()


def _places(mask: Tensor, width: int = 0) -> Tensor:
    """(N, M) where a mask (N, V) is set, in rising order; -1 behind the last of a row, M as wide as the widest."""
    count = mask.sum(1)
    r, i = mask.nonzero(as_tuple=True)
    found = i.new_full((len(mask), max(width, int(count.max()))), -1)
    found[r, torch.arange(len(r), device=r.device) - (count.cumsum(0) - count)[r]] = i
    return found


def _told(there: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows by how many tokens (N, V) bool they keep, and these tokens; None where they are too many to be listed."""
    sizes = [FEW]
    while 2 * GROWTH * sizes[-1] < there.shape[1]:
        sizes.append(GROWTH * sizes[-1])
    which = torch.bucketize(there.sum(1), torch.tensor(sizes, device=there.device))
    for kind in which.unique().tolist():
        rows = (which == kind).nonzero()[:, 0]
        yield rows, _places(_of(there, rows), sizes[kind]) if kind < len(sizes) else None


def _ranked(logits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The `size` best logits of each row (N, V) and their tokens, equal ones by rising id."""
    if size >= logits.shape[1]:
        every = logits.sort(dim=-1, descending=True, stable=True)
        return every.values, every.indices
    best = logits.topk(size, dim=-1)
    tied = (best.values[:, 1:] == best.values[:, :-1]).any(1).nonzero()[:, 0]  # topk leaves these in any order
    if len(tied):
        ids = best.indices[tied].sort(dim=-1).values
        order = logits[tied[:, None], ids].argsort(dim=-1, descending=True, stable=True)
        best.indices[tied] = ids.gather(1, order)
    return best.values, best.indices


def first(logits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The `size` best logits of each row (N, V), falling, and their places; of equal ones those that come first."""
    if size >= logits.shape[1]:
        return _ranked(logits, size)
    best, at = _ranked(logits, size + 1)
    tied = ((best[:, -1] == best[:, -2]) & best[:, -1].isfinite()).nonzero()[:, 0]
    if len(tied):
        at[tied] = logits[tied].argsort(dim=-1, descending=True, stable=True)[:, : size + 1]
    return best[:, :size], at[:, :size]


def _scale(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The highest logits (N, 1), how probable each token is in comparison (N, V), and all of them together (N, 1)."""
    highest = logits.amax(1, keepdim=True)
    weight = (logits - highest).exp_()
    return highest, weight, row_sum(weight)[:, None]


def _units(weight: Tensor, total: Tensor) -> Tensor:
    """Probabilities as whole numbers, int64."""
    return (weight / total).mul_(UNIT).long()


def _bar(top_p: Tensor) -> Tensor:
    return (top_p * UNIT).ceil().long()


def _of(x: Tensor, rows: Tensor) -> Tensor:
    """Some of the rows of a tensor, each at most once and in order; itself where these are all."""
    return x if len(rows) == len(x) else x[rows]


def _or(value: Tensor, where: Tensor, other: float) -> Tensor:
    return value.masked_fill(~where, other)


def row_sum(rows: Tensor) -> Tensor:
    """(N,) sums of (N, M), whatever N: threads would share a long row that is alone, and add it up in another order."""
    return rows.expand(2, -1).sum(-1)[:1] if len(rows) == 1 else rows.sum(-1)
