"""Published folders to models and back, tensor by tensor: peak memory is about one copy of the weights.

Whatever is wrong with a folder is one clear line, before memory is taken where that can be known. Nothing here runs
code from a checkpoint or opens a pickle. It does not know tokenizers.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from unmask.base.errors import BadCheckpoint, BadInput, UnknownName, Unsupported
from unmask.models import files
from unmask.models.backbone import Transformer
from unmask.models.families import FAMILIES, recognise
from unmask.models.family import Config, Family, Origin
from unmask.models.files import CONFIG, INDEX, WEIGHTS, Stored
from unmask.models.weights import Piece, check, expected, pieces, stored

__all__ = ["CONFIG", "INDEX", "WEIGHTS", "assemble", "load", "save"]
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
    folder = Path(folder)
    place, wanted = _device(device), _dtype(dtype)
    return assemble(files.config(folder), files.tensors(folder), place, wanted, where=str(folder))


def assemble(
    config: Config, found: dict[str, Stored], device: torch.device, dtype: torch.dtype | None, *, where: str
) -> Transformer:
    """A model from its config and its stored tensors, wherever these lie."""
    family = recognise(config, found)
    model = _build(family, config, len(found))
    shapes = {name: value.shape for name, value in model.named_parameters()}
    layout = pieces(family.names(config, found), model.shape, shapes)
    wanted = expected(layout)
    inert = {key for key in found if key not in wanted and any(re.fullmatch(p, key) for p in family.inert)}
    check(layout, {key: s.shape for key, s in found.items() if key not in inert}, where)
    for name, piece in layout.items():
        owner, _, leaf = name.rpartition(".")
        value = _parameter(piece, found, shapes[name], device, dtype)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(value))
    model.origin = Origin(
        family=family.name,
        config=config,
        pieces=layout,
        dtypes={key: found[key].dtype for key in found},
        inert={key: found[key].read((), torch.device("cpu")).clone() for key in inert},
    )
    return model.eval()


def save(model: Transformer, folder: str | os.PathLike[str], dtype: str | torch.dtype | None = None) -> None:
    """Write a model's folder: in the layout and under the names that it was loaded from, or in our own.

    Args:
        model: what to save.
        folder: where; model.safetensors and config.json take their places once they are whole.
        dtype: of floating-point numbers; None is what each tensor was stored in, or is, if it came from no file.
    """
    wanted, origin = _dtype(dtype), model.origin
    own = dict(model.named_parameters())
    if origin is None:
        family = FAMILIES["unmask"]
        layout = pieces(family.names({}, ()), model.shape, {name: value.shape for name, value in own.items()})
        origin = Origin(family=family.name, config={}, pieces=layout, dtypes={}, inert={})
    tensors = {
        key: value.to(device="cpu", dtype=wanted or origin.dtypes.get(key)) for key, value in stored(origin.pieces, own)
    }
    files.write(Path(folder), _config(model, origin, tensors), tensors | dict(origin.inert))


def _config(model: Transformer, origin: Origin, tensors: Mapping[str, Tensor]) -> Config:
    kinds = {str(value.dtype).removeprefix("torch.") for value in tensors.values()}
    dtype = kinds.pop() if len(kinds) == 1 else "float32"
    fresh = FAMILIES[origin.family].config
    if fresh is not None:
        return fresh(model) | {"dtype": dtype}
    key = "dtype" if "dtype" in origin.config else "torch_dtype"
    return {**origin.config, **({key: dtype} if key in origin.config else {})}


def _build(family: Family, config: Config, num_tensors: int) -> Transformer:
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


def _parameter(
    piece: Piece, found: dict[str, Stored], shape: torch.Size, device: torch.device, wanted: torch.dtype | None
) -> Tensor:
    """One of our parameters, where it stays and in the dtype that it stays in."""
    dtype = found[piece.keys[0]].dtype
    for key in piece.keys:
        if not found[key].dtype.is_floating_point:
            raise BadCheckpoint(f"tensor {key} must hold floating-point numbers, got {found[key].dtype}")
    value = torch.empty(shape, dtype=wanted or _usual(dtype, device), device=device)
    rooms = value if len(piece.keys) > 1 or len(shape) > len(piece.shape) else value[None]
    for key, room in zip(piece.keys, rooms, strict=True):
        part = found[key].read(piece.cut, device)
        room.copy_(part.t() if piece.turned else part)
    return value


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


def _usual(kept: torch.dtype, device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" and kept in (torch.bfloat16, torch.float16) else kept
