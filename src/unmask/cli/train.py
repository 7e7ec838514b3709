"""unmask train: from a recipe to weights."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unmask.cli import arguments as given
from unmask.lm.load import BUNDLED, bundled
from unmask.lm.model import LanguageModel
from unmask.models.backbone import Transformer
from unmask.text.tokenizer import Tokenizer
from unmask.train import recipe as recipes
from unmask.train.run import train


def run(
    recipe: Annotated[Path, typer.Argument(help="a YAML file, see recipes/")],
    out: Annotated[Path | None, typer.Option(help="the run's folder; runs/NAME of the recipe by default")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be given again")] = None,
    start: Annotated[str | None, typer.Option(help="what to begin with: a run, a checkpoint, or a model")] = None,
    prompt: Annotated[str, typer.Option(help="what samples continue")] = "def main(",
    as_json: given.Json = False,
) -> None:
    """Train, going on from the run's newest checkpoint if it has one. SIGTERM saves and ends."""
    chosen = recipes.load(recipe, override or ())
    console = Console(stderr=as_json)
    begin = BUNDLED / start if start in bundled() else start

    def sample(model: Transformer, tokenizer: Tokenizer) -> str:
        room = min(48, model.max_length - len(tokenizer.encode(prompt)) - 1)
        return str(LanguageModel(model, tokenizer).generate(prompt, length=max(1, room)).text)

    found = train(chosen, out or Path("runs") / recipe.stem, start=begin, sample=sample, console=console)
    if as_json:
        facts = {"step": found.step, "held_out_bits_per_byte": found.bits_per_byte, "model": str(found.model)}
        print(json.dumps(facts))
    else:
        console.print(f"step {found.step}, held-out {found.bits_per_byte:.4f} bits per byte; model in {found.model}")
    if found.signal is not None:
        raise typer.Exit(128 + found.signal)
