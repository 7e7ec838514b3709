"""unmask bench: how fast a model writes here."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from unmask.base.errors import BadInput, Unsupported
from unmask.cli import arguments as given
from unmask.evals.speed import AR, Speed, speeds
from unmask.lm.load import load

app = typer.Typer(help="how fast a model writes here", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure; nothing is judged by what it writes."""


@app.command()
def decode(
    model: given.Model = "tiny",
    backend: given.Backend = "torch",
    setting: Annotated[
        list[str] | None,
        typer.Option(help="a decoder and its options, like 'llada steps=16 block=32'; may be given again"),
    ] = None,
    prompt: Annotated[str, typer.Option(help="what every text begins with")] = "def main(",
    lengths: Annotated[str, typer.Option(help="tokens a text, with commas")] = "64",
    rows: Annotated[str, typer.Option(help="texts at the same time, with commas")] = "1,8,32",
    repeat: Annotated[int, typer.Option(help="measurements of each, of which the median is told")] = 3,
    out: Annotated[Path | None, typer.Option(help="a folder for speed.json and speed.png")] = None,
    as_json: given.Json = False,
) -> None:
    """Tokens per second, forwards and where the time goes, beside token-by-token writing by the same weights."""
    lm = load(model, backend=backend)
    chosen = dict(_setting(text) for text in setting or ["default"])
    if lm.tokenizer is None:
        raise Unsupported(f"{lm.name} has no tokenizer, so it can't read the prompt")
    ids = [*lm.tokenizer.start, *lm.tokenizer.encode(prompt)]
    found = speeds(lm, chosen, prompt=ids, lengths=_numbers(lengths), rows=_numbers(rows), repeat=repeat)
    told = {"model": lm.name, "speeds": [one.as_dict() for one in found]}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "speed.json").write_text(json.dumps(told, indent=1) + "\n")
        draw(found, out / "speed.png")
    if as_json:
        print(json.dumps(told))
    else:
        Console().print(_table(found))


def draw(found: list[Speed], path: Path) -> None:
    """Tokens per second over texts at the same time, a line for each decoder and length.

    Raises:
        Unsupported: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unsupported("a plot needs matplotlib; install it with: pip install 'unmask[plots]'") from error
    axes = (figure := Figure(figsize=(7, 4.5), layout="constrained")).add_subplot()
    for name, length in dict.fromkeys((one.decoder, one.length) for one in found):
        line = [one for one in found if (one.decoder, one.length) == (name, length)]
        style, label = "--" if name == AR else "-", f"{name}, {length} tokens"
        rates = [one.tokens_per_s for one in line]
        axes.plot([one.rows for one in line], rates, style, marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("texts at the same time")
    axes.set_ylabel("tokens per second")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def _table(found: list[Speed]) -> Table:
    table = Table(box=None)
    for name in ("decoder", "length", "rows", "forwards", "TPF", "tok/s", "of ar", "network", "head", "rest"):
        table.add_column(name, justify="left" if name == "decoder" else "right")
    for one in found:
        shares = [f"{share:.0%}" for share in (one.network, one.head, one.rest)]
        figures = [f"{one.tokens_per_forward:.2f}", f"{one.tokens_per_s:.1f}", f"{one.times_ar or 0:.2f}"]
        table.add_row(one.decoder, str(one.length), str(one.rows), str(one.forwards), *figures, *shares)
    return table


def _setting(text: str) -> tuple[str, dict[str, Any]]:
    """'llada steps=16' to what it is called and its options; 'default' is the model's own decoder."""
    words = text.split()
    at = next((i for i, word in enumerate(words) if "=" in word), len(words))
    name, options = " ".join(words[:at]), {}
    for word in words[at:]:
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise BadInput(f"a setting is a decoder and options like steps=16, got {text!r}")
        options[key] = yaml.safe_load(value)
    return text, {"decoder": None if name == "default" else name or None, **options}


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise BadInput(f"numbers with commas, like 1,8,32, not {text!r}") from error
    if min(found) < 1:
        raise BadInput(f"numbers from 1, not {text!r}")
    return found
