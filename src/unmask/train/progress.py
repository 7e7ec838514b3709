"""What a person sees of a run: a live line in a terminal, plain lines where the output is piped, metrics in a file."""

import json
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

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, row: dict[str, Any]) -> None:
        """A step that is worth telling."""
        self._write(row)
        facts = (
            f"loss {row['loss']:.3f}{self._bits}  {row['tokens_per_s']:.0f} tokens/s  lr {row['lr']:.2g}  "
            f"|g| {row['grad_norm']:.2f}"
        )
        self._bar.update(self._task, completed=row["step"], facts=facts)
        if not self.console.is_terminal:
            left = (self.steps - row["step"]) * row["seconds_per_step"]
            eta = time.strftime("%H:%M:%S", time.gmtime(left)) if left < 86400 else f"{left / 3600:.0f} h"
            self.console.print(f"step {row['step']}/{self.steps}  {facts}  {eta} left", highlight=False)

    def evaluation(self, row: dict[str, Any]) -> None:
        """A held-out figure."""
        self._write(row)
        self._bits = f"  held-out {row['held_out_bits_per_byte']:.3f} bits/byte"
        self.say(f"step {row['step']}: held-out {row['held_out_bits_per_byte']:.4f} bits per byte")

    def sample(self, step: int, text: str) -> None:
        """A text that the model wrote."""
        self._write({"step": step, "sample": text})
        self.say(f"step {step}: sample\n{text}")

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, markup=False, highlight=False)

    def _write(self, row: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
