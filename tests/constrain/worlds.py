"""Small worlds in which every filling can be listed: the yardstick of all that is asked of a span."""

from itertools import product

import numpy as np
import torch

from unmask.base.step import State
from unmask.constrain.automata.budget import Meter
from unmask.constrain.automata.lift import lift
from unmask.constrain.automata.machine import Machine
from unmask.constrain.automata.vocabulary import Vocabulary
from unmask.constrain.holes import Holes, Span

TOKENS = [b"", b"", b"a", b"b", b"ab", b"ba", b"aa", b"\xc3", b"\xa9", b"a\xc3"]
MASK, END = 0, 1
VOCABULARY = Vocabulary(TOKENS, ends=[END])
MOST = 4
"""Positions of a row at most."""


def automaton(machine: Machine):
    return lift(machine, VOCABULARY, Meter())


def fits(machine: Machine, row: tuple[int, ...], *, ends: bool, least: int) -> bool:
    """Whether a row of tokens is what a span asks for, by its definition."""
    cut = row.index(END) if END in row else len(row)
    tail = set(row[cut:])
    if tail - {END} or (tail and not ends) or (tail and cut < least) or MASK in row[:cut]:
        return False
    return machine.accepts(b"".join(TOKENS[t] for t in row[:cut]))


def fillings(machine: Machine, row: list[int | None], *, ends: bool, least: int) -> list[tuple[int, ...]]:
    """Every filling of the open positions (None) of a row that fits."""
    choices = [range(len(TOKENS)) if token is None else [token] for token in row]
    return [full for full in product(*choices) if fits(machine, full, ends=ends, least=least)]


def holes(machine: Machine, row: list[int | None], *, ends: bool, least: int, state: int = State.FIXED):
    """The constraint of one row, behind one position that it does not cover."""
    found = Holes(TOKENS)
    found.enter(0, [Span(automaton=automaton(machine), start=1, stop=1 + len(row), ends=ends, least=least)])
    found.update(*canvas(row, state))
    return found


def canvas(row: list[int | None], state: int = State.FIXED):
    tokens = torch.tensor([[MASK, *(MASK if token is None else token for token in row)]])
    states = [State.FIXED, *(State.OPEN if token is None else state for token in row)]
    return tokens, torch.tensor([[int(s) for s in states]], dtype=torch.uint8)


def asked(row: list[int | None]):
    at = torch.tensor([i + 1 for i, token in enumerate(row) if token is None], dtype=torch.int64)
    return torch.zeros_like(at), at


def beliefs(count: int, seed: int) -> torch.Tensor:
    numbers = np.random.default_rng(seed).normal(size=(count, len(TOKENS))) * 2
    return torch.from_numpy(numbers).log_softmax(-1)
