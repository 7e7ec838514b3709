"""unmask bench: how fast a model writes here, how a server answers under load, and whether company shows in texts."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unmask.base.errors import BadInput, UnknownName, Unsupported
from unmask.cli import arguments as given
from unmask.engine import bits as company
from unmask.evals.asking import PATHS, Server
from unmask.evals.load import Bounds, Load, sweep
from unmask.evals.speed import AR, Speed, speeds
from unmask.lm.load import load

app = typer.Typer(
    help="how fast a model writes, how a server answers under load, and whether company shows", no_args_is_help=True
)

LEVELS = {"closed": "clients", "poisson": "requests a second"}
"""Ways of arrival, and what their levels are."""
PROMPTS = ["def main(", "import os\n", "class Foo:\n", "It was a fine morning, and "]
"""What is asked where nothing is given."""


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


@app.command()
def bits(
    model: given.Model = "tiny",
    backend: Annotated[
        list[str] | None, typer.Option(help="what runs the network [torch]; may be given again, to try several")
    ] = None,
    as_json: given.Json = False,
) -> None:
    """Whether a text is the same to the bit whoever else is written beside it, on this machine. Ends with 1 if not."""
    told = []
    for name in backend or ["torch"]:
        lm = load(model, backend=name)
        found = company.probe(lm.runner)
        told.append({"model": lm.name, "backend": lm.backend, "same": not found.unlike, **asdict(found)})
        if not as_json:
            print(f"{lm.name} on {lm.backend}: {_verdict(found)}")
    if as_json:
        print(json.dumps(told))
    if not all(one["same"] for one in told):
        raise typer.Exit(1)


@app.command()
def serve(
    url: Annotated[str, typer.Argument(help="of any server of OpenAI's protocol")] = "http://127.0.0.1:8000/v1",
    model: Annotated[str, typer.Option("--model", "-m", help="by default the first that the server has")] = "",
    api_key: Annotated[str | None, typer.Option(envvar="UNMASK_API_KEY", help="of the server")] = None,
    api: Annotated[str, typer.Option(help="what is asked: " + " or ".join(PATHS))] = "chat",
    concurrency: Annotated[str | None, typer.Option(help="clients at the same time, with commas [1,8,32]")] = None,
    rate: Annotated[str | None, typer.Option(help="requests a second (Poisson), with commas")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="what is asked; may be given again, to take turns")] = None,
    tokens: Annotated[int, typer.Option(help="max_tokens of a text", min=1)] = 64,
    extra: Annotated[str, typer.Option(help='further fields of a body, like {"temperature": 0}')] = "{}",
    requests: Annotated[int, typer.Option(help="of each point, at most")] = 64,
    seconds: Annotated[float, typer.Option(help="of each point, after which nothing new is asked")] = 60.0,
    timeout: Annotated[float, typer.Option(help="seconds after which a request is given up")] = 120.0,
    out: Annotated[Path | None, typer.Option(help="a folder for load.json and load.png")] = None,
    as_json: given.Json = False,
) -> None:
    """Time to the first committed text, time between pieces, tokens per second and forwards, by load."""
    if api not in PATHS:
        raise UnknownName("api", api, PATHS)
    if concurrency is None and rate is None:
        concurrency = "1,8,32"
    points = [] if concurrency is None else [("closed", float(level)) for level in _numbers(concurrency)]
    points += [] if rate is None else [("poisson", level) for level in _numbers(rate, float)]
    server = Server(
        url=url.rstrip("/"), model=model, api=api, max_tokens=tokens, extra=_fields(extra), timeout_s=timeout
    )
    bounds = Bounds(requests=requests, seconds=seconds)
    server, found = sweep(server, points, prompt or PROMPTS, bounds, key=api_key)
    told = {"server": asdict(server), "bounds": asdict(bounds), "loads": [one.as_dict() for one in found]}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "load.json").write_text(json.dumps(told, indent=1) + "\n")
        draw_load(found, out / "load.png")
    if as_json:
        print(json.dumps(told))
    else:
        Console().print(_load_table(found))


def draw_load(found: list[Load], path: Path) -> None:
    """Tokens per second, and the time to the first text, over the load.

    Raises:
        Unsupported: matplotlib is missing.
    """
    figure = _figure(width=10)
    rates, firsts = figure.subplots(1, 2)
    for arrival in dict.fromkeys(one.arrival for one in found):
        line = [one for one in found if one.arrival == arrival]
        rates.plot([one.level for one in line], [one.tokens_per_s for one in line], marker="o", label=LEVELS[arrival])
        heard = [one for one in line if one.first_s is not None]
        for at, (share, style) in enumerate(zip(("50 %", "95 %"), ("-", "--"), strict=True)):
            times = [one.first_s[at] for one in heard if one.first_s is not None]
            label = f"{LEVELS[arrival]}, {share}"
            firsts.plot([one.level for one in heard], times, style, marker="o", label=label)
    for axes, label in ((rates, "tokens per second"), (firsts, "seconds to the first text")):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("load")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


def draw(found: list[Speed], path: Path) -> None:
    """Tokens per second over texts at the same time, a line for each decoder and length.

    Raises:
        Unsupported: matplotlib is missing.
    """
    axes = (figure := _figure()).add_subplot()
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


def _figure(width: float = 7) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unsupported("a plot needs matplotlib; install it with: pip install 'unmask[plots]'") from error
    return Figure(figsize=(width, 4.5), layout="constrained")


def _load_table(found: list[Load]) -> Table:
    """For people: times in milliseconds, medians and 95 %."""
    table = Table(box=None)
    for name in ("load", "done", "tok/s", "req/s", "TPF", "first text ms", "between ms", "whole ms", "errors"):
        table.add_column(name, justify="left" if name in ("load", "errors") else "right")
    for one in found:
        times = [
            "-" if some is None else f"{1000 * some[0]:.0f} / {1000 * some[1]:.0f}"
            for some in (one.first_s, one.gap_s, one.whole_s)
        ]
        rates = [f"{one.tokens_per_s:.1f}" + ("" if one.counted == "usage" else "*"), f"{one.requests_per_s:.2f}"]
        per_forward = "-" if one.tokens_per_forward is None else f"{one.tokens_per_forward:.2f}"
        errors = ", ".join(f"{count} x {kind}" for kind, count in one.errors.items())
        load = f"{one.level:g} {LEVELS[one.arrival]}"
        table.add_row(load, f"{one.done}/{one.asked}", *rates, per_forward, *times, escape(errors))
    table.caption = "median / 95 %" + ("; * pieces of the stream, tokens are not told" if _untold(found) else "")
    return table


def _verdict(found: company.Bits) -> str:
    """Yes or no, and what that means."""
    if not found.unlike:
        return f"yes, {found.tokens} tokens of {found.texts} texts have the same bits alone and in company"
    worst, others = max(one.apart for one in found.unlike), sum(one.text for one in found.unlike)
    ways = ", ".join(sorted({one.way for one in found.unlike}))
    return (
        f"no, company changes log-probabilities in {len(found.unlike)} of {found.texts} texts, the first of each by "
        f"up to {worst:.2g} nats, and tokens in {others} ({ways}). A text may depend on who else is written where two "
        "tokens are almost equally probable; write one text at a time if that matters"
    )


def _untold(found: list[Load]) -> bool:
    return any(one.counted == "pieces" for one in found)


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


def _fields(text: str) -> dict[str, Any]:
    """Fields of a body as they are typed."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BadInput(f"further fields are a JSON object, not {text!r}: {error}") from error
    if not isinstance(found, dict):
        raise BadInput(f"further fields are a JSON object, not {text!r}")
    return found


def _numbers(text: str, kind: Callable[[str], Any] = int) -> list[Any]:
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise BadInput(f"numbers with commas, like 1,8,32, not {text!r}") from error
    if not all(0 < one < 1 << 20 for one in found):
        raise BadInput(f"numbers above 0, not {text!r}")
    return found
