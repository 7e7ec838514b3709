"""A mixture of experts in the place of an MLP: a router picks a few of many small MLPs for each position.

What a position gets never depends on the others: there is no capacity that could run out. It knows nothing of the
layer that it stands in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.base.errors import BadInput, UnknownName
from unmask.nn.mlp import ACTIVATIONS, GatedMLP

SCORES: dict[str, Callable[[Tensor], Tensor]] = {"softmax": partial(torch.softmax, dim=-1), "sigmoid": torch.sigmoid}
"""What makes scores (N, E) of the router's logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Sizes and switches of a mixture of experts.

    Args:
        num, chosen: experts in all, and how many a position gets.
        hidden: inner width of each.
        shared: inner width of an MLP that every position gets besides; 0 is none.
        dense: leading layers that keep their plain MLP.
        score: how the router's logits become scores.
        bias: whether a learned bias is added to scores where experts are chosen (never where they are weighed).
        normalise: whether the weights of the chosen experts are made to sum to 1.
        scale: what weights are multiplied by at last.
        groups, chosen_groups: experts come in so many equal groups, of which only these take part; a group counts for
            as much as its two best scores.

    Source: Shazeer et al. 2017, arXiv:1701.06538; groups and the bias for choosing: DeepSeek-V3, 2024,
    arXiv:2412.19437, eq. 12 to 16.
    """

    num: int
    chosen: int
    hidden: int
    shared: int = 0
    dense: int = 0
    score: Literal["softmax", "sigmoid"] = "softmax"
    bias: bool = False
    normalise: bool = False
    scale: float = 1.0
    groups: int = 1
    chosen_groups: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.chosen <= self.num or self.hidden < 1:
            raise BadInput(f"of {self.num} experts of width {self.hidden}, {self.chosen} can't be chosen")
        if self.shared < 0 or self.dense < 0:
            raise BadInput(f"a shared expert of width {self.shared} and {self.dense} dense layers can't be")
        if self.score not in SCORES:
            raise UnknownName("score of experts", self.score, SCORES)
        if self.groups < 1 or self.num % self.groups or not 0 < self.chosen_groups <= self.groups:
            raise BadInput(f"{self.num} experts can't come in {self.groups} groups, {self.chosen_groups} chosen")
        if self.chosen > self.num // self.groups * self.chosen_groups:
            raise BadInput(f"{self.chosen_groups} groups hold fewer than the {self.chosen} experts to choose")
        if self.groups > 1 and self.num // self.groups < 2:
            raise BadInput(f"a group needs 2 experts at least, not {self.num // self.groups}")


class Router(nn.Module):
    """Which experts a position gets, and with what weights."""

    def __init__(self, width: int, experts: Experts) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts.num, width))
        if experts.bias:
            self.expert_bias = nn.Parameter(torch.zeros(experts.num), requires_grad=False)
        self.experts = experts

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) to the chosen experts and their weights, (N, chosen) each; computed in float32 at least."""
        e, kind = self.experts, torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):  # near ties must not be settled by rounding
            scores = SCORES[e.score](F.linear(x.to(kind), self.weight.to(kind)))
        ranked = scores + self.expert_bias.to(kind) if e.bias else scores
        if e.groups > 1:
            grouped = ranked.unflatten(-1, (e.groups, -1))
            best = grouped.topk(2, dim=-1).values.sum(-1).topk(e.chosen_groups, dim=-1).indices
            out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
            ranked = grouped.masked_fill(out[..., None], -torch.inf).flatten(-2)
        chosen = ranked.topk(e.chosen, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if e.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * e.scale


class Pool(nn.Module):
    """The gated MLPs of all experts, stacked."""

    def __init__(self, width: int, num: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(num, hidden, width))
        self.up_proj = nn.Parameter(torch.empty(num, hidden, width))
        self.down_proj = nn.Parameter(torch.empty(num, width, hidden))


class MixtureMLP(nn.Module):
    """The weighted sum of the chosen experts, and of the shared one."""

    def __init__(self, width: int, experts: Experts, activation: str) -> None:
        super().__init__()
        self.gate = Router(width, experts)
        self.experts = Pool(width, experts.num, experts.hidden)
        if experts.shared:
            self.shared_experts = GatedMLP(width, experts.shared, activation, bias=False)
        self.shared, self.activation = bool(experts.shared), ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        flat = x.reshape(-1, x.shape[-1])
        chosen, weights = self.gate(flat)
        asked = chosen.flatten()
        order = asked.argsort(stable=True)  # all that goes to one expert side by side
        sizes = asked.bincount(minlength=len(self.experts.gate_proj)).tolist()
        parts = flat[order // chosen.shape[1]].split(sizes)
        made = torch.cat([flat[:0], *(self._expert(i, part) for i, part in enumerate(parts) if len(part))])
        made = made[order.argsort()].unflatten(0, chosen.shape)  # back: each sum runs in the order of the choice
        out = (made.to(weights.dtype) * weights[..., None]).sum(1).to(x.dtype).view_as(x)
        return out + self.shared_experts(x) if self.shared else out

    def _expert(self, index: int, x: Tensor) -> Tensor:
        e = self.experts
        inner = self.activation(F.linear(x, e.gate_proj[index])) * F.linear(x, e.up_proj[index])
        return F.linear(inner, e.down_proj[index])
