"""What a forward of W positions over a cache costs on every backend, against one position, and how near torch it is.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/backends.py --threads 2 --out benchmarks/results/backends

Without a name, the shape of SmolLM2-135M with random weights. "agree" is the share of positions where the likeliest
token is torch's, and the largest difference of a logit over the largest logit. Each backend runs in a process of its
own; they are asked in turns, so that what else the machine does hits all of them. `torch:int8` is `quantize="int8"`,
and `torch:fast` is torch without the strict mode of MKL that unmask sets: faster for a lone row, but then what a row
gets depends on its company.
"""

import multiprocessing
import os
import resource
import statistics
import time
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
from networks import smollm2
from report import parser, report

from unmask.base.attend import Attend
from unmask.base.denoiser import Denoiser
from unmask.engine.backends import BACKENDS
from unmask.lm.load import load
from unmask.models.backbone import Transformer
from unmask.nn import quantize

WIDTHS, CONTEXT = (1, 2, 4, 8, 16, 32, 64), 128
ALL = ("torch", "torch:fast", "torch:int8", "openvino", "openvino:int8", "onnx", "onnx:int8")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", help="a name that unmask.load takes")
    options.add_argument("--backends", nargs="+", default=ALL, choices=ALL)
    options.add_argument("--tries", type=int, default=7, help="forwards that a median is taken of in a turn (7)")
    options.add_argument("--turns", type=int, default=3, help="turns of all backends; medians of them are told (3)")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    told, pipes, processes = {}, {}, []
    for name in args.backends:
        pipes[name], process = start(name, args.model, args.threads)
        processes.append(process)
        told[name] = pipes[name].recv()
    turns: dict[str, list[list[float]]] = {name: [] for name in pipes}
    for _ in range(args.turns):
        for name, pipe in pipes.items():
            pipe.send(args.tries)
            turns[name].append(pipe.recv())
    rows = []
    for name, pipe in pipes.items():
        pipe.send(0)
        times = [statistics.median(width) for width in zip(*turns[name], strict=True)]
        cost = {str(width): f"{1e3 * t:.1f} ({t / times[0]:.2f})" for width, t in zip(WIDTHS, times, strict=True)}
        rows.append({"backend": name, **cost, **told[name]})
    for process in processes:
        process.join()
    captions = {f"ms (ratio to one position) over {CONTEXT} known positions, by positions": rows}
    report(args.out, "A forward on every backend", captions, model=args.model or "SmolLM2-135M, random weights")


def start(name: str, model: str | None, threads: int) -> tuple[Connection, SpawnProcess]:
    """A process that answers numbers of tries with costs, after it has told what it is, and the pipe to it."""
    here, there = multiprocessing.Pipe()
    os.environ["MKL_CBWR"] = "AUTO" if name == "torch:fast" else "AUTO,STRICT"
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(name, model, threads, there), daemon=True
    )
    process.start()
    return here, process


def serve(name: str, model: str | None, threads: int, pipe: Connection) -> None:
    """What such a process does until it is asked for no tries."""
    torch.set_num_threads(threads)
    plain = load(model, device="cpu").model if model else smollm2()
    backend, _, precision = name.partition(":")
    began = time.perf_counter()
    built = int8(model) if name == "torch:int8" else BACKENDS[backend](plain, precision.replace("fast", "") or "loaded")
    seconds = time.perf_counter() - began
    found, expected = logits(built), logits(plain)
    same = (found.argmax(-1) == expected.argmax(-1)).double().mean()
    off = (found - expected).abs().max() / expected.abs().max()
    costs(built, 1)  # the first forwards of each width make ready what later ones use
    pipe.send(
        {
            "agree": f"{same:.0%}, {off:.0e}",
            "seconds to start": f"{seconds:.1f}",
            "peak MB": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f}",
        }
    )
    while tries := pipe.recv():
        pipe.send(costs(built, tries))


def int8(name: str | None) -> Transformer:
    """The model with the maps of its layers in 8 bits, on torch."""
    if name:
        return load(name, device="cpu", quantize="int8").model
    model: Any = smollm2()
    for weight, numbers in list(model.named_parameters()):
        if quantize.rounds(model, weight):
            quantize.place(model, weight, [numbers.detach()], "int8", torch.float32)
    return model


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
