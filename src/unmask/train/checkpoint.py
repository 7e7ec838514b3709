"""The state of a run on disk: whole or not there, whatever happens while it is written.

A checkpoint is written under a temporary name, synced, listed in a manifest with sizes and hashes, and renamed. Only
tensors and JSON; nothing that runs code when it is read.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from unmask.base.errors import BadCheckpoint, TrainingFailed

_TENSORS, _STATE, _MANIFEST = "state.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True, slots=True)
class State:
    """Everything a run needs to go on: named tensors, and JSON (its step among it)."""

    tensors: dict[str, torch.Tensor]
    about: dict[str, Any]


def save(folder: Path, step: int, state: State) -> Path:
    """Write `folder/step-N`; returns it.

    Raises:
        TrainingFailed: the disk has no room; what was there before is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(t.numel() * t.element_size() for t in state.tensors.values())
    if shutil.disk_usage(folder).free < 1.1 * size + 2**20:
        raise TrainingFailed(f"a checkpoint of {size / 2**20:.0f} MiB does not fit on the disk of {folder}; make room")
    target, draft = folder / f"step-{step}", folder / f".step-{step}.{uuid.uuid4().hex[:8]}"
    draft.mkdir()
    try:
        save_file({k: v.detach().contiguous().cpu() for k, v in state.tensors.items()}, draft / _TENSORS)
        (draft / _STATE).write_text(json.dumps({**state.about, "step": step}))
        files = {p.name: {"bytes": p.stat().st_size, "blake2b": _digest(p)} for p in (draft / _TENSORS, draft / _STATE)}
        (draft / _MANIFEST).write_text(json.dumps(files))
        for path in draft.iterdir():
            _sync(path)
        _sync(draft)
        if target.exists():  # the same step again, after a resume
            shutil.rmtree(target)
        draft.rename(target)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise TrainingFailed(f"the checkpoint {target} can't be written: {error}") from error
    return target


def newest(folder: Path) -> tuple[State | None, list[str]]:
    """The newest checkpoint that is whole, and a line about each newer one that is not."""
    passed_over: list[str] = []
    for path in sorted(folder.glob("step-*"), key=_number, reverse=True):
        try:
            return load(path), passed_over
        except BadCheckpoint as error:
            passed_over.append(str(error))
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
        return State(load_file(path / _TENSORS), json.loads((path / _STATE).read_text()))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BadCheckpoint(f"the checkpoint {path} can't be read: {error}") from error


def prune(folder: Path, keep: int, spare: int | None = None) -> None:
    """Delete all checkpoints but the newest `keep` and the newest one at or before step `spare`; and old drafts."""
    steps = sorted((p for p in folder.glob("step-*")), key=_number)
    kept = set(steps[-keep:])
    if spare is not None:
        kept |= set([p for p in steps if _number(p) <= spare][-1:])
    for path in steps:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
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
