"""unmask score: estimate -log p of a text."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unmask.cli import arguments as given
from unmask.lm.load import load


def run(
    text: Annotated[str | None, typer.Argument(help="the text; - or nothing reads a pipe")] = None,
    model: given.Model = "tiny",
    file: Annotated[Path | None, typer.Option(help="read the text from a file")] = None,
    context: Annotated[str | None, typer.Option("--given", help="what stands before it and is not scored")] = None,
    estimator: Annotated[str | None, typer.Option(help="elbo, exact-k, any-order, left-to-right, ar")] = None,
    samples: Annotated[int, typer.Option(help="draws of noise")] = 128,
    seed: Annotated[int, typer.Option(help="of the noise")] = 0,
    as_json: given.Json = False,
) -> None:
    """Estimate -log p of a text, with its standard error and in bits per byte."""
    whole = given.text(text, file, "text")
    lm, began = load(model), time.perf_counter()
    found = lm.score(whole, given=context, estimator=estimator, samples=samples, seed=seed)
    seconds = time.perf_counter() - began
    if as_json:
        facts = {"model": lm.name, "text": whole, **dataclasses.asdict(found), "seconds": seconds}
        print(json.dumps({**facts, "tokens_per_forward": found.tokens / found.forwards}, ensure_ascii=False))
        return
    bits = "" if found.bits_per_byte is None else f", {found.bits_per_byte:.3f} bits per byte"
    kind = "upper bound of -log p" if found.bound else "-log p"
    Console(soft_wrap=True).print(
        f"{kind}: {found.nats:.2f} nats (standard error {found.stderr:.2f}){bits}; {found.tokens} tokens, "
        f"{found.forwards} forwards, {seconds:.2f} s",
        highlight=False,
    )
