"""The command line: one command a file.

Errors that a user can cause are one line on standard error and exit code 2; results go to standard output, plain where
it is piped, as one object with --json.
"""

import importlib
import os
import sys

import typer

from unmask.base.errors import UnmaskError

COMMANDS = {
    "demo": "watch the bundled model write, infill, rewrite and fill",
    "chat": "talk with a model",
    "generate": "continue a prompt",
    "infill": "write what stands between two texts",
    "fill": "fill a template with holes",
    "refine": "rewrite spans of a text, and nothing else",
    "score": "estimate -log p of a text",
    "serve": "a server that speaks OpenAI's protocol",
    "train": "train from a recipe",
    "models": "list, inspect, verify and convert models",
    "bench": "how fast a model writes, how a server answers under load, and whether company shows",
    "export": "write the forward as files that other runtimes run",
    "config": "a recipe with every default written out",
}
"""Each is the function `run` of the module of its name, or its `app`, which has commands of its own."""


_UsageError: type[Exception] = typer.BadParameter.__base__.__base__  # type: ignore[union-attr,assignment]
"""What Typer raises of everything that was typed wrongly; it has no public name."""


def main(args: list[str] | None = None) -> None:
    """Run a command and end the process with its exit code."""
    args = sys.argv[1:] if args is None else args
    try:
        code = typer.main.get_command(_app(args[:1]))(args, prog_name="unmask", standalone_mode=False)
    except UnmaskError as error:
        _fail(" ".join(str(error).split()))
    except _UsageError as error:
        _fail(" ".join(error.format_message().split()))  # type: ignore[attr-defined]
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us has gone
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def _app(asked: list[str]) -> typer.Typer:
    """All commands, of which only the one asked for is imported, so that help needs no torch."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)
    app.callback(help="Diffusion language models: train, decode, infill, refine, score.")(lambda: None)
    for name, help in COMMANDS.items():
        module = importlib.import_module(f"unmask.cli.{name}") if name in asked else None
        if module is not None and hasattr(module, "app"):
            app.add_typer(module.app, name=name, help=help)
            continue
        run = module.run if module else lambda: None
        app.command(name, help=run.__doc__ or help, short_help=help)(run)
    return app


def _fail(message: str) -> None:
    print(f"unmask: {message}", file=sys.stderr)
    sys.exit(2)
