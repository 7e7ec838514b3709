"""Layouts through the loop to results: one canvas for all rows, with stop strings, views on the way, and what came out.

The plain path: rows of one decoder that start and run together. The engine must write what this writes.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from unmask.base.canvas import Canvas
from unmask.base.denoiser import Denoiser
from unmask.constrain.holes import Holes, Span
from unmask.decode import resize
from unmask.decode.audit import Auditor
from unmask.decode.control import check
from unmask.decode.decoder import Decoder
from unmask.decode.growth.row import Growing
from unmask.decode.lengths import fit
from unmask.decode.loop import denoise
from unmask.decode.reading import Cell, Filled, Reading
from unmask.decode.trace import record
from unmask.text.layout import Layout
from unmask.text.tokenizer import Tokenizer


class Session:
    """Rows that are written together.

    Args:
        model: the network.
        layouts: one per row.
        decoder: how to fill them.
        seeds: one per row.
        tokenizer: for stop strings and views.
        stops: strings that end a row at their earliest match in its last gap.
        ends: whether an end of text ends a row.
        spans: of each row, what its text has to be; none where there is no constraint.
    Raises:
        BadInput, TooLong, Unsupported: see `unmask.decode.control.check` and `unmask.decode.resize.check`.
    """

    def __init__(
        self,
        model: Denoiser,
        layouts: Sequence[Layout],
        decoder: Decoder,
        seeds: Sequence[int],
        *,
        tokenizer: Tokenizer | None = None,
        stops: Sequence[str] = (),
        ends: bool = False,
        spans: Sequence[Sequence[Span]] = (),
    ) -> None:
        self.model, self.decoder, self.layouts, self.stops = model, decoder, layouts, stops
        self.canvas = lay_out(model, layouts, decoder, seeds, ends=ends)
        ends = ends and model.vocab.eos is not None
        self.readings = [
            Reading(self.canvas, row, layout, revises=decoder.revises, ends=ends, tokenizer=tokenizer)
            for row, layout in enumerate(layouts)
        ]
        self.auditor = Auditor()
        for row, reading in enumerate(self.readings):
            reading.drift, reading.chosen = self.auditor.join(row, decoder.audit), decoder.chosen
        self.num_forwards = 0
        self.holes = Holes(spelled(model, tokenizer)) if any(spans) else None
        for row, held in enumerate(spans):
            if self.holes is not None:
                check(decoder, held, lay_out(model, [layouts[row]], decoder, [0], ends=ends), self.holes.spell)
                self.holes.enter(row, held)
        self.growing: dict[int, tuple[Growing, Reading]] = {}
        for row, layout in enumerate(layouts):
            own = spans[row] if self.holes is not None else ()
            resize.check(layout, decoder, own, model)
            if (one := resize.begin(layout, decoder, own, model.vocab)) is not None:
                self.growing[row] = one, self.readings[row]

    def run(self) -> Iterator[None]:
        """Go on turn by turn; yields after each forward."""
        for turn in denoise(self.model, self.canvas, self.decoder, self.auditor, self.holes, self.growing):
            record({row: reading.trace for row, reading in enumerate(self.readings)}, self.canvas, turn)
            self.num_forwards += 1
            for row in turn.plan.rows.tolist() if self.stops else ():
                if self.readings[row].stopped(self.stops):
                    self.canvas.stop(torch.tensor([row], device=self.canvas.tokens.device))
            if not self.decoder.revises:  # what will be cut need not be written
                self.canvas.stop((~(self.canvas.open & self._own()).any(1)).nonzero()[:, 0])
            yield

    def _own(self) -> Tensor:
        """(B, L) bool: positions of rows, without those that only fill up their last blocks."""
        device = self.model.device
        sizes = torch.tensor([[len(reading.layout.tokens)] for reading in self.readings], device=device)
        return torch.arange(self.canvas.tokens.shape[1], device=device) < sizes

    def cells(self, row: int) -> list[Cell]:
        """The row as it stands, from its first piece to its last position."""
        return self.readings[row].cells()

    def results(self) -> list[Filled]:
        """What became of each row."""
        return [reading.result() for reading in self.readings]

    def fit(self) -> list[float]:
        """How well each row's gaps go with what stands behind them, nats; see `unmask.decode.lengths.fit`."""
        ends = [[gap.stop for gap in reading.layout.gaps] for reading in self.readings]
        found: list[float] = fit(self.model, self.canvas, ends).tolist()
        return found


def lay_out(
    model: Denoiser, layouts: Sequence[Layout], decoder: Decoder, seeds: Sequence[int], *, ends: bool
) -> Canvas:
    """A canvas of these rows, as their decoder wants it: up to the end of a last block if its window pads."""
    vocab = model.vocab
    canvas = Canvas.of(
        [_padded(model, layout, decoder) for layout in layouts],
        mask=blank(model),
        eos=vocab.eos,
        stop=ends and vocab.eos is not None,
        seeds=seeds,
        device=model.device,
    )
    canvas.ends = vocab.ends
    return canvas


def _padded(model: Denoiser, layout: Layout, decoder: Decoder) -> tuple[list[int], list[bool]]:
    """A row as it is written: up to the end of its last block if the window wants that, as far as there is room."""
    tokens, is_open = list(layout.tokens), list(layout.is_open)
    first = is_open.index(True) if any(is_open) else len(tokens)
    size = min(decoder.room(len(tokens), first, model.traits), model.max_length)
    more = max(0, size - len(tokens)) if any(is_open) else 0
    return tokens + [blank(model)] * more, is_open + [True] * more


def spelled(model: Denoiser, tokenizer: Tokenizer | None) -> list[bytes]:
    """(V,) the bytes of each token of a model's vocabulary, b"" where nobody knows them."""
    known = [] if tokenizer is None else tokenizer.token_bytes
    return [*known, *[b""] * (model.vocab.size - len(known))]


def blank(model: Denoiser) -> int:
    """What an open position holds: the mask, or any token where the model never sees it."""
    vocab = model.vocab
    return next(i for i in (vocab.mask, vocab.eos, 0) if i is not None)
