"""A run from its recipe: prepare the data, build or restore the model, train, save, ship.

The run folder holds recipe.yaml (resolved), data/ (tokenizer and tokens), checkpoints/, metrics.jsonl and model/, which
is what `unmask.load` opens.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from unmask.base.errors import BadRecipe
from unmask.base.vocab import Traits
from unmask.data.prepare import Corpus, prepare
from unmask.data.rows import Loader
from unmask.data.sources import Source
from unmask.models import load as folders
from unmask.models.backbone import Transformer
from unmask.text.tokenizer import Tokenizer
from unmask.train import checkpoint
from unmask.train.loop import Stop, Trainer
from unmask.train.optim import decay_start
from unmask.train.progress import Watch
from unmask.train.recipe import Recipe

Sampler = Callable[[Transformer, Tokenizer], str]
LOCKED = ("model", "tokenizer", "data", "objective")
"""Sections that a checkpoint is bound to; a run can't go on with others."""

TRAITS: dict[str, Callable[[Any], Traits]] = {
    "masked": lambda objective: Traits(sees="all"),
    "block": lambda objective: Traits(sees="blocks", block=objective.block),
    "mixture": lambda objective: Traits(sees="all", reads=tuple(b for b in objective.blocks if b is not None)),
    "ar": lambda objective: Traits(sees="left", speaks="next"),
}
"""How a model that learned an objective is to be talked to."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: its last step, held-out bits per byte, the model's folder, and the signal that ended it."""

    step: int
    bits_per_byte: float
    model: Path
    signal: int | None


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    start: str | Path | None = None,
    sample: Sampler | None = None,
    console: Console | None = None,
) -> Outcome:
    """Train until the recipe's last step, going on from the folder's newest whole checkpoint if it has one.

    Args:
        recipe: the run. A finished run goes on when its steps were raised.
        folder: of the run.
        start: a checkpoint of another run to begin with, if this folder has none (to let a long run's copy cool down).
        sample: writes a text with the model, every so often.
        console: where progress is told.
    Raises:
        BadRecipe: the folder belongs to a run of another model, data or objective.
        BadInput, BadCheckpoint, TrainingFailed.
    """
    folder, console = Path(folder), console or Console()
    folder.mkdir(parents=True, exist_ok=True)
    _same_run(recipe, folder / "recipe.yaml")
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    corpus = prepare(
        [Source(s.kind, s.path, s.field) for s in recipe.data.sources],
        folder / "data",
        length=recipe.data.length,
        held_out=recipe.data.held_out,
        size=recipe.tokenizer.size,
        path=recipe.tokenizer.path,
    )
    trainer = _trainer(recipe, corpus)
    saved = folder / "checkpoints"
    state, passed_over = checkpoint.newest(saved)
    if state is None and start is not None:
        state = checkpoint.load(Path(start))
    (folder / "recipe.yaml").write_text(recipe.as_yaml())
    with Watch(console, folder, recipe.train.steps) as watch, (stop := Stop()).listening():
        for line in passed_over:
            watch.say(f"passed over: {line}")
        if state is not None:
            trainer.restore(state)
            watch.say(f"going on from step {trainer.progress.step}")
        size = sum(p.numel() for p in trainer.model.parameters()) / 1e6
        watch.say(f"{size:.2f} M parameters, {len(corpus.train)} rows of {recipe.data.length} tokens")
        bits = _run(trainer, corpus, folder, watch, stop, sample)
    return Outcome(trainer.progress.step, bits, folder / "model", stop.signal)


def _run(trainer: Trainer, corpus: Corpus, folder: Path, watch: Watch, stop: Stop, sample: Sampler | None) -> float:
    section, now = trainer.recipe.train, trainer.progress
    ahead = decay_start(trainer.recipe.schedule, section.steps) if section.keep_before_decay else None

    def due(every: int) -> bool:
        return now.step % every == 0

    def evaluate() -> float:
        bits = trainer.evaluate(corpus.held_out) / corpus.bytes_per_token / math.log(2)
        watch.evaluation({"step": now.step, "held_out_bits_per_byte": bits, "tokens": now.tokens, "s": now.seconds})
        return bits

    def save() -> None:
        checkpoint.save(folder / "checkpoints", now.step, trainer.state())
        checkpoint.prune(folder / "checkpoints", section.keep, ahead)
        ship(trainer, corpus, folder / "model")

    last_saved = now.step
    while now.step < section.steps and stop.signal is None:
        row = trainer.step()
        if due(section.log_every):
            row = {**row, "tokens_per_s": row["tokens"] / row["seconds"], "seconds_per_step": row["seconds"]}
            watch.step({"step": now.step, **row, "tokens": now.tokens, "s": now.seconds, "at": time.time()})
        if due(section.evaluate_every):
            evaluate()
        if sample is not None and due(section.sample_every):
            watch.sample(now.step, sample(trainer.average, corpus.tokenizer))
        if due(section.save_every) or now.step == ahead:
            save()
            last_saved = now.step
    if now.step != last_saved or not (folder / "model").exists():
        save()
    return evaluate()


def ship(trainer: Trainer, corpus: Corpus, folder: Path) -> None:
    """The averaged weights and the tokenizer, in the layout that `unmask.load` opens."""
    model = trainer.average if trainer.recipe.train.ema else trainer.model
    folders.save(model, folder, dtype=trainer.recipe.train.export)
    corpus.tokenizer.save(folder)


def _trainer(recipe: Recipe, corpus: Corpus) -> Trainer:
    objective = recipe.build_objective()
    vocab = corpus.tokenizer.vocab
    traits = TRAITS[recipe.objective.model_dump()["name"]](objective)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Transformer(recipe.shape(vocab.size), vocab, traits, seed=recipe.train.seed).to(device)
    return Trainer(recipe, model, objective, Loader(corpus.train, recipe.train.rows, recipe.train.seed))


def _same_run(recipe: Recipe, written: Path) -> None:
    """Refuse to go on with another model, vocabulary, data or objective."""
    if not written.exists():
        return
    old, new = yaml.safe_load(written.read_text()), recipe.model_dump(mode="json")
    differs = [
        f"{section}.{key} ({old[section].get(key)!r} then, {new[section].get(key)!r} now)"
        for section in LOCKED
        for key in sorted({*old.get(section, {}), *new[section]})
        if old.get(section, {}).get(key) != new[section].get(key)
    ]
    if differs:
        raise BadRecipe(
            f"{written.parent} holds a run with another {', '.join(differs)}; use another folder, or that recipe"
        )
