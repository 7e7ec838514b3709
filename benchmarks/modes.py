r"""What one set of weights for several ways of writing costs, against a model for each way, on held-out rows.

Every model is measured in every way that it was trained for: whole canvases (the masked bound), blocks of a size (the
block bound), and token by token (exact). The same rows and the same noise for all; a row is one piece of one document.

    python benchmarks/modes.py --models tiny tiny-ar runs/tiny-block/model runs/tiny-mixture/model \
        --data runs/tiny-block/data --out benchmarks/results/modes

Token by token, the first token of a row is given. "against" is the first model that was trained for this way alone; the
difference is paired over rows.
"""

import argparse
import math
from dataclasses import dataclass

import torch
from report import batch_of, described, parser, pieces, report
from torch import Tensor

from unmask.base.batch import Batch
from unmask.base.vocab import Traits
from unmask.lm.load import load
from unmask.lm.model import LanguageModel
from unmask.objectives.ar import Autoregressive
from unmask.objectives.block import Block
from unmask.objectives.masked import Masked

Objective = Autoregressive | Block | Masked
PART = 8
"""Rows that go through a model at once."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Bits of every row (rows,), and its bytes."""

    bits: Tensor
    size: Tensor

    @property
    def rate(self) -> float:
        """Bits per byte."""
        return float(self.bits.sum() / self.size.sum())

    def error(self, other: "Measured | None" = None) -> float:
        """Standard error over rows of the rate, or of its difference from another's."""
        rate = self.rate - (other.rate if other else 0.0)
        off = self.bits - (other.bits if other else 0.0) - rate * self.size
        return float(off.square().sum() * len(off) / (len(off) - 1)) ** 0.5 / float(self.size.sum())


def ways(traits: Traits) -> dict[str, tuple[Objective, bool]]:
    """The ways of writing that a model was trained for: how each is measured, and whether it is the only one."""
    if traits.sees == "left":
        return {"token by token": (Autoregressive(), True)}
    if traits.sees == "blocks":
        return {f"blocks of {traits.block}": (Block(block=int(traits.block or 1)), True)}
    several = {("token by token" if b == 1 else f"blocks of {b}"): (Block(block=b), False) for b in traits.reads}
    return {"whole canvas": (Masked(), not traits.reads), **several}


@torch.inference_mode()
def measure(lm: LanguageModel, objective: Objective, batch: Batch, draws: int, seed: int) -> Measured:
    """Bits of every row, the mean over draws of noise."""
    assert lm.tokenizer is not None
    lengths = torch.tensor([len(spelled) for spelled in lm.tokenizer.token_bytes], dtype=torch.float64)
    bits, size = torch.zeros(len(batch.tokens), dtype=torch.float64), torch.zeros(0)
    exact = isinstance(objective, Autoregressive) or (isinstance(objective, Block) and objective.block == 1)
    first = int(exact)
    for draw in range(1 if exact else draws):
        noised = objective.corrupt(batch, lm.model.vocab, seed, draw)
        parts = [noised.part(at, at + PART) for at in range(0, len(batch.tokens), PART)]
        nats = torch.cat([objective(lm.model, part, noised.tokens).nats.double()[:, first:].sum(1) for part in parts])
        bits = (bits * draw + nats / math.log(2)) / (draw + 1)
        size = (lengths[batch.tokens] * noised.counts)[:, first:].sum(1)
    return Measured(bits, size)


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", required=True, help="names or folders")
    options.add_argument("--data", nargs="+", required=True, help="the data folder of a run, or JSONL files")
    options.add_argument("--rows", type=int, default=128, help="held-out rows of 512 tokens (128)")
    options.add_argument("--draws", type=int, default=8, help="draws of noise a row (8)")
    options.add_argument("--seed", type=int, default=0, help="of rows and noise (0)")
    args: argparse.Namespace = options.parse_args()
    torch.set_num_threads(args.threads)
    found: list[dict[str, object]] = []
    alone: dict[str, tuple[str, Measured]] = {}
    told = []
    for name in args.models:
        lm = load(name, device="cpu", dtype="float32")
        assert lm.tokenizer is not None
        told.append(described(name, lm))
        rows, whole = pieces(args.data, lm.tokenizer, 512)
        batch = batch_of(rows, whole, args.rows, args.seed)
        for way, (objective, only) in ways(lm.model.traits).items():
            here = measure(lm, objective, batch, args.draws, args.seed)
            if only:
                alone.setdefault(way, (name, here))
            base, against = alone.get(way, ("", None))
            less = against is None or base == name
            found.append(
                {
                    "way of writing": way,
                    "model": name,
                    "bits per byte": here.rate,
                    "standard error": here.error(),
                    "against": "-" if less else base,
                    "difference": "-" if against is None or less else f"{here.rate - against.rate:+.4f}",
                    "its standard error": "-" if against is None or less else f"{here.error(against):.4f}",
                    "relative": "-" if against is None or less else f"{here.rate / against.rate - 1:+.1%}",
                }
            )
            print(found[-1], flush=True)
    found.sort(key=lambda row: str(row["way of writing"]))
    about = {"models": "; ".join(told), "rows": args.rows, "draws of noise": args.draws}
    report(args.out, "One model for several ways of writing", {"Held-out bits per byte": found}, **about)


if __name__ == "__main__":
    main()
