"""One row of a canvas as its layout means it: what is committed, how it looks to a person, what became of it.

It knows strings only through the tokenizer, and only where stop strings or views ask for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unmask.base.canvas import Canvas
from unmask.base.step import State
from unmask.decode.audit import Drift
from unmask.decode.effort import Eased
from unmask.decode.trace import Change, Trace
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
        changes: what wrote each of these tokens; None for tokens that were given.
        ended: whether an end of text or a stop string ended the row, "stop", or its positions, "length".
        cut: characters of the last gap's text that are left by a stop string, if one was met.
        left: positions that are still open.
        row: ids of the whole row as it stands.
        eased: what became of its target of seconds, if it had one.
        drift: what audits have found, where they were asked for.
        chosen: options that were left open, as `Decoder.chosen`.
    """

    layout: Layout
    gaps: list[list[int]]
    changes: list[list[Change | None]]
    ended: Literal["stop", "length"]
    cut: int | None
    left: int
    trace: Trace
    forwards: int
    row: list[int]
    eased: Eased | None = None
    drift: Drift | None = None
    chosen: tuple[tuple[str, int], ...] = ()

    @property
    def mean_log_prob(self) -> float:
        """Mean nats of a written token; what candidates of different lengths are compared by if nothing is behind."""
        written = self.trace.last().values()
        return sum(c.log_prob for c in written) / max(1, len(written))


class Reading:
    """One row, while it is written and afterwards.

    Args:
        canvas, row: where it stands.
        layout: what it means; of a row that grows, what it means now.
        revises: whether its decoder may take written tokens back.
        ends: whether an end of text ends it.
        tokenizer: for stop strings and views.

    Attributes:
        trace: what happened to it so far.
        cut: characters of the last gap's text that a stop string has left, if one was met.
        drift: what audits have found so far, where they were asked for.
        chosen: options that were left open, as `Decoder.chosen`.
    """

    def __init__(
        self, canvas: Canvas, row: int, layout: Layout, *, revises: bool, ends: bool, tokenizer: Tokenizer | None = None
    ) -> None:
        self.canvas, self.row, self.layout = canvas, row, layout
        self.revises, self.ends, self.tokenizer = revises, ends, tokenizer
        self.trace = Trace()
        self.cut: int | None = None
        self.drift: Drift | None = None
        self.chosen: tuple[tuple[str, int], ...] = ()
        self._own = slice(len(layout.tokens))

    def resized(self, layout: Layout, source: Sequence[int]) -> None:
        """The row has other positions now: its layout, and which position each was before."""
        self.layout, self._own = layout, slice(len(layout.tokens))
        self.trace.resized(source)

    @property
    def committed(self) -> list[int]:
        """Tokens of the last gap that no policy may take back: the left-contiguous part, without an end of text."""
        until = self.canvas.sealed if self.revises else self.canvas.filled
        return self.between(0, int(until[self.row]))

    @property
    def changes(self) -> list[Change | None]:
        """What wrote each of the committed tokens; None for tokens that were given."""
        until, last = self.canvas.sealed if self.revises else self.canvas.filled, self.trace.last()
        gap = self.layout.gaps[-1]
        return [last.get(i) for i in self._kept(gap.start, min(gap.stop, int(until[self.row])))]

    def between(self, start: int, stop: int) -> list[int]:
        """Tokens of the last gap from position `start` to `stop` that are text."""
        last = self.layout.gaps[-1] if self.layout.gaps else None
        return [] if last is None else self._tokens(max(start, last.start), min(last.stop, stop))

    @property
    def left(self) -> int:
        """Positions that are still open."""
        return int((self.canvas.state[self.row, self._own] == State.OPEN).sum())

    def stopped(self, stops: Sequence[str]) -> bool:
        """Whether the committed text holds a stop string; `cut` is where it starts."""
        assert self.tokenizer is not None
        text = self.tokenizer.decode(self.committed)
        places = [at for at in (text.find(stop) for stop in stops) if at >= 0]
        self.cut = min(places, default=self.cut)
        return bool(places)

    def cells(self) -> list[Cell]:
        """The row as it stands, from its first piece to its last position."""
        canvas = self.canvas
        sealed = int((canvas.sealed if self.revises else canvas.length)[self.row])
        reopened = {c.position for c in self.trace if c.kind == "reopen"}
        looks: dict[int, Look] = {State.FIXED: "fixed", State.DONE: "committed", State.OPEN: "masked"}
        cells = []
        tokens, states = (x[self.row, self._own].tolist() for x in (canvas.tokens, canvas.state))
        for i, (token, state) in enumerate(zip(tokens, states, strict=True)):
            if state == State.ABSENT:
                continue
            look = looks[state]
            if look == "committed" and i >= sealed:
                look = "draft"
            if look == "masked" and i in reopened:
                look = "reopened"
            text = self.tokenizer.decode([token]) if self.tokenizer is not None else f" {token}"
            cells.append(Cell(token, text, look))
        return cells

    def result(self) -> Filled:
        """What became of the row."""
        trace = self.trace.until(len(self.layout.tokens))
        spans = [self._kept(gap.start, gap.stop) for gap in self.layout.gaps]
        last = trace.last()
        ended = self.cut is not None or (self.ends and self._met_end())
        return Filled(
            layout=self.layout,
            gaps=[self.canvas.tokens[self.row, span].tolist() for span in spans],
            changes=[[last.get(i) for i in span] for span in spans],
            ended="stop" if ended else "length",
            cut=self.cut,
            left=self.left,
            trace=trace,
            forwards=int(self.canvas.forwards[self.row]),
            row=self.canvas.tokens[self.row, self._own].tolist(),
            drift=self.drift,
            chosen=self.chosen,
        )

    def _kept(self, start: int, stop: int) -> list[int]:
        """Positions of a gap that hold text: neither open, nor absent, nor an end of text."""
        state, tokens = self.canvas.state[self.row, start:stop], self.canvas.tokens[self.row, start:stop]
        text = (state != State.OPEN) & (state != State.ABSENT)
        if self.ends:
            text &= tokens != self.canvas.eos
        return (text.nonzero()[:, 0] + start).tolist()

    def _tokens(self, start: int, stop: int) -> list[int]:
        return self.canvas.tokens[self.row, self._kept(start, max(start, stop))].tolist()

    def _met_end(self) -> bool:
        written = self.canvas.state[self.row, self._own] == State.DONE
        return bool((written & (self.canvas.tokens[self.row, self._own] == self.canvas.eos)).any())


def between(readings: Sequence[Reading], starts: Sequence[int], stops: Sequence[int]) -> list[list[int]]:
    """What `Reading.between` says of several rows of one canvas, from a position to another each.

    After a step few positions of a row are new, so a canvas is turned into numbers once, and not row by row.
    """
    canvas = readings[0].canvas
    tokens, state = (x.cpu().numpy() for x in (canvas.tokens, canvas.state))
    found: list[list[int]] = []
    for reading, start, stop in zip(readings, starts, stops, strict=True):
        gaps, row = reading.layout.gaps, reading.row
        span = slice(max(start, gaps[-1].start), min(stop, gaps[-1].stop)) if gaps else slice(0, 0)
        told = zip(tokens[row, span].tolist(), state[row, span].tolist(), strict=True) if span.start < span.stop else ()
        eos = canvas.eos if reading.ends else None
        found.append([token for token, now in told if now not in (State.OPEN, State.ABSENT) and token != eos])
    return found
