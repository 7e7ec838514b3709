"""The engine against the published loop of LLaDA, and against autoregression, on the same weights in one run.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/engine.py --threads 2 --out benchmarks/results/engine

A random network of LLaDA's shape (112 M parameters) and `tiny` write texts of an exact length behind a prompt of 32
tokens, in blocks of 32 where nothing else is said:

- `published loop` is generate.py of LLaDA re-expressed: the whole window and the logits of every position at each step,
  softmax in float64 over all of them, no cache, a lock-step batch. It is helped: no gradients, one row's logits at a
  time, candidates and confidences by one pass each.
- `exact` is the preset llada of the engine. The run ends with 1 where its tokens are not those of the loop.
- `prefix` and `dual` are the presets of Fast-dLLM, `block-causal` is the exact cache, once more in blocks of 8 (SDAR
  publishes 4, BD3-LM 4 to 16, LLaDA2 32), `ar` is token by token with it.
  Random weights are never sure of a token, so no threshold is ever met: all commit a stated number of tokens a forward
  by quota, the same number for all of them. `tiny` and the random network were not trained to be read in each of these
  ways; the figures are about time.

A block costs its first forward (which may read the whole canvas) and then later ones. Both are measured in the first
and in the last block of the text, between which costs grow evenly, at 8 or 16 tokens a forward; tokens per second at 1
and at 4 are made of them, for a text of that length. The prompt's own reading is left out. The last table has whole
texts beside what is so computed.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from floor import products
from networks import BLOCK, NETWORKS, read_as
from report import parser, report

from unmask.base.attend import Attend
from unmask.base.denoiser import Denoiser
from unmask.decode import propose
from unmask.decode.decoder import build
from unmask.engine.backends import BACKENDS
from unmask.engine.engine import Engine
from unmask.engine.request import Request
from unmask.evals.speed import Timed
from unmask.text.layout import Fixed, Gap, lay

PROMPT, RATES = 32, (1, 4)
"""Tokens of the prompt; tokens a forward that are told."""
MEASURED, FEWER, LARGE = 8, 16, 8192
"""Tokens a forward that are measured, so that a block takes few; and in cells of more tokens than the last number."""
SHORT = 8
"""Positions of a short block."""
LOOP = "published loop"
FASTER = {256: 8, 1024: 20}
"""How many times the loop cached decoding is to be at a length."""
CROWD, CROWD_GAIN = 32, 5
"""Texts at the same time, and how much more they are to get done than one."""
ROOM = "torch's products alone"
ENOUGH_S = 6.0
"""A cell is measured again, up to three times, while all of it took less."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A way to write.

    Args:
        decoder: of the engine.
        traits: how the weights are read.
        whole: whether `steps` counts the forwards of the whole canvas, not of a block.
        first: the first block that is measured; an exact cache reads the prompt in block 0.
        size: positions a block.
        even: whether all blocks cost the same.
    """

    decoder: str
    traits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    whole: bool = True
    first: int = 0
    size: int = BLOCK
    even: bool = False

    def forwards(self, rate: int) -> int:
        """Of a block, at so many tokens a forward."""
        return max(1, self.size // rate)


MODES = {
    "exact": Mode(decoder="llada", even=True),
    "prefix": Mode(decoder="fast-dllm-prefix"),
    "dual": Mode(decoder="fast-dllm-dual"),
    "block-causal": Mode(decoder="block x quota", traits={"reads": (1, BLOCK)}, whole=False, first=1),
    "block-causal, 8": Mode(decoder="block x quota", traits={"reads": (1, SHORT)}, whole=False, first=1, size=SHORT),
    "ar": Mode(decoder="ar", traits={"sees": "left", "speaks": "next"}, first=1, size=1),
}


class Clocks(Timed):
    """A model that knows how long it was asked, beside the time that drawing took."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__(model)
        self.draw_s, self._draw = 0.0, propose._draw

    def __enter__(self) -> "Clocks":
        propose._draw = functools.partial(self.drawing, self._draw)
        return self

    def __exit__(self, *_: object) -> None:
        propose._draw = self._draw

    def now(self) -> np.ndarray:
        """Seconds: of the clock, in the network, the head, and drawing."""
        return np.array([time.perf_counter(), self.network_s, self.head_s, self.draw_s])

    def drawing(self, draw: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """What a function gives, whose time counts as drawing."""
        began = time.perf_counter()
        found = draw(*given, **named)
        self.draw_s += time.perf_counter() - began
        return found


def prompts(model: Denoiser, rows: int, length: int) -> torch.Tensor:
    """(rows, length) tokens that mean nothing."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(4, model.vocab.size - 1, (rows, length), generator=draw)


def _candidates(logits: torch.Tensor, mask: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (N,) and their probabilities, of logits (N, V) that are written into."""
    logits[:, mask] = -torch.inf
    best = logits.argmax(-1)
    return best, logits.softmax(-1, dtype=torch.float64).gather(-1, best[:, None])[:, 0]


@torch.inference_mode()
def published(
    clocks: Clocks, x: torch.Tensor, length: int, rate: int, *, most: int | None = None, done: Callable[[], None]
) -> torch.Tensor:
    """The loop of LLaDA behind prompts (B, P): the tokens (B, P + length), or those after `most` forwards.

    The mask is taken out of the vocabulary, as in the engine, so that texts can be compared.

    Source: Nie et al. 2025, arXiv:2502.09992, generate.py (low-confidence remasking at temperature 0).
    """
    mask, start = clocks.vocab.mask, x.shape[1]
    x = torch.nn.functional.pad(x, (0, length), value=mask)
    positions, attend, count = torch.arange(x.shape[1]).expand_as(x), Attend.native(clocks.traits), 0
    for end in range(start + BLOCK, x.shape[1] + 1, BLOCK):
        for _ in range(BLOCK // rate):
            features = clocks.read(x, positions=positions, attend=attend)
            for row, said in zip(x, features, strict=True):
                logits = clocks.head(said)
                best, confidence = clocks.drawing(_candidates, logits, mask)
                confidence[end:] = -torch.inf
                confidence[row != mask] = -torch.inf
                at = confidence.topk(rate).indices
                row[at] = best[at]
            done()
            count += 1
            if count == most:
                return x
    return x


def engine(
    model: Any, mode: Mode, texts: torch.Tensor, length: int, rate: int, *, done: Callable[[], None], most: int = 0
) -> list[tuple[int, ...]]:
    """Texts of the engine behind prompts (B, P): all of them, or nothing after `most` forwards."""
    blocks = length // BLOCK if mode.whole else 1
    steps = {} if mode.decoder == "ar" else {"steps": mode.forwards(rate) * blocks, "block": mode.size}
    decoder = build(
        mode.decoder,
        traits=model.traits,
        vocab=model.vocab,
        internal={"no_end_before": float("inf")},
        **steps,
    )
    room = texts.shape[1] + length
    # All rows go into every forward, so that first and later forwards of a block can be told apart.
    writer = Engine(
        model, rows=len(texts), cache_positions=len(texts) * (room + 16), positions=len(texts) * room, share=False
    )
    if writer.room.cache is not None:
        writer.room.cache.k.zero_()  # memory that nobody has touched yet costs time of its own
        writer.room.cache.v.zero_()
    for seed, row in enumerate(texts.tolist()):
        writer.add(
            Request(layout=lay([Fixed(ids=tuple(row), text=None), Gap(length=length)]), decoder=decoder, seed=seed)
        )
    found: dict[int, tuple[int, ...]] = {}
    done()
    while writer.busy:
        for delta in writer.step():
            if delta.error is not None:
                raise delta.error
            if delta.result is not None:
                found[delta.id] = tuple(delta.result.gaps[0])
        done()
        if writer.stats.forwards == most:
            return []
    return [found[id] for id in sorted(found)]


def costs(model: Denoiser, mode: Mode | None, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(first, later) forwards of a block, the mean of the text's first and last block: total, network, head, draw.

    None as a mode is the loop, whose forwards are all alike.
    """
    rate, told, means = FEWER if rows * length > LARGE else MEASURED, [], []
    with Clocks(model) as clocks:
        if mode is None:
            texts = prompts(model, rows, PROMPT)
            told.append(clocks.now())
            published(clocks, texts, length, rate, most=BLOCK // rate // 2, done=lambda: told.append(clocks.now()))
            return (spent := np.diff(told, axis=0).mean(0)), spent
        rate = min(rate, max(1, mode.size // 2))  # two forwards a block at least: a first one and a later one
        measured = mode.forwards(rate) if mode.size > 1 else 8
        last = length // mode.size - (1 if mode.size > 1 else measured)
        for block in dict.fromkeys((mode.first, mode.first if mode.even else last)):
            told.clear()
            before, skip = (block - mode.first) * mode.size, mode.forwards(rate) * mode.first
            engine(
                clocks,
                mode,
                prompts(model, rows, PROMPT + before),
                length - before,
                rate,
                done=lambda: told.append(clocks.now()),
                most=skip + measured,
            )
            spent = np.diff(told, axis=0)[skip:]
            means.append((spent.mean(0), spent.mean(0)) if mode.size == 1 else (spent[0], spent[1:].mean(0)))
    return np.mean([mean[0] for mean in means], axis=0), np.mean([mean[1] for mean in means], axis=0)


def cell(models: Mapping[str, Denoiser], rows: int, length: int, most: int) -> list[dict[str, Any]]:
    """Every way to write so many texts of this length, in turns; a row of the table each."""
    ways = {(LOOP, "torch"): (models["torch"], None)} | {
        (name, backend): (read_as(model, **mode.traits), mode)
        for name, mode in MODES.items()
        for backend, model in models.items()
        if not (name == "exact" and backend != "torch")
    }
    runs: dict[Any, list[Any]] = {way: [] for way in ways}
    for turn in range(most + 1):
        for way, (model, mode) in ways.items():
            if turn and sum(first[0] + later[0] for first, later in runs[way]) > ENOUGH_S:
                continue
            runs[way].append(costs(model, mode, rows, length))
            print(f"{length} tokens, {rows} rows, {way}: {runs[way][-1][1][0]:.4f} s", file=sys.stderr, flush=True)
    found = []
    for (name, backend), some in runs.items():
        counted = some[1:] or some  # the first one warms up where there are more
        first, later = (np.median([run[i] for run in counted], axis=0) for i in (0, 1))
        size = BLOCK if name == LOOP else MODES[name].size
        block = {rate: first + (max(1, size // rate) - 1) * later for rate in RATES}
        total, network, head, draw = block[4]
        found.append(
            {
                "way": name,
                "backend": backend,
                "length": length,
                "rows": rows,
                "ms first forward": 1e3 * first[0],
                "ms later": 1e3 * later[0],
                "forwards a text at 4": length // size * max(1, size // 4),
                **{f"tok/s at {rate}": rows * size / block[rate][0] for rate in RATES},
                **dict.fromkeys((f"of the loop at {rate}" for rate in RATES), 0.0),
                "network": f"{network / total:.0%}",
                "head": f"{head / total:.0%}",
                "draw": f"{draw / total:.0%}",
                "host": f"{1 - (network + head + draw) / total:.1%}",
                "runs": len(counted),
            }
        )
    for row in found:
        for rate in RATES:
            row[f"of the loop at {rate}"] = row[f"tok/s at {rate}"] / found[0][f"tok/s at {rate}"]
    return found


def whole_texts(models: Mapping[str, Denoiser], length: int, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A text each, written to its end at 4 tokens a forward, beside what was computed; ends with 1 if exact differs."""
    texts, found, first = prompts(models["torch"], 1, PROMPT), [], None
    for cell in (one for one in cells if one["rows"] == 1 and one["length"] == length):
        model, began = models[cell["backend"]], time.perf_counter()
        if cell["way"] == LOOP:
            out = first = tuple(published(Clocks(model), texts, length, 4, done=lambda: None)[0, PROMPT:].tolist())
        else:
            mode = MODES[cell["way"]]
            (out,) = engine(read_as(model, **mode.traits), mode, texts, length, 4, done=lambda: None)
        seconds = time.perf_counter() - began
        same = sum(a == b for a, b in zip(out, first or (), strict=True)) / length
        if cell["way"] == "exact" and out != first:
            raise SystemExit(f"exact mode writes {out}, the published loop {first}")
        found.append(
            {
                "way": cell["way"],
                "backend": cell["backend"],
                "seconds": seconds,
                "tok/s": length / seconds,
                "tok/s computed": cell["tok/s at 4"],
                "tokens as the loop's": f"{same:.0%}",
            }
        )
    return found


def identical(model: Denoiser, rows: int, length: int) -> str:
    """Whether the loop and the exact mode write the same; ends with 1 if not."""
    texts = prompts(model, rows, PROMPT)
    for rate in (1, 4):
        loop = published(Clocks(model), texts, length, rate, done=lambda: None)[:, PROMPT:]
        ours = engine(model, MODES["exact"], texts, length, rate, done=lambda: None)
        if [tuple(row) for row in loop.tolist()] != ours:
            raise SystemExit(
                f"at {rate} tokens a forward, exact mode writes {ours}, the published loop {loop.tolist()}"
            )
    return f"{rows} texts of {length} tokens, at 1 and at 4 tokens a forward: the same from both"


def aims(cells: list[dict[str, Any]], crowds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was aimed at, what was found, and whether it holds; each backend and way for itself."""
    found = []
    cached = [cell for cell in cells if cell["way"] not in (LOOP, "exact", "ar")]
    for cell in cached:
        if (least := FASTER.get(cell["length"])) and cell["rows"] == 1:
            for rate in RATES:
                what = f"at least {least} times the loop at length {cell['length']}, {rate} tokens a forward"
                found.append(_aim(what, cell, cell[f"of the loop at {rate}"], least=least))
    for cell in (one for one in cached if one["rows"] == 8):
        share = float(cell["host"].rstrip("%")) / 100
        found.append(_aim(f"host below 10% at 8 rows, length {cell['length']}", cell, share, most=0.1))
    for crowd in crowds:
        key = next(key for key in crowd if key.startswith("throughput"))
        if key.startswith(f"throughput at {CROWD} /") and not isinstance(crowd[ROOM], str):
            what = f"{key} at least {CROWD_GAIN}, length {crowd['length']}"
            note = "" if crowd[ROOM] >= CROWD_GAIN else f"; the products alone allow {crowd[ROOM]:.1f}"
            found.append(_aim(what, crowd, crowd[key], least=CROWD_GAIN, note=note))
    return found


def _aim(what: str, of: Mapping[str, Any], value: float, *, least: float = 0, most: float = np.inf, note: str = ""):
    holds = ("yes" if least <= value <= most else "no") + note
    return {"aim": what, "way": of["way"], "backend": of["backend"], "found": float(value), "holds": holds}


def concurrency(cells: list[dict[str, Any]], models: Mapping[str, Denoiser]) -> list[dict[str, Any]]:
    """Throughput of the most rows over that of one, and what the products alone would allow."""
    most, found = max(cell["rows"] for cell in cells), []
    model = models["torch"]
    for one in (cell for cell in cells if cell["rows"] == 1):
        many = next(
            c for c in cells if c["rows"] == most and all(c[key] == one[key] for key in ("way", "backend", "length"))
        )
        width = 0 if one["way"] in (LOOP, "exact", "prefix") else MODES[one["way"]].size
        room = most * products(model, width) / products(model, most * width) if width else 1.0
        found.append(
            {
                **{key: one[key] for key in ("way", "backend", "length")},
                f"throughput at {most} / at 1": many["tok/s at 4"] / one["tok/s at 4"],
                ROOM: room if width else "no room: a row fills the cores",
            }
        )
    return found


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.add_argument("--backends", nargs="+", default=["torch", "openvino"], help="of the engine")
    options.add_argument("--networks", nargs="+", default=["llada", "tiny"], choices=["llada", "tiny"])
    options.add_argument("--lengths", nargs="+", type=int, default=[256, 1024])
    options.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32])
    options.add_argument("--quick", action="store_true", help="length 64, 1 and 2 rows, one run: to see that it works")
    args = options.parse_args()
    if args.quick:
        args.lengths, args.rows = [64], [1, 2]
    torch.set_num_threads(args.threads)
    tables, same = {}, {}
    for name in args.networks:
        base = NETWORKS[name]()
        models = {backend: BACKENDS[backend](base) for backend in dict.fromkeys(["torch", *args.backends])}
        # tiny holds 512 positions
        lengths = sorted({min(length, (base.max_length - PROMPT) // BLOCK * BLOCK) for length in args.lengths})
        size = f"{name}, {sum(p.numel() for p in base.parameters()) / 1e6:.1f} M parameters"
        same[name] = identical(base, 3, 32 if args.quick else 64)
        cells = [
            row
            for length in lengths
            for rows in args.rows
            for row in cell(models, rows, length, 0 if args.quick else 2)
        ]
        tables[f"Writing, {size}"] = cells
        tables[f"Texts at the same time, {size}"] = crowds = concurrency(cells, models)
        tables[f"Aims, {size}"] = aims(cells, crowds) or [{"aim": "none is measured by these lengths and rows"}]
        tables[f"One text of {lengths[0]} tokens written to its end, {size}"] = whole_texts(models, lengths[0], cells)
    report(args.out, "The engine and the published loop", tables, **{f"exactness_of_{k}": v for k, v in same.items()})


if __name__ == "__main__":
    main()
