"""Layouts through the loop to results: one canvas for all rows, with stop strings, views on the way, and what came out.

It knows strings only through the tokenizer, and only where stop strings or views ask for them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from unmask.base.canvas import Canvas
from unmask.base.denoiser import Denoiser
from unmask.base.step import State
from unmask.decode.decoder import Decoder
from unmask.decode.lengths import fit
from unmask.decode.loop import denoise
from unmask.decode.trace import Trace, record
from unmask.text.layout import Layout
from unmask.text.tokenizer import Tokenizer

Look = Literal["fixed", "masked", "draft", "committed", "reopened"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One position as a person sees it: its token's text and what it is.

    "draft" is written and may still change; "committed" is written for good; "reopened" was taken back.
    """

    token: int
    text: str
    look: Look


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What became of one row.

    Args:
        gaps: the tokens of each gap; an end of text and what lies behind it are cut off.
        log_probs: nats of each of these tokens at the step that wrote it; 0 for tokens that were given.
        ended: whether an end of text or a stop string ended the row, "stop", or its positions, "length".
        cut: characters of the last gap's text that are left by a stop string, if one was met.
        left: positions that are still open.
    """

    layout: Layout
    gaps: list[list[int]]
    log_probs: list[list[float]]
    ended: Literal["stop", "length"]
    cut: int | None
    left: int
    trace: Trace
    forwards: int

    @property
    def mean_log_prob(self) -> float:
        """Mean nats of a written token; what candidates of different lengths are compared by if nothing is behind."""
        written = self.trace.last().values()
        return sum(c.log_prob for c in written) / max(1, len(written))


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
    ) -> None:
        vocab = model.vocab
        self.model, self.decoder, self.layouts = model, decoder, layouts
        self.tokenizer, self.stops, self.ends = tokenizer, stops, ends and vocab.eos is not None
        self.canvas = Canvas.of(
            [self._padded(layout) for layout in layouts],
            mask=blank(model),
            eos=vocab.eos,
            stop=self.ends,
            seeds=seeds,
            device=model.device,
        )
        sizes = torch.tensor([[len(layout.tokens)] for layout in layouts], device=model.device)
        self._own = torch.arange(self.canvas.tokens.shape[1], device=model.device) < sizes
        self.traces = [Trace() for _ in layouts]
        self.num_forwards = 0
        self._cuts: dict[int, int] = {}

    def run(self) -> Iterator[None]:
        """Go on turn by turn; yields after each forward."""
        for turn in denoise(self.model, self.canvas, self.decoder):
            record(self.traces, self.canvas, turn)
            self.num_forwards += 1
            if self.stops:
                self._stop(turn.plan.rows.tolist())
            if not self.decoder.revises:  # what will be cut need not be written
                self.canvas.stop((~(self.canvas.open & self._own).any(1)).nonzero()[:, 0])
            yield

    def committed(self, row: int) -> list[int]:
        """Tokens of the last gap that no policy may take back: the left-contiguous part, without an end of text."""
        last = self.layouts[row].gaps[-1]
        until = self.canvas.sealed if self.decoder.revises else self.canvas.filled
        return self._clean(row, last.start, min(last.stop, int(until[row])))

    def cells(self, row: int) -> list[Cell]:
        """The row as it stands, from its first piece to its last position."""
        canvas = self.canvas
        sealed = int((canvas.sealed if self.decoder.revises else canvas.length)[row])
        reopened = {c.position for c in self.traces[row] if c.kind == "reopen"}
        looks: dict[int, Look] = {State.FIXED: "fixed", State.DONE: "committed", State.OPEN: "masked"}
        cells, own = [], slice(len(self.layouts[row].tokens))
        tokens, states = canvas.tokens[row, own].tolist(), canvas.state[row, own].tolist()
        for i, (token, state) in enumerate(zip(tokens, states, strict=True)):
            if state == State.ABSENT:
                continue
            look = looks[state]
            if look == "committed" and i >= sealed:
                look = "draft"
            if look == "masked" and i in reopened:
                look = "reopened"
            cells.append(Cell(token, self._spell(token), look))
        return cells

    def results(self) -> list[Filled]:
        """What became of each row."""
        found = []
        for row, (layout, trace) in enumerate(zip(self.layouts, self.traces, strict=True)):
            trace = trace.until(len(layout.tokens))
            spans = [self._kept(row, gap.start, gap.stop) for gap in layout.gaps]
            last = trace.last()
            ended = row in self._cuts or (self.ends and self._met_end(row))
            found.append(
                Filled(
                    layout=layout,
                    gaps=[self.canvas.tokens[row, span].tolist() for span in spans],
                    log_probs=[[last[i].log_prob if i in last else 0.0 for i in span] for span in spans],
                    ended="stop" if ended else "length",
                    cut=self._cuts.get(row),
                    left=int((self.canvas.open & self._own)[row].sum()),
                    trace=trace,
                    forwards=int(self.canvas.forwards[row]),
                )
            )
        return found

    def fit(self) -> list[float]:
        """How well each row's gaps go with what stands behind them, nats; see `unmask.decode.lengths.fit`."""
        found: list[float] = fit(self.model, self.canvas, [[g.stop for g in row.gaps] for row in self.layouts]).tolist()
        return found

    def _kept(self, row: int, start: int, stop: int) -> list[int]:
        """Positions of a gap that hold text: neither open, nor absent, nor an end of text."""
        state, tokens = self.canvas.state[row, start:stop], self.canvas.tokens[row, start:stop]
        text = (state != State.OPEN) & (state != State.ABSENT)
        if self.ends:
            text &= tokens != self.canvas.eos
        return (text.nonzero()[:, 0] + start).tolist()

    def _clean(self, row: int, start: int, stop: int) -> list[int]:
        return self.canvas.tokens[row, self._kept(row, start, max(start, stop))].tolist()

    def _met_end(self, row: int) -> bool:
        written = (self.canvas.state[row] == State.DONE) & self._own[row]
        return bool((written & (self.canvas.tokens[row] == self.canvas.eos)).any())

    def _padded(self, layout: Layout) -> tuple[list[int], list[bool]]:
        """A row as it is written: up to the end of its last block if the window wants that, as far as there is room."""
        tokens, is_open = list(layout.tokens), list(layout.is_open)
        first = is_open.index(True) if any(is_open) else len(tokens)
        size = min(self.decoder.room(len(tokens), first, self.model.traits), self.model.max_length)
        more = max(0, size - len(tokens)) if any(is_open) else 0
        return tokens + [blank(self.model)] * more, is_open + [True] * more

    def _stop(self, rows: Sequence[int]) -> None:
        """End rows whose committed text holds a stop string."""
        assert self.tokenizer is not None
        for row in rows:
            text = self.tokenizer.decode(self.committed(row))
            places = [at for at in (text.find(s) for s in self.stops) if at >= 0]
            if places:
                self._cuts[row] = min(places)
                self.canvas.stop(torch.tensor([row], device=self.canvas.tokens.device))

    def _spell(self, token: int) -> str:
        return self.tokenizer.decode([token]) if self.tokenizer is not None else f" {token}"


def blank(model: Denoiser) -> int:
    """What an open position holds: the mask, or any token where the model never sees it."""
    vocab = model.vocab
    return next(i for i in (vocab.mask, vocab.eos, 0) if i is not None)
