"""The forward as ONNX, which other programs run, and ONNX Runtime running it here.

The same two graphs as OpenVINO's, through torch's own exporter, which takes minutes for a deep network.
"""

import logging
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from unmask.base.denoiser import Denoiser
from unmask.base.errors import Unsupported
from unmask.engine.backends.compiled import Compiled, Run
from unmask.engine.backends.graph import (
    HEAD_INPUTS,
    HEAD_OUTPUTS,
    INPUTS,
    OUTPUTS,
    exported,
    join,
    traceable,
)

FILES = ("body.onnx", "head.onnx")


def build(model: Denoiser, precision: str = "loaded", folder: Path | None = None) -> Compiled:
    """As `unmask.engine.backends.openvino.build`, on ONNX Runtime."""
    twin = traceable(model, precision)
    if folder is not None:
        body, head = (_run(folder / name) for name in FILES)
        return Compiled(twin, body, head)
    with TemporaryDirectory() as place:
        save(model, Path(place), precision)
        return build(model, precision, Path(place))


def save(model: Denoiser, folder: Path, precision: str = "loaded") -> list[Path]:
    """Write the two graphs into a folder that exists, the weights of each beside it.

    Raises:
        Unsupported: onnx or onnxscript is not installed, or a network that can't leave torch.
        UnknownName: no such precision.
    """
    twin = traceable(model, precision)
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise Unsupported("ONNX files need onnxscript; install it with: pip install 'unmask[export]'") from error
    names = ((INPUTS, OUTPUTS), (HEAD_INPUTS, HEAD_OUTPUTS))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses packages that nobody needs here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of what it does itself
        for program, file, (inputs, outputs) in zip(exported(join(twin)), FILES, names, strict=True):
            made: Any = torch.onnx.export(program, dynamo=True, input_names=inputs, output_names=outputs, verbose=False)
            made.save(folder / file, external_data=True)
    return sorted(folder / name for file in FILES for name in (file, f"{file}.data"))


def _run(file: Path) -> Run:
    """A file as a function of tensors."""
    try:
        import onnxruntime
    except ImportError as error:
        raise Unsupported("backend 'onnx' needs onnxruntime; install it with: pip install 'unmask[export]'") from error
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        given = {name: x.contiguous().numpy() for name, x in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(x) for x in session.run(None, given))

    return run
