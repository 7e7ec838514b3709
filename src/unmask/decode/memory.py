"""A denoiser that is not asked the same thing twice.

Where a step changed nothing in a row, a network that takes no time would say what it said: the row does not travel.
Ancestral samplers with more steps than tokens make most of their steps like that.

Source: Sahoo et al. 2024, MDLM, arXiv:2406.07524, sec. 4.2 ("cache" of its sampler: no new forward while no token
changes); there for a whole batch, here row by row.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.base.attend import Attend
from unmask.base.denoiser import Cache, Denoiser
from unmask.base.errors import Unsupported


class Remembering:
    """`model`, and what it last said about each row.

    Args:
        model: a network without a clock.
        rows: of the canvas.
    Raises:
        Unsupported: a network with a clock.

    Attributes:
        spared: (R,) bool, which rows of the last `read` did not travel.
    """

    def __init__(self, model: Denoiser, rows: int) -> None:
        if model.traits.clock:
            raise Unsupported("a network that is told the time says something else each step")
        self.model = model
        self._tokens = torch.full((rows, 1), -2, dtype=torch.int64, device=model.device)  # -1 stands for a filler
        self._features = torch.zeros(rows, 1, 0, device=model.device)
        self.spared = torch.zeros(0, dtype=torch.bool, device=model.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forget(self, rows: Tensor) -> None:
        """Other texts stand in these rows from now on."""
        self._tokens[rows] = -2

    def read(
        self,
        tokens: Tensor,
        *,
        positions: Tensor,
        attend: Attend,
        t: Tensor | None = None,
        cache: Cache | None = None,
        rows: Tensor | None = None,
        keep: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Features (R, W, D), of rows that changed since they were last read from the network."""
        assert cache is None
        assert t is None
        rows = torch.arange(len(tokens), device=tokens.device) if rows is None else rows
        width = tokens.shape[1]
        if (more := width - self._tokens.shape[1]) > 0:
            self._tokens = F.pad(self._tokens, (0, more), value=-1)
            self._features = F.pad(self._features, (0, 0, 0, more))
        fed = F.pad(tokens.masked_fill(positions < 0, -1), (0, self._tokens.shape[1] - width), value=-1)
        self.spared = (self._tokens[rows] == fed).all(1)
        asked = (~self.spared).nonzero()[:, 0]
        if len(asked):
            said = self.model.read(
                tokens[asked], positions=positions[asked], attend=attend.rows(asked), rows=rows[asked]
            )
            if self._features.shape[-1] != said.shape[-1]:
                self._features = said.new_zeros(*self._tokens.shape, said.shape[-1])
            self._features[rows[asked], :width] = said
            self._tokens[rows[asked]] = fed[asked]
        return self._features[rows, :width]
