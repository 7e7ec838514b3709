"""A denoiser that is not asked the same thing twice.

Where a step changed nothing in a row, a network that takes no time would say what it said: the row does not travel.
Ancestral samplers with more steps than tokens make most of their steps like that.

What is kept are the features of the last answer as they came, and of rows that were answered before and had no part in
it, most recent first, as long as all of it stays below a number of bytes. What travels beside a text (`Shadows`) is not
seen by it: the text is known with or without that, and that is not kept.

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

MOST_BYTES = 1 << 28
"""Of features that are kept: 256 MiB, which is 32,768 positions of a network of width 4,096 in bfloat16."""

_NOBODY, _FILLER = -2, -1


class Remembering:
    """`model`, and what it last said about each row.

    Args:
        model: a network without a clock.
        rows: of the canvas.
        most_bytes: of features that may be kept. A row that has no place among them is asked again: the same tokens,
            more forwards.
    Raises:
        Unsupported: a network with a clock.

    Attributes:
        spared: (R,) bool, which rows of the last `read` did not travel.
    """

    def __init__(self, model: Denoiser, rows: int, most_bytes: int = MOST_BYTES) -> None:
        if model.traits.clock:
            raise Unsupported("a network that is told the time says something else each step")
        self.model, self.most_bytes = model, most_bytes
        self._place = torch.full((rows,), _NOBODY, device=model.device)  # of a row among those that are known
        self._rows = self._place[:0]  # (M,) those that are known, and those that were forgotten since
        self._tokens = self._place[:0, None]  # (M, W) the text that was fed to them
        self._features = torch.zeros(0, 1, 0, device=model.device)  # (M, W, D)
        self.spared = torch.zeros(0, dtype=torch.bool, device=model.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    @property
    def kept_bytes(self) -> int:
        """Of the features that are kept now."""
        return self._features.untyped_storage().nbytes()  # and not a byte more behind a view

    def forget(self, rows: Tensor) -> None:
        """Other texts stand in these rows from now on."""
        self._place[rows] = _NOBODY

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
        there, width = positions >= 0, tokens.shape[1]
        place = self._place[rows]
        self.spared = place >= 0
        if attend.shadows is not None:
            beside = torch.arange(width, device=tokens.device) >= attend.shadows.first[:, None]
            self.spared &= ~(there & beside).any(1)
            there &= ~beside
        size = int(there.any(0).nonzero()[-1]) + 1
        text = self._widened(tokens.masked_fill(~there, _FILLER)[:, :size])
        if len(self._rows):
            self.spared &= (self._tokens[place.clamp(min=0)] == text).all(1)
        asked = (~self.spared).nonzero()[:, 0]
        if not len(asked):
            return self._known(place, width)
        if len(asked) == len(rows):
            said = self.model.read(tokens, positions=positions, attend=attend, rows=rows)
        else:
            said = self.model.read(
                tokens[asked], positions=positions[asked], attend=attend.rows(asked), rows=rows[asked]
            )
            said = self._known(place.clamp(min=0), width).index_copy(0, asked, said)
        self._keep(rows, text, said[:, :size])
        return said

    def _known(self, place: Tensor, width: int) -> Tensor:
        """Features (R, width, D) of those that are known, zeros behind the text."""
        known = self._features[place, :width]
        return F.pad(known, (0, 0, 0, width - known.shape[1]))

    def _widened(self, fed: Tensor) -> Tensor:
        """Tokens (R, W), and those that are known, made as wide as the wider of the two."""
        more = fed.shape[1] - self._tokens.shape[1]
        if more > 0 and len(self._rows):
            self._tokens = F.pad(self._tokens, (0, more), value=_FILLER)
            self._features = F.pad(self._features, (0, 0, 0, more))
        return F.pad(fed, (0, max(0, -more)), value=_FILLER) if len(self._rows) else fed

    def _keep(self, rows: Tensor, fed: Tensor, said: Tensor) -> None:
        """Know these rows, and as many of those that had no part as there is room for."""
        places = torch.arange(len(self._rows), device=rows.device)
        self._place[rows] = _NOBODY
        others = (self._place[self._rows] == places).nonzero()[:, 0]
        if not len(others):
            fed = fed[:, : said.shape[1]]
        room = self.most_bytes // (fed.shape[1] * said.shape[2] * said.element_size())
        if not len(others) and len(rows) <= room:  # as they are, but not as a view of more
            self._rows, self._tokens, self._features = rows, fed, said.clone()
            self._place.index_copy_(0, rows, torch.arange(len(rows), device=rows.device))
            return
        rows, others = rows[:room], others[: max(0, room - len(rows))]
        features = said.new_zeros(len(rows) + len(others), fed.shape[1], said.shape[2])
        features[: len(rows), : said.shape[1]] = said[: len(rows)]
        tokens = fed[: len(rows)]
        if len(others):
            features[len(rows) :] = self._features[others]
            tokens = torch.cat([tokens, self._tokens[others]])
        self._rows, self._tokens, self._features = torch.cat([rows, self._rows[others]]), tokens, features
        self._place.fill_(_NOBODY)
        self._place[self._rows] = torch.arange(len(self._rows), device=rows.device)
