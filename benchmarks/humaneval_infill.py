r"""HumanEval's holes: what a model that sees both sides makes of them, at known and unknown length, beside its AR twin.

Single lines and random spans of human-eval-infilling (arXiv 2207.14255) are written anew, greedily: by a masked model
between both contexts, a token a forward, through `lm.infill`; and by models that read from the left. No code is run:
what counts is exact match (but for white space at the end), edit similarity (difflib's ratio), and whether the whole
program parses. Intervals are of 95%, by a bootstrap that draws whole problems, as lines of one problem are alike. The
last column is the similarity beyond that of one length for all, on the same tasks.

    python benchmarks/humaneval_infill.py --tasks HumanEval-SingleLineInfilling.jsonl.gz \
        HumanEval-RandomSpanInfillingLight.jsonl.gz --every 10 4 --out benchmarks/results/humaneval_infill

How long a hole is, is known ("true length"), the same for all (the median of all tasks of the file: a prior that knows
the benchmark), or found by the model: `lengths="try"` is the library's way (up to eight lengths are written, and the
one is kept that goes best with what stands behind), and "its own line" is as long as the line that the model writes
from the left alone. Rules that the library refuses for these models are listed with the reason.

What reads from the left can't see what stands behind, so `lm.infill` refuses such models. They write to the end of the
line, or a known or tried number of tokens, and are given what they can make of the other side: of eight texts (one
greedy, seven drawn by the model's own settings) or of eight cuts of one text that one is kept after which the next 32
tokens are most likely. The end of a line is given to all: nobody has to write it.

The window has 512 positions. Of longer texts those tokens are seen that are nearest to the hole, as many on both
sides, and the same by all. With `--progress FILE` what is written is not written again, `--minutes` ends a run early;
only tasks that all ways have written count.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from report import described, parser, report

from unmask.base.errors import UnmaskError
from unmask.decode.growth import TABLE
from unmask.decode.lengths import candidates
from unmask.evals.infill import Task, Verdict, around, interval, judged, tasks
from unmask.lm.load import load
from unmask.lm.model import LanguageModel

TEXTS = 8
"""Of which one is picked, by models that can't see behind the hole."""
PICKED_BY = 32
"""Tokens behind the hole that they are picked by."""
GREEDY: Mapping[str, Any] = {"decoder": "llada", "temperature": 0.0}
FROM_LEFT: Mapping[str, Any] = {"decoder": "ar", "temperature": 0.0}


@dataclass(frozen=True, slots=True)
class Case:
    """A task in ids, cut to the window."""

    task: Task
    before: list[int]
    hole: list[int]
    behind: list[int]
    is_cut: bool


Written = tuple[str, int]
"""Text of a hole, and its tokens."""


@dataclass(frozen=True, slots=True)
class Writer:
    """Ways to write the holes of one file.

    Args:
        lm, twin: the model that sees both sides, and the one that reads from the left.
        most: tokens of a hole of unknown length at most.
        usual: tokens of one length for all.
    """

    lm: LanguageModel
    twin: LanguageModel
    most: int
    usual: int

    def infill(self, case: Case, length: int | tuple[int, int]) -> Written:
        """Between both contexts."""
        out = self.lm.infill(case.before, case.behind, length=length, **GREEDY)
        return out.completion, len(out.tokens)

    def left(self, lm: LanguageModel, case: Case, length: int, **settings: Any) -> list[Written]:
        """From the left context alone: a line to its end, or so many tokens of a span."""
        end: dict[str, Any] = {"stop": "\n"} if case.task.is_line else {"eos": "forbid"}
        outs = lm.generate([case.before], length=length, **end, **settings)
        return [(out.completion, len(out.tokens)) for out in outs]

    def own_line(self, case: Case) -> Written:
        """Between both contexts, as long as the model's own line from the left."""
        ((_, length),) = self.left(self.lm, case, self.most, **FROM_LEFT)
        return self.infill(case, max(1, length))

    def several(self, case: Case, length: int) -> Written:
        """The best of several texts of the twin."""
        drawn = self.left(self.twin, case, length, n=TEXTS - 1)
        return self.best(case, self.left(self.twin, case, length, **FROM_LEFT) + drawn)

    def cuts(self, case: Case) -> Written:
        """The best of several beginnings of the twin's text."""
        (out,) = self.twin.generate([case.before], length=self.most, eos="forbid", **FROM_LEFT)
        lengths = [n for (n,) in candidates([(1, self.most)])]
        return self.best(case, [(self.twin.tokenizer.decode(out.tokens[:n]), n) for n in lengths])

    def best(self, case: Case, written: Sequence[Written]) -> Written:
        """After which what stands behind is most likely to the twin."""
        assert self.twin.tokenizer is not None
        behind = case.behind[:PICKED_BY]
        nats = {
            text: self.twin.score(behind, given=case.before + self.twin.tokenizer.encode(text), estimator="ar").nats
            for text in dict.fromkeys(text for text, _ in written)
        }
        return min(written, key=lambda one: nats[one[0]])


def ways(writer: Writer, name: str, twin: str, *, lines: bool) -> dict[str, Callable[[Case], Written]]:
    """Ways to write a hole, by their names in the table.

    The second one is what the others are compared with, the third one tries lengths.
    """
    most = writer.most
    tried = ", ".join(str(n) for (n,) in candidates([(1, most)]))
    found: dict[str, Callable[[Case], Written]] = {
        f"{name}, both sides, true length": lambda case: writer.infill(case, len(case.hole)),
        f"{name}, both sides, {writer.usual} tokens for all": lambda case: writer.infill(case, writer.usual),
        f"{name}, both sides, lengths {tried} tried": lambda case: writer.infill(case, (1, most)),
    }
    if lines:
        return found | {
            f"{name}, both sides, as long as its own line": writer.own_line,
            f"{name}, left only, to the line's end": lambda case: writer.left(writer.lm, case, most, **FROM_LEFT)[0],
            f"{twin}, left only, to the line's end": lambda case: writer.left(writer.twin, case, most, **FROM_LEFT)[0],
            f"{twin}, {TEXTS} such lines, picked by what is behind": lambda case: writer.several(case, most),
        }
    size: Callable[[Case], int] = lambda case: len(case.hole)  # noqa: E731
    return found | {
        f"{name}, left only, true length": lambda case: writer.left(writer.lm, case, size(case), **FROM_LEFT)[0],
        f"{twin}, left only, true length": lambda case: writer.left(writer.twin, case, size(case), **FROM_LEFT)[0],
        f"{twin}, {TEXTS} such texts, picked by what is behind": lambda case: writer.several(case, size(case)),
        f"{twin}, left only, {writer.usual} tokens for all": lambda case: writer.left(
            writer.twin, case, writer.usual, **FROM_LEFT
        )[0],
        f"{twin}, cut at the lengths tried, picked by what is behind": writer.cuts,
    }


def cases(found: Sequence[Task], lm: LanguageModel, positions: int, most: int) -> Iterator[Case]:
    """Tasks in ids, each with room for the longest hole that is tried."""
    assert lm.tokenizer is not None
    start = list(lm.tokenizer.start)
    for task in found:
        before, hole, behind = lm.tokenizer.encode_many([task.before, task.hole, task.behind])
        left, right = around([*start, *before], behind, positions - max(most, len(hole)))
        yield Case(task, left, hole, right, len(left) + len(right) < len(start) + len(before) + len(behind))


def row(name: str, verdicts: Sequence[Verdict], base: Sequence[Verdict], groups: Sequence[str]) -> dict[str, Any]:
    """Of the table: means, and their intervals."""
    found: dict[str, Any] = {"": name}
    beyond = [one.similarity - other.similarity for one, other in zip(verdicts, base, strict=True)]
    columns = {
        "exact match": [one.exact for one in verdicts],
        "edit similarity": [one.similarity for one in verdicts],
        "parses": [one.parses for one in verdicts],
        "beyond one length": beyond,
    }
    for i, (head, values) in enumerate(columns.items()):
        low, high = interval(values, groups)
        found[head], found["95%" + " " * i] = round(sum(values) / len(values), 4), f"{low:.3f} to {high:.3f}"
    return found


def kept(tried: Sequence[tuple[Verdict, int]], base: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Of each length that was kept of those tried: how often, and what came of it beside one length for all."""
    rows = []
    for length in sorted({tokens for _, tokens in tried}):
        same = [(one, other) for (one, tokens), other in zip(tried, base, strict=True) if tokens == length]
        rows.append(
            {
                "length kept": length,
                "tasks": len(same),
                "edit similarity": round(sum(one.similarity for one, _ in same) / len(same), 3),
                "of one length for all": round(sum(other.similarity for _, other in same) / len(same), 3),
                "parses": round(sum(one.parses for one, _ in same) / len(same), 3),
            }
        )
    return rows


def refused(lm: LanguageModel) -> str:
    """Why rules for lengths can't be asked for between two texts, by name."""
    found = []
    for name in TABLE:
        try:
            lm.infill("x = ", "\n", length=(1, 8), lengths=name)
        except UnmaskError as error:
            found.append(f"{name} ({error})")
    return "; ".join(found) or "none"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="tiny", help="a model that sees both sides")
    options.add_argument("--twin", default="tiny-ar", help="its autoregressive twin")
    options.add_argument("--tasks", type=Path, nargs="+", required=True, help="files of human-eval-infilling")
    options.add_argument("--every", type=int, nargs="+", default=[1], help="each N-th task of each file counts (1)")
    options.add_argument("--line", type=int, default=24, help="tokens of a line of unknown length at most (24)")
    options.add_argument("--span", type=int, default=64, help="tokens of a span of unknown length at most (64)")
    options.add_argument("--progress", type=Path, help="keep what is written in this file, and go on from it")
    options.add_argument("--minutes", type=float, default=0.0, help="end after so many; 0 is never")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    lm, twin = (load(name, device="cpu", dtype="float32") for name in (args.model, args.twin))
    assert lm.tokenizer is not None
    done: dict[tuple[str, str], Written] = {}
    if args.progress and args.progress.exists():
        for line in args.progress.read_text().splitlines():
            one = json.loads(line)
            done[one["task"], one["way"]] = one["text"], one["tokens"]
    tables, cut, first, until = {}, [], [], time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    positions = min(lm.model.max_length, twin.model.max_length)
    for number, file in enumerate(args.tasks):
        every, all_tasks = args.every[min(number, len(args.every) - 1)], tasks(file)
        lines = all_tasks[0].is_line
        most = args.line if lines else args.span
        sizes = torch.tensor([len(ids) for ids in lm.tokenizer.encode_many([task.hole for task in all_tasks])])
        writer = Writer(lm, twin, most, int(sizes.median()))
        table, whole = ways(writer, args.model, args.twin, lines=lines), []
        for case in cases(all_tasks[::every], lm, positions, most):
            for way, write in table.items():
                if (case.task.name, way) in done or time.monotonic() > until:
                    continue
                text, count = done[case.task.name, way] = write(case)
                if args.progress:
                    record = {"task": case.task.name, "way": way, "text": text, "tokens": count}
                    with args.progress.open("a") as log:
                        log.write(json.dumps(record) + "\n")
            if all((case.task.name, way) in done for way in table):
                whole.append(case)
        if not whole:
            continue
        groups = [case.task.problem for case in whole]
        verdicts = {w: [judged(case.task, done[case.task.name, w][0]) for case in whole] for w in table}
        base = list(verdicts.values())[1]
        rows = []
        for way, found in verdicts.items():
            off = [abs(done[case.task.name, way][1] - len(case.hole)) for case in whole]
            rows.append({**row(way, found, base, groups), "tokens off": round(sum(off) / len(off), 2)})
        asked = len(all_tasks[::every])
        took = f"each {every}th of {len(all_tasks)}: {asked}" if every > 1 else f"all {len(all_tasks)}"
        took += f", of which {len(whole)} were done" if len(whole) < asked else ""
        kind = "Single lines" if lines else "Random spans"
        tables[f"{kind} ({took}; of {len({*groups})} problems):"] = rows
        way = list(table)[2]
        sizes_kept = [done[case.task.name, way][1] for case in whole]
        tables[f"{kind}, what is kept of the lengths that are tried:"] = kept(
            list(zip(verdicts[way], sizes_kept, strict=True)), base
        )
        half = {task.name for task in all_tasks[: len(all_tasks) // 2]}
        mean = sum(len(case.hole) for case in whole) / len(whole)
        cut.append(f"{sum(case.is_cut for case in whole)} of {len(whole)} (holes of {mean:.1f} tokens)")
        first.append(f"{sum(case.task.name in half for case in whole)} of {len(whole)}")
    report(
        args.out,
        "Infilling HumanEval",
        tables,
        model=described(args.model, lm),
        twin=described(args.twin, twin),
        decoders=f"{GREEDY['decoder']} and {FROM_LEFT['decoder']}, temperature 0; canvases of {positions}",
        contexts_that_were_cut="; ".join(cut),
        tasks_of_the_first_half_of_a_file="; ".join(first),
        counts="of all runs that kept their progress in the same file" if args.progress else "of this run",
        refused_lengths=refused(lm),
    )


if __name__ == "__main__":
    main()
