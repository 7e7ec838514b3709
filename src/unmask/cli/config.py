"""unmask config: a recipe with every default written out."""

import json
from pathlib import Path
from typing import Annotated

import typer

from unmask.cli import arguments as given
from unmask.train import recipe as recipes


def run(
    recipe: Annotated[Path, typer.Argument(help="a YAML file, see recipes/")],
    override: Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be given again")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="say what each key is")] = False,
    as_json: given.Json = False,
) -> None:
    """Check a recipe and print it with every default written out."""
    chosen = recipes.load(recipe, override or ())
    print(json.dumps(chosen.model_dump(mode="json")) if as_json else chosen.as_yaml(explain=explain), end="")
