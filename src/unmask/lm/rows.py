"""From what a user asks for to rows of positions: prompts, gaps, spans and pins, checked.

It does not know the network or how rows are filled.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from unmask.base import seeds
from unmask.base.errors import BadInput, TooLong, Unsupported
from unmask.base.vocab import Traits, Vocab
from unmask.constrain.holes import Span
from unmask.decode.lengths import candidates
from unmask.text.layout import Fixed, Gap, Layout, lay
from unmask.text.segments import Hole, Segment
from unmask.text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | None
Length = int | tuple[int, int]
Fits = Callable[[str | None, int], bool]
"""Whether a gap of a name may have so many tokens."""
NEVER = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Rows to write, and the rules that hold for all of them.

    Args:
        texts: per text, the candidate layouts (one, or one per length that is tried).
        draws: which draw of its prompt each text is (0 to n - 1); keys its noise.
        no_end_before: per text, canvas position before which no end of text may stand.
        ends: whether an end of text ends a row.
        stops: strings that end a text.
        spans: of each layout, what its text has to be; as `texts`, or empty where nothing is asked.
        full: what to report of a row that used up all its positions.
    """

    texts: list[list[Layout]]
    draws: list[int]
    no_end_before: list[float]
    ends: bool = False
    stops: tuple[str, ...] = ()
    spans: list[list[tuple[Span, ...]]] = field(default_factory=list)
    full: Literal["stop", "length"] = "stop"

    @property
    def rows(self) -> list[Layout]:
        """All of them, candidates of one text side by side."""
        return [row for rows in self.texts for row in rows]


@dataclass(frozen=True, slots=True)
class Range:
    """A gap of low to high positions."""

    low: int
    high: int
    name: str | None = None


def _any(name: str | None, num_tokens: int) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Reader:
    """Turns text into pieces for one model.

    Raises everywhere:
        BadInput: a value that can't be used.
        TooLong: a row with more positions than the model has.
        Unsupported: text without a tokenizer, a gap that the model can't see behind.
    """

    tokenizer: Tokenizer | None
    vocab: Vocab
    traits: Traits
    max_length: int
    name: str

    def ids(self, text: Prompt) -> list[int]:
        """Token ids of a text, or the ids themselves."""
        if text is None:
            return []
        if isinstance(text, str):
            if self.tokenizer is None:
                raise Unsupported(f"{self.name} has no tokenizer; give token ids instead of text")
            return self.tokenizer.encode(text)
        ids = [int(i) for i in text]
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab.size:
            raise BadInput(f"token ids lie between 0 and {self.vocab.size - 1}, got {min(ids)} to {max(ids)}")
        return ids

    @property
    def start(self) -> list[int]:
        """What stands before every text that comes as a string; ids are fed as they are."""
        if self.tokenizer is not None:
            return list(self.tokenizer.start)
        return [] if self.vocab.bos is None else [self.vocab.bos]

    def opening(self, context: Prompt) -> list[int]:
        """Ids of what stands before a text that is written or scored: the context, and what stands before every text.

        A model that reads left to right needs something to start from: where there is nothing, a begin of text, or the
        end of the text before.
        """
        ids = self.ids(context)
        ids = [*self.start, *ids] if context is None or isinstance(context, str) else ids
        if ids or self.traits.sees != "left":
            return ids
        return [i for i in (self.vocab.bos, self.vocab.eos) if i is not None][:1]

    def generation(
        self, prompt: Any, *, length: Length, eos: str, stop: str | Sequence[str], n: int, pins: Mapping[int, Prompt]
    ) -> Ask:
        """Rows that continue prompts: text, ids, None, or pieces that were laid out before."""
        if eos not in ("stop", "keep", "forbid"):
            raise BadInput(f"eos is 'stop', 'keep' or 'forbid', not {eos!r}")
        gap = _gap(length)
        given = self.pinned(pins, gap.high)
        rows = [self._row([self._prompt(p), Gap(length=gap.high, given=given)]) for p in as_list(prompt)]
        first = max([gap.low if isinstance(length, tuple) else 0, *(at + 1 for at in given)])
        early = [NEVER if eos == "forbid" else float(row.gaps[0].start + first) for row in rows]
        draws = list(range(_count(n)))
        return Ask(
            texts=[[row] for row in rows for _ in draws],
            draws=[i for _ in rows for i in draws],
            no_end_before=[at for at in early for _ in draws],
            ends=eos == "stop",
            stops=self.strings(stop),
            full="length",
        )

    def infill(
        self,
        prefix: Prompt,
        suffix: Prompt,
        length: Length,
        n: int = 1,
        stop: str | Sequence[str] = (),
        fits: Fits = _any,
    ) -> Ask:
        """Rows with one gap between two texts; stop strings cut what is written in it."""
        ask = self._gaps([self._text(prefix), _gap(length), self._text(suffix)], n, fits)
        return replace(ask, stops=self.strings(stop))

    def fill(self, segments: Sequence[Segment], n: int = 1, fits: Fits = _any) -> Ask:
        """Rows for text with holes."""
        parts = [Range(p.low, p.high, p.name) if isinstance(p, Hole) else self._text(p.text) for p in segments]
        if not any(isinstance(p, Range) for p in parts):
            raise BadInput("there is no hole to fill; a template has them as {{name:1-4}} or {{:8}}")
        return self._gaps(parts, n, fits)

    def refine(
        self,
        text: str,
        spans: Sequence[tuple[int, int]],
        strength: float,
        length: Length | None,
        seed: int,
        fits: Fits = _any,
    ) -> Ask:
        """Rows in which spans of a text are open again."""
        if not 0 < strength <= 1:
            raise BadInput(f"strength is above 0 and at most 1, not {strength!r}")
        if length is not None and strength < 1:
            raise BadInput("a new length leaves no tokens to keep; give a length or a strength below 1, not both")
        parts: list[Fixed | Gap | Range] = []
        at = 0
        for start, end in _checked(spans, text):
            parts.append(self._text(text[at:start]))
            ids = self.ids(text[start:end])
            parts.append(_gap(length) if length is not None else _noised(ids, strength, seed, start))
            at = end
        return self._gaps([*parts, self._text(text[at:])], 1, fits)

    def _gaps(self, parts: Sequence[Fixed | Gap | Range], n: int, fits: Fits) -> Ask:
        if self.traits.sees != "all":
            raise Unsupported(f"{self.name} can't see what stands behind a gap; use generate, or a model that can")
        rows = []
        ranges = [p for p in parts if isinstance(p, Range)]
        for p in ranges:  # before so many lengths are looked at
            self._holds(p.high)
        possible = [[size for size in range(p.low, p.high + 1) if fits(p.name, size)] for p in ranges]
        for lengths in candidates([(p.low, p.high) for p in ranges], possible):
            chosen = iter(lengths)
            rows.append(
                self._row([Gap(length=next(chosen), name=p.name) if isinstance(p, Range) else p for p in parts])
            )
        draws = list(range(_count(n)))
        return Ask(texts=[rows for _ in draws], draws=draws, no_end_before=[NEVER for _ in draws])

    def _row(self, pieces: Sequence[Fixed | Gap]) -> Layout:
        raw = any(isinstance(p, Fixed) and p.raw for p in pieces)
        written = any(isinstance(p, Fixed) and p.ids for p in pieces[:1])
        start = () if raw else self.start if written else self.opening(None)
        size = len(start) + sum(len(p.ids) if isinstance(p, Fixed) else p.length for p in pieces)
        self._holds(size)
        return lay(pieces, start=start)

    def _holds(self, size: int) -> None:
        if size > self.max_length:
            raise TooLong(
                f"the canvas would have {size} positions and {self.name} holds {self.max_length}; "
                "shorten the text or the length"
            )

    def _text(self, text: Prompt) -> Fixed:
        ids, raw = self.ids(text), not (text is None or isinstance(text, str))
        return Fixed(ids=tuple(ids), text=text if isinstance(text, str) else self._spelled(ids), raw=raw)

    def _prompt(self, prompt: Prompt | Fixed) -> Fixed:
        if isinstance(prompt, Fixed):
            return prompt
        piece = self._text(prompt)
        if not piece.ids and prompt is not None:
            raise BadInput("the prompt is empty; give some text (in Python, None writes without a prompt)")
        return piece

    def _spelled(self, ids: list[int]) -> str | None:
        return None if self.tokenizer is None else self.tokenizer.decode(ids)

    def pinned(self, pins: Mapping[int, Prompt], length: int) -> dict[int, int]:
        """Position to id of texts that stand at positions of a completion."""
        given: dict[int, int] = {}
        for at, text in sorted(pins.items()):
            ids = self.ids(text)
            if not ids or at < 0 or at + len(ids) > length:
                raise BadInput(
                    f"the pin {text!r} takes positions {at} to {at + len(ids)} of a completion of {length}; "
                    "move it, or make the length larger"
                )
            if any(at + i in given for i in range(len(ids))):
                raise BadInput(f"the pin {text!r} at {at} overlaps the one before it")
            given |= {at + i: token for i, token in enumerate(ids)}
        return given

    def strings(self, stop: str | Sequence[str]) -> tuple[str, ...]:
        """Stop strings, checked."""
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if any(not isinstance(s, str) or not s for s in stops) and stop != "":
            raise BadInput(f"stop strings are texts of one character or more, got {stop!r}")
        if stops and self.tokenizer is None:
            raise Unsupported(f"{self.name} has no tokenizer, so it can't look for stop strings")
        return tuple(s for s in stops if s)


def as_list(prompt: Any) -> list[Prompt | Fixed]:
    """One prompt or several, as a list."""
    return list(prompt) if is_list(prompt) else [prompt]


def is_list(prompt: Any) -> bool:
    """Whether this is a list of prompts rather than one (a text, ids, or None)."""
    if prompt is None or isinstance(prompt, str | Fixed):
        return False
    if torch.is_tensor(prompt):
        return prompt.dim() > 1
    items = list(prompt)
    return bool(items) and not all(isinstance(i, int) for i in items)


def _gap(length: Length) -> Range:
    low, high = length if isinstance(length, tuple | list) else (length, length)
    for bound in (low, high):
        if isinstance(bound, bool) or not isinstance(bound, int) or bound < 1:
            raise BadInput(f"a length is a whole number of tokens from 1, or (low, high), not {length!r}")
    if low > high:
        raise BadInput(f"the length ({low}, {high}) is a range that ends before it begins")
    return Range(low, high)


def _count(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise BadInput(f"n is a whole number from 1, not {n!r}")
    return n


def _checked(spans: Sequence[tuple[int, int]], text: str) -> list[tuple[int, int]]:
    """Spans in order, inside the text and apart from each other."""
    if not spans:
        raise BadInput("no spans to rewrite; give (start, end) pairs in code points")
    at = 0
    for start, end in sorted(spans):
        if not 0 <= start < end <= len(text):
            raise BadInput(
                f"the span ({start}, {end}) does not lie inside the text of {len(text)} code points; "
                "it needs 0 <= start < end <= length"
            )
        if start < at:
            raise BadInput(f"the span ({start}, {end}) overlaps the one before it, which ends at {at}")
        at = end
    return sorted(spans)


def _noised(ids: Sequence[int], strength: float, seed: int, start: int) -> Gap:
    """A span of which this share of tokens (one at least) is open, chosen by the seed; the forward process at t."""
    count = max(1, round(strength * len(ids)))
    coins = seeds.uniform(seeds.key(seed, "refine", start, torch.arange(len(ids))))
    opened = set(coins.argsort()[:count].tolist())
    return Gap(length=len(ids), given={i: token for i, token in enumerate(ids) if i not in opened})
