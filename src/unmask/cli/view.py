"""A canvas in a terminal, filling live, and results for people, pipes and programs.

What a position is can be told with and without colour: masks and reopened positions have a sign of their own, drafts
are underlined, committed text is bold, what was given is plain.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from unmask.decode.audit import Drift
from unmask.decode.effort import Eased
from unmask.decode.reading import Cell
from unmask.lm.results import Output, Watched

STYLES = {
    "fixed": ("", "dim"),
    "masked": ("░", "bright_black"),
    "draft": ("", "underline yellow"),
    "committed": ("", "bold green"),
    "reopened": ("◌", "reverse red"),
}
"""Sign (in place of the text) and style of each kind of position."""


def render(cells: list[Cell]) -> Text:
    """The canvas as styled text."""
    text = Text(overflow="fold")
    for cell in cells:
        sign, style = STYLES[cell.look]
        text.append(sign or cell.text, style)
    return text


def legend() -> Text:
    """What signs and styles mean."""
    text = Text("  ")
    for look, (sign, style) in STYLES.items():
        text.append(f"{sign} {look}" if sign else look, style)
        text.append("   ")
    return text


@contextmanager
def watching(console: Console, *, show: bool, answer: bool = False) -> Iterator[Callable[[Watched], None] | None]:
    """Gives a `watch` for writing calls that draws the first row after every forward; None where nothing is shown.

    With `answer` only what is written is drawn, without what was given before it.
    """
    if not show:
        yield None
        return
    with Live(console=console, refresh_per_second=24, transient=True, vertical_overflow="visible") as live:

        def watch(rows: Watched) -> None:
            cells = rows.cells(0)[rows.layouts[0].gaps[0].start if answer else 0 :]
            left = sum(cell.look in ("masked", "reopened") for cell in cells)
            head = Text(f"forward {rows.num_forwards}, {left} masks left", "cyan")
            live.update(Group(render(cells), Text(""), head, legend()))

        yield watch


def watched(*, as_json: bool, live: bool) -> bool:
    """Whether the canvas is shown filling: a person looks on and did not say no."""
    return live and not as_json and sys.stdout.isatty()


def as_dict(output: Output, prompt: dict[str, Any]) -> dict[str, Any]:
    """A result for programs."""
    stats = output.stats
    return {
        **prompt,
        "text": output.text,
        "completion": output.completion,
        "tokens": len(output.tokens),
        "length": stats.length,
        "token_ids": output.tokens,
        "holes": [{"name": name, "text": text} for name, text in output.holes],
        "finish_reason": output.finish_reason,
        "logprobs": [round(p, 6) for p in output.logprobs],
        "forwards": stats.forwards,
        "tokens_per_forward": stats.tokens_per_forward,
        "seconds": stats.seconds,
        "edits": stats.edits,
        "eased": None if stats.eased is None else {**asdict(stats.eased), "kept": stats.eased.kept},
        **({} if stats.drift is None else {"drift": stats.drift.as_dict()}),
        **({} if stats.chosen is None else {"chosen": dict(stats.chosen)}),
    }


def show(
    console: Console, outputs: list[Output], *, as_json: bool, prompt: dict[str, Any], answer: bool = False
) -> None:
    """Print results: an object with --json (a list for several), else the text; with figures where a person looks.

    With `answer` the text is the completion alone.
    """
    if as_json:
        found = [as_dict(output, prompt) for output in outputs]
        print(json.dumps(found[0] if len(found) == 1 else found, ensure_ascii=False))
        return
    for i, output in enumerate(outputs):
        text = output.completion if answer else output.text
        if console.is_terminal:
            if len(outputs) > 1:
                console.rule(f"{i + 1} of {len(outputs)}")
            console.print(Text(str(text)))
            console.print(Text(figures(output), "cyan"))
        else:
            print(str(text) if len(outputs) == 1 else json.dumps(text, ensure_ascii=False))


def figures(output: Output) -> str:
    """What a result cost, in a line."""
    stats = output.stats
    told = [
        f"{len(output.tokens)} tokens, {stats.forwards} forwards, {stats.tokens_per_forward:.2f} tokens per forward, "
        f"{stats.seconds:.2f} s, ended by {output.finish_reason}"
    ]
    if stats.eased is not None:
        told.append(target(stats.eased))
    if stats.drift is not None:
        told.append(audited(stats.drift))
    if stats.chosen is not None:
        told.append("chosen: " + ", ".join(f"{name} {number}" for name, number in stats.chosen.items()))
    return "; ".join(told)


def target(eased: Eased) -> str:
    """What became of a target of seconds, in words."""
    kept = f"the target of {eased.target_s:g} s was {'kept' if eased.kept else 'missed'} ({eased.took_s:.2f} s)"
    if not eased.steps:
        return f"{kept}, with full effort"
    numbers = ", ".join(f"{name} {value:.3g}" for name, value in eased.numbers.items())
    return f"{kept}, {eased.steps} steps with less effort, down to {eased.effort} ({numbers})"


def audited(drift: Drift) -> str:
    """What audits found, in words."""
    return (
        f"drift of the cache in {len(drift.looks)} audited steps: total variation {drift.mean_tv:.3g} "
        f"(at most {drift.max_tv:.3g}), {drift.flips} of {drift.targets} best tokens were other ones"
    )
