r"""Regexes as automata over bytes: outlines-core compiles them, in a child process where they come from outside.

Two dialects meet here: what users and schemas write (the common part of ECMA-262, Python and Rust) and what Rust's
`regex` reads. `translate` closes the gap: \d and \w mean ASCII, as in ECMA-262; what is negated leaves out all that
either dialect would; and the anchors, which no automaton of whole strings has, become two bytes at the ends of the text
that are taken away again. Look-around, back references and word borders are no regular languages here and are refused.

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

from unmask.base.errors import BadInput, OverBudget, Unsupported
from unmask.constrain.automata import rust
from unmask.constrain.automata.budget import SLOWEST, Meter
from unmask.constrain.automata.machine import BYTES, DEAD, Machine, both, minimal, trim

END, FIRST, LAST = "\x01", "\x02", "\x03"
"""What ends a string while it is compiled, and what stands for the ends of a text while anchors are looked for."""
LONGEST = 20_000
"""Characters of a regex; more is no regex that anyone wrote."""
_CHILD_BYTES = 256 << 20
"""Address space that a child has before it begins."""
_MARK = r"\x01-\x03"
_OUT = {  # outside of a class
    "d": "[0-9]",
    "w": "[0-9A-Za-z_]",
    "s": r"[ \t\n\r\x0b\x0c]",
    "D": rf"[^\d{_MARK}]",
    "W": rf"[^\w{_MARK}]",
    "S": rf"[^\s\x1c-\x1f\x{{feff}}{_MARK}]",
}
_IN = {"d": "0-9", "w": "0-9A-Za-z_", "s": r" \t\n\r\x0b\x0c", "D": r"\D", "W": r"\W", "S": r"\S"}  # inside of one
_NOT = {**_IN, "d": r"\d", "w": r"\w", "s": r"\s\x1c-\x1f\x{feff}"}  # inside of a negated one


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
    body, anchored = translate(pattern)
    if not anchored:
        return compiled([body], meter)[0]
    return _unmarked(f"{FIRST}?(?:{body}){LAST}?", meter)


def found_in(pattern: str, meter: Meter) -> Machine:
    """The strings in which a regex matches somewhere, as `pattern` of a schema has it; raises as `full`."""
    body, anchored = translate(pattern)
    if not anchored:
        return compiled([f"(?s:.)*(?:{body})(?s:.)*"], meter)[0]
    begins = "" if _anchored_left(pattern) else rf"[^{LAST}]*"
    return _unmarked(rf"{begins}(?:{body})[^{FIRST}]*", meter)


def _anchored_left(pattern: str) -> bool:
    return pattern.startswith("^") and "|" not in pattern


def _unmarked(pattern: str, meter: Meter) -> Machine:
    """What a pattern matches between the two marks, without them."""
    marked = both(compiled([pattern], meter)[0], own(f"{FIRST}[^{FIRST}{LAST}]*{LAST}"), meter)
    start = int(marked.table[0, ord(FIRST)])
    if start == DEAD:
        return trim(Machine(marked.table, np.zeros(len(marked), bool)), meter)
    last = marked.table[:, ord(LAST)]
    accept = (last != DEAD) & marked.accept[last]
    table = marked.table.copy()
    table[:, [ord(FIRST), ord(LAST)]] = DEAD
    order = np.arange(len(table))
    order[[0, start]] = start, 0  # swaps the two; the order is its own inverse
    table = np.where(table == DEAD, DEAD, order[table])[order].astype(np.int32)
    return minimal(Machine(table, accept[order]), meter)


def compiled(patterns: Sequence[str], meter: Meter) -> list[Machine]:
    """The automata of regexes in Rust's dialect, by a child process that is ended when it takes too much.

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
        found.append(minimal(_table(told["start"], told["finals"], columns), meter))
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


def translate(pattern: str) -> tuple[str, bool]:
    """A regex in Rust's dialect, and whether it has anchors, which become the two marks.

    Raises:
        BadInput: too long, or a class or an escape without an end.
        Unsupported: what is no regular language here.
    """
    if len(pattern) > LONGEST:
        raise BadInput(f"a regex has at most {LONGEST} characters, got {len(pattern)}")
    out, at, anchored, depth = [], 0, False, 0
    while at < len(pattern):
        letter = pattern[at]
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth < 0:
            raise BadInput(f"the regex {_short([pattern])} closes a group at character {at} that was never opened")
        if letter == "\\":
            piece, at = _escape(pattern, at, _OUT)
            anchored |= piece in (FIRST, LAST)
        elif letter == "[":
            piece, at = _class(pattern, at)
        elif letter in "^$":
            piece, at, anchored = FIRST if letter == "^" else LAST, at + 1, True
        elif letter == ".":
            piece, at = rf"[^\n\r{_MARK}]", at + 1
        elif letter == "(" and pattern.startswith("(?", at):
            if pattern.startswith(("(?=", "(?!", "(?<=", "(?<!"), at):
                raise Unsupported(
                    f"the regex {_short([pattern])} looks around at character {at}, which no automaton does"
                )
            if pattern.startswith("(?P=", at):
                raise Unsupported(
                    f"the regex {_short([pattern])} refers back at character {at}, which no automaton does"
                )
            piece, at = "(?", at + 2
        else:
            piece, at = letter, at + 1
        out.append(piece)
    if depth:
        raise BadInput(f"the regex {_short([pattern])} has {depth} groups that are not closed; add )")
    return "".join(out), anchored


def _escape(pattern: str, at: int, known: dict[str, str]) -> tuple[str, int]:
    """What a backslash and its letters become, and where they end."""
    if at + 1 == len(pattern):
        raise BadInput(f"the regex {_short([pattern])} ends in a backslash; write \\\\ for one")
    letter = pattern[at + 1]
    if letter in known:
        return known[letter], at + 2
    if letter in "uxU":
        count = {"u": 4, "x": 2, "U": 8}[letter]
        braced = pattern.startswith("{", at + 2)
        end = pattern.find("}", at) if braced else at + 2 + count
        digits = pattern[at + 3 : end] if braced else pattern[at + 2 : end]
        if not digits or end < 0 or not all(c in "0123456789abcdefABCDEF" for c in digits):
            raise BadInput(f"the regex {_short([pattern])} has an escape without its digits at character {at}")
        return rf"\x{{{digits}}}", end + int(braced)
    if letter in "bB":
        raise Unsupported(f"the regex {_short([pattern])} asks for a word border (\\{letter}), which is not supported")
    if letter.isdigit() and letter != "0":
        raise Unsupported(f"the regex {_short([pattern])} refers back (\\{letter}), which no automaton does")
    if letter in "Az" or letter == "Z":
        return (FIRST if letter == "A" else LAST), at + 2
    if letter == "c" and pattern[at + 2 : at + 3].isalpha():
        return rf"\x{{{ord(pattern[at + 2]) % 32:x}}}", at + 3
    simple = {"t": r"\t", "n": r"\n", "r": r"\r", "f": r"\x0c", "v": r"\x0b", "0": r"\x00"}
    if letter in simple:
        return simple[letter], at + 2
    if letter in "pP":
        end = pattern.find("}", at) if pattern.startswith("{", at + 2) else at + 2
        if letter == "P":
            raise Unsupported(f"the regex {_short([pattern])} negates a Unicode class (\\P), which is not supported")
        return pattern[at : end + 1], end + 1
    if letter.isalnum():
        raise Unsupported(f"the regex {_short([pattern])} has the escape \\{letter}, which is not supported")
    plain = letter if ord(letter) > 127 or letter in " /'\"<>=!%,:;@_`" else "\\" + letter
    return plain, at + 2


def _class(pattern: str, at: int) -> tuple[str, int]:
    """A class in brackets, and where it ends; in a negated one the marks are no characters."""
    start, at = at, at + 1
    negated = pattern.startswith("^", at)
    at += negated
    out = []
    if pattern.startswith("]", at):
        # empty in ECMA-262, a bracket in Python and Rust: nobody means the one or the other
        raise Unsupported(f"the regex {_short([pattern])} has ']' first in a class; write \\] for the bracket")
    while at < len(pattern) and pattern[at] != "]":
        if pattern[at] == "\\" and pattern.startswith("b", at + 1):
            piece, at = r"\x08", at + 2
        elif pattern[at] == "\\":
            piece, at = _escape(pattern, at, _NOT if negated else _IN)
        else:  # Rust has set operations and classes in classes where others have letters
            piece, at = ("\\" if pattern[at] in "[&~" else "") + pattern[at], at + 1
        out.append(piece)
    if at == len(pattern):
        raise BadInput(f"the regex {_short([pattern])} has a class without an end, from character {start} on; add ]")
    inside = "".join(out)
    if negated:
        return rf"[^{inside}{_MARK}]", at + 1
    return (rf"[[{inside}]--[{_MARK}]]" if any(x in inside for x in (r"\D", r"\W", r"\S")) else f"[{inside}]"), at + 1
