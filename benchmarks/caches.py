r"""What approximate caches of a bidirectional model cost and how far off they are, by block size and refresh rule.

Every setting writes the same prompts (the beginnings of held-out rows) on the engine at temperature 0, once plainly
(forwards, positions, seconds) and once with an audit of every forward over what is kept (drift). "Agreement" is the
share of positions that hold the same token as in the uncached decoder's text. It says how much else a cache makes a
decoder write, not how much worse: two good texts may agree on little.

    python benchmarks/caches.py --data RUN/data --out benchmarks/results/caches

A second table asks whether what `drift=` goes by (how far offers have moved since the last full forward) has to do with
drift as it is measured, step by step, beside the age of what is kept, and beside what one layer over all positions
would tell: how far its output at kept positions has turned away from that of the last full one (mean of 1 - cosine).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from report import described, parser, pieces, report

from unmask.base.attend import Attend
from unmask.base.canvas import Canvas
from unmask.decode.audit import Auditor
from unmask.decode.decoder import Decoder, build
from unmask.decode.loop import denoise
from unmask.decode.reading import Filled
from unmask.engine.engine import Engine
from unmask.engine.request import Request
from unmask.engine.stats import Stats
from unmask.lm.load import load
from unmask.lm.model import LanguageModel
from unmask.models.backbone import Transformer
from unmask.text.layout import Fixed, Gap, lay

Rules = Mapping[str, Any]
REFRESHES: tuple[Rules, ...] = (
    {},
    {"refresh": 4},
    {"refresh": 2},
    {"drift": 0.8},
    {"drift": 0.5},
)


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
        "positions a text": stats.positions / len(found),
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


def proxy(task: Task, cache: str, block: int) -> dict[str, Any]:
    """Over all audited steps of all rows: how what offers have moved goes with the drift that was measured."""
    model, decoder = task.lm.model, task.decoder(f"fast-dllm-{cache}", block=block)
    rows = [([*ids, *[0] * task.length], [False] * len(ids) + [True] * task.length) for ids in task.prompts]
    assert model.vocab.mask is not None
    canvas, auditor = Canvas.of(rows, mask=model.vocab.mask), Auditor()
    drifts = [drift for row in range(len(rows)) if (drift := auditor.join(row, 1)) is not None]
    seen, pairs = [0] * len(rows), []
    now = first_layer(model, canvas.tokens)
    then = now.clone()
    for turn in denoise(model, canvas, decoder, auditor):
        for row, fed in zip(turn.plan.rows.tolist(), turn.plan.positions, strict=True):
            looks = drifts[row].looks
            if len(looks) > seen[row]:
                turned = 1 - torch.cosine_similarity(now[row], then[row], dim=-1)
                turned[fed[fed >= 0]] = torch.nan  # what is fed is not what is kept
                told = float(canvas.moved[row]), float(canvas.age[row]), float(turned.nanmean())
                pairs.append((*told, looks[-1].mean_tv, looks[-1].max_tv))
                seen[row] = len(looks)
            elif int((fed >= 0).sum()) == canvas.tokens.shape[1]:
                then[row] = now[row]
        now = first_layer(model, canvas.tokens)
    moved, age, turned, mean, most = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    return {
        "cache": cache,
        "block": block,
        "steps": len(pairs),
        "moved, mean TV": correlation(moved, mean),
        "moved, max TV": correlation(moved, most),
        "age, mean TV": correlation(age, mean),
        "age, max TV": correlation(age, most),
        "first layer, mean TV": correlation(turned, mean),
        "first layer, max TV": correlation(turned, most),
    }


def first_layer(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """(B, L, D) what the first layer makes of whole rows, of which the second one's keys and values are made."""
    heard: list[torch.Tensor] = []
    hook = model.layers[0].register_forward_hook(lambda layer, given, told: heard.append(told.clone()))
    model.read(tokens, positions=torch.arange(tokens.shape[1]).expand_as(tokens), attend=Attend.native(model.traits))
    hook.remove()
    return heard[0]


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
    found, proxies = [], []
    for block in args.blocks:
        plain, _, _ = task.write(task.decoder("fast-dllm", block=block))
        found.append(measured(task, "none", block, {}, None))
        for cache in ("prefix", "dual"):
            for rules in REFRESHES:
                found.append(measured(task, cache, block, rules, plain))
                print(found[-1], flush=True)
            with torch.inference_mode():
                proxies.append(proxy(task, cache, block))
            print(proxies[-1], flush=True)
    report(
        args.out,
        "Approximate caches: what they cost and how far off they are",
        {"By cache, block and refresh rule": found, "What goes with drift (rank correlation over steps)": proxies},
        model=described(args.model, lm),
        rows=args.rows,
        prompt=args.prompt,
        length=args.length,
        threshold=args.threshold,
    )


if __name__ == "__main__":
    main()
