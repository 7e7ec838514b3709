"""From what is asked to an automaton over tokens: within a budget, in a child process if wanted, once for all rows.

It does not know what the automaton is for.
"""

import io
import pickle
import subprocess
import sys
import threading
from collections import OrderedDict

import numpy as np

from unmask.base import errors
from unmask.base.errors import BadInput, OverBudget
from unmask.constrain.automaton import Automaton, Edges
from unmask.constrain.budget import SLOWEST, Budget, Meter
from unmask.constrain.lift import lift
from unmask.constrain.machine import minimal
from unmask.constrain.rust import bound
from unmask.constrain.spec import Constraint
from unmask.constrain.vocabulary import Vocabulary

_CHILD_BYTES = 1 << 30
"""Address space that a child has before it begins."""


def compile_here(asked: Constraint, vocabulary: Vocabulary, budget: Budget | None = None) -> Automaton:
    """The automaton of a constraint, made in this process.

    Foreign code (of regexes) runs in a bounded child all the same; the rest looks at the budget as it goes.

    Raises:
        BadInput: nothing fits it, and which condition makes it so; or no regex, no schema.
        Unsupported: a keyword or a construct that can't be honoured, by name.
        OverBudget: it takes more than the budget, and which part of it.
    """
    meter = Meter(budget)
    found = lift(minimal(asked.language(meter), meter), vocabulary, meter)
    if found.empty:
        raise BadInput("no tokens of this vocabulary spell a text that fits the constraint")
    return found


def compile_in_child(asked: Constraint, vocabulary: Vocabulary, budget: Budget | None = None) -> Automaton:
    """The same, made by a child process that is ended when it takes too much; raises as `compile_here`.

    It costs a start of Python, and this process does nothing but wait: what serves others runs it in a thread.
    """
    budget = budget or Budget()
    question = pickle.dumps((asked, vocabulary.tokens, vocabulary.ends, budget))
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "unmask.constrain.child"],
            check=False,
            input=question,
            capture_output=True,
            timeout=10 + SLOWEST * budget.time_s,
        )
    except subprocess.TimeoutExpired as error:
        raise OverBudget(f"the constraint takes more than {budget.time_s:g} s to compile (budget: time_s)") from error
    if done.returncode:
        raise OverBudget(
            f"the constraint takes more than {budget.num_bytes >> 20} MiB or {budget.time_s:g} s to compile "
            "(budget: num_bytes, time_s); make it simpler or raise the budget"
        )
    tables = dict(np.load(io.BytesIO(done.stdout), allow_pickle=False))
    if "error" in tables:
        raise getattr(errors, str(tables["error"]), BadInput)(str(tables["said"]))
    edges = Edges(**{name: tables.pop(name) for name in Edges.__slots__})
    return Automaton(edges=edges, **tables)


def answer(question: bytes) -> bytes:
    """What the child does: tables, or the error, as numpy writes them."""
    asked, tokens, ends, budget = pickle.loads(question)  # from our own parent
    bound(int(budget.time_s) + 5, budget.num_bytes + _CHILD_BYTES)
    try:
        found = compile_here(asked, Vocabulary(tokens, ends), budget)
    except errors.UnmaskError as error:
        kind = next(k for k in type(error).__mro__ if k is not errors.UnknownName)  # which takes other arguments
        tables = {"error": np.array(kind.__name__), "said": np.array(str(error))}
    else:
        tables = {name: getattr(found.edges, name) for name in Edges.__slots__}
        tables |= {name: getattr(found, name) for name in ("class_of", "after", "accept")}
    out = io.BytesIO()
    np.savez(out, **tables)  # type: ignore[arg-type] # its stub takes any name for `allow_pickle`
    return out.getvalue()


class Cache:
    """Automata that were made before, by (constraint, vocabulary), the least recently used going first.

    Args:
        num_bytes: of all tables together; an automaton that is larger alone is not kept.
        child: whether automata are made in a child process.
    """

    def __init__(self, num_bytes: int = 1 << 28, *, budget: Budget | None = None, child: bool = False) -> None:
        self.num_bytes, self.budget = num_bytes, budget
        self._make = compile_in_child if child else compile_here
        self._kept: OrderedDict[tuple[Constraint, str], Automaton] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, asked: Constraint, vocabulary: Vocabulary) -> Automaton:
        """The automaton, made now if it is not kept; raises as `compile_here`."""
        key = (asked, vocabulary.fingerprint)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = self._make(asked, vocabulary, self.budget)
        with self._lock:
            self._kept[key] = found
            while sum(kept.num_bytes for kept in self._kept.values()) > self.num_bytes:
                self._kept.popitem(last=False)
        return found
