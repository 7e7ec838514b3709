"""Folders in Hugging Face layout (config.json, *.safetensors) to models and back.

Whatever is wrong with a folder is one `BadCheckpoint` with one clear line, before memory is taken where that can be
known. Nothing here runs code from a checkpoint or opens a pickle. It does not know tokenizers.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from unmask.base.errors import BadCheckpoint, BadInput, UnknownName, Unsupported
from unmask.models.backbone import Transformer
from unmask.models.families import FAMILIES
from unmask.models.family import Family

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}


def load(
    folder: str | os.PathLike[str], device: str | torch.device = "auto", dtype: str | torch.dtype | None = None
) -> Transformer:
    """The model in a folder, in evaluation mode, its weights read straight to where they stay.

    Args:
        folder: holds config.json and model.safetensors, or an index and its shards.
        device: "auto" is a GPU if there is one.
        dtype: None is the stored one, but float32 on a CPU where a half precision is stored.
    Raises:
        BadCheckpoint: missing, torn or contradictory. Unsupported: a family, weight format or device we don't have.
    """
    folder, place = Path(folder), _device(device)
    wanted = _dtype(dtype)
    if not folder.is_dir():
        raise BadCheckpoint(f"no folder {folder}; expected one with {CONFIG} and {WEIGHTS}")
    config = _object(folder / CONFIG)
    stored = _stored(folder)
    family = _family(config, stored)
    model = _build(family, config, len(stored))
    _agree(folder, family, model, stored)
    for name, _ in list(model.named_parameters()):
        key = family.stored(name)
        value = _tensor(stored[key], key, place)
        owner, _, leaf = name.rpartition(".")
        value = value.to(wanted or _usual(value.dtype, place), copy=True)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(value))
    return model.eval()


def save(model: Transformer, folder: str | os.PathLike[str], dtype: str | torch.dtype | None = None) -> None:
    """Write model.safetensors and config.json, each under a temporary name first; dtype None keeps the model's."""
    folder, wanted = Path(folder), _dtype(dtype)
    family = FAMILIES["unmask"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BadInput(f"{folder} can't be a folder: a file stands there") from error
    tensors = {
        family.stored(name): value.detach().to(device="cpu", dtype=wanted).contiguous()
        for name, value in model.named_parameters()
    }
    kinds = {str(value.dtype).removeprefix("torch.") for value in tensors.values()}
    config = family.config(model) | {"dtype": kinds.pop() if len(kinds) == 1 else "float32"}
    with _replacing(folder / WEIGHTS) as path:
        save_file(tensors, path, metadata={"format": "pt"})
    with _replacing(folder / CONFIG) as path:
        path.write_text(json.dumps(config, indent=2) + "\n")


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


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise BadInput(f"no device called {device!r}; try 'auto', 'cpu' or 'cuda'") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise Unsupported(f"device {device!r} was asked for, but torch does not see it here; use 'cpu' or 'auto'")
    return place


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise UnknownName("dtype", dtype, DTYPES)
        return DTYPES[dtype]
    return dtype


def _usual(stored: torch.dtype, device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" and stored in (torch.bfloat16, torch.float16) else stored


def _object(path: Path) -> dict[str, Any]:
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


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor is, and its shape."""

    path: Path
    shape: list[int]


def _stored(folder: Path) -> dict[str, Stored]:
    """Every stored tensor by name."""
    stored: dict[str, Stored] = {}
    for path in _files(folder):
        if not path.is_file():
            raise BadCheckpoint(f"{path} is missing")
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: Stored(path, file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise BadCheckpoint(f"{path} is torn or no safetensors file: {error}") from error
        if twice := sorted(set(stored) & set(found)):
            raise BadCheckpoint(f"{path} repeats {_some(twice)}")
        stored |= found
    return stored


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        shards = _object(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(x, str) and Path(x).name == x for x in shards.values()):
            raise BadCheckpoint(f"{folder / INDEX} must have a weight_map from tensors to files of this folder")
        return [folder / name for name in sorted(set(shards.values()))]
    if pickles := sorted(path.name for pattern in PICKLES for path in folder.glob(pattern)):
        raise Unsupported(
            f"{folder} has only pickled weights ({pickles[0]}), which can run code when opened; "
            "convert them to safetensors where you trust them"
        )
    raise BadCheckpoint(f"{folder} has no {WEIGHTS}")


def _family(config: dict[str, Any], stored: dict[str, Stored]) -> Family:
    for family in FAMILIES.values():
        if family.recognise(config, stored):
            return family
    raise Unsupported(f"no family for model_type {config.get('model_type')!r}; known: {', '.join(sorted(FAMILIES))}")


def _build(family: Family, config: dict[str, Any], num_tensors: int) -> Transformer:
    """The model without its weights; it takes no memory for sizes that the file can't hold."""
    described = family.describe(config)
    if described.shape.depth > num_tensors:
        raise BadCheckpoint(f"{CONFIG} says {described.shape.depth} layers, but there are {num_tensors} tensors")
    try:
        with torch.device("meta"):
            model = Transformer(described.shape, described.vocab, described.traits)
    except (BadInput, RuntimeError) as error:
        raise BadCheckpoint(f"{CONFIG}: {error}") from error
    model.defaults = described.defaults
    return model


def _agree(folder: Path, family: Family, model: Transformer, stored: dict[str, Stored]) -> None:
    """Every tensor is there, none is left over, all have the right shape."""
    wanted = {family.stored(name): list(value.shape) for name, value in model.named_parameters()}
    problems = []
    if missing := sorted(set(wanted) - set(stored)):
        problems.append(f"missing {_some(missing)}")
    if unexpected := sorted(set(stored) - set(wanted)):
        problems.append(f"unexpected {_some(unexpected)}")
    for name in sorted(set(wanted) & set(stored)):
        if stored[name].shape != wanted[name]:
            problems.append(f"{name} has shape {stored[name].shape}, expected {wanted[name]}")
    if problems:
        raise BadCheckpoint(f"the weights in {folder} don't fit its {CONFIG}: {'; '.join(problems[:4])}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _tensor(stored: Stored, name: str, device: torch.device) -> torch.Tensor:
    """A tensor that lies in the mapped file. The file is opened anew each time: what is mapped counts as memory."""
    try:
        with safe_open(stored.path, framework="pt", device=str(device)) as file:
            value: torch.Tensor = file.get_tensor(name)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise BadCheckpoint(f"tensor {name} can't be read: {error}") from error
    if not value.is_floating_point():
        raise BadCheckpoint(f"tensor {name} must hold floating-point numbers, got {value.dtype}")
    return value
