"""What several commands take: a model, decoding options from their table, texts from arguments, files or a pipe."""

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from unmask.base.errors import BadInput
from unmask.decode.options import OPTIONS, Option

Model = Annotated[str, typer.Option("--model", "-m", help="a bundled model, a folder, a GGUF file, or a hub id")]
Backend = Annotated[
    str,
    typer.Option("--backend", help="what runs the network: torch, compile, openvino, onnx, or auto (the fastest here)"),
]
Json = Annotated[bool, typer.Option("--json", help="one machine-readable object")]
Live = Annotated[bool, typer.Option("--live/--no-live", help="show the canvas filling (in a terminal)")]


def decoding(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command every decoding option of the table; it gets those that were used as `settings`."""

    def run(**given: Any) -> Any:
        names = [*OPTIONS, "decoder", "seed", "latency_s"]
        settings = {name: given.pop(name) for name in names if given.get(name) is not None}
        settings |= {k: int(v) for k, v in settings.items() if k in OPTIONS and OPTIONS[k].auto and v.isdecimal()}
        return command(**{k: v for k, v in given.items() if k not in names}, settings=settings)

    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]
    extra = [
        _option("decoder", str, 'a preset, or "window x policy + policy"'),
        _option("seed", int, "of all noise; 0 if not given"),
        _option("latency_s", float, "seconds in which it should be done: while late, it is written with less effort"),
        *(_option(name, _kind(option), f"{option.help} ({option.either})") for name, option in OPTIONS.items()),
    ]
    run.__signature__ = inspect.Signature([*own, *extra])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [*own, *extra]}
    run.__doc__ = command.__doc__
    return run


SchemaFile = Annotated[Path | None, typer.Option(help="the text is JSON that is valid under this file's schema")]
Regex = Annotated[str | None, typer.Option(help="the text is matched by this regex from end to end")]
GrammarFile = Annotated[
    Path | None, typer.Option("--grammar", help="the text is one of this file's grammar (Lark's notation, or GBNF)")
]
Choice = Annotated[list[str] | None, typer.Option(help="the text is one of these; given again for each")]
Contains = Annotated[list[str] | None, typer.Option(help="the text holds this; given again for what follows")]
Banned = Annotated[list[str] | None, typer.Option(help="the text does not hold this; may be given again")]


def constraints(
    schema: Path | None,
    regex: str | None,
    grammar: Path | None,
    choice: Sequence[str] | None,
    contains: Sequence[str] | None,
    banned: Sequence[str] | None,
) -> dict[str, Any]:
    """What the text has to be, as settings of a call."""
    given: dict[str, Any] = {"regex": regex, "choices": choice, "contains": contains, "banned": banned}
    if schema is not None:
        try:
            given["schema"] = json.loads(read(schema))
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{schema} is no JSON: {error}") from error
    if grammar is not None:
        given["grammar"] = read(grammar)
    return {name: value for name, value in given.items() if value is not None and value != []}


def _kind(option: Option) -> type:
    """As what it is typed: a number that may be a word is text."""
    return str if option.auto else option.kind


def _option(name: str, kind: type, help: str) -> inspect.Parameter:
    flag = typer.Option(f"--{name.replace('_', '-')}", help=help, rich_help_panel="Decoding", show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, flag]
    )


def length(value: str) -> int | tuple[int, int]:
    """A length as it is typed: 40, or 1-40."""
    low, dash, high = value.partition("-")
    try:
        return (int(low), int(high)) if dash else int(low)
    except ValueError as error:
        raise BadInput(f"a length is a number of tokens or a range like 1-40, not {value!r}") from error


def span(value: str) -> tuple[int, int]:
    """A span as it is typed: 10:42."""
    start, _, end = value.replace(",", ":").partition(":")
    try:
        return int(start), int(end)
    except ValueError as error:
        raise BadInput(f"a span is start:end in code points, like 10:42, not {value!r}") from error


def text(value: str | None, file: Path | None, what: str) -> str:
    """A text from its argument, from a file, or from a pipe."""
    if value is not None and file is not None:
        raise BadInput(f"the {what} was given twice, as an argument and as a file; give one of them")
    if file is not None:
        return read(file)
    if value is not None and value != "-":
        return value
    if value is None and sys.stdin.isatty():
        raise BadInput(f"no {what}; give it as an argument, with --file, or through a pipe")
    return sys.stdin.read()


def read(file: Path) -> str:
    """The text of a file, line ends untouched."""
    try:
        return file.read_bytes().decode("utf-8")
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise BadInput(f"can't read {file}: {reason}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not UTF-8 text (byte {error.start}); convert it first") from error


def pins(values: Sequence[str]) -> dict[int, str]:
    """Pins as they are typed: 5=text."""
    found = {}
    for value in values:
        at, equals, text = value.partition("=")
        if not equals or not at.strip().isdecimal():
            raise BadInput(f"a pin is POSITION=TEXT, like 5=return, not {value!r}")
        found[int(at)] = text
    return found
