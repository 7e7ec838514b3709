"""The state of a run on disk: whole or not there, whatever happens while it is written.

A checkpoint is written under a temporary name, synced, listed in a manifest with sizes and hashes, and renamed. Only
tensors and JSON; nothing that runs code when it is read.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from unmask.base.errors import BadCheckpoint, TrainingFailed

_TENSORS, _STATE, _MANIFEST = "state.safetensors", "state.json", "manifest.json"
_SPARE_BYTES = 16 * 2**20
"""What a disk must have left beside a checkpoint: room for logs and for the model folder."""


@dataclass(frozen=True, slots=True)
class State:
    """Everything a run needs to go on: named tensors, and JSON (its step among it)."""

    tensors: dict[str, torch.Tensor]
    about: dict[str, Any]


def save(folder: Path, step: int, state: State) -> Path:
    """Write `folder/step-N`; returns it.

    Raises:
        TrainingFailed: it can't be written, for want of room mostly; what was there before is untouched.
    """
    check_room(folder, state)
    target, draft = folder / f"step-{step}", folder / f".step-{step}.{uuid.uuid4().hex[:8]}"
    try:
        draft.mkdir(parents=True)
        save_file({k: v.detach().contiguous().cpu() for k, v in state.tensors.items()}, draft / _TENSORS)
        (draft / _STATE).write_text(json.dumps({**state.about, "step": step}))
        files = {p.name: {"bytes": p.stat().st_size, "blake2b": _digest(p)} for p in (draft / _TENSORS, draft / _STATE)}
        (draft / _MANIFEST).write_text(json.dumps(files))
        for path in draft.iterdir():
            _sync(path)
        _sync(draft)
        if target.exists():  # the same step again; a rename can't replace a folder that holds files
            target.rename(folder / f".step-{step}.{uuid.uuid4().hex[:8]}")
        draft.rename(target)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or "no space left" in str(error).lower()
        reason = "the disk is full" if full else str(error)
        raise TrainingFailed(
            f"the checkpoint {target} can't be written: {reason}. Older ones are intact; make room and give the same "
            "command again"
        ) from error
    return target


def check_room(folder: Path, state: State) -> None:
    """Refuse where a checkpoint of this state, and a little more, has no room.

    Raises:
        TrainingFailed: with what is free and what is needed.
    """
    size = sum(t.numel() * t.element_size() for t in state.tensors.values())
    at = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free, need = shutil.disk_usage(at).free, int(1.1 * size) + _SPARE_BYTES
    if free < need:
        raise TrainingFailed(
            f"the disk of {folder} has {free / 2**20:.0f} MiB free and a checkpoint needs {need / 2**20:.0f} MiB; make "
            "room, or choose another folder"
        )


def newest(folder: Path, unfit: Callable[[State], str | None] | None = None) -> tuple[State | None, list[str]]:
    """The newest checkpoint that is whole and fits.

    Args:
        folder: that holds the `step-N`; need not exist.
        unfit: says why a whole checkpoint can't be used, or None if it can.
    Returns:
        It, or None; and a line about each newer one that was passed over.
    """
    passed_over: list[str] = []
    for path in sorted(folder.glob("step-*"), key=_number, reverse=True):
        try:
            state = load(path)
        except BadCheckpoint as error:
            passed_over.append(str(error))
            continue
        reason = unfit(state) if unfit else None
        if reason is None:
            return state, passed_over
        passed_over.append(f"the checkpoint {path} does not fit: {reason}")
    return None, passed_over


def load(path: Path) -> State:
    """One checkpoint.

    Raises:
        BadCheckpoint: a file is missing, short or changed.
    """
    try:
        files: Mapping[str, Any] = json.loads((path / _MANIFEST).read_text())
        for name, facts in files.items():
            if (path / name).stat().st_size != facts["bytes"] or _digest(path / name) != facts["blake2b"]:
                raise BadCheckpoint(f"the checkpoint {path} is torn: {name} is not what its manifest says")
        if not {_TENSORS, _STATE} <= set(files):
            raise BadCheckpoint(f"the checkpoint {path} is torn: its manifest does not list all files")
        return State(load_file(path / _TENSORS), json.loads((path / _STATE).read_text()))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BadCheckpoint(f"the checkpoint {path} can't be read: {error}") from error


def prune(folder: Path, step: int, keep: int, spare: int | None = None) -> None:
    """Delete old checkpoints, and drafts that a killed run left.

    Args:
        folder: that holds the `step-N`.
        step: of the newest checkpoint of this run; later ones are from a run that was branched off, and stay.
        keep: how many to leave.
        spare: the newest one at or before this step stays too.
    """
    steps = sorted((p for p in folder.glob("step-*") if 0 <= _number(p) <= step), key=_number)
    kept = set(steps[-keep:])
    if spare is not None:
        kept |= set([p for p in steps if _number(p) <= spare][-1:])
    for path in steps:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
    sweep(folder)


def sweep(folder: Path) -> None:
    """Delete drafts that a killed run left; only for the run that owns the folder."""
    for draft in folder.glob(".step-*"):
        shutil.rmtree(draft, ignore_errors=True)


def _number(path: Path) -> int:
    tail = path.name.removeprefix("step-")
    return int(tail) if tail.isdecimal() else -1


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
