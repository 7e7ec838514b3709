"""Constraints become automata beside the loop and the engine: in processes that end with whoever waits for them.

A constraint is made once for all who wait for it, and kept while there is room. A compilation that takes more than its
budget is refused, and ends when the last one who waited has gone. It does not know what constraints are of.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from unmask.base.errors import UnmaskError
from unmask.constrain.automata.automaton import Automaton
from unmask.constrain.automata.budget import Budget
from unmask.constrain.automata.vocabulary import Vocabulary
from unmask.constrain.compile import Cache, Child
from unmask.constrain.spec import Constraint
from unmask.serve.errors import Refused
from unmask.serve.limits import Limits
from unmask.serve.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Ready:
    """The automata of a request, made before they are asked for."""

    automata: Mapping[Constraint, Automaton]

    def get(self, asked: Constraint, vocabulary: Vocabulary) -> Automaton:
        """One of them."""
        return self.automata[asked]


@dataclass(slots=True, eq=False)
class _Making:
    """A compilation, and how many wait for it."""

    task: asyncio.Task[Automaton]
    num_waiting: int = 0


class Compiler:
    """Makes and keeps automata; all of it is called in one loop.

    Args:
        limits: of a compilation, of those at the same time, and of what is kept.
        metrics: told how each ended.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._budget = Budget(time_s=limits.compile_s, states=limits.states, num_bytes=limits.compile_bytes)
        self._kept = Cache(limits.automata_bytes)
        self._making: dict[tuple[Constraint, str], _Making] = {}
        self._places = asyncio.Semaphore(limits.compilers)
        self._threads = ThreadPoolExecutor(limits.compilers, thread_name_prefix="compile")

    @property
    def num_open(self) -> int:
        """Constraints that are being made, or wait for a place."""
        return len(self._making)

    async def get(self, asked: Constraint, vocabulary: Vocabulary) -> Automaton:
        """The automaton of a constraint; being cancelled lets it go.

        Raises:
            BadInput, Unsupported, OverBudget: as `unmask.constrain.compile.compile_here`.
            Refused: too many wait already.
        """
        if (found := self._kept.find(asked, vocabulary)) is not None:
            self._metrics.compiled("kept")
            return found
        key = asked, vocabulary.fingerprint
        if (making := self._making.get(key)) is None:
            if len(self._making) >= self._limits.queue:
                raise Refused("queue_full", "many constraints are being compiled; come again in a moment")
            making = self._making[key] = _Making(asyncio.ensure_future(self._make(asked, vocabulary)))
        making.num_waiting += 1
        try:
            return await asyncio.shield(making.task)
        finally:
            making.num_waiting -= 1
            if (making.task.done() or not making.num_waiting) and self._making.get(key) is making:
                del self._making[key]  # who comes now finds it kept, or begins anew
            if not making.num_waiting:
                making.task.cancel()

    async def _make(self, asked: Constraint, vocabulary: Vocabulary) -> Automaton:
        end = "dropped"
        try:
            async with self._places:
                child = Child()
                loop = asyncio.get_running_loop()
                made = loop.run_in_executor(self._threads, child.compile, asked, vocabulary, self._budget)
                try:
                    found = await made
                finally:
                    child.end()
            self._kept.keep(asked, vocabulary, found)
            end = "made"
            return found
        except UnmaskError:
            end = "refused"
            raise
        finally:
            self._metrics.compiled(end)
