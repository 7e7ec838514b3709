"""unmask generate: continue a prompt."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from unmask.cli import arguments as given
from unmask.cli import view
from unmask.lm.load import load


@given.decoding
def run(
    prompt: Annotated[str | None, typer.Argument(help="the text to continue; - or nothing reads a pipe")] = None,
    model: given.Model = "tiny",
    backend: given.Backend = "torch",
    file: Annotated[Path | None, typer.Option(help="read the prompt from a file")] = None,
    length: Annotated[str, typer.Option(help="tokens at most, or a range like 20-60")] = "64",
    eos: Annotated[str, typer.Option(help="stop: end of text ends it; keep: write on; forbid: exact length")] = "stop",
    stop: Annotated[list[str] | None, typer.Option(help="a string that ends the text; may be given again")] = None,
    n: Annotated[int, typer.Option("-n", help="how many texts")] = 1,
    pin: Annotated[list[str] | None, typer.Option(help="POSITION=TEXT: tokens that stand at a position")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="the prompt is a message: print the answer to it")] = False,
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
    """Continue a prompt."""
    text, console = given.text(prompt, file, "prompt"), Console()
    lm = load(model, backend=backend)
    with view.watching(console, show=view.watched(as_json=as_json, live=live), answer=chat) as watch:
        outputs = lm.generate(
            text,
            length=given.length(length),
            eos=eos,  # type: ignore[arg-type]
            stop=tuple(stop or ()),
            n=n,
            pins=given.pins(pin or ()),
            chat=chat,
            watch=watch,
            **given.constraints(schema, regex, grammar, choice, contains, banned),
            **settings,
        )
    outputs = outputs if isinstance(outputs, list) else [outputs]
    view.show(console, outputs, as_json=as_json, prompt={"model": lm.name}, answer=chat)
