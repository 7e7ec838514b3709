"""Text with holes, laid out as one row of positions, and the way back.

What is fixed keeps its own string, so that it comes back byte for byte however it was tokenised; only holes are spelled
from tokens. It does not know models or how holes are filled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unmask.base.canvas import NEW, border


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """A fixed piece: its ids, its string (None without a tokenizer), and whether it came as ids, to be fed as it is."""

    ids: tuple[int, ...]
    text: str | None
    raw: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A piece to be written: `length` positions, those of `given` already hold a token that stays.

    Args:
        length: positions.
        name: what the template calls it, if anything.
        given: offset in the gap to token id (pins; what a partial rewrite keeps).
        bounds: (low, high) positions that it may come to have, if it need not keep those of `length`.
    """

    length: int
    name: str | None = None
    given: Mapping[int, int] | None = None
    bounds: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """Where a gap lies in the row: positions [start, stop).

    With `bounds` (low, high), inclusive, it may come to have another number of them while it is written.
    """

    start: int
    stop: int
    name: str | None
    bounds: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """Positions."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Layout:
    """One row: what stands at each position, which of them are open, and where the gaps are.

    `pieces` are the fixed strings and the gaps, in order; an id sequence without a string is None.
    """

    tokens: tuple[int, ...]
    is_open: tuple[bool, ...]
    pieces: tuple[str | Span | None, ...]

    @property
    def gaps(self) -> list[Span]:
        """The gaps, in order."""
        return [p for p in self.pieces if isinstance(p, Span)]

    @property
    def most(self) -> int:
        """Positions that the row may come to have."""
        return len(self.tokens) + sum(gap.bounds[1] - gap.size for gap in self.gaps if gap.bounds is not None)

    def resized(self, source: Sequence[int]) -> "Layout":
        """The row with positions put in or left out: which one each was before, `NEW` for new ones, which are open."""

        def moved(piece: str | Span | None) -> str | Span | None:
            if not isinstance(piece, Span):
                return piece
            return replace(piece, start=border(source, piece.start), stop=border(source, piece.stop))

        return Layout(
            tuple(0 if at == NEW else self.tokens[at] for at in source),
            tuple(at == NEW or self.is_open[at] for at in source),
            tuple(moved(piece) for piece in self.pieces),
        )

    def join(self, fills: Sequence[str | None]) -> str | None:
        """The whole text, with the gaps replaced by `fills`; None where a piece or a fill has no string."""
        gaps = iter(fills)
        parts = [next(gaps) if isinstance(piece, Span) else piece for piece in self.pieces]
        return None if None in parts else "".join(str(part) for part in parts)


def lay(pieces: Sequence[Fixed | Gap], *, start: Sequence[int] = (), blank: int = 0) -> Layout:
    """Put pieces one after the other.

    Args:
        pieces: fixed text and gaps.
        start: ids before everything that belong to no piece (a beginning of text).
        blank: the id that open positions hold.
    """
    tokens, is_open = list(start), [False] * len(start)
    parts: list[str | Span | None] = []
    for piece in pieces:
        if isinstance(piece, Fixed):
            tokens += piece.ids
            is_open += [False] * len(piece.ids)
            parts.append(piece.text)
            continue
        given = piece.given or {}
        parts.append(Span(len(tokens), len(tokens) + piece.length, piece.name, piece.bounds))
        tokens += [given.get(i, blank) for i in range(piece.length)]
        is_open += [i not in given for i in range(piece.length)]
    return Layout(tuple(tokens), tuple(is_open), tuple(parts))
