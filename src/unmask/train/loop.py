"""The training loop: corrupt a global batch once, run it in parts, step.

Batches, noise and learning rate are pure functions of the step, so the weights and the step are all that a run has to
remember. It does not know files, recipes' origins or how text is written.
"""

import copy
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch

from unmask.base.errors import BadCheckpoint, TrainingFailed
from unmask.data.rows import Loader, Rows
from unmask.models.backbone import Transformer
from unmask.objectives.loss import Objective
from unmask.train import precision
from unmask.train.checkpoint import State
from unmask.train.optim import Optimizers, rate
from unmask.train.recipe import Recipe

EVALUATION_SEED = 0x5EED
"""Keys the noise of held-out figures, so that they compare across steps and runs."""


@dataclass(slots=True)
class Progress:
    """What a run counts."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A held-out figure: nats per token that counts, its standard error over rows, and how many tokens counted."""

    nats: float
    stderr: float
    tokens: int


@dataclass(slots=True)
class Stop:
    """Whether somebody asked the run to end, and with which signal."""

    signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the run at the next border of a step; a second one ends it at once.

        Only a main thread can hear signals; elsewhere nothing listens.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def hear(number: int, frame: FrameType | None) -> None:
            if self.signal is not None:
                raise KeyboardInterrupt
            self.signal = number

        before = {s: signal.signal(s, hear) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(slots=True)
class Trainer:
    """A model in training.

    Args:
        recipe: the run.
        model, objective, loader: what learns, what it learns, from which rows.

    Attributes:
        average: the moving average of the weights, float32, a model of its own.
        optimizers, progress: see there.
        dtype: of matrix products.
    """

    recipe: Recipe
    model: Transformer
    objective: Objective
    loader: Loader
    average: Transformer = field(init=False)
    optimizers: Optimizers = field(init=False)
    progress: Progress = field(default_factory=Progress)
    dtype: torch.dtype = field(init=False)

    def __post_init__(self) -> None:
        self.dtype = precision.of(self.recipe.train.precision, self.model.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizers = Optimizers(self.model, self.recipe.optimizer, self.dtype)

    def step(self) -> dict[str, float]:
        """One optimiser step, or one that is skipped because its loss or gradient is not finite.

        Returns:
            loss (nats per token), lr, grad_norm (before it is cut), tokens, seconds.
        Raises:
            TrainingFailed: too many skipped steps in a row. Weights, averages and momenta are as before them.
        """
        began, now, train = time.perf_counter(), self.progress, self.recipe.train
        batch = self.loader.batch(now.step)
        noised = self.objective.corrupt(batch, self.model.vocab, train.seed, now.step)
        counted, total = noised.tokens, 0.0
        self.model.train()
        even = self.dtype == torch.bfloat16 and self.model.device.type == "cpu"
        model: Any = precision.EvenRows(self.model) if even else self.model
        rows = len(batch.tokens) // train.accumulate
        for at in range(0, len(batch.tokens), rows):
            part = noised.part(at, at + rows).to(self.model.device)
            with precision.products(self.dtype, self.model.device):
                loss = self.objective(model, part, counted)
            if loss.total.requires_grad:  # a part may ask nothing
                loss.total.backward()
            total += float(loss.total.detach())
        moving = [p for p in self.model.parameters() if p.grad is not None]
        length = torch.nn.utils.get_total_norm([p.grad for p in moving if p.grad is not None])
        norm, share = float(length), rate(now.step, self.recipe.schedule, train.steps)
        if math.isfinite(total) and math.isfinite(norm):
            torch.nn.utils.clip_grads_with_norm_(moving, train.clip, length)
            self.optimizers.step(share)
            self._follow()
            now.skipped_in_a_row = 0
        else:
            self._skip(total, norm, share)
        now.step, now.tokens = now.step + 1, now.tokens + counted
        seconds = time.perf_counter() - began
        now.seconds += seconds
        lr = share * self.recipe.optimizer.lr
        return {"loss": total, "lr": lr, "grad_norm": norm, "tokens": float(counted), "seconds": seconds}

    @torch.inference_mode()
    def evaluate(self, rows: Rows, *, model: Transformer | None = None) -> Held:
        """The objective's bound on the first held-out rows, under noise that is always the same, in float32."""
        model = model or self.average
        size = min(len(rows), self.recipe.train.evaluate_rows)
        batch = Loader(rows, size, EVALUATION_SEED).batch(0)
        noised = self.objective.corrupt(batch, model.vocab, EVALUATION_SEED, 0)
        part = max(1, self.recipe.train.rows // self.recipe.train.accumulate)
        pieces = [noised.part(at, at + part).to(model.device) for at in range(0, size, part)]
        nats = torch.cat([self.objective(model, piece, noised.tokens).nats.double().sum(1).cpu() for piece in pieces])
        mean = float(nats.sum()) / max(1, noised.tokens)
        off = nats - mean * noised.counts.sum(1)
        spread = float(off.square().sum() * size / (size - 1)) ** 0.5 if size > 1 else math.nan
        return Held(mean, spread / max(1, noised.tokens), noised.tokens)

    def state(self) -> State:
        """Everything that the rest of the run depends on."""
        tensors: dict[str, torch.Tensor] = {f"model.{k}": v for k, v in self.model.named_parameters()}
        tensors |= {f"average.{k}": v for k, v in self.average.named_parameters()}
        tensors |= {f"optimizer.{k}": v for k, v in self.optimizers.tensors().items()}
        p = self.progress
        about: dict[str, Any] = {
            "tokens": p.tokens,
            "seconds": p.seconds,
            "skipped": p.skipped,
            "in_a_row": p.skipped_in_a_row,
        }
        about |= {"step": p.step, "recipe": self.recipe.model_dump(mode="json")}
        return State(tensors, about | {"machine": self.machine()})

    def machine(self) -> dict[str, str]:
        """What else decides the last bits of a result."""
        return {
            "torch": torch.__version__,
            "threads": str(torch.get_num_threads()),
            "device": self.model.device.type,
            "products": str(self.dtype).removeprefix("torch."),
        }

    def adopt(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Begin with these weights, by name, as model and as average; BadCheckpoint if they are another network's."""
        mine = {name: p.shape for name, p in self.model.named_parameters()}
        theirs = {name: tensor.shape for name, tensor in weights.items()}
        if off := sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)):
            raise BadCheckpoint(
                f"the checkpoint is that of another network: {_some(off)} differ in shape or are missing"
            )
        for model in (self.model, self.average):
            model.load_state_dict(weights)

    def restore(self, state: State) -> None:
        """Go on from a state; BadCheckpoint if it is that of another network."""

        def below(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)}

        self.adopt(below("model."))
        self.average.load_state_dict(below("average."))
        self.optimizers.restore(below("optimizer."))
        about = state.about
        self.progress = Progress(about["step"], about["tokens"], about["seconds"], about["skipped"], about["in_a_row"])

    def _follow(self) -> None:
        """The average takes a step towards the weights; it follows closely at first, when they move most."""
        step = self.progress.step
        decay = min(self.recipe.train.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    def _skip(self, loss: float, norm: float, share: float) -> None:
        now = self.progress
        now.skipped, now.skipped_in_a_row = now.skipped + 1, now.skipped_in_a_row + 1
        if now.skipped_in_a_row >= self.recipe.train.patience:
            named = [(n, p) for n, p in self.model.named_parameters()]
            ruined = [n for n, p in named if not bool(torch.isfinite(p).all())]
            bad = [n for n, p in named if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
            raise TrainingFailed(
                f"{now.skipped_in_a_row} steps in a row had no finite loss and gradient; the last is step {now.step}: "
                f"loss {loss}, gradient norm {norm}, lr {share * self.recipe.optimizer.lr:.3g}, non-finite gradients "
                f"in {_some(bad)}, non-finite weights in {_some(ruined)}. Checkpoints are good: lower optimizer.lr or "
                "train.clip, try train.precision=float32, or look at the rows of that step"
            )
        self.optimizers.clear()


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
