"""What a forward costs against what it cannot cost less than, and where the rest goes.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/floor.py --threads 2 --out benchmarks/results/floor

Two floors are measured on the spot, both with the very weights of the network: reading all maps from memory once (the
fastest of adding them up, looking for the largest number, and products with one row), and the bare products of all maps
with as many random rows. Beside them stand steps of the engine: so many rows that each write one token over a cache of
128 positions, head and all. torch's products are measured under the strict mode of MKL that unmask sets, and, in a
process of its own, without it.

The profile tells which share of the engine's wall clock each part has, its own callees left out, and next to it what
torch's profiler says of single operations.
"""

import contextlib
import importlib
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from networks import BLOCK, NETWORKS, read_as
from report import parser, report
from torch.nn import Linear
from torch.nn import functional as F

from unmask.base.denoiser import Denoiser
from unmask.decode.decoder import build
from unmask.engine.backends import BACKENDS
from unmask.engine.engine import Engine
from unmask.engine.request import Request
from unmask.models.backbone import Transformer
from unmask.text.layout import Fixed, Gap, lay

ROWS, CONTEXT, LENGTH = (1, 2, 4, 8, 16, 32, 64), 128, 64
FLOOR_TIMES = {1: 1.1, 8: 1.3}
"""How many times the memory floor a step of so many rows is to take at most."""
PARTS = {
    "maps of layers": [("torch.nn", "Linear.forward")],
    "head": [("unmask.models.backbone", "Transformer.head"), ("unmask.engine.backends.compiled", "Compiled.head")],
    "attention": [("torch.nn.functional", "scaled_dot_product_attention")],
    "norms": [("torch", "rms_norm")],
    "rotary": [("unmask.models.backbone", "rotate"), ("unmask.models.backbone", "turns")],
    "reading pages": [("unmask.engine.pages", "Pages.gathered"), ("unmask.engine.backends.compiled", "_places")],
    "writing pages": [("unmask.nn.cache", "Visit.write"), ("unmask.engine.backends.compiled", "_write")],
    "packing": [("unmask.nn.pack", name) for name in ("Part.spread", "Pack.of", "Pack.back", "Pack.flat")],
    "masks": [("unmask.nn.attention", "Sight.mask")],
    "cache bookkeeping": [("unmask.nn.cache", "KVCache.recount")],
    "rest of the network": [
        ("unmask.models.backbone", "Transformer.read"),
        ("unmask.engine.backends.compiled", "Compiled.read"),
    ],
    "drawing": [("unmask.decode.propose", "_draw")],
    "rest of the proposal": [("unmask.decode.audit", "propose")],
    "windows": [("unmask.engine.crowd", "Crowd.plan")],
    "policies": [("unmask.engine.crowd", "Crowd.decide")],
    "canvas and trace": [("unmask.base.canvas", "Canvas.apply"), ("unmask.engine.engine", "record")],
    "rest of the engine": [("unmask.engine.engine", "Engine.step")],
}
"""Names of the profile to functions, as module and path."""
GRAPH = "graph"
"""What a profile calls the time in another runtime's graph of the layers."""


def maps(model: Transformer) -> list[torch.Tensor]:
    """The matrices that a forward multiplies by, in their order, the head last."""
    layers = [module.weight for layer in model.layers for module in layer.modules() if isinstance(module, Linear)]
    return [*layers, model.embed_tokens.weight if model.shape.tied else model.lm_head.weight]


def median_s(run: Callable[[], Any], tries: int = 7) -> float:
    """Median seconds of a call, after one that is not counted."""
    times = []
    for _ in range(tries + 1):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


@torch.inference_mode()
def products(model: Transformer, rows: int) -> float:
    """Median seconds of the products of all maps with so many random rows."""
    weights = maps(model)
    inputs = {size: torch.randn(rows, size) for size in {weight.shape[1] for weight in weights}}

    def run() -> None:
        for weight in weights:
            F.linear(inputs[weight.shape[1]], weight)

    return median_s(run, 7 if rows < 256 else 3)


@torch.inference_mode()
def streaming(model: Transformer) -> float:
    """Seconds of reading all maps from memory once: by adding up, or looking for the largest, whichever is faster."""
    weights = [weight.detach().view(-1) for weight in maps(model)]
    ways: tuple[Callable[[torch.Tensor], Any], ...] = (torch.sum, torch.max)
    return min(median_s(lambda way=way: [way(weight) for weight in weights]) for way in ways)


def writer(model: Any, decoder: str, rows: int, **options: Any) -> Engine:
    """An engine in the midst of writing: its rows have read what is before and written a first block."""
    made = build(decoder, traits=model.traits, vocab=model.vocab, **options)
    engine = Engine(
        model, rows=rows, cache_positions=rows * (CONTEXT + LENGTH + 16), positions=rows * 2 * CONTEXT, share=False
    )
    draw = torch.Generator().manual_seed(0)
    for seed in range(rows):
        ids = tuple(torch.randint(4, model.vocab.size - 1, (CONTEXT,), generator=draw).tolist())
        layout = lay([Fixed(ids=ids, text=None), Gap(length=LENGTH)])
        engine.add(Request(layout=layout, decoder=made, seed=seed))
    engine.step()
    return engine


def floors(models: Mapping[str, Any], loose: Mapping[int, float], memory_s: float) -> list[dict[str, Any]]:
    """Floors and steps for each number of rows of `loose`; backends take turns."""
    found = []
    ar = {name: read_as(model, sees="left", speaks="next") for name, model in models.items()}
    for rows in loose:
        strict = products(models["torch"], rows)
        writers = {name: writer(model, "ar", rows) for name, model in ar.items()}
        turns = [{name: median_s(engine.step, 5) for name, engine in writers.items()} for _ in range(3)]
        times = {name: statistics.median(turn[name] for turn in turns) for name in writers}
        print(f"{rows} rows: {times}", file=sys.stderr, flush=True)
        floor = max(memory_s, min(strict, loose[rows]))
        found.append(
            {
                "rows": rows,
                "memory ms": 1e3 * memory_s,
                "products ms": 1e3 * strict,
                "products ms, MKL not strict": 1e3 * loose[rows],
                **{f"{name} ms": 1e3 * seconds for name, seconds in times.items()},
                **{f"{name} / memory": seconds / memory_s for name, seconds in times.items()},
                **{f"{name} / larger floor": seconds / floor for name, seconds in times.items()},
            }
        )
    return found


def aims(cells: list[dict[str, Any]], backends: list[str]) -> list[dict[str, Any]]:
    """What was aimed at and whether it holds."""
    found = []
    for cell in (one for one in cells if one["rows"] in FLOOR_TIMES):
        for backend in backends:
            ratio, most = cell[f"{backend} / memory"], FLOOR_TIMES[cell["rows"]]
            holds = "yes" if ratio <= most else "no"
            what = f"{cell['rows']} rows within {most} times the memory floor"
            found.append({"aim": what, "backend": backend, "found": ratio, "holds": holds})
    return found


class Profile:
    """Wall clock by part: what is spent in the functions of `PARTS`, without those of them that they call."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._open: list[float] = []

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts for `name`."""

        def timed(*given: Any, **named: Any) -> Any:
            self._open.append(0.0)
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                spent = time.perf_counter() - began
                self.seconds[name] += spent - self._open.pop()
                if self._open:
                    self._open[-1] += spent

        return timed

    @contextlib.contextmanager
    def over(self, model: Any) -> Iterator[None]:
        """Everything in `PARTS` is timed while this lasts, and the graph of a model on another runtime."""
        with contextlib.ExitStack() as undo:
            for name, places in PARTS.items():
                for module, path in places:
                    owner: Any = importlib.import_module(module)
                    *above, last = path.split(".")
                    for step in above:
                        owner = getattr(owner, step)
                    self._replace(undo, owner, last, name)
            if hasattr(model, "_body"):
                self._replace(undo, model, "_body", GRAPH)
            yield

    def _replace(self, undo: contextlib.ExitStack, owner: Any, last: str, name: str) -> None:
        found = vars(owner)[last]
        plain = found.__func__ if isinstance(found, (classmethod, staticmethod)) else found
        timed = self.wrapped(name, plain)
        setattr(owner, last, type(found)(timed) if plain is not found else timed)
        undo.callback(setattr, owner, last, found)


def profiles(models: Mapping[str, Denoiser], steps: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Shares of a step by part, for some ways to write; and torch's own profile of the first of them with 8 rows."""
    ways = {
        "ar": ("ar", {"sees": "left", "speaks": "next"}, {}),
        "block-causal": ("block x quota", {"reads": (1, BLOCK)}, {"block": BLOCK, "steps": BLOCK}),
        "dual": ("fast-dllm-dual", {}, {"block": BLOCK, "steps": LENGTH}),
        "exact": ("llada", {}, {"block": BLOCK, "steps": LENGTH}),
    }
    columns, operations = {}, []
    for way, (decoder, traits, options) in ways.items():
        for backend, base in models.items():
            for rows in (1, 8):
                model = read_as(base, **traits)
                engine, profile = writer(model, decoder, rows, **options), Profile()
                engine.step()
                with profile.over(model):
                    for _ in range(steps):
                        engine.step()
                total = sum(profile.seconds.values())
                shares = {name: spent / total for name, spent in profile.seconds.items()}
                columns[f"{way} {backend} {rows}"] = {"ms a step": 1e3 * total / steps, **shares}
                if (backend, rows) == ("torch", 8):
                    operations += profiled(engine, way)
    names = ["ms a step", GRAPH, *PARTS]
    table = [
        {"part": name, **{column: _share(name, values.get(name)) for column, values in columns.items()}}
        for name in names
    ]
    return table, operations


def profiled(engine: Engine, way: str, steps: int = 3, most: int = 8) -> list[dict[str, Any]]:
    """The operations in which torch's profiler finds most time of its own."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            engine.step()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [
        {
            "way": way,
            "operation": event.key,
            "share": f"{event.self_cpu_time_total / total:.1%}",
            "calls a step": event.count / steps,
            "ms a step": event.self_cpu_time_total / 1e3 / steps,
        }
        for event in events[:most]
    ]


def _share(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if name == "ms a step" else f"{value:.1%}"


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.add_argument("--network", default="llada", choices=NETWORKS)
    options.add_argument("--backends", nargs="+", default=["torch", "openvino"])
    options.add_argument("--rows", nargs="+", type=int, default=ROWS)
    options.add_argument("--steps", type=int, default=10, help="of a profile (10)")
    options.add_argument("--products", action="store_true", help="measure the products only, and print them")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    network = NETWORKS[args.network]()
    if args.products:
        print(*(products(network, rows) for rows in args.rows))
        return
    command = [sys.executable, __file__, "--products", *sys.argv[1:]]
    said = subprocess.run(command, env={**os.environ, "MKL_CBWR": "AUTO"}, capture_output=True, text=True, check=True)
    loose = dict(zip(args.rows, map(float, said.stdout.split()), strict=True))
    # No way to read all weights is faster than memory, so the fastest that is known is nearest to it.
    memory_s = min(streaming(network), products(network, 1), loose[1])
    models = {backend: BACKENDS[backend](network) for backend in dict.fromkeys(["torch", *args.backends])}
    cells = floors(models, loose, memory_s)
    tables: dict[str, list[dict[str, Any]]] = {
        f"A step of the engine in which each row writes one token over {CONTEXT} positions": cells
    }
    if models["torch"].traits.sees == "all":
        parts, operations = profiles(models, args.steps)
        tables["Shares of a step by part (columns: way, backend, rows)"] = parts
        tables["Operations by torch's profiler, 8 rows on torch"] = operations
    if told := aims(cells, list(models)):
        tables["Aims"] = told
    size = sum(weight.numel() for weight in maps(network)) / 1e6
    speed = 4e-3 * size / memory_s
    told = f"{args.network}, {size:.1f} M parameters in maps, read from memory at {speed:.1f} GB/s"
    report(args.out, "Forwards and their floor", tables, network=told)


if __name__ == "__main__":
    main()
