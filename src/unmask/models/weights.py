"""Which stored tensors a parameter of ours is made of, and back.

Published layouts differ from ours in names, in fused query/key/value maps, in maps stored as (in, out), and in experts
stored one by one. A family says so in a table, `Names`; everything else follows from the shapes.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unmask.base.errors import BadCheckpoint
from unmask.models.backbone import Shape


@dataclass(frozen=True, slots=True)
class At:
    """Where a module or parameter is stored.

    Args:
        name: its path; * stands for the number of the layer, + for the number of the expert.
        part: which of the outputs of a fused map [q | k | v] are its own.
        turned: whether linear maps are stored as (in, out).
    """

    name: str
    part: Literal["q", "k", "v"] | None = None
    turned: bool = False


Names = Mapping[str, "str | At"]
"""Paths of ours (* for the layer) to stored ones; the longest path that a parameter's name begins with counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One parameter of ours, seen from the files.

    Args:
        keys: the stored tensor, or one per expert, stacked.
        shape: of each stored tensor.
        rows: the outputs of a fused map that are ours, (start, stop); None is all.
        turned: whether the stored tensor is (in, out).
    """

    keys: tuple[str, ...]
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    turned: bool = False

    @property
    def cut(self) -> tuple[slice, ...]:
        """The part of the stored tensor that is ours."""
        if self.rows is None:
            return tuple(slice(None) for _ in self.shape)
        return (slice(None), slice(*self.rows)) if self.turned else (slice(*self.rows),)


def pieces(names: Names, shape: Shape, parameters: Mapping[str, torch.Size]) -> dict[str, Piece]:
    """The piece of every parameter.

    Args:
        names: the family's table.
        shape: of the model.
        parameters: shapes of our parameters, by name.
    """
    return {name: _piece(name, tuple(size), names, shape) for name, size in parameters.items()}


def _piece(name: str, size: tuple[int, ...], names: Names, shape: Shape) -> Piece:
    found = re.search(r"\.(\d+)\.", name)
    general = name if found is None else name.replace(f".{found[1]}.", ".*.", 1)
    fits = [path for path in names if general == path or general.startswith(path + ".")]
    assert fits, f"a family's table of names has nothing for {general}"
    path = max(fits, key=len)
    at = names[path]
    at = At(at) if isinstance(at, str) else at
    stored = at.name.replace("*", found[1] if found else "") + general.removeprefix(path)
    turned = at.turned and len(size) == 2
    if "+" in stored:
        keys = tuple(stored.replace("+", str(expert)) for expert in range(size[0]))
        return Piece(keys=keys, shape=size[1:])
    rows = None
    if at.part is not None:
        widths = {"q": shape.heads * shape.head_dim, "k": shape.kv_heads * shape.head_dim}
        widths["v"] = widths["k"]
        start = sum(widths[part] for part in "qkv"[: "qkv".index(at.part)])
        rows, size = (start, start + widths[at.part]), (sum(widths.values()), *size[1:])
    return Piece(keys=(stored,), shape=size[::-1] if turned else size, rows=rows, turned=turned)


def expected(of: Mapping[str, Piece]) -> dict[str, tuple[int, ...]]:
    """The shape that every stored tensor must have."""
    return {key: piece.shape for piece in of.values() for key in piece.keys}


def stored(of: Mapping[str, Piece], parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Parameters back under their stored names, in their stored shapes."""
    fused: dict[str, list[tuple[int, Tensor]]] = {}
    for name, piece in of.items():
        value = parameters[name].detach()
        if len(piece.keys) > 1 or value.dim() > len(piece.shape):
            yield from zip(piece.keys, value, strict=True)
        elif piece.rows is not None:
            fused.setdefault(piece.keys[0], []).append((piece.rows[0], value.t() if piece.turned else value))
        else:
            yield piece.keys[0], value.t() if piece.turned else value
    turned = {piece.keys[0] for piece in of.values() if piece.turned}
    for key, parts in fused.items():
        ordered = [part for _, part in sorted(parts, key=lambda item: item[0])]
        yield key, torch.cat(ordered, dim=1 if key in turned else 0)


def check(of: Mapping[str, Piece], found: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Every stored tensor is there, none is left over, all have the right shape.

    Raises:
        BadCheckpoint: naming the first few that are not so.
    """
    wanted, problems = expected(of), []
    if missing := sorted(set(wanted) - set(found)):
        problems.append(f"missing {some(missing)}")
    if unexpected := sorted(set(found) - set(wanted)):
        problems.append(f"unexpected {some(unexpected)}")
    for name in sorted(set(wanted) & set(found)):
        if tuple(found[name]) != wanted[name]:
            problems.append(f"{name} has shape {list(found[name])}, expected {list(wanted[name])}")
    if problems:
        raise BadCheckpoint(f"the weights in {where} don't fit its config.json: {'; '.join(problems[:4])}")


def some(names: list[str]) -> str:
    """The first few names of a list."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
