"""Targets that belong to several texts or blocks of one plan, so that policies see each as a row of its own."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from unmask.base.attend import NOBODY
from unmask.base.step import Edit, Plan, Proposal, State

_EMPTY = {"targets": NOBODY, "state": int(State.ABSENT), "asked": False, "is_open": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Which targets belong to which part.

    Args:
        columns: (R, G, N) which of the T targets are in each part; -1 where none is.
        t, s, left, due: (R, G) as a plan has them for a row.
    """

    columns: Tensor
    t: Tensor
    s: Tensor
    left: Tensor
    due: Tensor

    def plan(self, plan: Plan) -> Plan:
        """One row (R * G) for each part. What is fed is no business of policies, and stays as it is."""
        count = self.columns.shape[1]
        each = torch.arange(len(plan.rows), device=plan.rows.device).repeat_interleave(count)
        same = ("rows", "positions", "slots", "steps", "took", "seed", "idle", "end", "among")
        rows: dict[str, Any] = {name: getattr(plan, name)[each] for name in same}
        own: dict[str, Any] = {name: getattr(self, name).flatten() for name in ("t", "s", "left", "due")}
        names = ("targets", "state", "standing", "last", "turn", "level")
        columns: dict[str, Any] = {name: self._of(name, getattr(plan, name)) for name in names}
        return replace(plan, **rows, **own, **columns)

    def offer(self, offer: Proposal) -> Proposal:
        """What is offered to each part."""
        columns = {f.name: getattr(offer, f.name) for f in fields(offer)}
        return replace(offer, **{name: self._of(name, x) for name, x in columns.items() if x is not None})

    def back(self, parts: Tensor, whole: Tensor) -> Tensor:
        """Values (R * G, N) of parts in the places (R, T) of their targets; those of `whole` where no part is."""
        r, g, n = (self.columns >= 0).nonzero(as_tuple=True)
        return whole.index_put((r, self.columns[r, g, n]), parts.view(self.columns.shape)[r, g, n])

    def _of(self, name: str, x: Tensor) -> Tensor:
        rows = torch.arange(len(x), device=x.device)[:, None, None]
        found = x[rows, self.columns.clamp(min=0)]
        found = found.masked_fill(self.columns < 0, _EMPTY[name]) if name in _EMPTY else found
        return found.flatten(0, 1)


def merged(parts: Parts, edit: Edit, plan: Plan) -> Edit:
    """The edit of a row from those of all its parts; the first part says whether its region is settled."""
    none = Edit.nothing(plan)
    return replace(
        none,
        tokens=parts.back(edit.tokens, none.tokens),
        state=parts.back(edit.state, none.state),
        settled=edit.settled.view(parts.left.shape)[:, 0],
    )
