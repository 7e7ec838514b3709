"""Published folders to models and back, tensor by tensor: peak memory is about one copy of the weights.

Whatever is wrong with a folder is one clear line, before memory is taken where that can be known. Nothing here runs
code from a checkpoint or opens a pickle. It does not know tokenizers.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from unmask.base.errors import BadCheckpoint, BadInput, UnknownName, Unsupported
from unmask.models import files
from unmask.models.backbone import Transformer
from unmask.models.families import FAMILIES, recognise
from unmask.models.family import Config, Family, Origin
from unmask.models.files import CONFIG, INDEX, WEIGHTS, Contents, Stored
from unmask.models.profile import declared
from unmask.models.weights import At, Names, Piece, check, expected, pieces, stored
from unmask.nn import fp8
from unmask.nn.quantize import FORMATS, place, rounds

__all__ = ["CONFIG", "INDEX", "WEIGHTS", "Contents", "assemble", "contents", "load", "plan", "save"]
GGUF = ".gguf"
HEAD = "lm_head.weight"
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A model without its weights, and where these lie.

    Args:
        family, model: what it is; the model on the meta device.
        pieces: of every parameter of ours, by name.
        inert: stored tensors that no parameter is made of.
    """

    family: Family
    model: Transformer
    pieces: dict[str, Piece]
    inert: set[str]


def contents(path: str | os.PathLike[str]) -> Contents:
    """What is in a folder, or in a GGUF file; see `load` for what both may be."""
    path = Path(path)
    if path.suffix == GGUF:
        from unmask.models import gguf  # slow to import, and seldom asked for

        return gguf.contents(path)
    return files.contents(path)


def load(
    source: str | os.PathLike[str] | Contents,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
) -> Transformer:
    """The model in a folder or file, in evaluation mode, its weights read straight to where they stay.

    Args:
        source: a folder with config.json and model.safetensors, or an index and its shards; a GGUF file; or what
            `contents` found there.
        device: "auto" is a GPU if there is one.
        dtype: None is the stored one, but float32 on a CPU where a half precision is stored.
        quantize: a key of `unmask.nn.quantize.FORMATS`, by which the weights of the layers are rounded, or "fp8" on a
            GPU, see `unmask.nn.fp8`.
    Raises:
        BadCheckpoint: missing, torn or contradictory. Unsupported: a family, weight format or device we don't have.
    """
    target, wanted = _device(device), _dtype(dtype)
    if quantize is not None:
        if quantize not in (*FORMATS, fp8.NAME):
            raise Unsupported(f"weights can't be rounded to {quantize!r}; known: {', '.join([*FORMATS, fp8.NAME])}")
        if quantize == fp8.NAME:
            fp8.check(target, wanted)
    found = source if isinstance(source, Contents) else contents(source)
    model = assemble(found.config, found.tensors, target, wanted, where=str(found.where), quantize=quantize)
    rounded = f"its weights were rounded by quantize={quantize!r}; load it without, and save that" if quantize else ""
    model.origin = replace(model.origin, lossy=found.lossy or rounded)
    return model


def assemble(
    config: Config,
    found: dict[str, Stored],
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    where: str,
    quantize: str | None = None,
) -> Transformer:
    """A model from its config and its stored tensors, wherever these lie."""
    laid = plan(config, found, where)
    model, layout = laid.model, laid.pieces
    for name, size in {name: value.shape for name, value in model.named_parameters()}.items():
        piece, owner, leaf = layout[name], *name.rpartition(".")[::2]
        kept = dtype or _usual(found[piece.keys[0]].dtype, device)
        rounded = quantize is not None and rounds(model, name)
        if rounded and quantize in FORMATS:
            place(model, name, _parts(piece, found, device), quantize, kept)
            continue
        value, module = _parameter(piece, found, size, device, kept), model.get_submodule(owner)
        setattr(module, leaf, nn.Parameter(value, requires_grad=getattr(module, leaf).requires_grad))
        if rounded:
            fp8.place(module, leaf)
    model.origin = Origin(
        family=laid.family.name,
        config=config,
        pieces=layout,
        dtypes={key: found[key].dtype for key in found},
        inert={key: found[key].read((), torch.device("cpu")).clone() for key in laid.inert},
    )
    return model.eval()


def plan(config: Config, found: dict[str, Stored], where: str) -> Plan:
    """What a config and stored tensors make, before any weight is read.

    Raises:
        BadCheckpoint: they contradict each other, or themselves. Unsupported: see `load`.
    """
    family = recognise(config, found)
    model = _build(family, config, len(found))
    shapes = {name: value.shape for name, value in model.named_parameters()}
    names = family.names(config, found)
    # before each of them gets a name: a config may say billions
    experts = max((len(value) for name, value in model.named_parameters() if ".experts." in name), default=0)
    if experts > len(found) and any("+" in (at.name if isinstance(at, At) else at) for at in names.values()):
        raise BadCheckpoint(f"{CONFIG} says {experts} experts, but there are {len(found)} tensors")
    layout = pieces(names, model.shape, shapes)
    layout |= _twin(names, found, layout, where)
    wanted = expected(layout)
    inert = {key for key in found if key not in wanted and any(re.fullmatch(p, key) for p in family.inert)}
    check(layout, {key: s.shape for key, s in found.items() if key not in inert}, where)
    return Plan(family=family, model=model, pieces=layout, inert=inert)


def _twin(names: Names, found: dict[str, Stored], layout: Mapping[str, Piece], where: str) -> dict[str, Piece]:
    """The output map, where it is the embedding and yet is stored beside it.

    Raises:
        BadCheckpoint: it is another one.
    """
    embedding, place = layout.get("embed_tokens.weight"), names.get("lm_head")
    head = f"{place.name if isinstance(place, At) else place}.weight"
    if HEAD in layout or embedding is None or not {head, *embedding.keys} <= set(found) or head in embedding.keys:
        return {}
    one, other = (found[key].read((), torch.device("cpu")) for key in (head, *embedding.keys))
    if one.dtype != other.dtype or not torch.equal(one, other):
        raise BadCheckpoint(f"{CONFIG} says that {head} is {embedding.keys[0]}, but {where} has two different tensors")
    return {HEAD: replace(embedding, keys=(head,))}


def save(model: Transformer, folder: str | os.PathLike[str], dtype: str | torch.dtype | None = None) -> None:
    """Write a model's folder: in the layout and under the names that it was loaded from, or in our own.

    Args:
        model: what to save.
        folder: where; model.safetensors and config.json take their places once they are whole.
        dtype: of floating-point numbers; None is what each tensor was stored in, or is, if it came from no file.
    """
    wanted, origin = _dtype(dtype), model.origin
    if origin is not None and origin.lossy:
        raise Unsupported(f"the model can't be saved as it came: {origin.lossy}")
    own = dict(model.named_parameters())
    if origin is not None and HEAD in origin.pieces and HEAD not in own:  # what is written may share no memory
        own[HEAD] = nn.Parameter(own["embed_tokens.weight"].detach().clone())
    if origin is None:
        if type(model) is not Transformer:
            raise Unsupported(
                f"a fresh {type(model).__name__} has no layout of its own; only a loaded one can be saved"
            )
        family = FAMILIES["unmask"]
        layout = pieces(family.names({}, ()), model.shape, {name: value.shape for name, value in own.items()})
        origin = Origin(family=family.name, config={}, pieces=layout, dtypes={}, inert={})
    tensors = {
        key: value.to(device="cpu", dtype=wanted or origin.dtypes.get(key)) for key, value in stored(origin.pieces, own)
    }
    told = (
        origin.config if wanted is None and FAMILIES[origin.family].config is None else _config(model, origin, tensors)
    )
    files.write(Path(folder), told, tensors | dict(origin.inert))


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
    described = declared(family.describe(config), config)
    if described.shape.depth > num_tensors:
        raise BadCheckpoint(f"{CONFIG} says {described.shape.depth} layers, but there are {num_tensors} tensors")
    try:
        with torch.device("meta"):
            model = described.network(described.shape, described.vocab, described.traits)
    except (BadInput, RuntimeError) as error:
        raise BadCheckpoint(f"{CONFIG}: {error}") from error
    model.defaults = described.defaults
    return model


def _parameter(
    piece: Piece, found: dict[str, Stored], shape: torch.Size, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """One of our parameters, where it stays and in the dtype that it stays in."""
    value = torch.empty(shape, dtype=dtype, device=device)
    rooms = value if len(piece.keys) > 1 or len(shape) > len(piece.shape) else value[None]
    for room, part in zip(rooms, _parts(piece, found, device), strict=True):
        room.copy_(part)
    return value


def _parts(piece: Piece, found: dict[str, Stored], device: torch.device) -> Iterator[Tensor]:
    """What a parameter is made of, one stored tensor after the other."""
    for key in piece.keys:
        if not found[key].dtype.is_floating_point:
            raise BadCheckpoint(f"tensor {key} must hold floating-point numbers, got {found[key].dtype}")
    for key in piece.keys:
        part = found[key].read(piece.cut, device)
        yield part.t() if piece.turned else part


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
