"""unmask refine: rewrite spans of a text, and nothing else."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from unmask.cli import arguments as given
from unmask.cli import view
from unmask.lm.load import load


@given.decoding
def run(
    text: Annotated[str | None, typer.Argument(help="the text; - or nothing reads a pipe")] = None,
    span: Annotated[list[str] | None, typer.Option(help="START:END in code points; may be given again")] = None,
    model: given.Model = "tiny",
    backend: given.Backend = "torch",
    file: Annotated[Path | None, typer.Option(help="read the text from a file")] = None,
    strength: Annotated[float, typer.Option(help="share of the span's tokens that is written anew")] = 1.0,
    length: Annotated[str | None, typer.Option(help="tokens for each span, or a range")] = None,
    as_json: given.Json = False,
    live: given.Live = True,
    *,
    settings: dict[str, Any],
) -> None:
    """Rewrite spans of a text; everything outside them stays byte for byte."""
    whole, console = given.text(text, file, "text"), Console()
    lm = load(model, backend=backend)
    with view.watching(console, show=view.watched(as_json=as_json, live=live)) as watch:
        output = lm.refine(
            whole,
            spans=[given.span(s) for s in span or ()],
            strength=strength,
            length=None if length is None else given.length(length),
            watch=watch,
            **settings,
        )
    view.show(console, [output], as_json=as_json, prompt={"model": lm.name})
