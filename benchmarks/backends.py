"""What a forward of W positions over a cache costs on every backend, against one position, and how near torch it is.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/backends.py --threads 2 --out benchmarks/results/backends

Without a name, the shape of SmolLM2-135M with random weights. "agree" is the share of positions where the likeliest
token is torch's, and the largest difference of a logit over the largest logit. Threads of torch that wait actively take
the processor from those of another runtime, hence the policy.
"""

import resource
import statistics
import time

import torch
from report import parser, report

from unmask.base.attend import Attend
from unmask.base.denoiser import Denoiser
from unmask.base.vocab import Traits, Vocab
from unmask.engine.backends import BACKENDS
from unmask.lm.load import load
from unmask.models.backbone import Shape, Transformer

WIDTHS, CONTEXT = (1, 2, 4, 8, 16, 32, 64), 128


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", help="a name that unmask.load takes")
    options.add_argument(
        "--backends", nargs="+", default=["torch", "openvino", "openvino:int8"], help="NAME[:PRECISION]"
    )
    options.add_argument("--tries", type=int, default=7, help="forwards that a median is taken of (7)")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    model = load(args.model, device="cpu").model if args.model else smollm2()
    rows = [row(model, name, args.tries) for name in args.backends]
    size = sum(p.numel() for p in model.parameters()) / 1e6
    captions = {f"ms (ratio to one position) over {CONTEXT} known positions, {size:.1f} M parameters": rows}
    report(args.out, "A forward on every backend", captions)


def row(model: Denoiser, name: str, tries: int) -> dict[str, str]:
    """One backend's line of the table."""
    backend, _, precision = name.partition(":")
    began = time.perf_counter()
    built = BACKENDS[backend](model, precision or "loaded")
    seconds, times = time.perf_counter() - began, costs(built, tries)
    found, expected = logits(built), logits(model)
    same = (found.argmax(-1) == expected.argmax(-1)).double().mean()
    off = (found - expected).abs().max() / expected.abs().max()
    return {
        "backend": name,
        **{str(width): f"{1e3 * t:.1f} ({t / times[0]:.2f})" for width, t in zip(WIDTHS, times, strict=True)},
        "agree": f"{same:.0%}, {off:.0e}",
        "seconds to start": f"{seconds:.1f}",
        "peak MB so far": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f}",
    }


def smollm2() -> Transformer:
    """The shape of SmolLM2-135M with random weights."""
    shape = Shape(
        vocab_size=49152, width=576, depth=30, heads=9, kv_heads=3, hidden=1536, max_length=8192, rope_theta=1e5
    )
    return Transformer(shape, Vocab(size=49152, mask=0), Traits(sees="left", speaks="next")).eval()


@torch.no_grad()
def costs(model: Denoiser, tries: int) -> list[float]:
    """Median seconds of a forward for each width, logits of every position among it."""
    cache, attend = model.cache(1, CONTEXT + max(WIDTHS)), Attend(kind="causal")
    known = torch.arange(CONTEXT)[None]
    model.read(known, positions=known, attend=attend, cache=cache, keep=known >= 0)
    found = []
    for width in WIDTHS:
        positions, times = torch.arange(CONTEXT, CONTEXT + width)[None], []
        for _ in range(tries + 2):
            began = time.perf_counter()
            model.head(model.read(positions, positions=positions, attend=attend, cache=cache)[0])
            times.append(time.perf_counter() - began)
        found.append(statistics.median(times[2:]))
    return found


@torch.no_grad()
def logits(model: Denoiser) -> torch.Tensor:
    """Of 4 rows of 16 positions."""
    tokens = torch.randint(model.vocab.size, (4, 16), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(16).expand(4, 16)
    return model.head(model.read(tokens, positions=positions, attend=Attend(kind="causal")).flatten(0, 1))


if __name__ == "__main__":
    main()
