"""One script for a machine with a GPU: a forward of a LLaDA-shaped 8B model at batch 1 against what its memory allows.

    python benchmarks/gpu.py --out benchmarks/results/gpu
    python benchmarks/gpu.py --tiny --kinds torch       # the same path, small, on any machine

The floor is the time in which the weights of a forward, and the keys and values that it looks at, can be read at the
bandwidth that is measured first. Kinds: "torch", "compile" (CUDA graphs on a GPU), "fp8" (torchao, with torch.compile).
"host" is the time until a forward returns without waiting for its result. Prints JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from report import machine

from unmask.base.attend import Attend
from unmask.base.denoiser import Denoiser
from unmask.base.errors import Unsupported
from unmask.base.vocab import Traits, Vocab
from unmask.engine.backends import inductor
from unmask.models.backbone import Shape, Transformer
from unmask.nn import fp8
from unmask.nn.quantize import rounds

LLADA = Shape(
    vocab_size=126464,
    width=4096,
    depth=32,
    heads=32,
    hidden=12288,
    max_length=4096,
    rope_theta=5e5,
    tied=False,
)
TINY = Shape(vocab_size=256, width=64, depth=2, heads=4, hidden=128, max_length=256, tied=False)
WIDTHS = (1, 4, 32)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tiny", action="store_true", help="a small model, to see whether the script runs")
    options.add_argument("--kinds", nargs="+", default=list(KINDS), help=", ".join(KINDS))
    options.add_argument("--context", type=int, default=128, help="known positions (128)")
    options.add_argument("--tries", type=int, default=20, help="forwards that a median is taken of (20)")
    options.add_argument("--out", type=Path, help="write the JSON there, too (.json)")
    args = options.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = random(TINY if args.tiny else LLADA, device)
    rate = bandwidth(device, 1 << 24 if args.tiny else 1 << 31)
    told: dict[str, object] = {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else machine(),
        "torch": torch.__version__,
        "bytes_per_s": rate,
        "parameters": sum(p.numel() for p in model.parameters()),
        "context": args.context,
    }
    expected = logits(model, args.context)
    for kind in args.kinds:
        try:
            began = time.perf_counter()
            other = KINDS[kind](model, args.context)
            found = logits(other, args.context)
        except Unsupported as error:
            told[kind] = {"unsupported": str(error)}
            continue
        told[kind] = {
            "seconds_to_start": time.perf_counter() - began,
            "agree": float((found.argmax(-1) == expected.argmax(-1)).double().mean()),
            "error": float((found - expected).abs().max() / expected.abs().max()),
            "widths": [speed(other, model, width, args.context, args.tries, rate) for width in WIDTHS],
        }
    text = json.dumps(told, indent=1)
    print(text)
    if args.out:
        args.out.with_suffix(".json").write_text(text + "\n")


def random(shape: Shape, device: torch.device) -> Transformer:
    """A model with random weights, made where it stays: in bfloat16 on a GPU, in float32 on a CPU."""
    with torch.device("meta"):
        model = Transformer(shape, Vocab(size=shape.vocab_size, mask=0), Traits(sees="all"))
    model = model.to(torch.bfloat16 if device.type == "cuda" else torch.float32).to_empty(device=device).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            _ = weight.fill_(1.0) if weight.dim() == 1 else weight.normal_(0, weight.shape[-1] ** -0.5)
    return model


def compiled(model: Transformer, context: int) -> Denoiser:
    """On torch.compile, with all graphs that are needed here."""
    other = inductor.build(model)
    other.warm([1], WIDTHS, [context + max(WIDTHS)])
    return other


def eight(model: Transformer, context: int) -> Denoiser:
    """The same with maps in fp8; the model is changed, so this comes last."""
    fp8.check(model.device, model.embed_tokens.weight.dtype)
    for name in [name for name, _ in model.named_parameters() if rounds(model, name)]:
        owner, _, leaf = name.rpartition(".")
        fp8.place(model.get_submodule(owner), leaf)
    return compiled(model, context)


KINDS: dict[str, Callable[[Transformer, int], Denoiser]] = {
    "torch": lambda model, context: model,
    "compile": compiled,
    "fp8": eight,
}


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second that are read, the best of some ways of reading `size` bytes."""
    room = torch.ones(size // 4, device=device)
    other, matrix, one = torch.empty_like(room), room.view(1024, -1), torch.ones(size // 4096, device=device)
    ways: list[tuple[int, Callable[[], object]]] = [
        (2 * size, lambda: other.copy_(room)),
        (size, room.sum),
        (size, lambda: matrix @ one),
    ]
    return max(moved / statistics.median(clock(run, device, 10)[0] for _ in range(3)) for moved, run in ways)


def clock(run: Callable[[], object], device: torch.device, tries: int) -> tuple[float, float]:
    """Seconds of a run, and until it returned without its result; medians, after three that don't count."""
    whole, host = [], []
    for _ in range(tries + 3):
        wait(device)
        began = time.perf_counter()
        run()
        host.append(time.perf_counter() - began)
        wait(device)
        whole.append(time.perf_counter() - began)
    return statistics.median(whole[3:]), statistics.median(host[3:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def speed(model: Denoiser, weights: Transformer, width: int, context: int, tries: int, rate: float) -> dict[str, float]:
    """A forward of one row, logits of all that it feeds among it, beside its floor."""
    cache, attend = model.cache(1, context + width), Attend(kind="full")
    known = torch.arange(context, device=model.device)[None]
    model.read(known, positions=known, attend=attend, cache=cache, keep=known >= 0)
    positions = torch.arange(context, context + width, device=model.device)[None]

    def run() -> None:
        model.head(model.read(positions, positions=positions, attend=attend, cache=cache)[0])

    def body() -> None:
        model.read(positions, positions=positions, attend=attend, cache=cache)

    seconds, host = clock(run, model.device, tries)
    read = sum(size_of(p) for name, p in weights.named_parameters() if not name.startswith("embed_"))
    read += 2 * cache.k[:, :, : context + width].numel() * cache.k.element_size()
    return {
        "width": width,
        "ms": 1e3 * seconds,
        "body_ms": 1e3 * clock(body, model.device, tries)[0],
        "host_ms": 1e3 * host,
        "floor_ms": 1e3 * read / rate,
        "of_floor": read / rate / seconds,
    }


def size_of(weight: torch.Tensor) -> int:
    """Bytes, in fp8 those of what it is made of."""
    parts = [x for x in (getattr(weight, name, None) for name in ("qdata", "scale")) if torch.is_tensor(x)]
    return sum(x.numel() * x.element_size() for x in parts or [weight])


@torch.inference_mode()
def logits(model: Denoiser, context: int) -> torch.Tensor:
    """Of one row of 16 positions over known ones."""
    tokens = torch.randint(model.vocab.size, (1, context), generator=torch.Generator().manual_seed(0)).to(model.device)
    cache, known = model.cache(1, context + 16), torch.arange(context, device=model.device)[None]
    model.read(tokens, positions=known, attend=Attend(kind="full"), cache=cache, keep=known >= 0)
    positions = known[:, :16] + context
    return model.head(model.read(tokens[:, :16], positions=positions, attend=Attend(kind="full"), cache=cache)[0])


if __name__ == "__main__":
    main()
