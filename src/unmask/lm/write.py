"""Rows through an engine to outputs: candidates of different lengths, stop strings, streams."""

import codecs
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from unmask.base import seeds
from unmask.base.canvas import Canvas
from unmask.base.denoiser import Denoiser
from unmask.base.errors import BadInput, Unsupported
from unmask.decode import bias
from unmask.decode.decoder import Decoder, build
from unmask.decode.lengths import fit
from unmask.decode.reading import Cell, Filled
from unmask.decode.session import blank
from unmask.engine import backends
from unmask.engine.engine import Engine
from unmask.engine.pages import PAGE, pages_for
from unmask.engine.request import Request
from unmask.engine.sizes import settled
from unmask.lm.control import CONSTRAINTS
from unmask.lm.results import Output, Settings, Stats, StreamStep
from unmask.lm.rows import Ask
from unmask.text.tokenizer import Tokenizer

ROWS = 64
"""Rows that are written at the same time; what is more waits for places."""

MOST_RANKED = 20
"""Tokens that are told beside each one that is written."""

_OTHERS = ("decoder", "seed", "watch", "latency_s", "logit_bias", "top_logprobs", *CONSTRAINTS)
"""Settings that are no options of a decoder."""


class Writing:
    """All rows of an ask, on an engine of their own.

    Attributes:
        layouts: of all rows, candidates of one text side by side.
        results: of each row, once all are there.
    """

    def __init__(self, model: Denoiser, tokenizer: Tokenizer | None, ask: Ask, settings: Settings) -> None:
        self.layouts = ask.rows
        self.results: list[Filled] = []
        self._model, self._ask, self._tokenizer = model, ask, tokenizer
        self._cells: dict[int, list[Cell]] = {}
        self._began = time.perf_counter()
        asked = settled(requests(model, ask, settings), model, tokenizer)
        target_s = settings.get("latency_s")
        places = min(len(asked), ROWS)
        self.engine = Engine(
            model,
            rows=places,
            cache_positions=places * _longest(model, asked),
            tokenizer=tokenizer,
            clock=None if target_s is None else time.perf_counter,
            costs=backends.costs(model) if any(one.decoder.adapts for one in asked) else None,
        )
        self._ids = [self.engine.add(request) for request in asked]

    @property
    def num_forwards(self) -> int:
        """Of the network, so far."""
        return self.engine.stats.forwards

    def run(self) -> Iterator[None]:
        """Go on step by step; yields after each."""
        done: dict[int, Filled] = {}
        while self.engine.busy:
            for delta in self.engine.step():
                if delta.error is not None:
                    raise delta.error
                if delta.result is not None:
                    done[delta.id] = delta.result
            if len(done) == len(self._ids):
                self.results = [done[id] for id in self._ids]
            yield

    def committed(self, row: int) -> list[int]:
        """Tokens of a row's last gap that are written for good, while it is running."""
        reading = self.engine.reading(self._ids[row])
        return [] if reading is None else reading.committed

    def cells(self, row: int) -> list[Cell]:
        """A row as it stands, or stood at its last step."""
        if (reading := self.engine.reading(self._ids[row])) is not None:
            self._cells[row] = reading.cells()
        return self._cells.get(row, [])

    def outputs(self) -> list[Output]:
        """The best candidate of each text."""
        return outputs(self._model, self._tokenizer, self._ask, self.results, self._began)


def requests(model: Denoiser, ask: Ask, settings: Settings, *, share: str = "") -> list[Request]:
    """What an engine is asked for the rows of an ask, candidates of one text side by side.

    What is left open still is (`unmask.engine.sizes.settled`). `share` is that of `unmask.engine.request.Request`.

    Raises:
        Unsupported: settings that say what a text has to be, for rows that hold nothing of it; see `Controls.hold`.
    """
    for name in CONSTRAINTS:
        if settings.get(name) is not None and not ask.spans:
            raise Unsupported(f"{name}= needs constrained decoding, which is not offered here")
    spans = ask.spans or [[()] * len(rows) for rows in ask.texts]
    decoders = {early: decoder_of(model, settings, early) for early in set(ask.no_end_before)}
    seed = _seed(settings)
    return [
        Request(
            layout=row,
            decoder=decoders[early],
            seed=int(seeds.key(seed, "draw", draw)),
            ends=ask.ends,
            stops=ask.stops,
            spans=held,
            latency_s=settings.get("latency_s"),
            share=share,
        )
        for rows, draw, early, each in zip(ask.texts, ask.draws, ask.no_end_before, spans, strict=True)
        for row, held in zip(rows, each, strict=True)
    ]


def outputs(
    model: Denoiser, tokenizer: Tokenizer | None, ask: Ask, results: Sequence[Filled], began: float
) -> list[Output]:
    """The texts of an ask from what became of its rows.

    Of candidates of different lengths the one is kept that goes best with what is behind its gaps (a forward more).

    Args:
        model, tokenizer, ask: as they were.
        results: of all rows, in the order of `requests`.
        began: `time.perf_counter()` when the writing began.
    """
    width = len(ask.texts[0])
    fits = _fits(model, results) if width > 1 else [0.0] * len(results)
    seconds, found = time.perf_counter() - began, []
    for at in range(0, len(results), width):
        tried = list(zip(results[at : at + width], fits[at : at + width], strict=True))
        best, _ = max(tried, key=lambda one: (one[1], one[0].mean_log_prob))
        forwards = max(filled.forwards for filled, _ in tried) + int(width > 1)
        if best.eased is not None:  # the text is there when all that it was chosen from are
            slowest_s = max(filled.eased.took_s for filled, _ in tried if filled.eased is not None)
            best = replace(best, eased=replace(best.eased, took_s=slowest_s))
        found.append(_output(best, tokenizer, ask, forwards, seconds))
    return found


def _longest(model: Denoiser, asked: Sequence[Request]) -> int:
    """Positions of keys and values that any of the rows may need."""
    decoder = asked[0].decoder
    block = getattr(decoder.window, "block", None) or model.traits.unit
    longest = min(max(len(one.layout.tokens) for one in asked) + block, model.max_length)
    longest += decoder.spare(longest, model.traits)
    return pages_for(longest) * PAGE * (2 if decoder.guidance else 1)


def _fits(model: Denoiser, results: Sequence[Filled]) -> list[float]:
    canvas = Canvas.of([(one.row, one.layout.is_open) for one in results], mask=blank(model), device=model.device)
    for row, filled in enumerate(results):
        canvas.tokens[row, : len(filled.row)] = torch.tensor(filled.row, device=canvas.tokens.device)
    found: list[float] = fit(model, canvas, [[gap.stop for gap in one.layout.gaps] for one in results]).tolist()
    return found


def write(model: Denoiser, tokenizer: Tokenizer | None, ask: Ask, settings: Settings) -> list[Output]:
    """All texts of an ask."""
    writing, watch = Writing(model, tokenizer, ask, settings), settings.get("watch")
    for _ in writing.run():
        if watch is not None:
            watch(writing)
    return writing.outputs()


def stream(model: Denoiser, tokenizer: Tokenizer, ask: Ask, settings: Settings) -> Iterator[StreamStep]:
    """One text, told after every forward."""
    writing, told = Writing(model, tokenizer, ask, settings), ""
    gap = writing.layouts[0].gaps[-1]
    for _ in writing.run():
        if writing.results:
            continue  # the last step is told with its output
        text = held_back(tokenizer.decode_bytes(writing.committed(0)), ask.stops)
        draft = "".join("▒" if c.look in ("masked", "reopened") else c.text for c in writing.cells(0)[gap.start :])
        yield StreamStep(text, text[len(told) :], draft, writing.num_forwards)
        told = text
    (output,) = writing.outputs()
    text = str(output.completion)
    yield StreamStep(text, text[len(told) :], text, writing.num_forwards, output)


def _seed(settings: Settings) -> int:
    seed = settings.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise BadInput(f"a seed is a whole number of 64 bits, not {seed!r}")
    return seed


def _ranked(settings: Settings) -> int:
    count = settings.get("top_logprobs") or 0
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MOST_RANKED:
        raise BadInput(f"top_logprobs is a whole number from 0 to {MOST_RANKED}, not {count!r}")
    return count


def decoder_of(model: Denoiser, settings: Settings, early: float) -> Decoder:
    """The decoder of some rows, as their settings ask for it: `early` is where an end of text may first stand."""
    options: dict[str, Any] = {k: v for k, v in settings.items() if k not in _OTHERS}
    vocab = model.vocab
    forbidden = {i for i in (vocab.bos, vocab.pad) if i is not None} - {*vocab.ends}
    never = forbidden | {i for i in (vocab.mask,) if i is not None} | {*(vocab.ends if early == math.inf else ())}
    internal = {
        "forbidden": tuple(forbidden),
        "no_end_before": early,
        "bias": bias.checked(settings.get("logit_bias"), vocab.size, frozenset(never)),
        "top_logprobs": _ranked(settings),
    }
    return build(
        settings.get("decoder"),
        traits=model.traits,
        vocab=vocab,
        defaults=getattr(model, "defaults", {}),
        internal=internal,
        **options,
    )


def _output(filled: Filled, tokenizer: Tokenizer | None, ask: Ask, forwards: int, seconds: float) -> Output:
    gaps, changes = list(filled.gaps), list(filled.changes)
    fills: list[str | None] = [None if tokenizer is None else tokenizer.decode(gap) for gap in gaps]
    if filled.cut is not None and tokenizer is not None:
        fills[-1] = last = str(fills[-1])[: filled.cut]
        kept = tokens_of(tokenizer, gaps[-1], len(last.encode()))
        gaps[-1], changes[-1] = gaps[-1][:kept], changes[-1][:kept]
    tokens = [token for gap in gaps for token in gap]
    return Output(
        text=filled.layout.join(fills),
        completion=None if None in fills else "".join(str(fill) for fill in fills),
        tokens=tokens,
        finish_reason="stop" if filled.ended == "stop" else "length" if filled.left else ask.full,
        logprobs=[0.0 if change is None else change.log_prob for gap in changes for change in gap],
        changes=[change for gap in changes for change in gap],
        holes=[(gap.name, fill) for gap, fill in zip(filled.layout.gaps, fills, strict=True)],
        trace=filled.trace,
        stats=Stats(
            forwards,
            seconds,
            len(tokens) / forwards if forwards else 0.0,
            filled.trace.num_edits,
            eased=filled.eased,
            drift=filled.drift,
            chosen=dict(filled.chosen) or None,
            length=sum(gap.size for gap in filled.layout.gaps),
        ),
    )


def tokens_of(tokenizer: Tokenizer, ids: list[int], size: int) -> int:
    """How many leading tokens it takes to spell `size` bytes."""
    spelled = 0
    for count, token in enumerate(ids):
        if spelled >= size:
            return count
        spelled += len(tokenizer.decode_bytes([token]))
    return len(ids)


def held_back(spelled: bytes, stops: tuple[str, ...]) -> str:
    """The text that can't change any more: without an unfinished character or a possible start of a stop string."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(spelled)
    met = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    if met:
        return text[: min(met)]
    possible = max((k for stop in stops for k in range(1, len(stop)) if text.endswith(stop[:k])), default=0)
    return text[: len(text) - possible]
