"""The run of `small_run`, smaller still: six steps of four rows, every second saved."""

from pathlib import Path

from small_run import raw_recipe
from unmask.train.recipe import Recipe

FEW = {"steps": 6, "rows": 4, "log_every": 1, "save_every": 2, "evaluate_every": 3, "evaluate_rows": 4, "ema": 0.9}


def raw(folder: Path, objective: str = "masked", **train: object) -> dict:
    kept = folder / "corpus.jsonl"
    before = kept.read_text() if kept.exists() else None
    made = raw_recipe(
        folder,
        objective={"name": objective, **({"block": 4} if objective == "block" else {})},
        optimizer={"lr": 0.02},
        schedule={"warmup": 2},
        train={**FEW, "threads": 1, **train},
    )
    if before is not None:  # a test may have changed it
        kept.write_text(before)
    return made


def recipe(folder: Path, objective: str = "masked", **train: object) -> Recipe:
    return Recipe.of(raw(folder, objective, **train))
