"""Rows through sessions to outputs: batches, candidates of different lengths, stop strings, streams."""

import codecs
import time
from collections.abc import Iterator
from typing import Any

import torch

from unmask.base import seeds
from unmask.base.errors import BadInput, Unsupported
from unmask.decode.decoder import Decoder, build
from unmask.decode.reading import Filled
from unmask.decode.session import Session
from unmask.lm.results import Output, Settings, Stats, StreamStep
from unmask.lm.rows import Ask
from unmask.models.backbone import Transformer
from unmask.text.layout import Layout
from unmask.text.tokenizer import Tokenizer

ROWS = 64
"""Rows of one batch; what is more is written one batch after the other."""

_LATER = ("schema", "regex", "choices")
"""Settings of the public face that need constrained decoding."""


def write(model: Transformer, tokenizer: Tokenizer | None, ask: Ask, settings: Settings) -> list[Output]:
    """All texts of an ask."""
    outputs = []
    watch = settings.get("watch")
    for session, texts in sessions(model, tokenizer, ask, settings):
        began = time.perf_counter()
        for _ in session.run():
            if watch is not None:
                watch(session)
        outputs += _outputs(session, texts, ask, began)
    return outputs


def stream(model: Transformer, tokenizer: Tokenizer, ask: Ask, settings: Settings) -> Iterator[StreamStep]:
    """One text, told after every forward."""
    (session, texts), began, told = next(sessions(model, tokenizer, ask, settings)), time.perf_counter(), ""
    gap = texts[0][0].gaps[-1]
    for _ in session.run():
        if bool(session.canvas.done.all()):
            continue  # the last step is told with its output
        text = _held_back(tokenizer.decode_bytes(session.readings[0].committed), ask.stops)
        draft = "".join("▒" if c.look in ("masked", "reopened") else c.text for c in session.cells(0)[gap.start :])
        yield StreamStep(text, text[len(told) :], draft, session.num_forwards)
        told = text
    (output,) = _outputs(session, texts, ask, began)
    text = str(output.completion)
    yield StreamStep(text, text[len(told) :], text, session.num_forwards, output)


def sessions(
    model: Transformer, tokenizer: Tokenizer | None, ask: Ask, settings: Settings
) -> Iterator[tuple[Session, list[list[Layout]]]]:
    """One session per batch of rows; candidates of one text stay together."""
    seed = settings.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise BadInput(f"a seed is a whole number of 64 bits, not {seed!r}")
    width = len(ask.texts[0])
    for at in range(0, len(ask.texts), max(1, ROWS // width)):
        part = slice(at, at + max(1, ROWS // width))
        layouts = [row for rows in ask.texts[part] for row in rows]
        early = [bound for bound in ask.no_end_before[part] for _ in range(width)]
        session = Session(
            model,
            layouts,
            _decoder(model, settings, early),
            [int(seeds.key(seed, "draw", i)) for i in ask.draws[part] for _ in range(width)],
            tokenizer=tokenizer,
            stops=ask.stops,
            ends=ask.ends,
        )
        yield session, ask.texts[part]


def _decoder(model: Transformer, settings: Settings, early: list[float]) -> Decoder:
    """The decoder of some rows: `early` is where an end of text may first stand."""
    options: dict[str, Any] = {k: v for k, v in settings.items() if k not in ("decoder", "seed", "watch")}
    for name in _LATER:
        if options.pop(name, None) is not None:
            raise Unsupported(f"{name}= needs constrained decoding, which this version does not have")
    vocab = model.vocab
    forbidden = {vocab.bos, vocab.pad} - {None, *vocab.ends}
    return build(
        settings.get("decoder"),
        traits=model.traits,
        vocab=vocab,
        defaults=model.defaults,
        internal={"forbidden": tuple(forbidden), "no_end_before": torch.tensor(early, dtype=torch.float64)},
        **options,
    )


def _outputs(session: Session, texts: list[list[Layout]], ask: Ask, began: float) -> list[Output]:
    """The best candidate of each text: the one that goes best with what stands behind its gaps (a forward more)."""
    compared = len(texts[0]) > 1
    fits = session.fit() if compared else [0.0] * len(session.layouts)
    results, seconds, outputs = iter(zip(session.results(), fits, strict=True)), time.perf_counter() - began, []
    for rows in texts:
        tried = [next(results) for _ in rows]
        best, _ = max(tried, key=lambda one: (one[1], one[0].mean_log_prob))
        forwards = max(filled.forwards for filled, _ in tried) + int(compared)
        outputs.append(_output(best, session.readings[0].tokenizer, ask, forwards, seconds))
    return outputs


def _output(filled: Filled, tokenizer: Tokenizer | None, ask: Ask, forwards: int, seconds: float) -> Output:
    gaps, log_probs = list(filled.gaps), list(filled.log_probs)
    fills: list[str | None] = [None if tokenizer is None else tokenizer.decode(gap) for gap in gaps]
    if filled.cut is not None and tokenizer is not None:
        fills[-1] = last = str(fills[-1])[: filled.cut]
        kept = _tokens_of(tokenizer, gaps[-1], len(last.encode()))
        gaps[-1], log_probs[-1] = gaps[-1][:kept], log_probs[-1][:kept]
    tokens = [token for gap in gaps for token in gap]
    return Output(
        text=filled.layout.join(fills),
        completion=None if None in fills else "".join(str(fill) for fill in fills),
        tokens=tokens,
        finish_reason="stop" if filled.ended == "stop" else "length" if filled.left else ask.full,
        logprobs=[p for gap in log_probs for p in gap],
        holes=[(gap.name, fill) for gap, fill in zip(filled.layout.gaps, fills, strict=True)],
        trace=filled.trace,
        stats=Stats(forwards, seconds, len(tokens) / forwards if forwards else 0.0, filled.trace.num_edits),
    )


def _tokens_of(tokenizer: Tokenizer, ids: list[int], size: int) -> int:
    """How many leading tokens it takes to spell `size` bytes."""
    spelled = 0
    for count, token in enumerate(ids):
        if spelled >= size:
            return count
        spelled += len(tokenizer.decode_bytes([token]))
    return len(ids)


def _held_back(spelled: bytes, stops: tuple[str, ...]) -> str:
    """The text that can't change any more: without an unfinished character or a possible start of a stop string."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(spelled)
    met = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    if met:
        return text[: min(met)]
    possible = max((k for stop in stops for k in range(1, len(stop)) if text.endswith(stop[:k])), default=0)
    return text[: len(text) - possible]
