"""A run from its recipe: prepare the data, build or restore the model, train, save, ship.

The run folder holds recipe.yaml (resolved), data/ (tokenizer and tokens), checkpoints/, metrics.jsonl and model/, which
is what `unmask.load` opens.

Train longer: raise `train.steps` and give the same command. The learning rate is a pure function of the step and of
`train.steps`, so a checkpoint in which it had begun to fall belongs to no longer run; such a run goes on from the last
one before (`train.keep_before_decay`). To let a copy of an endless run cool down, `cool` branches it off.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from unmask.base.errors import BadCheckpoint, BadInput, BadRecipe, Unsupported
from unmask.base.vocab import Traits
from unmask.data.prepare import Corpus, prepare
from unmask.data.rows import Loader
from unmask.data.sources import Source
from unmask.decode.decoder import build
from unmask.models import load as folders
from unmask.models.backbone import Transformer
from unmask.text.tokenizer import Tokenizer
from unmask.train import checkpoint, resume
from unmask.train import recipe as recipes
from unmask.train.checkpoint import State
from unmask.train.loop import EVALUATION_SEED, Stop, Trainer
from unmask.train.optim import decay_start
from unmask.train.progress import Watch
from unmask.train.recipe import Recipe

Sampler = Callable[[Transformer, Tokenizer], str]

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

    @property
    def exit_code(self) -> int:
        """What a process that ends with this run exits with: 0, 143 after SIGTERM, 130 after SIGINT."""
        return 0 if self.signal is None else 128 + self.signal


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
        folder: of the run; one process at a time.
        start: what to begin with if this folder has no checkpoint: another run's folder, a checkpoint of it, or a
            model's folder, of which only the weights are taken.
        sample: writes a text with the model, every so often.
        console: where progress is told.
    Raises:
        BadRecipe: the folder belongs to a run of another model, data or objective.
        BadInput, BadCheckpoint: the data, tokenizer or `start` can't be read.
        TrainingFailed: no room on the disk, another process in the folder, or no finite loss.
    """
    folder, console = Path(folder), console or Console()
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    with resume.alone(folder):
        resume.same_run(recipe, resume.recipe_of(folder))
        corpus = _prepare(recipe, folder)
        trainer = _trainer(recipe, corpus)
        data = {"data": _identity(corpus)}
        state, said = _begin(recipe, folder, start, data)
        checkpoint.sweep(folder / "checkpoints")
        checkpoint.check_room(folder / "checkpoints", trainer.state())
        resume.write(recipe, folder)
        with Watch(console, folder, recipe.train.steps) as watch, (stop := Stop()).listening():
            for line in said:
                watch.say(line)
            if state is not None:
                trainer.restore(state)
                watch.say(f"going on from step {trainer.progress.step}")
                for line in resume.differences(state, trainer.machine()):
                    watch.say(line)
            elif start is not None:
                _adopt(trainer, corpus, Path(start))
                watch.say(f"beginning with the weights of {start}")
            watch.begin(trainer.progress.step, trainer.progress.tokens, trainer.progress.seconds)
            size = sum(p.numel() for p in trainer.model.parameters()) / 1e6
            watch.say(f"{size:.2f} M parameters, {len(corpus.train)} rows of {recipe.data.length} tokens")
            bits = _run(trainer, corpus, folder, watch, stop, sample, data)
    return Outcome(trainer.progress.step, bits, folder / "model", stop.signal)


def cool(
    source: str | Path, folder: str | Path, steps: int, *, sample: Sampler | None = None, console: Console | None = None
) -> Outcome:
    """Branch off a run: from its newest checkpoint, let the learning rate fall to its floor in `steps` steps.

    The run itself is only read, and may go on meanwhile. Given again, the branch goes on where it stopped.

    Args:
        source: the folder of a run.
        folder: of the branch.
        steps: of the fall.
        sample, console: as in `train`.
    Raises:
        BadCheckpoint: `source` has no run or no whole checkpoint.
    """
    source, folder = Path(source), Path(folder)
    if (folder / "recipe.yaml").exists():
        return train(recipes.load(folder / "recipe.yaml"), folder, start=source, sample=sample, console=console)
    state, _ = checkpoint.newest(source / "checkpoints")
    if state is None:
        raise BadCheckpoint(f"{source} has no whole checkpoint; expected the folder of a run")
    at = state.about["step"]
    settings = [f"train.steps={at + steps}", f"schedule.decay_start={at}"]
    chosen = recipes.load(source / "recipe.yaml", settings)
    if not (folder / "data").exists():
        shutil.copytree(source / "data", folder / "data")
    return train(chosen, folder, start=source / "checkpoints" / f"step-{at}", sample=sample, console=console)


def _begin(
    recipe: Recipe, folder: Path, start: str | Path | None, data: dict[str, str]
) -> tuple[State | None, list[str]]:
    """The state to go on from, and what there is to say about its choice."""
    state, passed_over = resume.newest(recipe, folder)
    if state is None and start is not None and not (Path(start) / "config.json").exists():
        state, more = resume.branched(recipe, Path(start))
        passed_over += more
    if state is not None:
        resume.same_data(state, data["data"])
    return state, passed_over


def _adopt(trainer: Trainer, corpus: Corpus, folder: Path) -> None:
    """Begin with a model's weights, which mean something only over the tokens that they were learned on."""
    if Tokenizer.load(folder, corpus.tokenizer.vocab).fingerprint != corpus.tokenizer.fingerprint:
        raise BadRecipe(
            f"tokenizer: {folder} reads text as other tokens than this run; set tokenizer.path to that folder"
        )
    trainer.adopt(dict(folders.load(folder, trainer.model.device, "float32").named_parameters()))


def _run(
    trainer: Trainer,
    corpus: Corpus,
    folder: Path,
    watch: Watch,
    stop: Stop,
    sample: Sampler | None,
    about: dict[str, str],
) -> float:
    section, now = trainer.recipe.train, trainer.progress
    ahead = decay_start(trainer.recipe.schedule, section.steps) if section.keep_before_decay else None
    bytes_per_token = _bytes_per_token(trainer, corpus)

    def due(every: int) -> bool:
        return now.step % every == 0

    def evaluate() -> float:
        held = trainer.evaluate(corpus.held_out)
        bits, error = (x / bytes_per_token / math.log(2) for x in (held.nats, held.stderr))
        row = {"held_out_bits_per_byte": bits, "stderr": error, "held_out_nats_per_token": held.nats}
        watch.evaluation({"step": now.step, **row, "tokens": now.tokens, "s": now.seconds})
        return bits

    def save() -> None:
        state = trainer.state()
        checkpoint.save(folder / "checkpoints", now.step, State(state.tensors, state.about | about))
        checkpoint.prune(folder / "checkpoints", now.step, section.keep, ahead)
        ship(trainer, corpus, folder / "model")

    if now.step:  # whoever saved this state may have been killed before it wrote the model
        ship(trainer, corpus, folder / "model")
    last_saved = last_measured = now.step
    bits = None
    while now.step < section.steps and stop.signal is None:
        skipped = now.skipped
        row = trainer.step()
        if now.skipped > skipped:
            watch.say(
                f"step {now.step}: skipped, loss {row['loss']} and gradient norm {row['grad_norm']} are not finite"
            )
        if due(section.log_every):
            watch.step({"step": now.step, **row, "tokens": now.tokens, "s": now.seconds, "at": time.time()})
        if due(section.evaluate_every):
            bits, last_measured = evaluate(), now.step
        if sample is not None and due(section.sample_every):
            watch.sample(now.step, sample(trainer.average, corpus.tokenizer))
        if due(section.save_every) or now.step == ahead:
            save()
            last_saved = now.step
    if now.step != last_saved or not (folder / "model").exists():
        save()
    return evaluate() if bits is None or last_measured != now.step else bits


def ship(trainer: Trainer, corpus: Corpus, folder: Path) -> None:
    """The averaged weights and the tokenizer, in the layout that `unmask.load` opens."""
    model = trainer.average if trainer.recipe.train.ema else trainer.model
    folders.save(model, folder, dtype=trainer.recipe.train.export)
    corpus.tokenizer.save(folder)


def _prepare(recipe: Recipe, folder: Path) -> Corpus:
    return prepare(
        [Source(s.kind, s.path, s.field) for s in recipe.data.sources],
        folder / "data",
        length=recipe.data.length,
        held_out=recipe.data.held_out,
        size=recipe.tokenizer.size,
        path=recipe.tokenizer.path,
    )


def _trainer(recipe: Recipe, corpus: Corpus) -> Trainer:
    objective = recipe.build_objective()
    vocab = corpus.tokenizer.vocab
    traits = TRAITS[recipe.objective.model_dump()["name"]](objective)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Transformer(recipe.shape(vocab.size), vocab, traits, seed=recipe.train.seed).to(device)
    model.defaults = {k: v for k, v in recipe.decoding.model_dump().items() if v is not None}
    try:
        build(None, traits=traits, vocab=vocab, defaults=model.defaults)
    except (BadInput, Unsupported) as error:
        raise BadRecipe(f"decoding: {error}") from error
    return Trainer(recipe, model, objective, Loader(corpus.train, recipe.train.rows, recipe.train.seed))


def _identity(corpus: Corpus) -> str:
    """Of the training tokens, wherever they lie."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (corpus.train.tokens.ids, corpus.train.tokens.starts):
        digest.update(array.data)
    return digest.hexdigest()


def _bytes_per_token(trainer: Trainer, corpus: Corpus) -> float:
    """Of the tokens that held-out figures are about; of all held-out text where single tokens have no bytes."""
    if not corpus.tokenizer.byte_level:
        return corpus.bytes_per_token
    rows = min(len(corpus.held_out), trainer.recipe.train.evaluate_rows)
    batch = Loader(corpus.held_out, rows, EVALUATION_SEED).batch(0)
    counts = trainer.objective.corrupt(batch, corpus.tokenizer.vocab, EVALUATION_SEED, 0).counts
    lengths = torch.tensor([len(spelled) for spelled in corpus.tokenizer.token_bytes])
    return float(lengths[batch.tokens[counts]].sum()) / max(1, int(counts.sum()))
