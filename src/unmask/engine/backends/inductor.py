"""The forward through torch.compile: with packed weights on a CPU, as CUDA graphs on a GPU.

Graphs have static sizes: rows, width and slots are rounded up to a short table each, so it is known which graphs there
can be, and a server can compile those that it will need before the first request (`Inductor.warm`); others are compiled
when they are first met, which takes seconds to minutes. The map to logits is one product and stays as it is.

It does not know caches, rules or requests.
"""

import itertools
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from unmask.base.denoiser import Denoiser
from unmask.base.errors import BadInput, Unsupported
from unmask.engine.backends.compiled import Compiled
from unmask.engine.backends.graph import Body, closed
from unmask.engine.room import SPARE
from unmask.nn.cache import rounded

MODES = {"cpu": "default", "cuda": "reduce-overhead"}
"""The mode of torch.compile for each kind of device that there is one for; "reduce-overhead" is CUDA graphs."""
ROWS, WIDTHS, SLOTS, POSITIONS = (1, 4, 16), (1, 4, 16), 128, 1024
STEP = 4
"""What wider widths and more slots grow by."""
WARM_RUNS = 3
"""CUDA graphs are recorded in the second run of a size, and run in the third."""

Sizes = tuple[int, int, int]
"""Rows, width, slots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """The sizes that graphs may have.

    Args:
        rows, widths, slots: each in rising order; slots are key slots, one of them nobody's.
        positions: rows times width of one graph at most, unless it has one row only.
    """

    rows: tuple[int, ...]
    widths: tuple[int, ...]
    slots: tuple[int, ...]
    positions: int = POSITIONS

    def __post_init__(self) -> None:
        for name in ("rows", "widths", "slots"):
            sizes = getattr(self, name)
            if not sizes or list(sizes) != sorted({*sizes}) or sizes[0] < 1:
                raise BadInput(f"{name} of buckets must be sizes in rising order, got {sizes}")
        if self.rows[0] != 1:
            raise BadInput(f"buckets need one of 1 row, got rows {self.rows}")

    @classmethod
    def of(cls, max_length: int) -> Self:
        """For a model of so many positions. Slots are `rounded`, so that a bucket changes no sum's order."""
        text, beside = rounded(max_length + 1), rounded(max_length + SPARE + 1)  # shadows are fed beside the text
        widths = (*_grown(WIDTHS, max_length), beside - 1)
        return cls(rows=ROWS, widths=widths, slots=(*_grown((SLOTS,), text, rounded), beside))

    def fit(self, rows: int, width: int, slots: int) -> Sizes:
        """The least bucket; its rows may be fewer than asked, never its width and slots."""
        wide = _least(self.widths, width)
        few = [count for count in self.rows if count * wide <= self.positions] or [1]
        return _least(few, min(rows, few[-1])), wide, _least(self.slots, slots)

    def all(self) -> list[Sizes]:
        """Every bucket that a forward can meet."""
        found = {
            self.fit(rows, width, slots): None
            for below, width in zip((0, *self.widths), self.widths, strict=False)
            for slots in self.slots
            if slots >= below + 2  # what is fed has slots, and one is nobody's
            for rows in self.rows
        }
        return list(found)


class Inductor(Compiled):
    """A `Compiled` whose graphs are torch's own.

    Attributes:
        buckets: sizes that graphs may have.
        compiled: those that there are graphs of by now.
    """

    def __init__(self, model: Denoiser, buckets: Buckets | None = None, mode: str | None = None) -> None:
        """For arguments and errors see `build`."""
        network = closed(model)
        device = network.device
        if device.type not in MODES:
            raise Unsupported(f"backend 'compile' runs on {' or '.join(MODES)}, not on {device.type}; use 'torch'")
        _toolchain(device.type)
        self.buckets = buckets or Buckets.of(network.max_length)
        if self.buckets.widths[-1] < network.max_length or self.buckets.slots[-1] <= network.max_length:
            raise BadInput(f"buckets must reach the {network.max_length} positions of the model, got {self.buckets}")
        self.compiled: list[Sizes] = []
        self._cuda = device.type == "cuda"
        self._packed = not self._cuda and all(type(x) is torch.nn.Parameter for x in _maps(network))
        self._graph = torch.compile(Body(network), fullgraph=True, dynamic=False, mode=mode or MODES[device.type])
        super().__init__(network, self._gathered, lambda features: (network.head(features),), fit=self.buckets.fit)

    def warm(self, rows: Iterable[int], widths: Iterable[int], lengths: Iterable[int]) -> list[Sizes]:
        """Compile what forwards of these sizes need, for all of their combinations.

        Args:
            rows: in one forward.
            widths: positions that a row feeds.
            lengths: positions of a row, known ones and fed ones.
        Returns:
            The buckets.
        """
        asked = itertools.product(rows, widths, lengths)
        wanted = {self.buckets.fit(r, w, size + 1): None for r, w, size in asked if size >= w}
        for sizes in wanted:
            for _ in range(1 if not self._cuda else WARM_RUNS):
                self._run(*self._nothing(sizes))
        return list(wanted)

    @torch.inference_mode()
    def _nothing(self, sizes: Sizes) -> tuple[Tensor, ...]:
        """Inputs of a bucket in which nobody is."""
        (rows, width, slots), s = sizes, self.shape
        tokens = torch.zeros(rows, width, dtype=torch.int64, device=self.device)
        mask = torch.zeros(rows, width, slots, dtype=torch.bool, device=self.device)
        past = self._like.new_zeros(s.depth, rows * slots, s.kv_heads, s.head_dim)
        return tokens, tokens.clone(), tokens.clone(), mask, past, past.clone()

    def _gathered(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run with the slots of the rows alone: a graph of static sizes must not know how large a cache is.

        Keys and values are gone with the next run.
        """
        *others, k, v, places = inputs
        features, *fresh = self._run(*others, *(store.index_select(1, places.flatten()) for store in (k, v)))
        return features.clone(), *fresh

    @torch.inference_mode()
    def _run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The graph of these sizes, compiled if it is the first time."""
        rows, width, slots = inputs[3].shape
        if self._cuda:
            torch.compiler.cudagraph_mark_step_begin()  # what the last run gave was copied
        if (sizes := (rows, width, slots)) in self.compiled:
            return self._graph(*inputs)
        limit = len(self.buckets.all()) + 1
        with (
            warnings.catch_warnings(),
            torch._dynamo.config.patch(recompile_limit=limit, accumulated_recompile_limit=8 * limit),
            torch._inductor.config.patch(freezing=self._packed),
        ):
            warnings.simplefilter("ignore")  # of what torch does itself
            found = self._graph(*inputs)
        self.compiled.append(sizes)
        return found


def build(
    model: Denoiser, precision: str = "loaded", buckets: Buckets | None = None, mode: str | None = None
) -> Inductor:
    """A `Denoiser` that computes what `model` does, where it is.

    Args:
        model: a `Transformer` on a CPU or a CUDA device, in any precision, with any rounded weights.
        precision: "loaded".
        buckets: sizes that graphs may have; None is `Buckets.of` the model's positions.
        mode: of torch.compile; None is that of `MODES`.
    Raises:
        BadInput: another precision, or buckets that the model's positions don't fit in.
        Unsupported: a network that is no fixed graph, or a machine without a compiler.
    """
    if precision != "loaded":
        raise BadInput(f"torch runs weights as they are loaded; load the model with quantize={precision!r} instead")
    return Inductor(model, buckets, mode)


def _toolchain(device: str) -> None:
    """Raise Unsupported where torch.compile lacks what it compiles with."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise Unsupported("backend 'compile' needs a C++ compiler; install g++, or use backend 'torch'") from error
    if device == "cuda" and not has_triton():
        raise Unsupported("backend 'compile' needs triton on a GPU; install it, or use backend 'torch'")


def _maps(model: torch.nn.Module) -> Iterable[Tensor]:
    """Weights of the layers; of rounded ones, too, which packing would turn into floats for good."""
    for module in model.modules():
        for name in ("weight", "scale"):
            if torch.is_tensor(found := getattr(module, name, None)):
                yield found


def _grown(start: Sequence[int], end: int, rounding: Callable[[int], int] = int) -> tuple[int, ...]:
    """Sizes from the given ones on, each `STEP` times the one before, as far as they save half of `end`."""
    sizes = [size for size in start if 2 * size <= end]
    while sizes and 2 * (size := rounding(sizes[-1] * STEP)) <= end:
        sizes.append(size)
    return (*sizes, end)


def _least(sizes: Sequence[int], wanted: int) -> int:
    """The least of rising sizes that is no less than what is wanted.

    Raises:
        Unsupported: all are less.
    """
    if wanted > sizes[-1]:
        what = f"a forward of {wanted} is beyond the largest bucket, {sizes[-1]}"
        raise Unsupported(f"{what}; give larger buckets, or less lookahead")
    return sizes[bisect_left(sizes, wanted)]
