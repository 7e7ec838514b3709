"""How far what a decoder writes is from what the model believes: total variation to the joint of an exact denoiser.

The denoiser of the tests knows a joint distribution over short texts and answers with its true conditionals, so a
decoder that samples exactly must reproduce the joint at temperature 1. Next to each distance stands the floor: what
as many independent samples of the joint itself show, since a sample of finite size never matches exactly. All presets
are measured, and every window with every policy (and every policy that revises, behind one that accepts).

    python benchmarks/exactness.py --out benchmarks/results/exactness

Distances far above the floor are no faults: greedy orders with several tokens a step are biased on purpose, for speed.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from report import parser, report

from unmask.base.canvas import Canvas
from unmask.base.vocab import Traits
from unmask.decode.decoder import build
from unmask.decode.loop import denoise
from unmask.decode.policies import TABLE as POLICIES
from unmask.decode.policies.rank import SCORES
from unmask.decode.presets import PRESETS
from unmask.decode.windows import TABLE as WINDOWS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from exact import ExactDenoiser

TRAITS = {
    "next": Traits(sees="left", speaks="next"),
    "whole": Traits(sees="all"),
    "block": Traits(sees="blocks", block=2),
    "vicinity": Traits(sees="all"),
    "canvas": Traits(sees="context-then-canvas", block=2),
}
"""A model that each window can read."""

MANY = {"ancestral": 256, "score_leap": 256}
"""Steps of policies that are exact in the limit of many."""

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "quota": [{"rank": rank} for rank in SCORES] + [{"rank": "confidence", "steps": 2}],
    "threshold": [{"threshold": t} for t in (0.5, 0.9)],
    "factor": [{"factor": f} for f in (0.2, 1.0)],
    "entropy_bound": [{"bound": b} for b in (0.0, 0.1, 0.5)],
    "ancestral": [{"steps": s} for s in (2, 16, 256)],
    "score_leap": [{"steps": s} for s in (2, 16, 256)],
    "renoise": [{"bound": b} for b in (0.0, 0.1)],
    "remask": [
        {"steps": 256, "eta": 0.02},
        {"steps": 256, "eta": 0.02, "remask": "rescale"},
        {"steps": 16, "eta": 0.2},
    ],
    "edit": [{"edit_threshold": t} for t in (0.5, 0.9)],
}
"""Settings that are measured; policies that are not named have none."""

LEADS = {"remask": ("ancestral",), "edit": ("quota", "threshold", "everything")}
"""What accepts before a policy that revises."""


@dataclass(frozen=True)
class Case:
    """One decoder with its settings, and the window that says which model it reads."""

    name: str
    window: str
    options: dict[str, Any] = field(default_factory=dict)


def cases() -> Iterator[Case]:
    """All presets as published but for their temperature, then the tables."""
    for name, preset in PRESETS.items():
        settings: list[dict[str, Any]] = [{}, *({"steps": MANY[p]} for p in preset.policies if p in MANY)]
        yield from (Case(name, preset.window, o) for o in settings)
    for window in WINDOWS:
        some = slice(0, 1 if window == "next" else None)  # one target a step: settings make no difference
        for policy in POLICIES:
            for lead in LEADS.get(policy, ("",))[some]:
                for options in VARIANTS.get(policy, [{}])[some]:
                    takes = options if window != "next" else {}
                    yield Case(f"{window} x {lead + ' + ' if lead else ''}{policy}", window, takes)


def draw(model: ExactDenoiser, case: Case, rows: int, given: int) -> tuple[torch.Tensor, float]:
    """(rows, L) texts of which the first `given` tokens are fixed, and tokens a forward."""
    decoder = build(case.name, traits=model.traits, vocab=model.vocab, temperature=1.0, **case.options)
    length = model.max_length
    canvas = Canvas.of([([0] * length, [i >= given for i in range(length)])] * rows, mask=model.size, seeds=range(rows))
    for _ in denoise(model, canvas, decoder):
        pass
    return canvas.tokens, (length - given) / float(canvas.forwards.double().mean())


def distance(model: ExactDenoiser, texts: torch.Tensor, given: int) -> float:
    """Total variation between the texts and the joint given its fixed positions."""
    target = conditioned(model, given)
    shares = torch.bincount(model.index(texts), minlength=len(target)).double() / len(texts)
    return float((shares - target).abs().sum() / 2)


def conditioned(model: ExactDenoiser, given: int) -> torch.Tensor:
    possible = (model.states[:, :given] == 0).all(1)
    return model.joint * possible / model.joint[possible].sum()


def floor(model: ExactDenoiser, rows: int, given: int, times: int = 500) -> tuple[float, float]:
    """Mean distance of independent samples of the joint, and what one in a thousand of them exceeds."""
    target, draw = conditioned(model, given), torch.Generator().manual_seed(0)
    counts = torch.stack(
        [
            torch.bincount(torch.multinomial(target, rows, replacement=True, generator=draw), minlength=len(target))
            for _ in range(times)
        ]
    )
    found = (counts.double() / rows - target).abs().sum(1) / 2
    return float(found.mean()), float(found.mean() + 3.09 * found.std())


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=20000, help="texts a decoder writes (20000)")
    options.add_argument("--size", type=int, default=3, help="tokens of the vocabulary (3)")
    options.add_argument("--length", type=int, default=4, help="tokens of a text (4)")
    options.add_argument("--seed", type=int, default=1, help="of the joint distribution (1)")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    floors: dict[int, tuple[float, float]] = {}
    presets: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    for case in cases():
        model = ExactDenoiser.random(args.size, args.length, seed=args.seed, traits=TRAITS[case.window])
        given = 1 if case.window == "next" else 0  # a model of the next token needs one to start from
        if given not in floors:
            floors[given] = floor(model, args.rows, given)
        mean, most = floors[given]
        texts, speed = draw(model, case, args.rows, given)
        found = distance(model, texts, given)
        row = {
            "decoder": case.name,
            "settings": ", ".join(f"{k}={v}" for k, v in case.options.items()) or "its own",
            "distance": round(found, 4),
            "floor": round(mean, 4),
            "tokens/forward": round(speed, 3),
            "verdict": "at the floor" if found <= most else f"biased, {found - mean:.3f} above the floor",
        }
        (presets if case.name in PRESETS else rest).append(row)
        print(row, flush=True)
    report(
        args.out,
        "Total variation distance to the joint of an exact denoiser, temperature 1",
        {"Presets:": presets, "Every window with every policy:": rest},
        joint=f"{args.length} positions of {args.size} tokens (log-normal weights, seed {args.seed}), blocks of 2",
        samples=args.rows,
        floor="mean distance of as many independent samples; 'at the floor' is below what one in a thousand exceeds",
    )


if __name__ == "__main__":
    main()
