"""From what is asked to an automaton over tokens: within a budget, in a child process if wanted, once for all rows.

It does not know what the automaton is for.
"""

import contextlib
import io
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from typing import BinaryIO

import numpy as np

from unmask.base import errors
from unmask.base.errors import BadInput, OverBudget
from unmask.constrain.automata.automaton import Automaton, Edges
from unmask.constrain.automata.budget import SLOWEST, Budget, Meter
from unmask.constrain.automata.lift import lift
from unmask.constrain.automata.machine import minimal
from unmask.constrain.automata.rust import bound
from unmask.constrain.automata.vocabulary import Vocabulary
from unmask.constrain.spec import Constraint

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
    return Child().compile(asked, vocabulary, budget)


class Child:
    """A compilation in a process of its own, which another thread can give up at any time.

    The process leads a group, so that what it starts ends with it; and it ends when its standard input does, so that it
    does not live longer than this process, whatever ends that.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._unwanted, self._late = False, False
        self._lock = threading.Lock()

    def compile(self, asked: Constraint, vocabulary: Vocabulary, budget: Budget | None = None) -> Automaton:
        """The automaton; raises as `compile_here`, and OverBudget as well if it was given up."""
        budget = budget or Budget()
        with self._lock:
            if self._unwanted:
                raise OverBudget("the compilation was given up")
            self._process = process = subprocess.Popen(
                [sys.executable, "-P", "-m", "unmask.constrain.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(10 + SLOWEST * budget.time_s, self._expire)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                pickle.dump((asked, vocabulary.tokens, vocabulary.ends, budget), process.stdin)
                process.stdin.flush()
            told, code = process.stdout.read(), process.wait()
        finally:
            timer.cancel()
            self.end()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
        if self._late:
            raise OverBudget(f"the constraint takes more than {budget.time_s:g} s to compile (budget: time_s)")
        if code:
            raise OverBudget(
                f"the constraint takes more than {budget.num_bytes >> 20} MiB or {budget.time_s:g} s to compile "
                "(budget: num_bytes, time_s); make it simpler or raise the budget"
            )
        return _read(told)

    def end(self) -> None:
        """Nothing of it runs any more, and nothing of it will."""
        with self._lock:
            process, self._process, self._unwanted = self._process, None, True
            if process is None:
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()

    def _expire(self) -> None:
        self._late = True
        self.end()


def _read(told: bytes) -> Automaton:
    """An automaton, or the error, from what a child has written."""
    tables = dict(np.load(io.BytesIO(told), allow_pickle=False))
    if "error" in tables:
        raise getattr(errors, str(tables["error"]), BadInput)(str(tables["said"]))
    edges = Edges(**{name: tables.pop(name) for name in Edges.__slots__})
    return Automaton(edges=edges, **tables)


Question = tuple[Constraint, tuple[bytes, ...], tuple[int, ...], Budget]
"""What a child is asked: a constraint, a vocabulary's tokens and ends, a budget."""


def hear(standard_input: BinaryIO) -> Question:
    """What the child is asked."""
    found: Question = pickle.load(standard_input)  # from our own parent
    return found


def answer(question: Question) -> bytes:
    """What the child does: tables, or the error, as numpy writes them."""
    asked, tokens, ends, budget = question
    bound(int(budget.time_s) + 5, budget.num_bytes + _CHILD_BYTES)
    try:
        found = compile_here(asked, Vocabulary(tokens, ends), budget)
    except errors.UnmaskError as error:
        kind = next(k for k in type(error).__mro__ if k is not errors.UnknownName)  # which takes other arguments
        tables = {"error": np.array(kind.__name__), "said": np.array(str(error))}
    except RecursionError:
        tables = {"error": np.array("Unsupported"), "said": np.array("the constraint nests too deep to be compiled")}
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # values of kinds that no schema has
        said = (
            f"the constraint can't be read ({type(error).__name__}: {str(error)[:200]}); check the types of its values"
        )
        tables = {"error": np.array("BadInput"), "said": np.array(said)}
    else:
        tables = {name: getattr(found.edges, name) for name in Edges.__slots__}
        tables |= {name: getattr(found, name) for name in ("class_of", "after", "accept")}
    out = io.BytesIO()
    np.savez(out, **tables)  # type: ignore[arg-type] # its stub takes any name for `allow_pickle`
    return out.getvalue()


class Cache:
    """Automata that were made before, by (constraint, vocabulary), the least recently used going first.

    Args:
        num_bytes: of all tables and constraints together; what is larger alone is not kept.
        child: whether automata are made in a child process.
    """

    def __init__(self, num_bytes: int = 1 << 28, *, budget: Budget | None = None, child: bool = False) -> None:
        self.num_bytes, self.budget = num_bytes, budget
        self._make = compile_in_child if child else compile_here
        self._kept: OrderedDict[tuple[Constraint, str], tuple[Automaton, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, asked: Constraint, vocabulary: Vocabulary) -> Automaton:
        """The automaton, made now if it is not kept; raises as `compile_here`."""
        if (kept := self.find(asked, vocabulary)) is not None:
            return kept
        found = self._make(asked, vocabulary, self.budget)
        self.keep(asked, vocabulary, found)
        return found

    def find(self, asked: Constraint, vocabulary: Vocabulary) -> Automaton | None:
        """The automaton, if it is kept."""
        key = (asked, vocabulary.fingerprint)
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def keep(self, asked: Constraint, vocabulary: Vocabulary, found: Automaton) -> None:
        """Remember an automaton, in place of those that were not asked for the longest."""
        with self._lock:
            self._kept[asked, vocabulary.fingerprint] = found, found.num_bytes + len(repr(asked))
            while sum(size for _, size in self._kept.values()) > self.num_bytes:
                self._kept.popitem(last=False)
