"""Infilling, judged against what was cut out: exact match, edit similarity, and whether the whole program still parses.

Tasks are those of OpenAI's human-eval-infilling. It knows no model, and no code of a task or of a model is ever run:
what parses may be wrong.
"""

import ast
import difflib
import gzip
import json
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from unmask.base import seeds
from unmask.base.errors import BadInput

DRAWS = 2000
"""Of a bootstrap."""


@dataclass(frozen=True, slots=True)
class Task:
    """A text with a hole.

    Args:
        name: of the task.
        problem: of the problem that it was made of; tasks of one problem are alike.
        before, hole, behind: the text. The end of a hole that is one whole line stands in `behind`.
        is_line: whether it is one.
    """

    name: str
    problem: str
    before: str
    hole: str
    behind: str
    is_line: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one text, each from 0 to 1.

    Args:
        exact: whether it is the text that was cut out, but for white space at its end.
        similarity: how alike the two are, see `similarity`.
        parses: whether the program is one, with it in its place.
    """

    exact: float
    similarity: float
    parses: float

    def as_dict(self) -> dict[str, float]:
        """For reports."""
        return asdict(self)


def tasks(file: Path) -> list[Task]:
    """All tasks of a JSONL file, packed by gzip or not.

    Source: Bavarian et al. 2022, human-eval-infilling, arXiv:2207.14255 (single lines and random spans).

    Raises:
        BadInput: no such file, or one of another kind.
    """
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            return [_task(json.loads(line)) for line in lines if line.strip()]
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise BadInput(
            f"{file} is no file of tasks, one JSON object a line with task_id, prompt, canonical_solution and suffix "
            f"({type(error).__name__}: {error}); give one of human-eval-infilling"
        ) from error


def _task(row: dict[str, str]) -> Task:
    kind, _, rest = row["task_id"].partition("/")
    hole, behind = row["canonical_solution"], row["suffix"]
    if is_line := kind == "SingleLineInfilling":
        line = hole.removesuffix("\n")
        hole, behind = line, hole[len(line) :] + behind
    return Task(row["task_id"], rest.rpartition("/")[0], row["prompt"], hole, behind, is_line)


def around(before: Sequence[int], behind: Sequence[int], room: int) -> tuple[list[int], list[int]]:
    """So many tokens nearest to a hole, equally many on both sides; what one side has no use for, the other gets."""
    right = min(len(behind), max(room // 2, room - len(before)))
    left = min(len(before), room - right)
    return list(before[len(before) - left :]), list(behind[:right])


def similarity(text: str, truth: str) -> float:
    """Twice the characters in blocks that both have, over the characters of both: difflib's ratio, 0 to 1.

    Source: Ratcliff and Metzener 1988, "Pattern matching: the gestalt approach".
    """
    return difflib.SequenceMatcher(None, text, truth, autojunk=False).ratio()


def parses(program: str) -> bool:
    """Whether this is Python, as far as its grammar goes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that mean nothing
        try:
            ast.parse(program)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: null bytes, lone surrogates
            return False
    return True


def judged(task: Task, text: str) -> Verdict:
    """What was written into the hole of a task, against what stood there; all of the text around it counts."""
    shown, truth = text.rstrip(), task.hole.rstrip()
    whole = parses(task.before + text + task.behind)
    return Verdict(float(shown == truth), similarity(shown, truth), float(whole))


def interval(values: Sequence[float], groups: Sequence[Hashable], *, seed: int = 0) -> tuple[float, float]:
    """A 95% bootstrap interval of a mean, by percentiles, where values of one group are drawn together.

    Args:
        values: one for each task.
        groups: of each value, what it has in common with others.
        seed: of the draws.
    Raises:
        BadInput: no values, or not one group for each.
    """
    if not values or len(values) != len(groups):
        raise BadInput(f"an interval needs values and a group for each, not {len(values)} and {len(groups)}")
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    at, count = torch.tensor([number[group] for group in groups]), len(number)
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, at, torch.tensor(values, dtype=torch.float64))
    sizes = torch.bincount(at, minlength=count).double()
    coins = seeds.uniform(seeds.key(seed, "bootstrap", torch.arange(DRAWS)[:, None], torch.arange(count)))
    drawn = (coins * count).long().clamp(max=count - 1)
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
