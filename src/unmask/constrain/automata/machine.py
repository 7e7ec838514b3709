"""Deterministic automata over bytes, as tables: what a constraint is before it meets a vocabulary.

Regexes become tables elsewhere (outlines-core); here tables are cut, joined by intersection and difference, and made
small. It does not know regexes, schemas or tokens.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from unmask.constrain.automata.budget import Meter

DEAD = -1
"""No state: the bytes so far begin no string of the language."""
BYTES = 256


@dataclass(frozen=True, slots=True, eq=False)
class Machine:
    """A language of byte strings; state 0 is the start.

    Args:
        table: (S, 256) int32, the next state per byte, or DEAD.
        accept: (S,) bool, whether a string may end here.
    """

    table: np.ndarray
    accept: np.ndarray

    @classmethod
    def literal(cls, text: bytes) -> Self:
        """The one string."""
        table = np.full((len(text) + 1, BYTES), DEAD, np.int32)
        table[np.arange(len(text)), np.frombuffer(text, np.uint8)] = np.arange(1, len(text) + 1)
        return cls(table, np.arange(len(text) + 1) == len(text))

    @property
    def empty(self) -> bool:
        """Whether there is no string at all; of a trimmed machine."""
        return not bool(self.accept.any())

    def __len__(self) -> int:
        return len(self.table)

    def accepts(self, text: bytes) -> bool:
        """Whether a string belongs to the language."""
        state = 0
        for byte in text:
            state = int(self.table[state, byte])
            if state == DEAD:
                return False
        return bool(self.accept[state])


def byte_classes(*tables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bytes that no state tells apart: class of each byte (256,), and one byte of each class (K,)."""
    seen: dict[tuple[bytes, ...], int] = {}
    class_of = np.empty(BYTES, np.int64)
    for byte in range(BYTES):
        column = tuple(np.ascontiguousarray(table[:, byte]).tobytes() for table in tables)
        class_of[byte] = seen.setdefault(column, len(seen))
    _, first = np.unique(class_of, return_index=True)
    return class_of, first


def trim(machine: Machine, meter: Meter) -> Machine:
    """Without the states that are on no way from the start to an end."""
    class_of, one = byte_classes(machine.table)
    table = machine.table[:, one]
    useful = (reached(table, meter) >= 0) & (to_accept(table, machine.accept, meter) >= 0)
    if not useful[0]:
        return Machine(np.full((1, BYTES), DEAD, np.int32), np.zeros(1, bool))
    number = np.where(useful, np.cumsum(useful) - 1, DEAD).astype(np.int32)
    small = np.append(number, DEAD)[table[useful]]
    return Machine(np.ascontiguousarray(small[:, class_of].astype(np.int32)), machine.accept[useful])


def reached(table: np.ndarray, meter: Meter) -> np.ndarray:
    """(S,) steps from the start to each state of a table (S, K); -1 where there is no way."""
    found = np.full(len(table), -1)
    found[0] = 0
    front, steps = np.zeros(1, np.int64), 0
    while len(front):
        steps += 1
        after = table[front]
        after = np.unique(after[after != DEAD])
        front = after[found[after] < 0]
        found[front] = steps
        if steps % 256 == 0:
            meter.states(0)
    return found


def to_accept(table: np.ndarray, accept: np.ndarray, meter: Meter) -> np.ndarray:
    """(S,) steps from each state of a table (S, K) to the nearest end; -1 where there is no way."""
    src, column = np.nonzero(table != DEAD)
    dst = table[src, column]
    order = np.argsort(dst, kind="stable")
    src, first = src[order], np.searchsorted(dst[order], np.arange(len(table) + 1))
    found = np.where(accept, 0, -1)
    front, steps = np.flatnonzero(accept), 0
    while len(front):
        steps += 1
        before = np.unique(src[ragged(first[front], first[front + 1])])
        front = before[found[before] < 0]
        found[front] = steps
        if steps % 256 == 0:
            meter.states(0)
    return found


def ragged(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The ranges first[i] .. last[i] (exclusive), one after the other."""
    counts = last - first
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(first - ends + counts, counts)


def minimal(machine: Machine, meter: Meter, *, rounds: int = 200) -> Machine:
    """The same language in as few states as there can be, trimmed.

    States are told apart by their distance to an end first, which alone separates long chains; then by where their
    bytes lead, until nothing changes (Moore 1956). What takes more than `rounds` stays larger than it could be.
    """
    machine = trim(machine, meter)
    class_of, one = byte_classes(machine.table)
    table = machine.table[:, one]
    group = np.unique(to_accept(table, machine.accept, meter), return_inverse=True)[1].reshape(-1)
    count = int(group.max()) + 1
    numbers = np.random.default_rng(0).integers(1, 2**63, table.shape[1] + 1, np.int64)
    for _ in range(rounds):
        meter.states(count)
        known = np.append(group, count)  # DEAD, which is -1, finds the last
        prints = (known[table] * numbers[1:]).sum(1) + group * numbers[0]
        finer = np.unique(prints, return_inverse=True)[1].reshape(-1)
        if int(finer.max()) + 1 == count:
            break
        group, count = finer, int(finer.max()) + 1
    else:
        return machine
    one_of = np.unique(group, return_index=True)[1][group]
    known = np.append(group, count)
    if (
        count == len(machine) or not (known[table] == known[table[one_of]]).all()
    ):  # two prints of unlike rows were equal
        return machine
    # the start stays first
    group = np.where(group == group[0], 0, np.where(group < group[0], group + 1, group))
    _, member = np.unique(group, return_index=True)
    small = np.append(group, DEAD)[table[member]].astype(np.int32)
    return Machine(np.ascontiguousarray(small[:, class_of]), machine.accept[member])


def both(left: Machine, right: Machine, meter: Meter) -> Machine:
    """Strings of both languages."""
    return _product(left, right, meter, minus=False)


def without(left: Machine, right: Machine, meter: Meter) -> Machine:
    """Strings of the left language that are none of the right one."""
    return _product(left, right, meter, minus=True)


def _product(left: Machine, right: Machine, meter: Meter, *, minus: bool) -> Machine:
    """Both run side by side; with `minus` a right one that is dead lives on as a state of its own."""
    class_of, one = byte_classes(left.table, right.table)
    a, b = left.table[:, one].astype(np.int64), right.table[:, one].astype(np.int64)
    ends = right.accept
    if minus:
        sink = len(b)
        b = np.where(np.vstack([b, np.full((1, b.shape[1]), DEAD)]) == DEAD, sink, np.vstack([b, b[:1]]))
        b[sink] = sink
        ends = ~np.append(ends, False)
    width = len(b)
    keys, numbers = np.zeros(1, np.int64), np.zeros(1, np.int64)  # known pairs, sorted, and their numbers
    pairs, rows, front = [np.zeros(1, np.int64)], [], np.zeros(1, np.int64)
    while len(front):
        x, y = a[front // width], b[front % width]
        after = np.where((x == DEAD) | (y == DEAD), DEAD, x * width + y)
        rows.append(after)
        new = np.setdiff1d(after, keys)
        front = new[new != DEAD]
        if len(front):
            meter.states(len(keys) + len(front))
            at = np.searchsorted(keys, front)
            numbers = np.insert(numbers, at, np.arange(len(keys), len(keys) + len(front)))
            keys = np.insert(keys, at, front)
            pairs.append(front)
    after, pair = np.concatenate(rows), np.concatenate(pairs)
    table = np.where(after == DEAD, DEAD, numbers[np.searchsorted(keys, np.maximum(after, 0))])
    accept = left.accept[pair // width] & ends[pair % width]
    return trim(Machine(table[:, class_of].astype(np.int32), accept), meter)
