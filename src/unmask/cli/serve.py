"""unmask serve: a model behind OpenAI's protocol."""

import os
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from unmask.base.errors import BadInput, Unsupported
from unmask.cli import arguments as given
from unmask.lm.load import load
from unmask.serve.limits import Limits

_LIMITS = "; ".join(f"{f.name}={f.default:g} {f.metadata['help']}" for f in fields(Limits))


def run(
    model: Annotated[str, typer.Argument(help="a bundled model, a folder, a GGUF file, or a hub id")] = "tiny",
    host: Annotated[str, typer.Option(help="address to listen on; others than loopback need a key")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one, which the log tells", min=0, max=65535)] = 8000,
    api_key: Annotated[
        list[str] | None, typer.Option(help="who may ask; may be given again. Also UNMASK_API_KEYS, with commas")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="a file of keys, one a line")] = None,
    name: Annotated[str | None, typer.Option(help="what the model is called; by default its own name")] = None,
    limit: Annotated[list[str] | None, typer.Option(help=f"NAME=NUMBER; may be given again. {_LIMITS}")] = None,
    device: Annotated[str, typer.Option(help="auto, or a torch device")] = "auto",
    quantize: Annotated[str | None, typer.Option(help="int8 holds the layers' weights in 8 bits")] = None,
    backend: given.Backend = "torch",
    replicas: Annotated[
        int | None,
        typer.Option(help="engines on Ray, a process each; without it one, in this process", min=1),
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="the Ray cluster for --replicas; by default one is started on this machine")
    ] = None,
) -> None:
    """Serve a model over HTTP, as OpenAI's protocol has it and beyond."""
    extra = "serve" if replicas is None else "serve,ray"
    try:
        from unmask.serve.run import serve

        if replicas is not None:
            from unmask.serve.replicas import Plan
            from unmask.serve.replicas import serve as serve_replicas
    except ModuleNotFoundError as error:
        raise Unsupported(f"serving needs {error.name}; install it with: pip install 'unmask[{extra}]'") from error
    if ray_address is not None and replicas is None:
        raise BadInput("--ray-address is for replicas; give --replicas too")
    keys = [*(api_key or ()), *(k.strip() for k in os.environ.get("UNMASK_API_KEYS", "").split(",") if k.strip())]
    if api_key_file is not None:
        keys += [line.strip() for line in given.read(api_key_file).splitlines() if line.strip()]
    opened = partial(load, model, device=device, quantize=quantize, backend=backend)
    limits = Limits.of(limit or [])
    if replicas is None:
        serve(opened, host=host, port=port, keys=keys, limits=limits, name=name)
        return
    gpus = int(device != "cpu" and (device != "auto" or torch.cuda.is_available()))
    plan = Plan(load=opened, replicas=replicas, limits=limits, name=name, gpus=gpus)
    serve_replicas(plan, host=host, port=port, keys=keys, address=ray_address)
