"""What a constraint costs beside a forward: compiling, looking (update and allow), joint answers, whole decoders.

Two constraints, of about 50 and about 5,000 states, on canvases of 64, 256 and 1024 positions that an end of text may
end early, with two vocabularies. A step is what a decoder asks between two forwards: note what changed (four tokens
were written, in random order), then the tokens allowed at every open position. Joint fills and samples are of all
positions of an open canvas. Shares are of one forward of the second model over as many positions on one processor.

Decoders write such a canvas with each of the two networks and its own vocabulary, read in ways that it need not have
been trained for: that makes no difference to the time. Of the first turns the medians are told: of the network, of all
that is asked of constraints, of the whole turn, and of the same turn without a constraint. Many a text is longer than
these turns, so the table is of canvases that are open for the most part, where constraints cost most.

    python benchmarks/constraints.py --out benchmarks/results/constraints

Which schemas there are constraints for is measured by `schemas.py`.
"""

import copy
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any
from unittest.mock import patch

import torch
from networks import read_as
from report import parser, report

from unmask.base.attend import Attend
from unmask.base.canvas import Canvas
from unmask.base.denoiser import Denoiser
from unmask.base.step import State
from unmask.constrain.automata.automaton import Automaton
from unmask.constrain.automata.budget import Budget
from unmask.constrain.automata.vocabulary import Vocabulary
from unmask.constrain.compile import compile_here, compile_in_child
from unmask.constrain.holes import Holes, Span
from unmask.constrain.spec import Constraint, Regex, Schema
from unmask.decode import control
from unmask.decode.decoder import build
from unmask.decode.loop import denoise
from unmask.decode.session import blank
from unmask.lm.load import load
from unmask.lm.model import LanguageModel

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 300},
        "biography": {"type": "string", "maxLength": 150},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "vip"]}, "maxItems": 20},
    },
    "required": ["name", "age"],
}
CONSTRAINTS = {
    "small": Constraint(body=Regex(r"[A-Z][a-z]+ [A-Z][a-z]+, born [0-9]{4}-[0-9]{2}-[0-9]{2}( in [A-Za-z ]+)?\.")),
    "large": Constraint(body=Schema.of(PERSON)),
}
CANVASES = (64, 256, 1024)
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "block threshold": ("block x threshold", {"block": 32, "threshold": 0.9}),
    "whole ancestral": ("mdlm", {"steps": 8}),
    "ar": ("ar", {"temperature": 1.0}),
    "remask": ("remdm", {"steps": 8, "eta": 0.2}),
    "edit": ("block x threshold + edit", {"block": 32, "threshold": 0.9, "edit_threshold": 0.5}),
}
TURNS = 8


def timed(call: Callable[[], Any], times: int = 3) -> float:
    """Milliseconds of processor time, the least of several."""
    best = float("inf")
    for _ in range(times):
        began = time.process_time()
        call()
        best = min(best, time.process_time() - began)
    return best * 1e3


def vocabulary(lm: LanguageModel) -> Vocabulary:
    assert lm.tokenizer is not None
    return Vocabulary(lm.tokenizer.token_bytes, lm.tokenizer.vocab.ends)


def forward_ms(lm: LanguageModel, length: int) -> float:
    ids = torch.randint(10, lm.model.vocab.size, (1, length), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(length)[None]

    def call() -> None:
        features = lm.model.read(ids, positions=positions, attend=Attend.native(lm.model.traits))
        lm.model.head(features[0])

    with torch.inference_mode():
        call()
        return timed(call)


def compiled(words: Vocabulary) -> list[dict[str, Any]]:
    rows = []
    for name, asked in CONSTRAINTS.items():
        _ = words.levels
        began = time.perf_counter()
        compile_in_child(asked, words, Budget(time_s=60))
        child_s = time.perf_counter() - began
        here = timed(partial(compile_here, asked, words, Budget(time_s=60)), 1)
        found = compile_here(asked, words, Budget(time_s=60))
        rows.append(
            {
                "vocabulary": len(words),
                "constraint": name,
                "states": found.size,
                "classes": found.num_classes,
                "pairs": len(found.edges.target),
                "labels": len(found.edges.label_first),
                "compile (ms)": here,
                "in a child, on the clock (s)": child_s,
                "tables (MB)": found.num_bytes / 1e6,
            }
        )
    return rows


def costs(words: Vocabulary, lm: LanguageModel) -> list[dict[str, Any]]:
    rows = []
    for asked in CONSTRAINTS.values():
        made = compile_here(asked, words, Budget(time_s=60))
        for length in CANVASES:
            holes, automaton = Holes(words.tokens), replace(made, _free={}, _far={})  # nothing is remembered
            span = Span(automaton=automaton, start=0, stop=length, ends=True)
            holes.enter(0, [span])
            tokens = torch.zeros(1, length, dtype=torch.int64)
            state = torch.full((1, length), int(State.OPEN), dtype=torch.uint8)
            at = torch.arange(length)
            zero = torch.zeros_like(at)
            log_p = torch.randn(length, len(words), generator=torch.Generator().manual_seed(0)).log_softmax(-1)
            whole = timed(partial(holes.enter, 0, [span]), 1)
            text = holes.sample(zero, at, log_p, zero, zero)
            fill = timed(partial(holes.fill, zero, at, log_p), 2)
            sample = timed(partial(holes.sample, zero, at, log_p, zero, zero), 2)
            order = torch.randperm(length, generator=torch.Generator().manual_seed(1))
            steps = []
            for first in range(0, min(length, 48), 4):
                some = order[first : first + 4]
                tokens[0, some], state[0, some] = text[some], int(State.DONE)
                is_open = (state[0] == State.OPEN).nonzero()[:, 0]

                def step(is_open: torch.Tensor = is_open) -> None:
                    holes.update(tokens, state)  # noqa: B023
                    holes.allow(torch.zeros_like(is_open), is_open)  # noqa: B023

                steps.append(timed(step, 1))
            step_ms = sum(steps) / len(steps)
            forward = forward_ms(lm, length)
            rows.append(
                {
                    "vocabulary": len(words),
                    "states": automaton.size,
                    "canvas": length,
                    "first look (ms)": whole,
                    "step (ms)": step_ms,
                    "joint fill (ms)": fill,
                    "joint sample (ms)": sample,
                    "forward (ms)": forward,
                    "step / forward (%)": 100 * step_ms / forward,
                    "fill / forward (%)": 100 * fill / forward,
                    "sample / forward (%)": 100 * sample / forward,
                }
            )
    return rows


def turns(model: Denoiser, name: str, length: int, held: Callable[[], Holes | None]) -> dict[str, list[float]]:
    """Milliseconds of each of the first turns: of the network, of constraints, of all."""
    spent: Counter[str] = Counter()

    def clocked(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*args: Any, **named: Any) -> Any:
            began = time.thread_time()
            found = call(*args, **named)
            spent[kind] += time.thread_time() - began
            return found

        return timed_call

    network = copy.copy(model)
    network.read, network.head = clocked("network", model.read), clocked("network", model.head)
    preset, options = DECODERS[name]
    decoder = build(preset, traits=model.traits, vocab=model.vocab, internal={"no_end_before": 1.0}, **options)
    canvas = Canvas.of(
        [([blank(model)] * (length + 1), [False] + [True] * length)],
        mask=blank(model),
        eos=model.vocab.eos,
        stop=True,
        seeds=[0],
    )
    canvas.ends = model.vocab.ends
    found: dict[str, list[float]] = {"network": [], "constraints": [], "all": []}
    with ExitStack() as stack:
        for part in ("over", "bar", "hear", "choose"):
            call = clocked("constraints", getattr(control.Control, part))
            stack.enter_context(patch.object(control.Control, part, staticmethod(call) if part == "over" else call))
        stack.enter_context(patch.object(control, "settle", clocked("constraints", control.settle)))
        began = time.thread_time()
        for _ in islice(denoise(network, canvas, decoder, None, held()), TURNS):
            spent["all"] = time.thread_time() - began
            for kind, times in found.items():
                times.append(1e3 * spent[kind])
            spent.clear()
            began = time.thread_time()
    return found


def decoding(words: Vocabulary, lm: LanguageModel) -> list[dict[str, Any]]:
    rows = []
    vocab = lm.model.vocab
    no_text = next(i for i, word in enumerate(words.tokens) if not word and i not in vocab.ends)
    model = read_as(lm.model, sees="all", speaks="here", reads=(1, 32))
    model.vocab = replace(vocab, mask=no_text if vocab.mask is None else vocab.mask)
    for length in CANVASES:
        for decoder in DECODERS:
            free = turns(model, decoder, length, lambda: None)
            for asked in CONSTRAINTS.values():
                automaton = compile_here(asked, words, Budget(time_s=60))

                def held(automaton: Automaton = automaton, length: int = length) -> Holes:
                    holes = Holes(words.tokens)
                    holes.enter(0, [Span(automaton=automaton, start=1, stop=1 + length, ends=True)])
                    return holes

                found = turns(model, decoder, length, held)
                share = [100 * c / n for c, n in zip(found["constraints"], found["network"], strict=True)]
                rows.append(
                    {
                        "network": f"{sum(p.numel() for p in lm.model.parameters()) / 1e6:.0f} M",
                        "vocabulary": len(words),
                        "states": automaton.size,
                        "canvas": length,
                        "decoder": decoder,
                        "network (ms)": statistics.median(found["network"]),
                        "constraints (ms)": statistics.median(found["constraints"]),
                        "share, median (%)": statistics.median(share),
                        "share, most (%)": max(share),
                        "turn (ms)": statistics.median(found["all"]),
                        "turn without (ms)": statistics.median(free["all"]),
                    }
                )
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--models", nargs=2, default=["tiny", "smollm2"], help="whose vocabularies; the second's forward"
    )
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    models = [load(name) for name in args.models]
    tables = {"Compiling": [row for lm in models for row in compiled(vocabulary(lm))]}
    tables["Between two forwards"] = [row for lm in models for row in costs(vocabulary(lm), models[1])]
    tables["Turns of decoders"] = [row for lm in models for row in decoding(vocabulary(lm), lm)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tables["Memory"] = [{"what": "peak of the process, both models and all vocabularies (MB)", "MB": peak}]
    report(args.out, "What constraints cost", tables)


if __name__ == "__main__":
    main()
