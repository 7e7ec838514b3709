"""Languages put together from parts: one after the other, one of several, again and again.

A part is a function that grows a net (an automaton that may be in several states at once) from one of its states and
returns where the part ends; `machine` makes a net deterministic. Parts of a schema follow each other by delimiters, so
nearly all sets of states have one member, and those go through numpy a row at a time.

Source: Rabin & Scott 1959 (subset construction).
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from unmask.constrain.automata.budget import Meter
from unmask.constrain.automata.machine import BYTES, DEAD, Machine, byte_classes, minimal

Part = Callable[["Net", int], int]
"""Grows a net from a state on; returns the state in which the part has been read."""


class Net:
    """States with at most one way per byte, and free ways between them."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._tables: list[np.ndarray] = []
        self._free: dict[int, list[int]] = {}
        self._size = 0

    def state(self) -> int:
        """A new state without ways."""
        return self._add(np.full((1, BYTES), DEAD, np.int32))

    def link(self, source: int, target: int) -> None:
        """A way from state to state that reads nothing."""
        self._free.setdefault(source, []).append(target)

    def insert(self, machine: Machine, at: int) -> int:
        """Let a machine be read from state `at` on; returns where it ends."""
        start = self._add(np.where(machine.table == DEAD, DEAD, machine.table + self._size).astype(np.int32))
        self.link(at, start)
        end = self.state()
        for state in np.flatnonzero(machine.accept):
            self.link(start + int(state), end)
        return end

    def _add(self, table: np.ndarray) -> int:
        at, self._size = self._size, self._size + len(table)
        self.meter.states(self._size // 4)  # most states of a net are gone once it is deterministic
        self._tables.append(table)
        return at

    def machine(self, start: int, end: int) -> Machine:
        """The strings that lead from `start` to `end`.

        Raises:
            OverBudget: too many sets of states.
        """
        full = np.concatenate(self._tables)
        class_of, one = byte_classes(full)
        table = np.ascontiguousarray(full[:, one])
        reads = (table != DEAD).any(1)
        sets: dict[tuple[int, ...], int] = {}
        members: list[tuple[int, ...]] = []
        number = np.full(len(table), DEAD, np.int64)  # of the set that a lone state stands for

        def known(some: Iterable[int]) -> int:
            closed = self._closure(some)
            kept = tuple(sorted(s for s in closed if reads[s] or s == end))
            if kept not in sets:
                sets[kept] = len(sets)
                members.append(kept)
            return sets[kept]

        def numbered(states: np.ndarray) -> np.ndarray:
            for state in np.unique(states[number[states] == DEAD]):
                number[state] = known([int(state)])
            return number[states]

        known([start])
        rows: list[np.ndarray] = []
        while len(rows) < len(members):
            if len(rows) % 64 == 0:
                self.meter.states(len(members))
            ways = table[list(members[len(rows)])]
            alive = ways != DEAD
            count = alive.sum(0)
            row = np.full(ways.shape[1], DEAD, np.int64)
            lone = count == 1
            if lone.any():
                row[lone] = numbered(ways.max(0)[lone])
            for column in np.flatnonzero(count > 1):
                row[column] = known(int(s) for s in ways[alive[:, column], column])
            rows.append(row)
        accept = np.array([end in some for some in members])
        return minimal(Machine(np.stack(rows)[:, class_of].astype(np.int32), accept), self.meter)

    def _closure(self, some: Iterable[int]) -> set[int]:
        found, todo = set[int](), list(some)
        while todo:
            state = todo.pop()
            if state not in found:
                found.add(state)
                todo += self._free.get(state, ())
        return found


def machine(part: Part, meter: Meter) -> Machine:
    """A part as a deterministic automaton, as small as it can be."""
    net = Net(meter)
    start = net.state()
    return net.machine(start, part(net, start))


def leaf(inner: Machine) -> Part:
    """A language that is an automaton already."""
    return lambda net, at: net.insert(inner, at)


def text(literal: str | bytes) -> Part:
    """The one string."""
    return leaf(Machine.literal(literal.encode() if isinstance(literal, str) else literal))


def seq(parts: Sequence[Part]) -> Part:
    """All, one after the other."""

    def grow(net: Net, at: int) -> int:
        for part in parts:
            at = part(net, at)
        return at

    return grow


def alt(parts: Sequence[Part]) -> Part:
    """One of several; none at all if there are none."""

    def grow(net: Net, at: int) -> int:
        end = net.state()
        for part in parts:
            net.link(part(net, at), end)
        return end

    return grow


def repeat(part: Part, low: int, high: int | None, separator: Part | None = None) -> Part:
    """A part `low` to `high` times (None: any number), with a separator between two."""
    following = part if separator is None else seq([separator, part])

    def grow(net: Net, at: int) -> int:
        end = net.state()
        if low == 0:
            net.link(at, end)
        count, most = 0, max(low - 1, 0) if high is None else high
        while count < most:
            at = (following if count else part)(net, at)
            count += 1
            if count >= low:
                net.link(at, end)
        if high is None:  # one more, which leads back to its own beginning
            again = net.state()
            net.link(at if count == 0 or separator is None else separator(net, at), again)
            last = part(net, again)
            net.link(last, end)
            net.link(last if separator is None else separator(net, last), again)
        return end

    return grow


def maybe(part: Part) -> Part:
    """A part or nothing."""
    return repeat(part, 0, 1)
