"""Does less variance of the noise make a better model? Held-out NELBO after equally many steps, by law of noise levels.

For each block size and seed, the same small network with the same initial weights sees the same batches in the same
order; only the law that draws noise levels differs. What came out is measured by one estimator for all (exact counts,
stratified, several draws) on the same held-out rows under the same noise. Differences are paired by seed.

    python benchmarks/equal_steps.py --data runs/tiny/data --out benchmarks/results/equal_steps
"""

import math
import time
from pathlib import Path

import torch
from report import batch_of, parser, pieces, report

from unmask.base.batch import Batch
from unmask.base.vocab import Traits
from unmask.data.rows import Rows
from unmask.models.backbone import Shape, Transformer
from unmask.objectives.block import Block
from unmask.objectives.loss import Objective
from unmask.objectives.masked import Masked
from unmask.text.tokenizer import Tokenizer
from unmask.train.optim import Optimizers, rate
from unmask.train.recipe import OptimizerSection, ScheduleSection

LAWS = ("iid", "stratified", "exact-k-stratified")
"""Independent times, and the two unbiased laws with the least variance."""

ESTIMATOR = "exact-k-stratified"
EVALUATION = 0x5EED
"""Keys the held-out rows and their noise."""


def objective(law: str, block: int | None) -> Objective:
    return Masked(times=law) if block is None else Block(times=law, block=block)


def train(model: Transformer, loss: Objective, batches: list[Batch], optimizer: OptimizerSection, seed: int) -> None:
    """One step a batch, in place."""
    optimizers, schedule = Optimizers(model, optimizer), ScheduleSection(warmup=max(1, len(batches) // 10))
    model.train()
    for step, batch in enumerate(batches):
        noised = loss.corrupt(batch, model.vocab, seed, step)
        loss(model, noised, noised.tokens).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(rate(step, schedule, len(batches)))


@torch.inference_mode()
def nats(model: Transformer, block: int | None, held_out: list[Batch], draws: int) -> float:
    """NELBO, nats a token, on the same rows under the same noise for every model."""
    loss, totals = objective(ESTIMATOR, block), []
    model.eval()
    for draw in range(draws):
        for batch in held_out:
            noised = loss.corrupt(batch, model.vocab, EVALUATION, draw)
            totals.append(float(loss(model, noised, noised.tokens).total))
    return sum(totals) / len(totals)


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    found = torch.tensor(values, dtype=torch.float64)
    return float(found.mean()), float(found.std()) if len(values) > 1 else float("nan")


def bytes_a_token(rows: Rows, tokenizer: Tokenizer) -> float:
    """Of the held-out text, counting every token but begin-of-text, as training does."""
    starts = 0 if tokenizer.vocab.bos is None else rows.tokens.num_documents
    return rows.tokens.num_bytes / (len(rows.tokens.ids) - starts)


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--data", required=True, help="the data folder of a run: its tokenizer, train and held-out rows"
    )
    options.add_argument("--steps", type=int, default=400)
    options.add_argument("--seeds", type=int, default=3, help="runs of each law (3)")
    options.add_argument("--blocks", type=int, nargs="*", default=[4], help="besides whole rows (4)")
    options.add_argument("--length", type=int, default=128, help="tokens a row (128)")
    options.add_argument("--rows", type=int, default=16, help="rows of a batch (16)")
    options.add_argument("--held-out", type=int, default=128, help="held-out rows (128)")
    options.add_argument("--draws", type=int, default=4, help="draws of noise for each held-out row (4)")
    options.add_argument("--width", type=int, default=128)
    options.add_argument("--depth", type=int, default=2)
    options.add_argument("--lr", type=float, default=0.004, help="peak learning rate of Muon and AdamW (0.004)")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.load(Path(args.data))
    rows, usable = pieces([args.data], tokenizer, args.length, "train")
    held, held_usable = pieces([args.data], tokenizer, args.length)
    asked = batch_of(held, held_usable, args.held_out, EVALUATION)
    held_out = [asked.part(at, at + args.rows) for at in range(0, args.held_out, args.rows)]
    shape = Shape(
        vocab_size=tokenizer.vocab.size,
        width=args.width,
        depth=args.depth,
        heads=4,
        hidden=2 * args.width,
        max_length=args.length,
        qk_norm=True,
    )
    to_bits = 1 / math.log(2) / bytes_a_token(held, tokenizer)
    bits: dict[tuple[int | None, str], list[float]] = {}
    for seed in range(args.seeds):
        wanted = batch_of(rows, usable, args.steps * args.rows, seed)
        batches = [wanted.part(at, at + args.rows) for at in range(0, len(wanted.tokens), args.rows)]
        for block in [*args.blocks, None]:
            for law in LAWS:
                began = time.perf_counter()
                model = Transformer(shape, tokenizer.vocab, Traits(sees="all"), seed=seed)
                train(model, objective(law, block), batches, OptimizerSection(lr=args.lr), seed)
                found = nats(model, block, held_out, args.draws) * to_bits
                bits.setdefault((block, law), []).append(found)
                took = time.perf_counter() - began
                print(f"seed {seed}, block {block or 'whole'}, {law}: {found:.4f} bits/byte, {took:.0f} s", flush=True)
    lines = []
    for (block, law), values in bits.items():
        mean, spread = mean_and_spread(values)
        gain, of_gain = mean_and_spread([a - b for a, b in zip(values, bits[block, "iid"], strict=True)])
        lines.append(
            {
                "block": block or "whole row",
                "law": law,
                "held-out NELBO, bits/byte": round(mean, 4),
                "spread over seeds": round(spread, 4),
                "to iid, same seed": round(gain, 4),
                "spread of the difference": round(of_gain, 4),
                "each": ", ".join(f"{value:.4f}" for value in values),
            }
        )
    size = sum(p.numel() for p in model.parameters())
    report(
        args.out,
        "Held-out NELBO at equal steps, by law of noise levels",
        {f"{args.steps} steps of {args.rows} rows of {args.length} tokens, {args.seeds} seeds; less is better:": lines},
        network=f"width {args.width}, depth {args.depth}, {size / 1e6:.2f} M parameters",
        optimiser=f"Muon with AdamW, learning rate {args.lr}, warm-up, stable, decay",
        estimate=f"{args.held_out} held-out rows, {args.draws} draws each of {ESTIMATOR} noise, the same for all",
    )


if __name__ == "__main__":
    main()
