"""unmask fill: fill a template with holes."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from unmask.cli import arguments as given
from unmask.cli import view
from unmask.lm.load import load


@given.decoding
def run(
    template: Annotated[str | None, typer.Argument(help='like "Dear {{name:1-4}}, it is {{:8}}."')] = None,
    model: given.Model = "tiny",
    backend: given.Backend = "torch",
    file: Annotated[Path | None, typer.Option(help="read the template from a file")] = None,
    schema: given.SchemaFile = None,
    regex: given.Regex = None,
    grammar: given.GrammarFile = None,
    choice: given.Choice = None,
    as_json: given.Json = False,
    live: given.Live = True,
    *,
    settings: dict[str, Any],
) -> None:
    """Fill a template: {{name:1-4}} is a hole of 1 to 4 tokens, {{:8}} one of exactly 8."""
    text, console = given.text(template, file, "template"), Console()
    lm = load(model, backend=backend)
    with view.watching(console, show=view.watched(as_json=as_json, live=live)) as watch:
        output = lm.fill(text, watch=watch, **given.constraints(schema, regex, grammar, choice, None, None), **settings)
    view.show(console, [output], as_json=as_json, prompt={"model": lm.name})
