"""What a constraint costs beside a forward: compiling, looking (update and allow), joint fill, joint sampling.

Two constraints, of about 50 and about 5,000 states, on canvases of 64, 256 and 1024 positions that an end of text may
end early, with two vocabularies. A step is what a decoder asks between two forwards: note what changed (four tokens
were written, in random order), then the tokens allowed at every open position. Joint fills and samples are of all
positions. Shares are of one forward of the second model over as many positions, on the same processor.

    python benchmarks/constraints.py --out benchmarks/results/constraints

Which schemas there are constraints for is measured by `schemas.py`.
"""

import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from report import parser, report

from unmask.base.attend import Attend
from unmask.base.step import State
from unmask.constrain.budget import Budget
from unmask.constrain.compile import compile_here, compile_in_child
from unmask.constrain.holes import Holes, Span
from unmask.constrain.spec import Constraint, Regex, Schema
from unmask.constrain.vocabulary import Vocabulary
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
                "pairs": len(found.edges.source),
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
        automaton = compile_here(asked, words, Budget(time_s=60))
        for length in CANVASES:
            holes = Holes(words.tokens)
            span = Span(automaton=automaton, start=0, stop=length, ends=True)
            holes.enter(0, [span])
            tokens = torch.zeros(1, length, dtype=torch.int64)
            state = torch.full((1, length), int(State.OPEN), dtype=torch.uint8)
            at = torch.arange(length)
            zero = torch.zeros_like(at)
            log_p = torch.randn(length, len(words), generator=torch.Generator().manual_seed(0)).log_softmax(-1)
            whole = timed(partial(holes.enter, 0, [span]))
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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tables["Memory"] = [{"what": "peak of the process, both models and all vocabularies (MB)", "MB": peak}]
    report(args.out, "What constraints cost", tables)


if __name__ == "__main__":
    main()
