"""Twenty thousand requests through add, step and cancel: cancelled, preempted, failing, impossible ones among them.

Every text that is finished must be the one that the plain loop writes for that request alone; afterwards no page may be
held, and memory must be what it was after the first tenth.

    python benchmarks/soak.py --requests 20000 --out benchmarks/results/soak
"""

import random
import resource
import sys
import time

import torch
from report import parser, report

import unmask
from unmask.base.errors import RequestFailed, TooLong
from unmask.decode.decoder import build
from unmask.decode.session import Session
from unmask.engine.engine import Engine
from unmask.engine.request import Request
from unmask.text.layout import Fixed, Gap, lay

KINDS = [
    ("block x threshold", {"block": 16, "threshold": 0.8}),
    ("block x threshold", {"block": 16, "threshold": 0.7, "temperature": 0.5, "top_p": 0.9}),
    ("block x quota", {"block": 16, "steps": 8}),
    ("block x threshold + edit", {"block": 16, "threshold": 0.5, "edit_threshold": 0.6}),
    ("block x threshold", {"block": 16, "threshold": 0.7, "guidance": 0.5}),
    ("ar", {"temperature": 0.5}),
    ("fast-dllm", {"block": 16, "threshold": 0.8}),
    ("fast-dllm-dual", {"block": 8, "threshold": 0.8}),
    ("mdlm", {"steps": 8}),
    ("llada", {"steps": 8, "block": 8}),
    ("self-speculative", {"block": 4}),
    ("d2f", {"block": 16, "threshold": 0.6}),
    ("wino", {"block": 16, "threshold": 0.3, "doubt": 0.3}),
    ("block x ancestral", {"block": 16, "temperature": 1.0, "lookahead": 2}),
]
POISON = 3071
"""A token that nobody has but requests that are to fail."""


class Failing:
    """The model, which raises where it meets the poison."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, name):
        return getattr(self.model, name)

    def read(self, tokens, **rest):
        """As the model, unless the poison is there."""
        if bool(((tokens == POISON) & (rest["positions"] >= 0)).any()):
            raise RuntimeError("poison")
        return self.model.read(tokens, **rest)


def requests(lm, count):
    """Different ones, over a few beginnings so that pages are shared."""
    model, tokenizer, draw = lm.model, lm.tokenizer, random.Random(0)
    beginnings = ["import os\n\n\ndef main(", "class A:\n    def b(self, x):\n" * 3, "She was", "x = [" + "1, " * 40]
    for number in range(count):
        name, options = KINDS[number % len(KINDS)]
        ids = (*tokenizer.start, *tokenizer.encode(draw.choice(beginnings)))
        decoder = build(
            name,
            traits=model.traits,
            vocab=model.vocab,
            internal={"forbidden": (2, 3, POISON), "no_end_before": 0.0},
            **options,
        )
        layout = lay([Fixed(ids=ids, text=None), Gap(length=draw.randint(1, 32))])
        yield Request(layout=layout, decoder=decoder, seed=number, ends=draw.random() < 0.7)


def poisoned(request):
    tokens = (*request.layout.tokens[: request.layout.gaps[0].start], POISON)
    return Request(layout=lay([Fixed(ids=tokens, text=None), Gap(length=8)]), decoder=request.decoder, seed=1)


def alone(model, request):
    session = Session(model, [request.layout], request.decoder, [request.seed], ends=request.ends)
    for _ in session.run():
        pass
    return session.results()[0].gaps


def memory_mib():
    """Resident memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def soak(lm, given):
    """What came out, as a row of the report."""
    draw, pool = random.Random(given.seed), list(requests(lm, given.different))
    wanted = [alone(lm.model, request) for request in pool]
    engine = Engine(Failing(lm.model), rows=given.rows, cache_positions=16 * given.pages, positions=256)
    running, wrong, refused, unlike = {}, 0, 0, 0
    counts = dict.fromkeys(("finished", "failed", "cancelled"), 0)
    began, first_mib, sent = time.perf_counter(), 0.0, 0
    while sent < given.requests or engine.busy:
        while sent < given.requests and len(running) < 2 * given.rows:
            number, chance = draw.randrange(len(pool)), draw.random()
            sent += 1
            if chance < 0.02:
                try:
                    engine.add(Request(layout=lay([Gap(length=10_000)]), decoder=pool[0].decoder))
                except TooLong:
                    refused += 1
                continue
            bad = chance < 0.04
            running[engine.add(poisoned(pool[number]) if bad else pool[number])] = None if bad else number
        if running and draw.random() < 0.02:
            id = draw.choice(list(running))
            counts["cancelled"] += engine.cancel(id)
            del running[id]
        for delta in engine.step():
            if not delta.last:
                continue
            number = running.pop(delta.id)
            if delta.error is not None:
                counts["failed"] += 1
                wrong += number is not None or not isinstance(delta.error, RequestFailed)
            else:
                counts["finished"] += 1
                unlike += number is None or delta.result.gaps != wanted[number]
        if not first_mib and sent > given.requests // 10:
            first_mib = memory_mib()
    stats = engine.stats
    return {
        "requests": sent,
        "refused": refused,
        **counts,
        "unlike the plain loop": unlike,
        "failed without cause": wrong,
        "preempted": stats.preempted,
        "positions reused": stats.reused,
        "pages held at the end": stats.pages_held,
        "MiB after a tenth": round(first_mib),
        "MiB at the end": round(memory_mib()),
        "rows a forward": round(stats.rows / stats.forwards, 1),
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    """Run and report; ends with 1 if anything was lost or is unlike."""
    options = parser(__doc__)
    options.add_argument("--requests", type=int, default=20_000)
    options.add_argument("--different", type=int, default=200, help="requests to draw from (200)")
    options.add_argument("--rows", type=int, default=24, help="written at the same time (24)")
    options.add_argument("--pages", type=int, default=60, help="fewer than these rows would like (60)")
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    found = soak(unmask.load("tiny"), args)
    report(args.out, "Soak of the engine", {"Requests through add, step and cancel": [found]}, model="tiny")
    lost = found["requests"] - sum(found[key] for key in ("refused", "finished", "failed", "cancelled"))
    sys.exit(
        bool(lost or found["unlike the plain loop"] or found["failed without cause"] or found["pages held at the end"])
    )


if __name__ == "__main__":
    main()
