"""unmask models: which models there are, and what one of them is."""

import dataclasses
import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from unmask.cli import arguments as given
from unmask.lm.load import bundled, load


def run(
    name: Annotated[
        str | None, typer.Argument(help="a bundled model or a folder; all bundled ones if left out")
    ] = None,
    as_json: given.Json = False,
) -> None:
    """List the bundled models, or tell what one model is."""
    found = [_facts(n) for n in ([name] if name is not None else bundled())]
    if as_json:
        print(json.dumps(found[0] if name is not None else found))
        return
    table = Table("model", "parameters", "vocabulary", "positions", "sees", "decodes by default with")
    for facts in found:
        defaults = ", ".join(f"{k}={v}" for k, v in facts["defaults"].items()) or "its traits"
        size = f"{facts['parameters'] / 1e6:.2f} M"
        row = [facts["name"], size, facts["vocab"]["size"], facts["max_length"], facts["traits"]["sees"], defaults]
        table.add_row(*map(str, row))
    Console().print(table)


def _facts(name: str) -> dict[str, Any]:
    lm = load(name)
    model = lm.model
    return {
        "name": lm.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "max_length": model.max_length,
        "vocab": dataclasses.asdict(model.vocab),
        "traits": dataclasses.asdict(model.traits),
        "shape": dataclasses.asdict(model.shape),
        "defaults": model.defaults,
        "tokenizer": lm.tokenizer is not None,
    }
