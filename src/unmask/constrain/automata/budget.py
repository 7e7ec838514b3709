"""What compiling a constraint may take, and the meter that holds it to that.

A regex of twenty letters can ask for more states than there is memory, so everything that grows asks the meter first.
"""

import time
from dataclasses import dataclass

from unmask.base.errors import OverBudget

SLOWEST = 4
"""Seconds on the clock that a child may take for one of processor time: machines are shared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bounds of one compilation.

    Args:
        time_s: of processor time; children are given `SLOWEST` times as long on the clock.
        states: of any automaton on the way, over bytes or tokens.
        num_bytes: of tables, and of address space beyond what a child starts with.
    """

    time_s: float = 20.0
    states: int = 20_000
    num_bytes: int = 1 << 30


class Meter:
    """A budget that runs."""

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()
        self._until = time.thread_time() + self.budget.time_s

    @property
    def left_s(self) -> float:
        """Seconds that are left.

        Raises:
            OverBudget: none are.
        """
        left = self._until - time.thread_time()
        if left <= 0:
            raise OverBudget(
                f"the constraint takes more than {self.budget.time_s:g} s to compile (budget: time_s); make it simpler "
                "or raise the budget"
            )
        return left

    def spend(self, time_s: float) -> None:
        """Note processor time that a child took."""
        self._until -= time_s

    def states(self, count: int) -> None:
        """Note that an automaton has this many states by now, and that time has passed.

        Raises:
            OverBudget: that is too many, or too long.
        """
        if count > self.budget.states:
            raise OverBudget(
                f"the constraint needs more than {self.budget.states} states (budget: states); shorten its repetitions "
                "(maxLength, maxItems, {m,n}), lower its depth, or raise the budget"
            )
        _ = self.left_s

    def memory(self, num_bytes: int) -> None:
        """Note that a table of this size is about to be made.

        Raises:
            OverBudget: that is too large.
        """
        if num_bytes > self.budget.num_bytes:
            raise OverBudget(
                f"the constraint needs a table of {num_bytes >> 20} MiB, more than {self.budget.num_bytes >> 20} MiB "
                "(budget: num_bytes); make it simpler or raise the budget"
            )
