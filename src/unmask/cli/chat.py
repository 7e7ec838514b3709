"""unmask chat: a conversation in a terminal, through a pipe, or one answer for a program."""

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.console import Console

from unmask.base.errors import BadInput, UnmaskError
from unmask.cli import arguments as given
from unmask.cli import view
from unmask.lm.load import load
from unmask.lm.model import LanguageModel
from unmask.lm.results import Output

HELP = "/reset forgets the conversation, /exit or Ctrl-D ends it"


@dataclass(slots=True)
class Talk:
    """A conversation so far; `settings` are those of `LanguageModel.generate`."""

    lm: LanguageModel
    system: str | None
    settings: dict[str, Any]
    turns: list[dict[str, str]] = field(default_factory=list)

    def answer(self, text: str, watch: Any = None) -> Output:
        """Answer a message, and remember both."""
        before = [] if self.system is None else [{"role": "system", "content": self.system}]
        asked = [*self.turns, {"role": "user", "content": text}]
        output: Output = self.lm.generate([*before, *asked], chat=True, watch=watch, **self.settings)
        self.turns = [*asked, {"role": "assistant", "content": str(output.completion)}]
        return output


@given.decoding
def run(
    model: Annotated[str, typer.Argument(help="a bundled model, or a folder")] = "tiny",
    backend: given.Backend = "torch",
    message: Annotated[str | None, typer.Argument(help="answer this and end, instead of a conversation")] = None,
    system: Annotated[str | None, typer.Option(help="what the model is told before the conversation")] = None,
    length: Annotated[str, typer.Option(help="tokens of an answer at most, or a range like 20-60")] = "128",
    stop: Annotated[list[str] | None, typer.Option(help="a string that ends an answer; may be given again")] = None,
    as_json: given.Json = False,
    live: given.Live = True,
    *,
    settings: dict[str, Any],
) -> None:
    """Talk with a model. Each line is a message; /reset forgets the conversation, /exit or Ctrl-D ends it."""
    console, lm = Console(), load(model, backend=backend)
    talk = Talk(lm, system, {**settings, "length": given.length(length), "stop": tuple(stop or ())})
    person = message is None and sys.stdin.isatty()
    if person and not as_json:
        console.print(f"{lm.name}: {HELP}", style="dim", highlight=False)

    def say(text: str) -> None:
        with view.watching(console, show=view.watched(as_json=as_json, live=live), answer=True) as watch:
            output = talk.answer(text, watch)
        view.show(console, [output], as_json=as_json, prompt={"model": lm.name}, answer=True)
        sys.stdout.flush()

    if message is not None:
        if not message.strip():
            raise BadInput("the message is empty; give some text")
        say(message)
        return
    for line in _lines(person=person):
        try:
            match line.strip():
                case "":
                    continue
                case "/exit":
                    return
                case "/reset":
                    talk.turns = []
                case word if re.fullmatch(r"/[a-z]+", word):
                    raise BadInput(f"there is no command {word}: {HELP}")
                case _:
                    say(line)
        except UnmaskError as error:
            if not person:
                raise
            print(f"unmask: {' '.join(str(error).split())}", file=sys.stderr)


def _lines(*, person: bool) -> Iterator[str]:
    """What a person types, or the lines of a pipe."""
    if not person:
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (lines can be edited, and called back)
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
