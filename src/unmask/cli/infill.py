"""unmask infill: write what stands between two texts."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from unmask.cli import arguments as given
from unmask.cli import view
from unmask.lm.load import load


@given.decoding
def run(
    prefix: Annotated[str, typer.Argument(help="the text before the gap")],
    suffix: Annotated[str, typer.Argument(help="the text behind it")],
    model: given.Model = "tiny",
    backend: given.Backend = "torch",
    length: Annotated[str, typer.Option(help="tokens, or a range from which the best length is taken")] = "1-40",
    n: Annotated[int, typer.Option("-n", help="how many texts")] = 1,
    files: Annotated[bool, typer.Option("--files", help="prefix and suffix are names of files")] = False,
    schema: given.SchemaFile = None,
    regex: given.Regex = None,
    grammar: given.GrammarFile = None,
    choice: given.Choice = None,
    contains: given.Contains = None,
    banned: given.Banned = None,
    as_json: given.Json = False,
    live: given.Live = True,
    *,
    settings: dict[str, Any],
) -> None:
    """Write what stands between two texts."""
    console = Console()
    before, behind = (given.read(Path(p)) for p in (prefix, suffix)) if files else (prefix, suffix)
    lm = load(model, backend=backend)
    with view.watching(console, show=view.watched(as_json=as_json, live=live)) as watch:
        asked = given.constraints(schema, regex, grammar, choice, contains, banned)
        outputs = lm.infill(before, behind, length=given.length(length), n=n, watch=watch, **asked, **settings)
    view.show(console, outputs if isinstance(outputs, list) else [outputs], as_json=as_json, prompt={"model": lm.name})
