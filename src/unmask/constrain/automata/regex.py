r"""Regexes as automata over bytes: outlines-core compiles them, in a child process where they come from outside.

What users write is translated first (`dialect.py`); on the way the anchors of a regex become two bytes at the ends of
the text, which are taken away again here. What is looked ahead for at the very beginning is a condition of its own.

Every regex is compiled with a third such byte behind it: outlines-core 0.2.14 drops ways that lead from where a string
may end to where it may not, so that `(ab)*` would be the empty string alone; with the byte, strings end in one place.
No text of any constraint holds the three bytes (U+0001 to U+0003).

It does not know schemas or tokens.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from unmask.base.errors import OverBudget, Unsupported
from unmask.constrain.automata import rust
from unmask.constrain.automata.budget import SLOWEST, Meter
from unmask.constrain.automata.dialect import FIRST, LAST, looks, translate
from unmask.constrain.automata.machine import BYTES, DEAD, Machine, both, minimal, trim, without

END = "\x01"
"""What ends a string while it is compiled."""
PRINTABLE = "[ -~]*"
r"""Where it matters that a pattern does not match its readers must agree on that, and they don't on what `\d` is
beyond ASCII."""
_CHILD_BYTES = 256 << 20
"""Address space that a child has before it begins."""


@lru_cache(maxsize=256)
def own(pattern: str) -> Machine:
    """The automaton of a pattern that this package itself wrote, in Rust's dialect: small, compiled in this process."""
    found = rust.compiled(_ended(pattern), 1 << 20)
    columns = [np.frombuffer(column, np.int32) for column in found["columns"]]
    return minimal(_table(found["start"], found["finals"], columns), Meter())


def full(pattern: str, meter: Meter) -> Machine:
    """The strings that a user's regex matches from end to end.

    Raises:
        BadInput: no regex.
        Unsupported: one that is no regular language, or that outlines-core refuses.
        OverBudget: too large.
    """
    conditions, pattern = looks(pattern)
    if conditions:
        return _ahead(full(pattern, meter), conditions, meter)
    body, anchored = translate(pattern)
    if not anchored:
        return compiled([body], meter)[0]
    return _unmarked(f"{FIRST}*(?:{body}){LAST}*", meter)


def found_in(pattern: str, meter: Meter) -> Machine:
    """The strings in which a regex matches somewhere, as `pattern` of a schema has it; raises as `full`."""
    conditions, rest = looks(pattern)
    if conditions and pattern.startswith("^"):
        return _ahead(found_in(rest, meter), conditions, meter)
    body, anchored = translate(pattern)
    if not anchored:
        return compiled([f"(?s:.)*(?:{body})(?s:.)*"], meter)[0]
    begins = f"{FIRST}*" if _anchored_left(pattern) else rf"[^{LAST}]*"
    return _unmarked(rf"{begins}(?:{body})[^{FIRST}]*", meter)


def _ahead(found: Machine, conditions: Sequence[tuple[bool, str]], meter: Meter) -> Machine:
    """Texts of a language in which regexes are found, or are not."""
    for wanted, pattern in conditions:
        if wanted:
            found = both(found, found_in(pattern, meter), meter)
        else:
            found = without(both(found, own(PRINTABLE), meter), found_in(pattern, meter), meter)
    return found


def _anchored_left(pattern: str) -> bool:
    return pattern.startswith("^") and "|" not in pattern


def _unmarked(pattern: str, meter: Meter) -> Machine:
    """What a pattern matches between marks, without them.

    A regex may ask for the same end of the text more than once (`^(^a|b)`), so there may be any number of marks; the
    pattern passes over those that it does not ask for.
    """
    found = compiled([pattern], meter, marked=True)[0]
    found = both(found, own(f"{FIRST}+[^{FIRST}{LAST}]*{LAST}+"), meter)
    start, seen = int(found.table[0, ord(FIRST)]), set[int]()
    while start != DEAD and start not in seen:  # more marks never mean fewer texts
        seen.add(start)
        start = int(found.table[start, ord(FIRST)])
    if start == DEAD:
        return trim(Machine(found.table, np.zeros(len(found), bool)), meter)
    accept, last = np.zeros(len(found), bool), found.table[:, ord(LAST)]
    for _ in range(len(found)):
        accept |= (last != DEAD) & found.accept[last]
        last, before = np.where(last == DEAD, DEAD, found.table[last, ord(LAST)]), last
        if np.array_equal(last, before):
            break
    table = found.table.copy()
    table[:, [ord(FIRST), ord(LAST)]] = DEAD
    order = np.arange(len(table))
    order[[0, start]] = start, 0  # swaps the two; the order is its own inverse
    table = np.where(table == DEAD, DEAD, order[table])[order].astype(np.int32)
    return minimal(Machine(table, accept[order]), meter)


def compiled(patterns: Sequence[str], meter: Meter, *, marked: bool = False) -> list[Machine]:
    """The automata of regexes in Rust's dialect, by a child process that is ended when it takes too much.

    Args:
        marked: whether the two marks may stand in a text.
    Raises:
        Unsupported: outlines-core refuses one.
        OverBudget: too much time, too many states, too much memory.
    """
    left_s, budget = meter.left_s, meter.budget
    asked = {
        "patterns": [_ended(pattern) for pattern in patterns],
        "cpu_s": int(left_s) + 1,
        "num_bytes": budget.num_bytes + _CHILD_BYTES,
        "states": budget.states * 4,  # before it is made small
    }
    command = [sys.executable, "-P", str(Path(rust.__file__))]
    try:
        done = subprocess.run(
            command, check=False, input=json.dumps(asked).encode(), capture_output=True, timeout=2 + SLOWEST * left_s
        )
    except subprocess.TimeoutExpired as error:
        raise OverBudget(
            f"the regex {_short(patterns)} takes more than {budget.time_s:g} s to compile (budget: time_s); make it "
            "simpler or raise the budget"
        ) from error
    if done.returncode:
        raise OverBudget(
            f"the regex {_short(patterns)} takes more than {budget.num_bytes >> 20} MiB or {budget.time_s:g} s to "
            "compile (budget: num_bytes, time_s); make it simpler or raise the budget"
        )
    found, at, spent_s = [], 0, 0.0
    for _ in patterns:
        end = done.stdout.index(b"\n", at)
        told = json.loads(done.stdout[at:end])
        if "refused" in told:
            raise Unsupported(f"the regex {_short(patterns)} can't be honoured: {told['refused']}")
        if "over" in told:
            meter.states(budget.states + 1)
        size = 4 * told["ways"]
        starts = [end + 1 + i * size for i in range(3)]
        spent_s = told["cpu_s"]
        columns = [np.frombuffer(done.stdout, np.int32, told["ways"], start) for start in starts]
        table = _table(told["start"], told["finals"], columns)
        if not marked:
            table.table[:, [ord(FIRST), ord(LAST)]] = DEAD
        found.append(minimal(table, meter))
        at = starts[-1] + size
    meter.spend(spent_s)
    return found


def _ended(pattern: str) -> str:
    return f"(?:{pattern}){END}"


def _short(patterns: Sequence[str]) -> str:
    shown = ", ".join(repr(p) for p in patterns)
    return shown if len(shown) <= 100 else f"{shown[:97]}..."


def _table(start: int, finals: Sequence[int], columns: Sequence[np.ndarray]) -> Machine:
    """A table from ways between states of any number; the start becomes 0."""
    source, byte, target = columns
    names = np.unique(np.concatenate([source, target, np.array([start, *finals], np.int32)]))
    names = np.concatenate([[start], names[names != start]])
    rank = np.argsort(names)
    number = lambda some: rank[np.searchsorted(names[rank], some)]  # noqa: E731
    table = np.full((len(names), BYTES), DEAD, np.int32)
    real = byte < BYTES  # the last is outlines-core's end of text
    table[number(source[real]), byte[real]] = number(target[real])
    final = np.zeros(len(names) + 1, bool)  # DEAD, which is -1, finds the last
    final[number(np.array(finals, np.int64))] = True
    accept = final[table[:, ord(END)]]
    table[:, ord(END)] = DEAD
    return Machine(table, accept)
