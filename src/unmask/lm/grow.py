"""From rows of a settled length to rows that find theirs while they are written, where a call asks for that.

It does not know how a length is found; `unmask.decode.growth` does.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from unmask.base.canvas import NEW
from unmask.base.denoiser import Denoiser
from unmask.base.errors import BadInput, Unsupported
from unmask.decode.growth import TABLE
from unmask.lm.results import Settings
from unmask.lm.rows import NEVER, Ask, Fits
from unmask.lm.write import decoder_of
from unmask.text.layout import Layout, Span


def grown(model: Denoiser, ask: Ask, settings: Settings, fits: Fits = lambda name, num_tokens: True) -> Ask:
    """The ask, with one row for each text, which starts short and grows within the lengths that were asked for.

    What is generated has 1 to `length` positions, or those of its range; a gap has those of its range. An ask whose
    settings have no rule for lengths is as it was, and so is one for a gap of one length, unless it names a rule. What
    has to fit (`fits`, see `unmask.lm.control.Controls`) starts with room for the shortest text that does.

    Raises:
        BadInput: a rule for a text of one length.
        Unsupported: a text with several gaps; a gap, where the rule listens for an end of text; a length that was made
            exact; positions that are pinned.
    """
    rule = decoder_of(model, settings, 0.0).growth
    if rule is None:
        return ask
    named = settings.get("lengths") in TABLE or settings.get("decoder") is not None
    if any(len(rows[0].gaps) > 1 for rows in ask.texts):
        if not named:
            return ask
        raise Unsupported(f"one gap of a text may grow, and this one has {len(ask.rows[0].gaps)}; use lengths='try'")
    if rule.listens and ask.full != "length":
        if not named:
            return ask
        raise Unsupported(f"lengths={settings.get('lengths', 'daedal')!r} is for text that is generated; use 'try'")
    texts = []
    for rows, early in zip(ask.texts, ask.no_end_before, strict=True):
        low, high = _bounds(rows, early, generated=ask.full == "length")
        if low == high and named:
            raise BadInput(f"a text that grows needs a range of lengths, and this one has {low}; use lengths='try'")
        if low == high:
            texts.append([rows[0]])
            continue
        gap = rows[0].gaps[0]
        if not all(rows[0].is_open[gap.start : gap.stop]):
            raise Unsupported("pinned positions would move in a text that grows; leave out the pins, or lengths=")
        shortest = next((size for size in range(1, high) if fits(gap.name, size)), high)
        texts.append([_sized(rows[0], min(max(rule.start, low, shortest), high), (low, high))])
    return replace(ask, texts=texts)


def _bounds(rows: Sequence[Layout], early: float, *, generated: bool) -> tuple[int, int]:
    """Positions that the gap of a text may have."""
    sizes = [row.gaps[0].size for row in rows]
    if not generated:
        return min(sizes), max(sizes)
    if early == NEVER:
        raise Unsupported("eos='forbid' makes the length exact, so nothing can grow; leave it out, or lengths=")
    return max(1, int(early) - rows[0].gaps[0].start), max(sizes)


def _sized(row: Layout, size: int, bounds: tuple[int, int]) -> Layout:
    """The row with a gap of another size, all of it open where it was, and bounds."""
    (gap,) = row.gaps
    kept = gap.start + min(size, gap.size)
    source = [*range(kept), *[NEW] * (size - gap.size), *range(gap.stop, len(row.tokens))]
    other = row.resized(source)

    def bound(piece: Any) -> Any:
        return replace(piece, bounds=bounds) if isinstance(piece, Span) else piece

    return replace(other, pieces=tuple(bound(piece) for piece in other.pieces))
