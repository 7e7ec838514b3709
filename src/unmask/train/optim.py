"""What turns gradients into steps: AdamW, or Muon for hidden matrices with AdamW for the rest, and the learning rate.

The learning rate is a pure function of the step: warm up, stay, fall (WSD). It does not know losses or data.
"""

import math
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from unmask.train.recipe import OptimizerSection, ScheduleSection

Named = list[tuple[str, nn.Parameter]]


class Optimizers:
    """One or two optimisers that step together.

    Embeddings and output maps go to AdamW with the vectors: their rows are words, not a basis. Vectors (norms, biases)
    never decay.

    Args:
        model: whose parameters move; its hidden matrices are those under `layers`.
        section: of the recipe.
        dtype: of Muon's products.

    Attributes:
        each: (optimiser, names of its parameters in its order).
    """

    def __init__(self, model: nn.Module, section: OptimizerSection, dtype: torch.dtype = torch.float32) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        hidden = [(n, p) for n, p in named if p.dim() == 2 and n.startswith("layers.")]
        muon = hidden if section.name == "muon" else []
        rest = [x for x in named if x[0] not in {n for n, _ in muon}]
        decayed, plain = [x for x in rest if x[1].dim() >= 2], [x for x in rest if x[1].dim() < 2]
        self.peak = section.lr
        groups = [(decayed, section.weight_decay), (plain, 0.0)]
        adam = torch.optim.AdamW(
            [{"params": [p for _, p in some], "weight_decay": decay} for some, decay in groups if some],
            lr=section.lr,
            betas=section.betas,
            eps=section.eps,
        )
        self.each: list[tuple[torch.optim.Optimizer, list[str]]] = [(adam, [n for some, _ in groups for n, _ in some])]
        if muon:
            optimiser = Muon(
                [p for _, p in muon],
                lr=section.lr,
                weight_decay=section.weight_decay,
                momentum=section.momentum,
                dtype=dtype,
            )
            self.each.append((optimiser, [n for n, _ in muon]))

    def step(self, share: float) -> None:
        """One step at this share of the peak learning rate, then clear the gradients."""
        for optimiser, _ in self.each:
            for group in optimiser.param_groups:
                group["lr"] = self.peak * share
            optimiser.step()
        self.clear()

    def clear(self) -> None:
        """Forget the gradients."""
        for optimiser, _ in self.each:
            optimiser.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All state by name."""
        found: dict[str, torch.Tensor] = {}
        for optimiser, names in self.each:
            state = optimiser.state_dict()["state"]
            for i, name in enumerate(names):
                found |= {f"{name}.{key}": torch.as_tensor(value) for key, value in state.get(i, {}).items()}
        return found

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take state back that `tensors` gave."""
        for optimiser, names in self.each:
            whole = optimiser.state_dict()
            for i, name in enumerate(names):
                mine = {
                    k.removeprefix(f"{name}."): v.clone() for k, v in tensors.items() if k.rpartition(".")[0] == name
                }
                if mine:
                    whole["state"][i] = mine
            optimiser.load_state_dict(whole)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, scaled to the size that AdamW's updates have.

    torch.optim.Muon does the same one matrix after the other and always in bfloat16, which is seconds a step on
    processors without units for it. Here matrices of one shape go together, in the numbers that the caller says.

    Args:
        params: matrices.
        lr: in AdamW's units, so that one rate serves both: an update has a root mean square of 0.2 lr.
        weight_decay: decoupled.
        momentum: of the running average; Nesterov's look-ahead is always on.
        dtype: of the products; bfloat16 where the hardware has it.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the scale: Liu et al. 2025,
    "Muon is scalable for LLM training", arXiv:2502.16982, sec. 2.2.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            moving = sorted((p for p in group["params"] if p.grad is not None), key=_shape)
            for _, alike in groupby(moving, key=_shape):
                self._move(list(alike), group)

    def _move(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        updates = []
        for weight in weights:
            assert weight.grad is not None
            average = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
            average.lerp_(weight.grad, 1 - group["momentum"])
            updates.append(weight.grad.lerp(average, group["momentum"]))
        scale = 0.2 * math.sqrt(max(weights[0].shape))
        for weight, update in zip(weights, orthogonal(torch.stack(updates), self.dtype), strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(update, alpha=-group["lr"] * scale)


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """About U V^T of each matrix U S V^T; singular values end near 1, those near 0 less so.

    Args:
        matrices: (N, rows, columns).
        dtype: of the products.
    Returns:
        (N, rows, columns), in the dtype of `matrices`.

    Source: the five steps and their coefficients: Jordan et al. 2024 (above).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if tall else x).to(matrices.dtype)


def _shape(weight: Tensor) -> tuple[int, ...]:
    return tuple(weight.shape)


def decay_start(section: ScheduleSection, steps: int) -> int:
    """The step at which the learning rate begins to fall."""
    return steps - round(section.decay * steps) if section.decay_start is None else section.decay_start


def rate(step: int, section: ScheduleSection, steps: int) -> float:
    """Share of the peak learning rate in step `step` (from 0) of `steps`.

    A longer run has the same rates up to where a shorter one begins to fall, so a checkpoint from before that goes on
    in it as if it had been meant to.

    Source: Hu et al. 2024, MiniCPM, arXiv:2404.06395, sec. 4 (warm up, stay, fall); Haegele et al. 2024,
    arXiv:2405.18392, sec. 4 (the square root).
    """
    start = decay_start(section, steps)
    if step < section.warmup:
        return (step + 1) / section.warmup
    if step < start:
        return 1.0
    gone = (step - start + 1) / max(1, steps - start)
    kept = 1 - math.sqrt(gone) if section.fall == "sqrt" else 1 - gone
    return section.floor + (1 - section.floor) * max(0.0, kept)
