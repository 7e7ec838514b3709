"""How much noise the draw of noise levels puts into a training step: variance of the loss and of its gradient.

One model, one fixed batch of held-out rows, many draws of noise under each law of noise levels. The variance of the
gradient is the total one, E|g - E g|^2 over all weights; both variances are unbiased over the draws. Ratios are to
independent times ("iid") at the same block size. A law's bias shows as the distance of its mean loss from that of
exact counts, whose expectation is the bound itself.

    python benchmarks/gradient_variance.py --model tiny --data runs/tiny/data --out benchmarks/results/gradient_variance

Blocks are read in one pass over [noisy | clean], also where the model was only trained on whole rows.
"""

from typing import Any

import torch
from report import batch_of, described, parser, pieces, report

from unmask.base.batch import Batch
from unmask.lm.load import load
from unmask.models.backbone import Transformer
from unmask.noise.times import TABLE as LAWS
from unmask.objectives.block import Block
from unmask.objectives.loss import Objective
from unmask.objectives.masked import Masked

REFERENCE = "exact-k-stratified"
"""The law without bias and with the least variance: what the others' mean loss is compared with."""


def spread(vectors: torch.Tensor) -> tuple[float, float]:
    """E|g - E g|^2 of vectors (D, N), unbiased, and its standard error from the spread of its D terms."""
    mean = vectors.mean(0, dtype=torch.float64)
    terms = torch.stack([(v.double() - mean).square().sum() for v in vectors])
    return float(terms.sum() / (len(terms) - 1)), float(terms.std() / len(terms) ** 0.5)


def ratio(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """The quotient, with its standard error to first order."""
    value = one[0] / other[0]
    return value, value * ((one[1] / one[0]) ** 2 + (other[1] / other[0]) ** 2) ** 0.5


def objective(law: str, block: int | None) -> Objective:
    return Masked(times=law) if block is None else Block(times=law, block=block)


def measure(
    model: Transformer, batch: Batch, loss: Objective, *, draws: int, losses: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses (max(draws, losses),) float64, and the gradients (draws, N) of the first of them."""
    weights = [p.requires_grad_() for p in model.parameters()]
    gradients, values = [], []
    for draw in range(max(draws, losses)):
        noised = loss.corrupt(batch, model.vocab, seed, draw)
        with torch.set_grad_enabled(draw < draws):
            total = loss(model, noised, noised.tokens).total
        if draw < draws:
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(total, weights)]))
        values.append(float(total.detach()))
    return torch.tensor(values, dtype=torch.float64), torch.stack(gradients)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="tiny", help="a bundled model or a folder")
    options.add_argument("--data", nargs="+", required=True, help="the data folder of its run, or JSONL files")
    options.add_argument("--length", type=int, default=128, help="tokens a row (128)")
    options.add_argument("--rows", type=int, default=16, help="rows of the batch (16)")
    options.add_argument("--draws", type=int, default=24, help="draws of noise for gradients (24)")
    options.add_argument("--losses", type=int, default=64, help="draws of noise for the loss (64)")
    options.add_argument("--blocks", type=int, nargs="*", default=[4, 16, 32], help="besides whole rows (4 16 32)")
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    lm = load(args.model, device="cpu", dtype="float32")
    facts = described(args.model, lm)
    assert lm.tokenizer is not None
    rows, usable = pieces(args.data, lm.tokenizer, args.length)
    batch = batch_of(rows, usable, args.rows, args.seed)
    found: list[dict[str, Any]] = []
    for block in [*args.blocks, None]:
        drawn: dict[str, tuple[torch.Tensor, tuple[float, float], tuple[float, float]]] = {}
        for law in LAWS:
            sizes = {"draws": args.draws, "losses": args.losses, "seed": args.seed}
            losses, gradients = measure(lm.model, batch, objective(law, block), **sizes)
            drawn[law] = losses, spread(losses[:, None]), spread(gradients)
            print(f"block {block or 'whole'}, {law}: {drawn[law][1][0]:.4g}, {drawn[law][2][0]:.4g}", flush=True)
        reference, base = drawn[REFERENCE][0], drawn["iid"]
        for law, (losses, of_loss, of_gradient) in drawn.items():
            loss_ratio, gradient_ratio = ratio(of_loss, base[1]), ratio(of_gradient, base[2])
            error = float((losses.var() / len(losses) + reference.var() / len(reference)).sqrt())
            found.append(
                {
                    "block": block or "whole row",
                    "law": law + (" (biased)" if law == "clipped" else ""),
                    "variance of loss": of_loss[0],
                    "to iid": loss_ratio[0],
                    "±": loss_ratio[1] if law != "iid" else 0.0,
                    "variance of gradient": of_gradient[0],
                    "gradient to iid": gradient_ratio[0],
                    "± ": gradient_ratio[1] if law != "iid" else 0.0,
                    "mean loss, nats/token": float(losses.mean()),
                    "off the bound": float(losses.mean() - reference.mean()),
                    "±  ": error if law != REFERENCE else 0.0,
                }
            )
    caption = f"{args.rows} rows of {args.length} tokens; {args.draws} draws for gradients, {args.losses} for losses:"
    report(
        args.out,
        "Variance of the loss and of its gradient, by law of noise levels",
        {caption: found},
        model=facts,
        bias="clipped draws mask probabilities between 0.3 and 0.8 only, so its mean loss is not the bound; iid and "
        "stratified draw from 1e-3 on, which is a bias of about a thousandth",
    )


if __name__ == "__main__":
    main()
