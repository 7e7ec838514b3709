"""Folders in Hugging Face layout (config.json, *.safetensors): read without running code, written whole or not at all.

Whatever is wrong with a folder is one `BadCheckpoint` with one clear line, before memory is taken where that can be
known. It knows neither families nor models.
"""

import json
import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unmask.base.errors import BadCheckpoint, BadInput, Unsupported
from unmask.models.weights import some

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "I8": torch.int8,
    "BOOL": torch.bool,
}
"""What the numbers of a stored tensor may be."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: its shape, the type of its numbers, and how to read a part of it onto a device."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[tuple[slice, ...], torch.device], Tensor]


@dataclass(frozen=True, slots=True)
class Contents:
    """A model in its files.

    Args:
        where: the folder or file.
        config: the object in config.json, or what that would be.
        tensors: every stored tensor by its published name.
        lossy: why the model can't be saved as it came, and what to do; "" where it can.
        metadata: what else a single file tells, of its tokenizer above all.
    """

    where: Path
    config: dict[str, Any]
    tensors: dict[str, Stored]
    lossy: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def contents(folder: Path) -> Contents:
    """What is in a folder."""
    return Contents(folder, config(folder), tensors(folder))


def config(folder: Path) -> dict[str, Any]:
    """The object in a folder's config.json."""
    if not folder.is_dir():
        raise BadCheckpoint(f"no folder {folder}; expected one with {CONFIG} and {WEIGHTS}")
    return read_object(folder / CONFIG)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadCheckpoint(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{path} must hold one JSON object, got {type(value).__name__}")
    return value


def tensors(folder: Path) -> dict[str, Stored]:
    """Every stored tensor by name."""
    stored: dict[str, Stored] = {}
    for path in _files(folder):
        if not path.is_file():
            raise BadCheckpoint(f"{path} is missing")
        try:
            with safe_open(path, framework="pt"):  # checks the header against the file
                found = _header(path)
        except (SafetensorError, OSError) as error:
            raise BadCheckpoint(f"{path} is torn or no safetensors file: {error}") from error
        if twice := sorted(set(stored) & set(found)):
            raise BadCheckpoint(f"{path} repeats {some(twice)}")
        stored |= found
    return stored


def write(folder: Path, told: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write model.safetensors and config.json, each under a temporary name first."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BadInput(f"{folder} can't be a folder: a file stands there") from error
    with _replacing(folder / WEIGHTS) as path:
        save_file({name: value.contiguous() for name, value in weights.items()}, path, metadata={"format": "pt"})
    with _replacing(folder / CONFIG) as path:
        path.write_text(json.dumps(told, indent=2) + "\n")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place once it is written and on the disk."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield fresh
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        fresh.chmod(0o644)  # the safetensors library lets nobody else read what it writes
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        shards = read_object(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(x, str) and Path(x).name == x for x in shards.values()):
            raise BadCheckpoint(f"{folder / INDEX} must have a weight_map from tensors to files of this folder")
        return [folder / name for name in sorted(set(shards.values()))]
    if pickles := sorted(path.name for pattern in PICKLES for path in folder.glob(pattern)):
        raise Unsupported(
            f"{folder} has only pickled weights ({pickles[0]}), which can run code when opened; where you trust them: "
            f"unmask models convert-format {shlex.quote(str(folder))} FOLDER --allow-pickle"
        )
    raise BadCheckpoint(f"{folder} has no {WEIGHTS}")


def _header(path: Path) -> dict[str, Stored]:
    """What a file's header tells: eight bytes of its length, then JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        told = json.loads(file.read(length))
    return {name: _stored(path, name, x, 8 + length) for name, x in told.items() if name != "__metadata__"}


def _stored(path: Path, name: str, told: Mapping[str, Any], start: int) -> Stored:
    if told["dtype"] not in DTYPES:
        raise Unsupported(f"tensor {name} in {path} holds {told['dtype']} numbers; known: {', '.join(DTYPES)}")
    shape, dtype = tuple(told["shape"]), DTYPES[told["dtype"]]
    return Stored(shape, dtype, partial(_read, path, name, shape, dtype, start + told["data_offsets"][0]))


def _read(
    path: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    start: int,
    cut: tuple[slice, ...],
    device: torch.device,
) -> Tensor:
    """A part of a tensor, its rows alone read. The file is not mapped: what is mapped counts as memory."""
    first, last, _ = (cut[0] if cut else slice(None)).indices(shape[0] if shape else 1)
    size = math.prod(shape[1:]) * dtype.itemsize
    try:
        raw = np.fromfile(path, np.uint8, count=(last - first) * size, offset=start + first * size)
    except OSError as error:
        raise BadCheckpoint(f"tensor {name} can't be read: {error}") from error
    if len(raw) != (last - first) * size:
        raise BadCheckpoint(f"tensor {name} can't be read: {path} is shorter than it was")
    value = (
        torch.from_numpy(raw).view(dtype).view(last - first, *shape[1:])
        if shape
        else torch.from_numpy(raw).view(dtype)[0]
    )
    return (value[(slice(None), *cut[1:])] if cut else value).to(device)
