"""How far off are forwards over what is kept? The same step again without a cache, for measuring only.

Every so many forwards over kept keys and values, the offers of a row are computed by a full forward as well, and the
two distributions at every target that was asked about are compared. What is written follows from the first; the second
changes nothing, whatever it says. A forward that is full anyway has nothing to measure and does not count.

Where keys and values are exact there is nothing but rounding to be found, which is how this file is tested.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from unmask.base.denoiser import Cache, Denoiser
from unmask.base.step import Plan, Proposal
from unmask.decode.control import Control
from unmask.decode.heard import Heard
from unmask.decode.propose import ALL_READS, Sampling, propose, read, said, temper

MOST = 2048
"""Positions that one forward of an audit feeds, unless a row alone has more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One step of one row, audited. The distributions are those that tokens are taken from, before top-k and top-p.

    Args:
        turn: steps that the row had taken before.
        targets: offers that were compared.
        mean_tv, max_tv: total variation of an offer over what is kept from that of a full forward.
        mean_kl: nats, from the full forward's distribution to the other.
        flips: offers whose most probable token was another one.
    """

    turn: int
    targets: int
    mean_tv: float
    max_tv: float
    mean_kl: float
    flips: int


@dataclass(slots=True)
class Drift:
    """What audits of one row have found.

    Attributes:
        looks: one per audited step.
        passed: forwards over what is kept since the last of them.
    """

    every: int
    looks: list[Look] = field(default_factory=list)
    passed: int = 0

    @property
    def targets(self) -> int:
        """Offers that were compared."""
        return sum(look.targets for look in self.looks)

    @property
    def flips(self) -> int:
        """Offers whose most probable token was another one."""
        return sum(look.flips for look in self.looks)

    @property
    def mean_tv(self) -> float:
        """Total variation, mean over all offers that were compared."""
        return self._mean("mean_tv")

    @property
    def max_tv(self) -> float:
        """The greatest of them."""
        return max((look.max_tv for look in self.looks), default=0.0)

    @property
    def mean_kl(self) -> float:
        """Nats, mean over all offers that were compared."""
        return self._mean("mean_kl")

    def as_dict(self) -> dict[str, Any]:
        """For reports."""
        names = ("targets", "flips", "mean_tv", "max_tv", "mean_kl")
        told: dict[str, Any] = {"steps": len(self.looks), **{name: getattr(self, name) for name in names}}
        return {**told, "looks": [asdict(look) for look in self.looks]}

    def _mean(self, name: str) -> float:
        total: float = sum(getattr(look, name) * look.targets for look in self.looks)
        return total / max(1, self.targets)


class Auditor:
    """Looks again at the steps of rows that asked for it.

    Args:
        most: positions that one of its forwards feeds, unless a row alone has more.

    Attributes:
        forwards: of the network, that were made for measuring.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most, self.forwards = most, 0
        self._drifts: dict[int, Drift] = {}

    def join(self, row: int, every: int) -> Drift | None:
        """A row comes in the place of another: where its audits are noted down; None, and none are made, for 0."""
        self._drifts.pop(row, None)
        if every:
            self._drifts[row] = Drift(every)
        return self._drifts.get(row)

    def propose(
        self,
        model: Denoiser,
        plan: Plan,
        sampling: Sampling,
        *,
        cache: Cache | None,
        asked: Tensor,
        reads: Collection[str] = ALL_READS,
        whole: Callable[[Tensor], Plan],
        control: Control | None = None,
    ) -> Proposal:
        """What `propose` offers, with an audit of the rows whose turn it is.

        Args:
            model, plan, sampling, cache, asked, reads, control: as there. Drift is measured without constraints.
            whole: the plan of the same step without a cache, of some canvas rows (N,).
        """
        audits = self._drifts if cache is not None else {}
        which = [i for i, row in enumerate(plan.rows.tolist()) if row in audits] if audits else []
        if not which:
            return propose(model, plan, sampling, cache=cache, asked=asked, reads=reads, control=control)
        heard = Heard(model)
        offer = propose(heard, plan, sampling, cache=cache, asked=asked, reads=reads, control=control)
        index = torch.tensor(which, device=plan.rows.device)
        index = index[offer.asked[index].any(1)]  # the others are still reading what was given
        if len(index):
            stale = plan.take(index), heard.features[index]
            self._look(model, stale, whole(plan.rows[index]), asked[index], sampling)
        return offer

    def _look(
        self,
        model: Denoiser,
        stale: tuple[Plan, Tensor],
        whole: Plan,
        asked: Tensor,
        sampling: Sampling,
    ) -> None:
        """Audit those of some rows that read what was kept, and whose turn it is; then note it down."""
        (plan, features), asked = stale, asked[:, : whole.targets.shape[1]]
        widths = (whole.positions >= 0).sum(1)
        kept = (widths > (plan.positions >= 0).sum(1)).tolist()
        drifts = [self._drifts[row] for row in plan.rows.tolist()]
        due = [i for i, drift in enumerate(drifts) if kept[i] and drift.passed + 1 >= drift.every]
        looks: dict[int, Look] = {}
        for group in grouped(due, widths.tolist(), self.most):
            at = torch.tensor(group, device=plan.rows.device)
            full = whole.take(at)
            self.forwards += 1
            pair = (plan.take(at), features[at]), (full, read(model, full, None))
            looks |= dict(zip(group, compare(model, *pair, asked[at], sampling), strict=True))
        for i, drift in enumerate(drifts):  # not before all has gone well: a failing forward is tried again
            drift.passed = 0 if i in looks else drift.passed + kept[i]
            drift.looks += [looks[i]] if i in looks else []


def compare(
    model: Denoiser, stale: tuple[Plan, Tensor], full: tuple[Plan, Tensor], asked: Tensor, sampling: Sampling
) -> list[Look]:
    """What each of R rows is told over what is kept, beside what a full forward tells it.

    Args:
        model: the network.
        stale, full: a plan and the features of its forward, each; their targets are the same.
        asked: (R, T) bool, which of them are compared.
        sampling: what tokens are taken from.
    """
    (plan, features), (whole, again) = stale, full
    total = torch.zeros(4, len(asked), dtype=torch.float64, device=asked.device)  # sums of TV, KL, flips; greatest TV
    both = zip(said(model, plan, features, asked), said(model, whole, again, asked), strict=True)
    for (r, i, kept), (_, _, fresh) in both:
        for logits, those in ((kept, plan), (fresh, whole)):
            temper(logits, model.vocab, sampling, those, (r, i))
        log_q, log_p = kept.log_softmax(-1), fresh.log_softmax(-1)
        q, p = log_q.exp(), log_p.exp()
        tv, kl = (p - q).abs().sum(-1) / 2, torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
        total[:3].index_add_(1, r, torch.stack([tv, kl, (p.argmax(-1) != q.argmax(-1)).double()]))
        total[3].scatter_reduce_(0, r, tv, "amax")
    count = asked.sum(1)
    means = (total[:2] / count.clamp(min=1)).tolist()
    columns = (plan.turn[:, 0].tolist(), count.tolist(), *means, total[2].long().tolist(), total[3].tolist())
    return [
        Look(turn=turn, targets=targets, mean_tv=tv, mean_kl=kl, flips=flips, max_tv=most)
        for turn, targets, tv, kl, flips, most in zip(*columns, strict=True)
    ]


def grouped(which: Sequence[int], widths: Sequence[int], most: int) -> list[list[int]]:
    """Rows in forwards of at most so many positions, or of one row."""
    groups: list[list[int]] = []
    left = 0
    for i in which:
        if widths[i] > left or not groups:
            groups.append([])
            left = most
        groups[-1].append(i)
        left -= widths[i]
    return groups
