"""What goes together, the obvious way: state by state and class by class, in logarithms, one span at a time."""

import numpy as np
import torch

from unmask.base import seeds
from unmask.constrain.automata.automaton import END, NEVER
from unmask.constrain.automata.machine import DEAD

FLOOR, OPEN = -1e9, -1


def log_sum(nats):
    best = max(nats, default=-np.inf)
    return best if best == -np.inf else best + np.log(sum(np.exp(x - best) for x in nats))


def drawn(nats, coin):
    nats = np.array(nats)
    mass = np.exp(nats - nats.max()).cumsum()
    return int(min((mass <= coin * mass[-1]).sum(), np.flatnonzero(nats > -np.inf)[-1]))


class Slow:
    """A span of one row, and some of its open positions."""

    def __init__(self, span, codes, offsets, log_probs, keys=None):
        self.automaton, self.span, self.codes, self.keys = span.automaton, span, list(codes), keys
        self.offsets, self.log_probs = [int(at) for at in offsets], np.asarray(log_probs, np.float64)
        for at in self.offsets:
            self.codes[at] = OPEN
        self.states = range(self.automaton.size)
        self.last = self.automaton.size - 1
        self.rows = {at: n for n, at in enumerate(self.offsets)}
        join = max if keys is None else log_sum
        self.join = lambda nats: join(list(nats))
        kinds = [self.automaton.class_of == c for c in range(self.automaton.num_classes)]
        self.scores = [
            [max(FLOOR, self.join(row[own])) if own.any() else -np.inf for own in kinds] for row in self.log_probs
        ]

    def coin(self, purpose, at):
        seed, turn = self.keys
        return float(seeds.uniform(seeds.key(seed, purpose, turn, torch.tensor(self.span.start + at))))

    def choose(self, nats, purpose, at):
        return int(np.argmax(nats)) if self.keys is None else drawn(nats, self.coin(purpose, at))

    def steps(self, state, at):
        """Where classes lead from a state at an offset: {class: state}."""
        may_end = self.span.ends and at >= self.span.least
        code = self.codes[at]
        found = {}
        for c in range(self.automaton.num_classes) if code == OPEN else [code]:
            target = int(self.automaton.after[c][state])
            if target != DEAD and c != NEVER and (c != END or may_end or state == self.last):
                found[c] = target
        return found

    def tokens(self):
        """(N,) the best that go together, or drawn."""
        width, first, last = len(self.codes), self.offsets[0], self.offsets[-1] + 1
        good = [{s for s in self.states if self.automaton.accept[s] and (s != self.last or self.span.ends)}]
        for at in range(width - 1, -1, -1):
            good.insert(0, {s for s in self.states if set(self.steps(s, at).values()) & good[0]})
        before = {0}
        for at in range(first):
            before = {target for s in before for target in self.steps(s, at).values()}
        worth = [dict.fromkeys(before & good[first], 0.0)]
        ways = []
        for at in range(first, last):
            ways.append({})
            for s in sorted(worth[-1]):
                for c, target in self.steps(s, at).items():
                    if target in good[at + 1]:
                        ways[-1].setdefault(target, {}).setdefault(s, []).append(c)
            gained = {t: self.gains(at, t, some, worth[-1]) for t, some in ways[-1].items()}
            worth.append({t: self.join(nats) for t, nats in gained.items()})
        ends = sorted(worth[-1])
        state = ends[self.choose([worth[-1][s] for s in ends], "joint state", last)]
        out = [0] * len(self.offsets)
        for at in range(last - 1, first - 1, -1):
            some = ways[at - first][state]
            source = sorted(some)[self.choose(self.gains(at, state, some, worth[at - first]), "joint state", at)]
            if at in self.rows:
                out[self.rows[at]] = self.token(at, some[source])
            state = source
        return out

    def gains(self, at, target, some, worth):
        """What each source is worth with all classes that lead from it to a target."""
        nats = []
        for s in sorted(some):
            row = self.scores[self.rows[at]] if at in self.rows else None
            nats.append(worth[s] + (self.join(row[c] for c in some[s]) if row is not None else 0.0))
        return nats

    def token(self, at, classes):
        row = self.rows[at]
        nats = [self.scores[row][c] if c in classes else -np.inf for c in range(self.automaton.num_classes)]
        kind = self.choose(nats, "joint class", at)
        tokens = np.flatnonzero(self.automaton.class_of == kind)
        own = self.log_probs[row][tokens]
        if own.max() == -np.inf:
            return int(tokens[0])
        return int(tokens[self.choose(own, "joint token", at)])
