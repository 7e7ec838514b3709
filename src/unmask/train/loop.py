"""The training loop: corrupt a global batch once, run it in parts, step.

Batches, noise and learning rate are pure functions of the step, so the weights and the step are all that a run has to
remember. It does not know files, recipes' origins or how text is written.
"""

import copy
import math
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FrameType

import torch

from unmask.base.errors import TrainingFailed
from unmask.data.rows import Loader, Rows
from unmask.models.backbone import Transformer
from unmask.objectives.loss import Objective
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


@dataclass(slots=True)
class Stop:
    """Whether somebody asked the run to end, and with which signal."""

    signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the run at the next border of a step; a second one ends it at once."""

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
        average: the moving average of the weights (a model of its own); made from `model` if not given.
    """

    recipe: Recipe
    model: Transformer
    objective: Objective
    loader: Loader
    average: Transformer = field(init=False)
    optimizers: Optimizers = field(init=False)
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizers = Optimizers(self.model, self.recipe.optimizer)

    def step(self) -> dict[str, float]:
        """One optimiser step.

        Returns:
            loss (nats per token), lr, grad_norm, tokens, seconds; loss is nan in a step that was skipped.
        Raises:
            TrainingFailed: too many steps in a row without a finite loss and gradient.
        """
        began, now, train = time.perf_counter(), self.progress, self.recipe.train
        batch = self.loader.batch(now.step)
        noised = self.objective.corrupt(batch, self.model.vocab, train.seed, now.step)
        counted, total = noised.tokens, 0.0
        self.model.train()
        rows = len(batch.tokens) // train.accumulate
        for at in range(0, len(batch.tokens), rows):
            with precise(self.recipe, self.model.device):
                part = noised.part(at, at + rows).to(self.model.device)
                loss = self.objective(self.model, part, counted)
            loss.total.backward()
            total += float(loss.total.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), train.clip))
        share = rate(now.step, self.recipe.schedule, train.steps)
        if math.isfinite(total) and math.isfinite(norm):
            self.optimizers.step(share)
            self._follow()
            now.skipped_in_a_row = 0
        else:
            self._skip(total, norm)
        now.step, now.tokens = now.step + 1, now.tokens + counted
        seconds = time.perf_counter() - began
        now.seconds += seconds
        lr = share * self.recipe.optimizer.lr
        return {"loss": total, "lr": lr, "grad_norm": norm, "tokens": float(counted), "seconds": seconds}

    @torch.inference_mode()
    def evaluate(self, rows: Rows, *, model: Transformer | None = None) -> float:
        """The objective's nats per token on the first held-out rows, under noise that is always the same."""
        model = model or self.average
        size = min(len(rows), self.recipe.train.evaluate_rows)
        batch = Loader(rows, size, EVALUATION_SEED).batch(0)
        noised = self.objective.corrupt(batch, model.vocab, EVALUATION_SEED, 0)
        total, part = 0.0, max(1, self.recipe.train.rows // self.recipe.train.accumulate)
        for at in range(0, size, part):
            loss = self.objective(model, noised.part(at, at + part).to(model.device), noised.tokens)
            total += float(loss.total)
        return total

    def state(self) -> State:
        """Everything that the rest of the run depends on."""
        tensors: dict[str, torch.Tensor] = {f"model.{k}": v for k, v in self.model.named_parameters()}
        tensors |= {f"average.{k}": v for k, v in self.average.named_parameters()}
        tensors |= {f"optimizer.{k}": v for k, v in self.optimizers.tensors().items()}
        p = self.progress
        about = {"tokens": p.tokens, "seconds": p.seconds, "skipped": p.skipped, "in_a_row": p.skipped_in_a_row}
        return State(tensors, {**about, "step": p.step, "torch": torch.__version__, "threads": torch.get_num_threads()})

    def restore(self, state: State) -> None:
        """Go on from a state."""

        def below(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(below("model."))
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

    def _skip(self, loss: float, norm: float) -> None:
        self.optimizers.clear()
        now = self.progress
        now.skipped, now.skipped_in_a_row = now.skipped + 1, now.skipped_in_a_row + 1
        if now.skipped_in_a_row >= self.recipe.train.patience:
            raise TrainingFailed(
                f"{now.skipped_in_a_row} steps in a row had no finite loss and gradient (last at step {now.step}: loss "
                f"{loss}, norm {norm}); the last checkpoint is good. Lower optimizer.lr or look at the data"
            )


def precise(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    """The precision of matrix products that a recipe asks for."""
    wanted = recipe.train.precision
    if wanted == "auto":
        wanted = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return torch.autocast(device.type, torch.bfloat16) if wanted == "bfloat16" else nullcontext()
