"""Rows whose decoders differ in numbers only, decided about together.

A crowd is one window and one chain of policies whose numbers are knobs over the rows of the engine's canvas, so however
many requests there are, and whatever their thresholds, each step runs each kind of window and policy once.
"""

import typing
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from unmask.base.canvas import Canvas
from unmask.base.denoiser import Cache
from unmask.base.step import Plan, Proposal, Turn
from unmask.base.vocab import Traits
from unmask.decode.decoder import Decoder


def kind(decoder: Decoder) -> Hashable:
    """What decoders have in common that may be decided about together."""
    parts = tuple((type(part), _settings(part)) for part in (decoder.window, *decoder.policies))
    return decoder.lookahead, decoder.ends, parts


class Board:
    """The knobs of one part (a window, a policy, the sampling) over the rows of a canvas.

    Args:
        part: a frozen dataclass; its fields that may be tensors are knobs.
        rows: of the canvas.
    """

    def __init__(self, part: Any, rows: int, device: torch.device) -> None:
        self.knobs = {
            name: torch.zeros(rows, dtype=torch.int64 if whole else torch.float64, device=device)
            for name, whole in _knobs(part).items()
        }
        self.part = replace(part, **self.knobs)

    def set(self, row: int, part: Any) -> None:
        """A row's own numbers; None counts as 0."""
        for name, column in self.knobs.items():
            value = getattr(part, name)
            column[row] = 0 if value is None else value.item() if torch.is_tensor(value) else value


@dataclass(slots=True)
class Crowd:
    """One kind of window and policies, and the rows that are written by it.

    Attributes:
        decoder: its parts have knobs over all rows of the canvas.
    """

    decoder: Decoder
    boards: list[Board]

    @classmethod
    def of(cls, decoder: Decoder, rows: int, device: torch.device) -> "Crowd":
        """An empty one for decoders of this kind."""
        window, *chain = boards = [Board(part, rows, device) for part in (decoder.window, *decoder.policies)]
        many = replace(decoder, window=window.part, policies=tuple(board.part for board in chain))
        return cls(many, boards)

    def join(self, row: int, decoder: Decoder) -> None:
        """A row comes, with the numbers of its own decoder."""
        for board, part in zip(self.boards, (decoder.window, *decoder.policies), strict=True):
            board.set(row, part)

    def set(self, row: int, name: str, value: float) -> None:
        """One number of a row's window, from now on."""
        self.boards[0].knobs[name][row] = value

    def plan(self, canvas: Canvas, traits: Traits, cache: Cache | None, rows: list[int]) -> Plan:
        """What the next forward of some of its rows looks at."""
        return self.decoder.look(canvas, traits, cache, torch.tensor(rows, device=canvas.tokens.device))

    def decide(self, offer: Proposal, plan: Plan) -> Turn:
        """What its policies make of an offer."""
        return self.decoder.decide(offer, plan)


def _knobs(part: Any) -> dict[str, bool]:
    """Fields that may be one number per row, and whether these are whole numbers."""
    return _KNOBS(type(part))


def _read(part: type) -> dict[str, bool]:
    kinds = {name: typing.get_args(hint) for name, hint in typing.get_type_hints(part).items()}
    return {f.name: float not in kinds[f.name] for f in fields(part) if Tensor in kinds[f.name]}


_KNOBS: Callable[[type], dict[str, bool]] = cache(_read)


def _settings(part: Any) -> tuple[tuple[str, Any], ...]:
    knobs = _knobs(part)
    return tuple((f.name, getattr(part, f.name)) for f in fields(part) if f.name not in knobs)
