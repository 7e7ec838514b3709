r"""What approximate caches of a bidirectional model cost and how far off they are, by block size and refresh rule.

Every setting writes the same prompts (the beginnings of held-out rows) on the engine at temperature 0, once plainly
(forwards, positions, seconds) and once with an audit of every forward over what is kept (drift). "Agreement" is the
share of positions that hold the same token as in the uncached decoder's text. It says how much else a cache makes a
decoder write, not how much worse: two good texts may agree on little.

    python benchmarks/caches.py --data RUN/data --out benchmarks/results/caches

A second table compares the rules where nothing but what they renew differs: along the text that the uncached decoder
writes, each step is made over what a rule has kept as well, and its offers are audited. "TV" is of all offers, those of
full forwards, which have none, among them. "by steps" is what a timetable leaves for as many full forwards, between the
two nearest of those in the table. What `drift=` costs beside full forwards, one layer over all positions each step, is
not among these; "positions a text" in the first table has it (positions of one layer, over the layers).

A third one tells how what `drift=` goes by (how far the first layer has turned away) and age go with measured drift,
step by step, where nothing is renewed but at the start of a block.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from report import described, parser, pieces, report

from unmask.base.canvas import Canvas
from unmask.decode.audit import Auditor, Look
from unmask.decode.decoder import Decoder, build
from unmask.decode.propose import propose
from unmask.decode.reading import Filled
from unmask.decode.staleness import Staleness
from unmask.engine.engine import Engine
from unmask.engine.request import Request
from unmask.engine.stats import Stats
from unmask.lm.load import load
from unmask.lm.model import LanguageModel
from unmask.text.layout import Fixed, Gap, lay

Rules = Mapping[str, Any]
RULES: tuple[Rules, ...] = ({}, {"refresh": 4}, {"refresh": 2}, {"drift": 0.001}, {"drift": 0.0003})
TIMETABLES: tuple[Rules, ...] = ({}, *({"refresh": every} for every in (8, 6, 5, 4, 3, 2)))
BOUNDS: tuple[Rules, ...] = tuple({"drift": far} for far in (0.003, 0.002, 0.001, 0.0007, 0.0005, 0.0003, 0.0002))


@dataclass(frozen=True, slots=True)
class Task:
    """What every setting writes."""

    lm: LanguageModel
    prompts: list[tuple[int, ...]]
    length: int
    threshold: float

    def decoder(self, name: str, **options: Any) -> Decoder:
        """One that writes exactly as many tokens as all others."""
        model = self.lm.model
        internal = {"no_end_before": float("inf")}
        options = {"threshold": self.threshold, **options}
        return build(name, traits=model.traits, vocab=model.vocab, internal=internal, **options)

    def write(self, decoder: Decoder) -> tuple[list[Filled], Stats, float]:
        """All prompts together; what came out, what it cost, and seconds."""
        engine = Engine(self.lm.model, rows=len(self.prompts))
        ids = [
            engine.add(Request(layout=lay([Fixed(ids=ids, text=None), Gap(length=self.length)]), decoder=decoder))
            for ids in self.prompts
        ]
        began, done = time.perf_counter(), {}
        while engine.busy:
            for delta in engine.step():
                if delta.error is not None:
                    raise delta.error
                if delta.result is not None:
                    done[delta.id] = delta.result
        return [done[id] for id in ids], engine.stats, time.perf_counter() - began


def agreement(some: Sequence[Filled], others: Sequence[Filled]) -> float:
    """Share of positions with the same token."""
    pairs = [pair for a, b in zip(some, others, strict=True) for pair in zip(a.gaps[0], b.gaps[0], strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def measured(task: Task, cache: str, block: int, rules: Rules, plain: Sequence[Filled] | None) -> dict[str, Any]:
    """A row of the table."""
    name = "fast-dllm" if cache == "none" else f"fast-dllm-{cache}"
    found, stats, seconds = task.write(task.decoder(name, block=block, **rules))
    row = {
        "cache": cache,
        "block": block,
        "rule": ", ".join(f"{key} {value}" for key, value in rules.items())
        or ("-" if cache == "none" else "as published"),
        "forwards a text": sum(filled.forwards for filled in found) / len(found),
        "positions a text": (stats.positions + stats.glimpsed / task.lm.model.shape.depth) / len(found),
        "tokens/s": len(found) * task.length / seconds,
        "mean TV": 0.0,
        "max TV": 0.0,
        "mean KL, nats": 0.0,
        "flips": 0.0,
        "agreement": 1.0 if plain is None else agreement(found, plain),
    }
    if cache != "none":
        audited, _, _ = task.write(task.decoder(name, block=block, audit=1, **rules))
        assert [filled.gaps for filled in audited] == [filled.gaps for filled in found]
        drifts = [filled.drift for filled in audited if filled.drift is not None]
        targets = max(1, sum(drift.targets for drift in drifts))
        for key, attribute in (("mean TV", "mean_tv"), ("mean KL, nats", "mean_kl")):
            row[key] = sum(getattr(drift, attribute) * drift.targets for drift in drifts) / targets
        row["max TV"] = max(drift.max_tv for drift in drifts)
        row["flips"] = sum(drift.flips for drift in drifts) / targets
    return row


@dataclass(frozen=True, slots=True)
class Walk:
    """What a rule has left along the text of the uncached decoder.

    Args:
        full: full forwards a text.
        offers: of all steps.
        looks: what audits found in forwards over what was kept.
        moved, age: of what was kept, at each of these.
    """

    full: float
    offers: int
    looks: list[Look]
    moved: list[float]
    age: list[int]

    @property
    def tv(self) -> float:
        """Total variation, mean over all offers."""
        return sum(look.mean_tv * look.targets for look in self.looks) / self.offers


@torch.inference_mode()
def along(task: Task, cache: str, block: int, rules: Rules) -> Walk:
    """Make each step over what was kept, and write down what it would be without."""
    model, decoder = task.lm.model, task.decoder(f"fast-dllm-{cache}", block=block, **rules)
    rows = [([*ids, *[0] * task.length], [False] * len(ids) + [True] * task.length) for ids in task.prompts]
    assert model.vocab.mask is not None
    canvas, auditor, staleness = Canvas.of(rows, mask=model.vocab.mask), Auditor(), Staleness()
    drifts = [drift for row in range(len(rows)) if (drift := auditor.join(row, 1)) is not None]
    for row in range(len(rows)):
        staleness.join(row, decoder)
    kept, traits = model.cache(len(rows), canvas.tokens.shape[1]), model.traits
    seen, told, full, offers = [0] * len(rows), [], 0, 0
    while not bool(canvas.done.all()):
        plan = decoder.look(canvas, traits, kept)
        if decoder.watches:
            staleness.look(model, canvas, plan)
            plan = decoder.look(canvas, traits, kept)
        asks = {"asked": decoder.asks(plan), "reads": decoder.reads}
        moved, age = canvas.moved.tolist(), canvas.age.tolist()
        whole = partial(decoder.look, canvas, traits, None)
        auditor.propose(model, plan, decoder.sampling, cache=kept, whole=whole, **asks)
        staleness.note(canvas, plan)
        for row in plan.rows.tolist():
            if (count := len(drifts[row].looks)) > seen[row]:
                told.append((drifts[row].looks[-1], moved[row], age[row]))
            full += count == seen[row]
            seen[row] = count
        offers += int(asks["asked"].sum())
        exact = whole(plan.rows)
        turn = decoder.decide(propose(model, exact, decoder.sampling, cache=None, **asks), exact)
        canvas.apply(turn.plan, turn.edit, turn.offer)
    return Walk(full / len(rows), offers, *(list(column) for column in zip(*told, strict=True)))


def compared(task: Task, cache: str, block: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All rules along the same text, and what goes with drift where nothing is renewed within a block."""
    walks = [(rules, along(task, cache, block, rules)) for rules in (*TIMETABLES, *BOUNDS)]
    timed = sorted((walk.full, walk.tv) for rules, walk in walks if "drift" not in rules)
    found = [
        {
            "cache": cache,
            "block": block,
            "rule": ", ".join(f"{key} {value}" for key, value in rules.items()) or "as published",
            "full forwards a text": walk.full,
            "TV": walk.tv,
            "by steps": between(timed, walk.full),
            "max TV": max(look.max_tv for look in walk.looks),
            "flips, of all offers": sum(look.flips for look in walk.looks) / walk.offers,
        }
        for rules, walk in walks
    ]
    never = along(task, cache, block, {"drift": 1.0})
    columns = {"first layer": never.moved, "age": never.age}
    measured = {"mean TV": [look.mean_tv for look in never.looks], "max TV": [look.max_tv for look in never.looks]}
    goes = {
        f"{name}, {what}": correlation(torch.tensor(column), torch.tensor(values))
        for name, column in columns.items()
        for what, values in measured.items()
    }
    return found, {"cache": cache, "block": block, "steps": len(never.looks), **goes}


def between(points: Sequence[tuple[float, float]], at: float) -> float:
    """The straight line through the two points around a place; the nearest point beyond the ends."""
    for (x, y), (after, last) in pairwise(points):
        if x <= at <= after and x < after:
            return y + (last - y) * (at - x) / (after - x)
    return points[0][1] if at < points[0][0] else points[-1][1]


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of ranks (Spearman), ties in order of appearance."""
    ranks = torch.stack([x.argsort(stable=True).argsort(stable=True).double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="tiny")
    options.add_argument("--data", nargs="+", required=True, help="the data folder of a run, or JSONL files")
    options.add_argument("--rows", type=int, default=8, help="prompts (8)")
    options.add_argument("--prompt", type=int, default=64, help="tokens of a prompt (64)")
    options.add_argument("--length", type=int, default=64, help="tokens that are written (64)")
    options.add_argument("--threshold", type=float, default=0.7)
    options.add_argument("--blocks", type=int, nargs="+", default=[16, 32])
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    lm = load(args.model)
    assert lm.tokenizer is not None
    rows, whole = pieces(args.data, lm.tokenizer, args.prompt)
    tokens = rows.take(whole[: args.rows]).tokens
    task = Task(lm, [tuple(row) for row in tokens.tolist()], args.length, args.threshold)
    found, walked, going = [], [], []
    for block in args.blocks:
        plain, _, _ = task.write(task.decoder("fast-dllm", block=block))
        found.append(measured(task, "none", block, {}, None))
        for cache in ("prefix", "dual"):
            for rules in RULES:
                found.append(measured(task, cache, block, rules, plain))
                print(found[-1], flush=True)
            walks, goes = compared(task, cache, block)
            walked, going = [*walked, *walks], [*going, goes]
            print(*walks, goes, sep="\n", flush=True)
    report(
        args.out,
        "Approximate caches: what they cost and how far off they are",
        {
            "By cache, block and refresh rule": found,
            "Along the text of the uncached decoder": walked,
            "What goes with drift (rank correlation over steps)": going,
        },
        model=described(args.model, lm),
        rows=args.rows,
        prompt=args.prompt,
        length=args.length,
        threshold=args.threshold,
    )


if __name__ == "__main__":
    main()
