"""How stale is what an approximate window keeps? Counted in forwards, and judged by what the network offers.

Nobody knows how far kept keys and values are off without a full forward (`unmask.decode.audit` makes one). What costs
nothing is what the forwards over them say: an offer that is the same as at the last full forward has learnt nothing
from what was written since, and one that has changed was told something that what is kept was not. So an offer's
distance from itself at the last full forward stands for the drift. It is a guess of ours, and on the bundled model not
a good one: step by step its ranks do not rise with those of measured drift, and at equal cost a timetable leaves less
of that (`benchmarks/caches.py`). What the first layer makes of kept positions, computed anew, goes with drift far
better (rank correlation 0.6 to 0.9, there too), but costs a layer over all positions, which `Denoiser` does not offer.
Keys and values of the first layer itself say nothing: they follow from a position's own token, and what is kept is of
tokens that stay. The published rules look elsewhere: at attention on the most attended token (Elastic-Cache,
arXiv:2510.14973), at the values of what is fed (dLLM-Cache, arXiv:2506.06295), or at a timetable (dKV-Cache,
arXiv:2505.15781).

It does not know when a window renews what it keeps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.base.canvas import Canvas
from unmask.base.step import Plan, Proposal
from unmask.decode.windows.look import present

_NOTHING = -1


class Staleness:
    """What was offered at the last full forward of each row, and what became of it.

    Args:
        rows: of the canvas, whose `age` and `moved` it keeps.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self._best = torch.full((rows, 1), _NOTHING, device=device)  # (B, L), as (B, L) each of the next two
        self._top = torch.zeros(rows, 1, dtype=torch.float64, device=device)
        self._margin = torch.zeros_like(self._top)

    def note(self, canvas: Canvas, plan: Plan, offer: Proposal) -> None:
        """Look at the offers of a forward, before they are written down."""
        assert offer.margin is not None
        if (more := canvas.tokens.shape[1] - self._best.shape[1]) > 0:
            self._best = F.pad(self._best, (0, more), value=_NOTHING)
            self._top, self._margin = F.pad(self._top, (0, more)), F.pad(self._margin, (0, more))
        rows, full = plan.rows, (plan.positions >= 0).sum(1) >= present(canvas, plan.rows)
        r, i = offer.is_open.nonzero(as_tuple=True)
        here = rows[r], plan.targets[r, i]
        best, top, margin = offer.best[r, i], offer.top[r, i].exp(), offer.margin[r, i]
        far = distance((self._best[here], self._top[here], self._margin[here]), (best, top, margin))
        far = far.masked_fill((self._best[here] == _NOTHING) | full[r], 0.0)
        canvas.moved[rows] = torch.zeros_like(canvas.moved[rows]).scatter_reduce_(0, r, far, "amax")
        canvas.age[rows] = torch.where(full, 1, canvas.age[rows] + 1)
        self._best[rows[full]] = _NOTHING
        new = full[r].nonzero()[:, 0]
        here = here[0][new], here[1][new]
        self._best[here], self._top[here], self._margin[here] = best[new], top[new], margin[new]


def distance(one: tuple[Tensor, Tensor, Tensor], other: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """(N,) the least total variation between two distributions of which little is known.

    Where both hold the same token for the best it is at least the change of that token's probability. Where they don't,
    one token lost to the other what it was ahead by, and the other took the lead: together the two margins, and half of
    the sum of all changes is the total variation.

    Args:
        one, other: the best token (N,), its probability, and by how much it is ahead of the second best.
    """
    (best, top, margin), (other_best, other_top, other_margin) = one, other
    return torch.where(best == other_best, (top - other_top).abs(), (margin + other_margin) / 2)
