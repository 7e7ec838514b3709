"""Where the forward of a model runs: torch, which is the truth, or a runtime that is faster here.

Whatever it is, it is a `Denoiser`, and what it computes is what torch computes to within rounding.
"""

import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch

from unmask.base.attend import Attend
from unmask.base.denoiser import Denoiser
from unmask.base.errors import BadInput, UnknownName, Unsupported
from unmask.engine.backends import inductor, onnx, openvino


def _torch(model: Denoiser, precision: str = "loaded") -> Denoiser:
    if precision != "loaded":
        raise BadInput(f"torch runs weights as they are loaded; load the model with quantize={precision!r} instead")
    return model


BACKENDS: dict[str, Callable[..., Denoiser]] = {
    "torch": _torch,
    "compile": inductor.build,
    "openvino": openvino.build,
    "onnx": onnx.build,
}
"""(model, precision) to the model on that backend. A precision is a key of `graph.PRECISIONS`."""
AUTO = "auto"
CANDIDATES = ("openvino",)
"""What "auto" tries beside torch: what starts in seconds."""
CONTEXT, WIDTH = 128, 4
"""The forward that "auto" times: so many positions over so many known ones."""


def build(model: Denoiser, name: str = AUTO, precision: str = "loaded") -> tuple[str, Denoiser]:
    """A model on a backend, and that backend's name.

    Args:
        model: as it was loaded.
        name: a key of `BACKENDS`, or "auto": the fastest that is installed and knows such a network.
        precision: a key of `graph.PRECISIONS`.
    Raises:
        UnknownName: no such backend or precision.
        Unsupported: a backend that is not installed or can't run this network; "auto" falls back on torch.
    """
    if name != AUTO:
        if name not in BACKENDS:
            raise UnknownName("backend", name, [*BACKENDS, AUTO])
        return name, BACKENDS[name](model, precision)
    best, least = ("torch", model), cost(model)
    for candidate in CANDIDATES:
        try:
            other = BACKENDS[candidate](model, precision)
        except Unsupported:
            continue
        if (seconds := cost(other)) < least:
            best, least = (candidate, other), seconds
    return best


@torch.no_grad()
def cost(model: Denoiser, width: int = WIDTH, context: int = CONTEXT, tries: int = 5) -> float:
    """Seconds of a forward of `width` positions over `context` known ones, the median of some tries.

    Networks with a clock have no cache; there it is a forward over all of them.
    """
    context = max(0, min(context, model.max_length - width))
    positions = torch.arange(context + width, device=model.device)[None]
    tokens = positions % model.vocab.size
    attend, times = Attend.native(model.traits), []
    t = torch.full((1,), 0.5, device=model.device) if model.traits.clock else None
    cache = None if model.traits.clock else model.cache(1, context + width)
    if cache is not None and context:
        known, positions = positions[:, :context], positions[:, context:]
        keep = torch.ones_like(known, dtype=torch.bool)
        model.read(tokens[:, :context], positions=known, attend=attend, cache=cache, keep=keep)
        tokens = tokens[:, context:]
    for _ in range(tries + 1):
        began = time.perf_counter()
        features = model.read(tokens, positions=positions, attend=attend, t=t, cache=cache)
        model.head(features[0]).sum().item()
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[tries // 2]


WIDTHS = (1, 2, 4, 8, 16, 33)
"""Positions whose cost is measured first; the last is the widest draft's verification."""
_COSTS: WeakKeyDictionary[Denoiser, dict[int, float]] = WeakKeyDictionary()


def costs(model: Denoiser, most: int = WIDTHS[-1]) -> dict[int, float]:
    """Seconds of a forward by positions fed, in rising order; each measured once for a model, the first in 36 forwards.

    `most` is the widest forward that is asked about; beyond `WIDTHS`, widths are doubled until they hold it.
    """
    widths = list(WIDTHS)
    while widths[-1] < most:
        widths.append(2 * widths[-1])
    known = _COSTS.setdefault(model, {})
    for width in widths:
        if width < model.max_length and width not in known:
            known[width] = cost(model, width)
    return dict(sorted(known.items()))
