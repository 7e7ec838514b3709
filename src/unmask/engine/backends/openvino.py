"""The forward on OpenVINO: exact to float32, and on many CPUs faster than torch for a few positions.

`benchmarks/backends.py` measures by how much.

It turns the graphs of `unmask.engine.backends.graph` into compiled ones, or writes and reads them as files; caches and
masks are not its business.
"""

import importlib
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from unmask.base.denoiser import Denoiser
from unmask.base.errors import Unsupported
from unmask.engine.backends.compiled import Compiled, Run, loose
from unmask.engine.backends.graph import (
    HEAD_INPUTS,
    HEAD_OUTPUTS,
    INPUTS,
    OUTPUTS,
    Body,
    Head,
    example,
    join,
    rounded,
    traceable,
)
from unmask.models.backbone import Transformer

SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
    "ENABLE_CPU_PINNING": False,
    "EXECUTION_MODE_HINT": "ACCURACY",
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
"""One forward has all threads; what flows is float32 (some processors would take less); only weights are rounded."""


def build(model: Denoiser, precision: str = "loaded", folder: Path | None = None) -> Compiled:
    """A `Denoiser` that computes what `model` does, on as many threads as torch has now.

    Args:
        model: a `Transformer` on a CPU, in float32.
        precision: a key of `unmask.engine.backends.graph.PRECISIONS`.
        folder: what `save` wrote of this model in this precision, so that nothing has to be traced.
    Raises:
        Unsupported: openvino is not installed, or a network that can't leave torch.
        UnknownName: no such precision.
    """
    twin = traceable(model, precision)
    if folder is None:
        body, head = graphs(twin)
    else:
        body, head = (_library().Core().read_model(folder / f"{name}.xml") for name in ("body", "head"))
    # The kernel of compressed weights for one position sums in another order than that for more.
    return Compiled(twin, _run(body), _run(head), fit=partial(loose, least=2 if rounded(twin) else 1))


def save(model: Denoiser, folder: Path, precision: str = "loaded") -> list[Path]:
    """Write the two graphs with their weights into a folder that exists; errors are those of `build`."""
    files = []
    for name, graph in zip(("body", "head"), graphs(traceable(model, precision)), strict=True):
        files += [folder / f"{name}.xml", folder / f"{name}.bin"]
        _library().save_model(graph, files[-2], compress_to_fp16=False)
    return files


def graphs(model: Transformer) -> tuple[Any, Any]:
    """The graphs of features and of logits of a `traceable` model, as OpenVINO models."""
    wide, model = (torch.zeros(2, model.shape.width),), join(model)
    return (
        _convert(Body(model), example(model), INPUTS, OUTPUTS),
        _convert(Head(model), wide, HEAD_INPUTS, HEAD_OUTPUTS),
    )


def _convert(module: Module, given: tuple[Tensor, ...], inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Any:
    with torch.no_grad(), warnings.catch_warnings():
        # torch would rather see torch.export, which takes fifteen times as long for the same graph.
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(module, given, check_trace=False)
        extension = _library("frontend.pytorch").ConversionExtension("aten::index_copy", _copied)
        graph = _library().convert_model(traced, example_input=given, extension=[extension])
    for ports, names in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    return graph


def _copied(call: Any) -> Any:
    """`index_copy` as one operation; the frontend's own words for it take three."""
    into, axis, index, new = map(call.get_input, range(4))
    return _library("opset13").scatter_update(into, index, new, axis).outputs()


def _run(graph: Any) -> Run:
    """A compiled graph as a function of tensors."""
    library = _library()
    settings = {**SETTINGS, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = library.Core().compile_model(graph, "CPU", settings).create_infer_request()

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        held = [x.contiguous().numpy() for x in inputs]  # shared, so they have to live as long as the forward
        for i, x in enumerate(held):
            request.set_input_tensor(i, library.Tensor(x, shared_memory=True))
        request.infer()
        return tuple(torch.from_numpy(x.data.copy()) for x in request.output_tensors)

    return run


def _library(part: str = "") -> Any:
    """The package or a part of it, without the one that tells its maker about every import."""
    quiet = "openvino_telemetry" not in sys.modules
    if quiet:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(f"openvino.{part}".rstrip("."))
    except ImportError as error:
        raise Unsupported("backend 'openvino' needs openvino; install it with: pip install 'unmask[cpu]'") from error
    finally:
        if quiet:
            del sys.modules["openvino_telemetry"]
