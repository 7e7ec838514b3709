"""Every error that a user or a request can cause, in one tree.

    UnmaskError
    |-- BadInput            a value that can't be used: a text, a span, a length, a file
    |   |-- UnknownName     a name that is not in a table (policy, decoder, model, option ...)
    |   |-- TooLong         more positions than the model can hold
    |   `-- OverBudget      a constraint that takes more to compile than it may
    |-- BadRecipe           a recipe or configuration file that does not say what it must
    |-- BadCheckpoint       a model or training folder that is missing, torn or of another kind
    |-- Unsupported         an option, schema or checkpoint that can't be honoured here
    |-- RequestFailed       a request that made a forward fail; others go on
    `-- TrainingFailed      a run that can't go on (non-finite loss, disk full ...)

A message says what was expected, what came, and what to do. The command line prints it on one line and exits with 2;
a server maps this tree to statuses in one table. `assert` is for what only this package can break.
"""

import difflib
from collections.abc import Iterable


class UnmaskError(Exception):
    """The root of the tree."""


class BadInput(UnmaskError, ValueError):
    """A value that can't be used."""


class UnknownName(BadInput):
    """A name that its table does not have."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(str(name), names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"no {kind} called {str(name)!r}; known: {', '.join(names) or 'none'}.{hint}")


class TooLong(BadInput):
    """More positions than the model can hold."""


class OverBudget(BadInput):
    """A constraint that takes more time, states or memory to compile than it may."""


class BadRecipe(UnmaskError, ValueError):
    """A recipe or configuration file that does not say what it must."""


class BadCheckpoint(UnmaskError):
    """A model or training folder that is missing, torn or of another kind."""


class Unsupported(UnmaskError):
    """Something that was asked for and can't be honoured; never ignored in silence."""


class RequestFailed(UnmaskError):
    """A request that made a forward fail, or whose numbers are none."""


class TrainingFailed(UnmaskError):
    """A training run that can't go on."""
