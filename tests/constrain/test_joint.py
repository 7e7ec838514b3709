"""What goes together, many rows side by side and in whatever way is fast, against the obvious way of `slow`."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow import OPEN, Slow
from test_holes import PATTERNS, ROWS
from worlds import MASK, TOKENS, automaton, beliefs

from unmask.base.step import State
from unmask.constrain.automata.regex import own
from unmask.constrain.holes import Holes, Span
from unmask.constrain.joint import grid, nats, reading, walk

WAYS = {
    "one table": (1 << 12, 3, 1e-280),
    "as it is": (0, 3, 1e-280),
    "all pairs": (0, 1 << 40, 1e-280),
    "some pairs": (0, 0, 1e-280),
    "too small": (0, 1 << 40, 1e300),
}
"""How ways are looked at: the most that go into one table, the share from which on all are, the least sum."""


PLACES, NAMES = (grid, walk, nats), ("MOST_WAYS", "DENSE", "TINY")


def rows_of(machine, rows, ends, least):
    """Holes of several rows of one automaton, and the spans that can be filled."""
    width, form = max(map(len, rows)) + 1, automaton(machine)
    tokens = torch.full((len(rows), width), MASK)
    state = torch.full((len(rows), width), int(State.FIXED), dtype=torch.uint8)
    held = Holes(TOKENS)
    for i, row in enumerate(rows):
        for at, token in enumerate(row, 1):
            tokens[i, at], state[i, at] = (MASK, State.OPEN) if token is None else (token, State.FIXED)
        held.enter(i, [Span(automaton=form, start=1, stop=1 + len(row), ends=ends, least=least)])
    held.update(tokens, state)
    some = [i for i in range(len(rows)) if bool(held.feasible(torch.tensor([i]))) and None in rows[i]]
    return held, form, some


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=60, deadline=None)
@given(
    PATTERNS,
    st.lists(ROWS, min_size=1, max_size=4),
    st.tuples(st.booleans(), st.integers(0, 3)),
    st.sampled_from([1.0, 400.0]),
    st.floats(0, 0.7),
    st.integers(0, 99),
)
def test_fast_is_slow(way, pattern, rows, rule, scale, cut, seed):
    (ends, least), machine = rule, own(pattern)
    held, form, some = rows_of(machine, rows, ends, least)
    cells = [(i, at) for i in some for at, token in enumerate(rows[i], 1) if token is None]
    random = np.random.default_rng(seed)
    cells = [cell for cell in cells if random.random() < 0.9]
    if not cells:
        return
    row, at = torch.tensor(cells).T
    log_p = (beliefs(len(cells), seed) * scale).log_softmax(-1)
    log_p[torch.from_numpy(random.random(log_p.shape) < cut)] = -torch.inf
    seeds, turn = row + 7, torch.full_like(row, seed)
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in zip(PLACES, NAMES, WAYS[way], strict=True):
            patch.setattr(module, name, value)
        filled, drawn = held.fill(row, at, log_p), held.sample(row, at, log_p, seeds, turn)
    for i in sorted({i for i, _ in cells}):
        here = row == i
        codes = [OPEN if token is None else int(form.class_of[token]) for token in rows[i]]
        span = Span(automaton=form, start=1, stop=1 + len(rows[i]), ends=ends, least=least)
        asked = span, codes, (at[here] - 1).tolist(), log_p[here].numpy()
        assert filled[here].tolist() == Slow(*asked).tokens()
        assert drawn[here].tolist() == Slow(*asked, keys=(seeds[here][0], turn[0])).tokens()


@settings(max_examples=60, deadline=None)
@given(PATTERNS, st.lists(ROWS, min_size=2, max_size=4), st.sampled_from([1.0, 0.3]), st.integers(0, 99))
def test_what_is_heard_in_parts_of_what_may_stand_is_heard_whole(pattern, rows, warm, seed):
    held, _, some = rows_of(own(pattern), rows, True, 0)
    cells = [(i, at) for i in some for at, token in enumerate(rows[i], 1) if token is None]
    if not cells:
        return
    row, at = torch.tensor(cells).T
    log_p = beliefs(len(cells), seed).masked_fill(~held.allow(row, at), -torch.inf)
    question, every = held.ask(row, at), np.ones(len(cells), bool)
    for part in np.array_split(np.random.default_rng(seed).permutation(len(cells)), 3):
        if len(part):
            question.hear(part, log_p[torch.from_numpy(part)], np.full(len(part), warm), best=np.ones(len(part), bool))
    assert question.fill(every).tolist() == held.fill(row, at, log_p).tolist()
    turn = torch.full_like(row, seed)
    expected = held.sample(row, at, log_p / warm, row, turn)
    assert question.sample(every, row, turn).tolist() == expected.tolist()
    told, left = question.nats(np.arange(len(cells)), expected.numpy())
    assert left.all()
    assert told == pytest.approx((log_p.gather(1, expected[:, None])[:, 0] - log_p.max(1).values).numpy())


@settings(max_examples=60, deadline=None)
@given(PATTERNS, st.lists(st.tuples(ROWS.filter(lambda row: len(row) == 4), st.integers(0, 3)), min_size=2, max_size=6))
def test_sets_that_wait_are_led_on_in_time(pattern, rows):
    form = automaton(own(pattern))
    span = Span(automaton=form, start=0, stop=4, ends=True, least=1)
    lazy = reading.Reading.of(span)
    for row, looked in rows:
        codes = np.array([OPEN if token is None else int(form.class_of[token]) for token in row])
        fresh = reading.Reading.of(span)
        for read in (lazy, fresh):
            read.update(codes)
        if looked % 2:
            assert lazy.feasible == fresh.feasible
        borders = np.array([looked, looked + 1])
        assert (lazy.before(borders) == fresh.before(borders)).all()
        assert (lazy.behind(borders) == fresh.behind(borders)).all()
    assert (lazy.before(np.arange(5)) == fresh.before(np.arange(5))).all()
    assert (lazy.behind(np.arange(5)) == fresh.behind(np.arange(5))).all()
