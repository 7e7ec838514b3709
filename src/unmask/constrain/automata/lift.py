"""From automata over bytes to automata over tokens, for every spelling at once.

A token is what its bytes do to every state: a column of next states. Columns are computed along the tree of the
vocabulary, once for each pair of (what the beginning does, next byte), so that fifty thousand tokens cost as much as
the few hundred unlike columns that they have. Tokens of one column are one class; nothing else ever counts tokens.

A text may be spelled in several ways and a character may be cut in two by tokens; as only bytes are read, all of that
is allowed wherever it can still be completed.
"""

import numpy as np

from unmask.constrain.automata.automaton import Automaton, Edges
from unmask.constrain.automata.budget import Meter
from unmask.constrain.automata.machine import DEAD, Machine, byte_classes
from unmask.constrain.automata.vocabulary import Vocabulary

NEVER, END = 0, 1
"""Classes of the tokens that are never possible, and of those that end a text."""
_CHUNK_WAYS = 1 << 21


def lift(machine: Machine, vocabulary: Vocabulary, meter: Meter) -> Automaton:
    """The automaton of a language over the tokens of a vocabulary.

    Raises:
        OverBudget: its tables are too large, or take too long.
    """
    kind = np.int16 if len(machine) < 2**15 - 2 else np.int32
    class_of_byte, one = byte_classes(machine.table)
    table = np.vstack([machine.table[:, one], np.full((1, len(one)), DEAD)]).astype(kind)  # DEAD finds the last row
    columns = [np.arange(len(machine), dtype=kind)]
    known = {columns[0].tobytes(): 0}
    does = np.zeros(1, np.int64)  # what the nodes of a level do: a number into `columns`, or DEAD
    class_of = np.full(len(vocabulary), NEVER, np.int64)
    for parent, byte, token, node in vocabulary.levels:
        before = does[parent]
        pairs, which = np.unique(before * len(one) + class_of_byte[byte], return_inverse=True)
        here = np.full(len(pairs), DEAD)
        for at in np.flatnonzero(pairs >= 0):
            column = table[columns[pairs[at] // len(one)], pairs[at] % len(one)]
            content = column.tobytes()
            if content not in known and bool((column != DEAD).any()):
                if len(columns) % 64 == 0:
                    meter.memory(len(columns) * column.nbytes)
                    meter.states(0)
                known[content] = len(columns)
                columns.append(column)
            here[at] = known.get(content, DEAD)
        does = here[which.reshape(-1)]
        class_of[token] = np.where(does[node] == DEAD, NEVER, does[node] + 2)
    class_of[list(vocabulary.ends)] = END
    used, class_of = np.unique(np.concatenate([[NEVER, END], class_of]), return_inverse=True)
    size, count = len(machine), len(used)
    meter.memory(count * size * columns[0].itemsize)
    after = np.full((count, size + 1), DEAD, kind)
    for row, number in enumerate(used[2:] - 2, 2):
        after[row, :size] = columns[number]
    after[END] = np.append(np.where(machine.accept, size, DEAD), size)
    return Automaton(
        class_of=class_of[2:].astype(np.int32),
        after=after,
        accept=np.append(machine.accept, True),
        edges=_edges(after[2:, :size], meter),
    )


def _edges(after: np.ndarray, meter: Meter) -> Edges:
    """Pairs of states with the classes (C, S) that lead from the one to the other, pairs of equal classes together."""
    count, size = after.shape
    random = np.random.default_rng(0).integers(1, 2**63, (2, max(count, 1)), np.int64)
    sources, targets, prints, sets = [], [], [], []
    step = max(1, _CHUNK_WAYS // max(count, 1))
    for first in range(0, size, step):
        meter.states(0)
        part = after[:, first : first + step].T
        s, c = np.nonzero(part != DEAD)
        key = s * size + part[s, c]
        order = np.argsort(key, kind="stable")
        key, c = key[order], c[order]
        if not len(key):
            continue
        begins = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
        sources.append(key[begins] // size + first)
        targets.append(key[begins] % size)
        # two sets of classes are taken for equal when both 64-bit sums over them are
        prints.append(np.stack([np.add.reduceat(numbers[c], begins) for numbers in random]))
        ends = np.append(begins[1:], len(key))
        _, new = np.unique(prints[-1], axis=1, return_index=True)
        sets += [(prints[-1][:, i].tobytes(), c[begins[i] : ends[i]]) for i in new]
    if not sources:
        nothing = np.zeros(0, np.int64)
        return Edges.of(nothing, nothing, nothing, [], size)
    _, first_at, label = np.unique(np.concatenate(prints, axis=1), axis=1, return_index=True, return_inverse=True)
    classes = dict(sets)
    whole = np.concatenate(prints, axis=1)
    members = [classes[whole[:, i].tobytes()] + 2 for i in first_at]
    return Edges.of(np.concatenate(sources), np.concatenate(targets), label.reshape(-1), members, size)
