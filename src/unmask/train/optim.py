"""What turns gradients into steps: AdamW, or Muon for hidden matrices with AdamW for the rest, and the learning rate.

The learning rate is a pure function of the step: warm up, stay, fall (WSD).

Source: Muon: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; matching AdamW's update
size, so that one learning rate serves both: Liu et al. 2025, arXiv:2502.16982, sec. 2.2. WSD and the square-root fall:
Haegele et al. 2024, arXiv:2405.18392.
"""

import math

import torch
from torch import nn

from unmask.train.recipe import OptimizerSection, ScheduleSection

Named = list[tuple[str, nn.Parameter]]


class Optimizers:
    """One or two optimisers that step together.

    Attributes:
        each: (optimiser, names of its parameters in its order).
    """

    def __init__(self, model: nn.Module, section: OptimizerSection) -> None:
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
            optimiser = torch.optim.Muon(
                [p for _, p in muon],
                lr=section.lr,
                weight_decay=section.weight_decay,
                momentum=section.momentum,
                adjust_lr_fn="match_rms_adamw",
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
                mine = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.rpartition(".")[0] == name}
                if mine:
                    whole["state"][i] = mine
            optimiser.load_state_dict(whole)


def decay_start(section: ScheduleSection, steps: int) -> int:
    """The step at which the learning rate begins to fall."""
    return steps - round(section.decay * steps) if section.decay_start is None else section.decay_start


def rate(step: int, section: ScheduleSection, steps: int) -> float:
    """Share of the peak learning rate in step `step` (from 0) of `steps`."""
    start = decay_start(section, steps)
    if step < section.warmup:
        return (step + 1) / section.warmup
    if step < start:
        return 1.0
    gone = (step - start + 1) / max(1, steps - start)
    kept = 1 - math.sqrt(gone) if section.fall == "sqrt" else 1 - gone
    return section.floor + (1 - section.floor) * max(0.0, kept)
