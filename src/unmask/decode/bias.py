"""Numbers that are added to a model's logits: tokens that a text should have rather, or rather not.

They are added to what the network says, before temperatures, top-k, top-p and constraints, so all that is made of the
logits (candidates, confidences, log-probabilities that are told) is of the distribution with them. It knows tokens by
their ids only.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.base.errors import BadInput

Bias = tuple[tuple[int, float], ...]
"""Ids, each once, and what is added to their logits."""

MOST = 100.0
"""What is added lies between minus this and this: enough to shut a token out, or all others."""


class Biases:
    """A bias for each row of a canvas.

    Args:
        rows: of the canvas; none of them has a bias yet.
        device: of logits.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self._ids = torch.zeros(rows, 0, dtype=torch.int64, device=device)  # (B, K), 0 behind a row's last
        self._values = torch.zeros(rows, 0, dtype=torch.float64, device=device)  # (B, K), 0 behind a row's last
        self._has = torch.zeros(rows, dtype=torch.bool, device=device)
        self._sizes: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._sizes)

    @torch.inference_mode()  # a row may leave between steps
    def set(self, row: int, bias: "Bias | Biases") -> None:
        """A row's own, whatever it had before; an empty one is none."""
        assert not isinstance(bias, Biases), "a row has a bias of its own"
        if (more := len(bias) - self._ids.shape[1]) > 0:
            self._ids, self._values = F.pad(self._ids, (0, more)), F.pad(self._values, (0, more))
        if self._sizes.pop(row, 0):
            self._ids[row], self._values[row], self._has[row] = 0, 0.0, False
        if bias:
            self._sizes[row], self._has[row] = len(bias), True
            for column, values in zip((self._ids, self._values), zip(*bias, strict=True), strict=True):
                column[row, : len(bias)] = torch.tensor(values, dtype=column.dtype, device=column.device)

    def add(self, logits: Tensor, rows: Tensor) -> None:
        """Add to logits (N, V) float64 of canvas rows (N,), in place."""
        some = self._has[rows].nonzero()[:, 0]
        if len(some):
            held, width = rows[some], max(self._sizes.values())
            ids, values = self._ids[held, :width], self._values[held, :width]
            logits.index_put_((some[:, None].expand_as(ids), ids), values, accumulate=True)


def add_bias(bias: Bias | Biases, logits: Tensor, rows: Tensor) -> None:
    """Add a bias of all rows, or those of each, to logits (N, V) float64 of canvas rows (N,), in place."""
    if not bias:
        return
    if isinstance(bias, Biases):
        bias.add(logits, rows)
    else:
        ids, values = zip(*bias, strict=True)
        logits[:, list(ids)] += torch.tensor(values, dtype=torch.float64, device=logits.device)


def checked(asked: Any, size: int, never: frozenset[int]) -> Bias:
    """A bias as it is asked for, a map of ids to numbers; ids may be strings, as JSON has them.

    Args:
        asked: the map; None is none.
        size: of the vocabulary.
        never: ids that are never written, which nothing can make likelier.
    Raises:
        BadInput: no such id, or a number out of range.
    """
    if not isinstance(asked, Mapping | None):
        raise BadInput(f"logit_bias is a map of token ids to numbers, not {asked!r}")
    found: dict[int, float] = {}
    for key, value in (asked or {}).items():
        token = int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10 else key
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size or token in found:
            raise BadInput(f"logit_bias has ids from 0 to {size - 1}, each once, and {str(key)[:40]!r} is none of them")
        if isinstance(value, bool) or not isinstance(value, int | float) or not -MOST <= value <= MOST:
            raise BadInput(f"logit_bias adds {-MOST:g} to {MOST:g} to a logit, not {str(value)[:40]} (token {token})")
        if value > 0 and token in never:
            raise BadInput(f"logit_bias can't make token {token} likelier, which is never written here; leave it out")
        found[token] = float(value)
    return tuple(sorted(found.items()))
