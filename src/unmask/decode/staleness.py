"""How stale is what an approximate window keeps? Counted in forwards, and judged by what the first layer makes of it.

Nobody knows how far kept keys and values are off without a full forward (`unmask.decode.audit` makes one). Those of the
first layer follow from a position's own token, which is still the same. What this layer hands on is the first thing
that the rest of the text has a part in, and keys and values of all other layers are made of it. So it is computed anew
for the whole row before each forward, and how far it has turned away at kept positions from what it was at the last
full forward stands for the drift of everything behind it: 1 - cosine, 0 where nothing has moved, the mean over
positions that are kept, of both texts where a guided row travels twice. It costs 1 / depth of a full forward each time.

The rule is ours. On the bundled model its ranks go with those of measured drift far better than age does, or what
offers say, and deeper layers tell no more (`benchmarks/caches.py`). The nearest relative skips layers of image
networks: the first block cache of ParaAttention, which goes by how much the first block adds. The published rules for
text look elsewhere: at attention on the most attended token (Elastic-Cache, arXiv:2510.14973), at the values of what is
fed (dLLM-Cache, arXiv:2506.06295), or at a timetable (dKV-Cache, arXiv:2505.15781).

It does not know when a window renews what it keeps.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unmask.base.attend import NOBODY
from unmask.base.canvas import Canvas
from unmask.base.denoiser import Denoiser, Layered
from unmask.base.errors import Unsupported
from unmask.base.step import Plan, State
from unmask.decode.audit import MOST, grouped
from unmask.decode.decoder import Decoder
from unmask.decode.windows.look import present, span
from unmask.nn.cache import rounded

_UNITS = 1 << 40
"""Turns are summed up as whole numbers of these parts, so that it makes no difference what else is in a batch."""


def check(decoder: Decoder, model: Denoiser) -> None:
    """Raise Unsupported where a decoder watches what it keeps, and the model's first layer can't be asked alone."""
    if decoder.watches and not callable(getattr(model, "first_layer", None)):
        raise Unsupported(
            f"drift goes by what the first layer says, and {type(model).__name__} can't be asked for that alone; "
            "use refresh, which counts forwards, or the backend 'torch'"
        )


class Staleness:
    """Keeps `age` and `moved` of a canvas's rows: how many forwards, and how far, they are from their last full one.

    Args:
        most: positions that are looked at together, unless a row alone has more.

    Attributes:
        positions: that the first layer was asked about, summed up.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most, self.positions = most, 0
        self._watched: dict[
            int, tuple[bool, ...]
        ] = {}  # rows that are looked at: as they are, and (True) bare of their prompt
        self._now: dict[tuple[int, bool], Tensor] = {}  # (W, D) of each of these texts
        self._then: dict[tuple[int, bool], Tensor] = {}  # the same, at the last full forward

    def watches(self, row: int) -> bool:
        """Whether a row is looked at."""
        return row in self._watched

    def join(self, row: int, decoder: Decoder) -> None:
        """A row comes in the place of another."""
        self.leave(row)
        if decoder.watches:
            self._watched[row] = (False, True) if decoder.guidance else (False,)

    def leave(self, row: int) -> None:
        """A row is looked at no more."""
        for bare in self._watched.pop(row, ()):
            self._now.pop((row, bare), None)
            self._then.pop((row, bare), None)

    def look(self, model: Denoiser, canvas: Canvas, plan: Plan) -> None:
        """See how far watched rows have moved, before a forward.

        Args:
            model: the network, without guidance; `check` has let it pass.
            canvas: the text.
            plan: of the forward, as it would be if nothing had moved any further.
        """
        texts = [(i, bare) for i, row in enumerate(plan.rows.tolist()) for bare in self._watched.get(row, ())]
        there = present(canvas, plan.rows).tolist()
        widths = [there[i] for i, _ in texts]
        total = torch.zeros(len(there), dtype=torch.int64, device=plan.rows.device)
        count = torch.zeros_like(total)
        for group in grouped(range(len(texts)), widths, self.most):
            at, bare = torch.tensor([texts[k] for k in group], device=plan.rows.device).T
            p, turned = self._turned(model, canvas, plan.take(at), bare.bool())
            total.index_add_(0, at[p], turned)
            count.index_add_(0, at[p], torch.ones_like(p))
            self.positions += sum(widths[k] for k in group)
        mean = total.double() / _UNITS / count.clamp(min=1)
        canvas.moved[plan.rows] = torch.where(count > 0, mean, canvas.moved[plan.rows])

    def _turned(self, model: Denoiser, canvas: Canvas, plan: Plan, bare: Tensor) -> tuple[Tensor, Tensor]:
        """Whose each kept position (N,) of some texts is, and by how many `_UNITS` it has turned; full ones have none.

        What the texts are now is noted down.
        """
        now = _first(model, canvas, plan, bare)
        keys = list(zip(plan.rows.tolist(), bare.tolist(), strict=True))
        then = pad_sequence([self._then.get(key, one) for key, one in zip(keys, now, strict=True)], batch_first=True)
        self._now |= dict(zip(keys, now, strict=True))
        p, w = _kept(canvas, plan).nonzero(as_tuple=True)
        cosine = F.cosine_similarity(now[p, w].double(), then[p, w].double(), dim=-1)
        return p, ((1 - cosine) * _UNITS).round().long()

    def note(self, canvas: Canvas, plan: Plan) -> None:
        """A forward has gone well, and nothing of it is written down yet."""
        there = present(canvas, plan.rows)
        full = (plan.positions >= 0).sum(1) >= there
        canvas.age[plan.rows] = torch.where(full, 1, canvas.age[plan.rows] + 1)
        canvas.moved[plan.rows[full]] = 0.0
        for row, width in zip(plan.rows[full].tolist(), there[full].tolist(), strict=True):
            for key in ((row, bare) for bare in self._watched.get(row, ())):
                self._then[key] = self._now[key][:width].clone()


def _first(model: Denoiser, canvas: Canvas, plan: Plan, bare: Tensor) -> Tensor:
    """(P, W, D) what the first layer makes of rows (P,) as they stand, some of them without their prompt (P,) bool.

    Fillers stand behind the widest row, so that sums run as in any company (see `unmask.decode.propose.read`).
    """
    there = present(canvas, plan.rows)
    positions = span(torch.zeros_like(there), there)
    width = positions.shape[1]
    more = (0, rounded(width) - width)
    tokens, given = canvas.tokens[plan.rows, :width], canvas.state[plan.rows, :width] == State.FIXED
    if bool(bare.any()):
        assert model.vocab.mask is not None
        tokens = tokens.masked_fill(given & bare[:, None], model.vocab.mask)
    positions, tokens = F.pad(positions, more, value=NOBODY), F.pad(tokens, more)
    return cast(Layered, model).first_layer(tokens, positions=positions, attend=plan.attend)


def _kept(canvas: Canvas, plan: Plan) -> Tensor:
    """(P, L) bool: positions of rows that are there and that this plan does not feed."""
    places = torch.arange(canvas.tokens.shape[1], device=plan.rows.device)
    start = plan.positions[:, :1]
    fed = (places >= start) & (places < start + (plan.positions >= 0).sum(1, keepdim=True))
    return (places < present(canvas, plan.rows)[:, None]) & ~fed
