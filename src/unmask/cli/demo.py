"""unmask demo: the bundled model writes, infills, rewrites, fills and hits a length, beside its AR twin."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unmask.cli import arguments as given
from unmask.cli import view
from unmask.lm.load import bundled, load
from unmask.lm.model import LanguageModel
from unmask.lm.results import Output

PROMPT = "def read_lines(path):\n"
BODY = ("def area(width, height):\n", "\n    return area\n")
STORY = "It was a fine morning, and Elizabeth walked to the village with her sister."
SPAN = (23, 48)
TEMPLATE = "def {{name:1-3}}(self, {{argument:1-2}}):\n    return self.{{:1-4}}\n"


@dataclass(frozen=True, slots=True)
class Job:
    """Something to show: what a DLM does, and what an AR model can do about it (the left context, as many tokens)."""

    title: str
    write: Callable[[LanguageModel, Any], Output]
    left: str
    check: Callable[[Output], bool]


JOBS = [
    Job(
        "continue a prompt",
        lambda lm, watch: lm.generate(PROMPT, length=64, watch=watch),
        PROMPT,
        lambda out: out.text == PROMPT + str(out.completion),
    ),
    Job(
        "continue it in 16 forwards, 4 tokens each",
        lambda lm, watch: lm.generate(PROMPT, length=64, eos="forbid", steps=16, watch=watch),
        PROMPT,
        lambda out: out.stats.forwards == 16,
    ),
    Job(
        "continue it block by block, over an exact cache",
        lambda lm, watch: lm.generate(PROMPT, length=64, decoder="sdar", block=16, watch=watch),
        PROMPT,
        lambda out: out.text == PROMPT + str(out.completion),
    ),
    Job(
        "infill a function body, with the text on both sides",
        lambda lm, watch: lm.infill(*BODY, length=(4, 24), watch=watch),
        BODY[0],
        lambda out: str(out.text).startswith(BODY[0]) and str(out.text).endswith(BODY[1]),
    ),
    Job(
        "rewrite a span, every other byte the same",
        lambda lm, watch: lm.refine(STORY, spans=[SPAN], watch=watch),
        STORY[: SPAN[0]],
        lambda out: str(out.text).startswith(STORY[: SPAN[0]]) and str(out.text).endswith(STORY[SPAN[1] :]),
    ),
    Job(
        "fill a template of several holes",
        lambda lm, watch: lm.fill(TEMPLATE, watch=watch),
        TEMPLATE[: TEMPLATE.index("{{")],
        lambda out: len(out.holes) == 3 and all(text for _, text in out.holes),
    ),
    Job(
        "write exactly 40 tokens",
        lambda lm, watch: lm.generate(PROMPT, length=40, eos="forbid", watch=watch),
        PROMPT,
        lambda out: len(out.tokens) == 40,
    ),
]


def run(as_json: given.Json = False, live: given.Live = True) -> None:
    """Watch the bundled model at work; needs no network."""
    console = Console()
    lm = load("tiny")
    twin = load("tiny-ar") if "tiny-ar" in bundled() else None
    table = Table("what", "model", "tokens", "forwards", "per forward", "seconds", title="what it took")
    facts = []
    for job in JOBS:
        with view.watching(console, show=view.watched(as_json=as_json, live=live)) as watch:
            out = job.write(lm, watch)
        held = job.check(out)
        rows = [(lm.name, out)]
        if twin is not None:
            size = max(1, len(out.tokens))
            rows.append((f"{twin.name} (left context only)", twin.generate(job.left, length=size, eos="forbid")))
        for name, output in rows:
            stats = output.stats
            table.add_row(
                job.title if output is out else "",
                name,
                str(len(output.tokens)),
                str(stats.forwards),
                f"{stats.tokens_per_forward:.2f}",
                f"{stats.seconds:.2f}",
            )
            facts.append({"job": job.title, "held": held, **view.as_dict(output, {"model": name})})
        if not as_json:
            _tell(console, job, rows, held=held)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        console.print(table)


def _tell(console: Console, job: Job, rows: list[tuple[str, Output]], *, held: bool) -> None:
    console.rule(Text(job.title, "bold"), align="left")
    for name, output in rows:
        console.print(Text(f"[{name}]", "cyan"))
        console.print(Text(str(output.text)))
    console.print(
        Text("what was promised holds" if held else "what was promised does NOT hold", "dim" if held else "red")
    )
