"""unmask export: a model's forward as files that other runtimes run."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unmask.base.errors import BadInput, UnknownName
from unmask.cli import arguments as given
from unmask.engine.backends import onnx, openvino
from unmask.engine.backends.graph import HEAD_INPUTS, HEAD_OUTPUTS, INPUTS, OUTPUTS, traceable
from unmask.lm.load import load

FORMATS = {"openvino": openvino.save, "onnx": onnx.save}
ABOUT = "about.json"


def run(
    name: Annotated[str, typer.Argument(help="a bundled model, a folder, a GGUF file, or a hub id")],
    out: Annotated[Path, typer.Option(help="a new folder")],
    format: Annotated[str, typer.Option(help=", ".join(FORMATS))] = "openvino",
    precision: Annotated[str, typer.Option(help="of weights: loaded, int8")] = "loaded",
    as_json: given.Json = False,
) -> None:
    """Write the two graphs of a model, tokens to features and features to logits, with their weights."""
    if format not in FORMATS:
        raise UnknownName("format", format, FORMATS)
    if out.exists():
        raise BadInput(f"{out} is there already; give a new folder")
    model = load(name, device="cpu").model
    twin = traceable(model, precision)
    out.mkdir(parents=True)
    files = FORMATS[format](model, out, precision)
    about = {
        "model": name,
        "format": format,
        "precision": precision,
        "body": {"inputs": INPUTS, "outputs": OUTPUTS},
        "head": {"inputs": HEAD_INPUTS, "outputs": HEAD_OUTPUTS},
        **{part: dataclasses.asdict(getattr(twin, part)) for part in ("shape", "vocab", "traits")},
    }
    (out / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    sizes = {file.name: file.stat().st_size for file in [*files, out / ABOUT]}
    if as_json:
        print(json.dumps({"model": name, "folder": str(out), "format": format, "precision": precision, "files": sizes}))
        return
    told = ", ".join(f"{file} ({size / 1e6:.1f} MB)" for file, size in sizes.items())
    Console(soft_wrap=True, highlight=False, markup=False).print(f"{out}: {told}")
