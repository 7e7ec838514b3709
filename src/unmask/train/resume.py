"""Whether a run may go on, and from where.

It knows recipes, checkpoints and the rate of learning; not models, and not how to train.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from unmask.base.errors import BadCheckpoint, BadRecipe, TrainingFailed
from unmask.train import checkpoint
from unmask.train.checkpoint import State
from unmask.train.optim import decay_start, rate
from unmask.train.recipe import Recipe, ScheduleSection

BOUND = {
    "model": None,
    "tokenizer": None,
    "data": None,
    "objective": None,
    "optimizer": ("name",),
    "train": ("rows", "seed"),
}
"""What a checkpoint is bound to: whole sections, or keys of them. A run can't go on with others."""

Plain = dict[str, Any]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder; the lock goes with the process, however it ends.

    Raises:
        TrainingFailed: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # no such lock on this system
        except OSError as error:
            raise TrainingFailed(f"another process trains in {folder}; end it first, or use another folder") from error
        yield
    finally:
        os.close(handle)


def recipe_of(folder: Path) -> Plain | None:
    """The resolved recipe that lies in a run's folder, if any."""
    file = folder / "recipe.yaml"
    try:
        return yaml.safe_load(file.read_text()) if file.exists() else None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadRecipe(f"{file} can't be read ({error}); put the run's recipe there again") from error


def write(recipe: Recipe, folder: Path) -> None:
    """Put the resolved recipe into a run's folder, whole or not at all."""
    draft = folder / ".recipe.yaml"
    draft.write_text(recipe.as_yaml())
    draft.replace(folder / "recipe.yaml")


def same_run(recipe: Recipe, old: Plain | None) -> None:
    """Refuse to go on with another model, vocabulary, data, objective, optimiser, batch or seed.

    Raises:
        BadRecipe: with the keys that differ.
    """
    if old is None:
        return
    new = recipe.model_dump(mode="json")
    differs = []
    for section, keys in BOUND.items():
        fields = type(getattr(recipe, section)).model_fields
        for key in keys or fields:
            then, now = old.get(section, {}).get(key), new[section][key]
            newer = key not in old.get(section, {}) and getattr(getattr(recipe, section), key) == fields[key].default
            if then != now and not newer:  # a key that is newer than the run had its default then
                differs.append(f"{section}.{key} ({then!r} then, {now!r} now)")
    if differs:
        raise BadRecipe(f"the run was begun with another {', '.join(differs)}; use another folder, or that recipe")


def same_data(state: State, identity: str) -> None:
    """Refuse to go on with other tokens than the run was begun with; BadRecipe."""
    if state.about.get("data", identity) != identity:
        raise BadRecipe(
            "data: the sources hold another text than when the run was begun; put that back, or use another folder"
        )


def newest(recipe: Recipe, folder: Path) -> tuple[State | None, list[str]]:
    """The newest checkpoint of a run that this recipe can go on from, and a line about each newer one that it can't.

    Raises:
        BadRecipe: there are whole ones, and none fits.
    """
    written = recipe_of(folder)

    def fallen(state: State) -> str | None:
        return _fallen(recipe, state.about.get("recipe", written), state.about["step"])

    state, passed_over = checkpoint.newest(folder / "checkpoints", fallen)
    if state is None and checkpoint.newest(folder / "checkpoints")[0] is not None:
        raise BadRecipe(
            f"no checkpoint of {folder} fits: {passed_over[0]}. Keep its train.steps, or use another folder"
        )
    return state, passed_over


def branched(recipe: Recipe, start: Path) -> tuple[State, list[str]]:
    """The state of another run: of its newest checkpoint, or of the one that `start` is.

    Raises:
        BadCheckpoint: there is none, or it is torn. BadRecipe: it is of another kind.
    """
    if (start / "checkpoints").is_dir():
        state, passed_over = checkpoint.newest(start / "checkpoints")
        if state is None:
            raise BadCheckpoint(f"{start} has no whole checkpoint to begin with")
    else:
        state, passed_over = checkpoint.load(start), []
    old = state.about.get("recipe", recipe_of(start if (start / "checkpoints").is_dir() else start.parent.parent))
    same_run(recipe, old)
    reason = _fallen(recipe, old, state.about["step"])
    return state, passed_over + ([f"beginning with {start} although {reason}"] if reason else [])


def differences(state: State, machine: dict[str, str]) -> list[str]:
    """What makes the rest of the run differ in its last bits from one that was never interrupted."""
    then = state.about.get("machine", {})
    changed = [
        f"{key} {then[key]} then, {value} now" for key, value in machine.items() if then.get(key, value) != value
    ]
    return [f"not bitwise the run that was interrupted: {', '.join(changed)}"] if changed else []


def _fallen(recipe: Recipe, old: Plain | None, step: int) -> str | None:
    """Why a checkpoint's last step was not one of this recipe: its learning rate was another, since it fell."""
    if old is None:
        return None
    schedule, steps = ScheduleSection.model_validate(old["schedule"]), old["train"]["steps"]
    was, now = rate(step - 1, schedule, steps), rate(step - 1, recipe.schedule, recipe.train.steps)
    if step <= decay_start(schedule, steps) or was == now:
        return None
    return f"its learning rate had begun to fall (train.steps was {steps})"
