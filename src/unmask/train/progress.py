"""What a person sees of a run: a live line in a terminal, plain lines where the output is piped, metrics in a file."""

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Watch:
    """Tells of steps, evaluations and samples.

    Args:
        console: where to.
        folder: of the run; `metrics.jsonl` is appended to.
        steps: in all.
    """

    def __init__(self, console: Console, folder: Path, steps: int) -> None:
        self.console, self.file, self.steps = console, folder / "metrics.jsonl", steps
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=steps, facts="")
        self._bits = ""
        self._before, self._at = (0, 0.0), 0  # tokens and seconds at a step

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, step: int, tokens: int, seconds: float) -> None:
        """The run goes on from this step: lines about later ones, which it will do again, are dropped."""
        if self.file.exists():
            rows = self.file.read_text(encoding="utf-8").splitlines()
            kept = [row for row in rows if _step(row) <= step]
            if len(kept) < len(rows):
                draft = self.file.with_name(f".{self.file.name}")
                draft.write_text("".join(f"{row}\n" for row in kept), encoding="utf-8")
                draft.replace(self.file)
        self._before, self._at = (tokens, seconds), step
        self._bar.reset(self._task, completed=step, total=self.steps, facts="")

    def step(self, row: dict[str, Any]) -> None:
        """A step that is worth telling.

        Args:
            row: step, loss, lr, grad_norm, tokens (in all), s (seconds in all).
        """
        tokens, seconds = self._before
        seconds = max(row["s"] - seconds, 1e-9)
        speed, left = (
            (row["tokens"] - tokens) / seconds,
            (self.steps - row["step"]) * seconds / (row["step"] - self._at),
        )
        self._before, self._at = (row["tokens"], row["s"]), row["step"]
        self._write({**row, "tokens_per_s": speed})
        facts = (
            f"loss {row['loss']:.3f}{self._bits}  {speed:.0f} tokens/s  lr {row['lr']:.2g}  |g| {row['grad_norm']:.2f}"
        )
        self._bar.update(self._task, completed=row["step"], facts=facts)
        if not self.console.is_terminal:
            self.say(f"step {row['step']}/{self.steps}  {facts}  {_span(left)} left")

    def evaluation(self, row: dict[str, Any]) -> None:
        """A held-out figure."""
        self._write(row)
        self._bits = f"  held-out {row['held_out_bits_per_byte']:.3f} bits/byte"
        figure = f"{row['held_out_bits_per_byte']:.4f} +- {row['stderr']:.4f} bits per byte"
        self.say(f"step {row['step']}: held-out {figure}")

    def sample(self, step: int, text: str) -> None:
        """A text that the model wrote."""
        self._write({"step": step, "sample": text})
        self.say(f"step {step}: sample\n{text}")

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _write(self, row: dict[str, Any]) -> None:
        row = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }  # JSON has no nan
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _step(line: str) -> float:
    """The step that a line of metrics is about; a torn line is about none that is kept."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError):
        return float("inf")


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.0f} h" if seconds >= 86400 else time.strftime("%H:%M:%S", time.gmtime(seconds))
