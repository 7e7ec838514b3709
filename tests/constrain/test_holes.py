import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import END, MASK, MOST, TOKENS, asked, automaton, beliefs, canvas, fillings, fits, holes

from unmask.base.errors import BadInput
from unmask.base.step import State
from unmask.constrain.automata.budget import Meter
from unmask.constrain.automata.regex import own
from unmask.constrain.holes import Holes, Span

PATTERNS = st.recursive(
    st.sampled_from(["a", "b", "é", "ab", "[ab]", "."]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda x: f"(?:{x[0]}|{x[1]})"),
        inner.map(lambda x: f"(?:{x})*"),
        inner.map(lambda x: f"(?:{x})?"),
        inner.map(lambda x: f"(?:{x}){{1,3}}"),
    ),
    max_leaves=5,
)
ROWS = st.lists(st.one_of(st.none(), st.none(), st.sampled_from(range(len(TOKENS)))), min_size=1, max_size=MOST)
RULES = st.tuples(st.booleans(), st.integers(0, 3))
EXAMPLES = settings(max_examples=120, deadline=None)


@EXAMPLES
@given(PATTERNS, ROWS, RULES)
def test_allow_is_what_enumeration_finds(pattern, row, rule):
    machine, (ends, least) = own(pattern), rule
    held = holes(machine, row, ends=ends, least=least)
    every = fillings(machine, row, ends=ends, least=least)
    assert bool(held.feasible(torch.tensor([0]))) == bool(every)
    if not every:
        assert "fits" in held.why(0, canvas(row)[0][0]) or "position" in held.why(0, canvas(row)[0][0])
    at = torch.arange(1, len(row) + 1)
    mask = held.allow(torch.zeros_like(at), at)
    for i in range(len(row)):  # of a position that is written, too: what could stand there instead
        free = [None if j == i else token for j, token in enumerate(row)]
        expected = {full[i] for full in fillings(machine, free, ends=ends, least=least)}
        assert set(mask[i].nonzero()[:, 0].tolist()) == expected


@EXAMPLES
@given(PATTERNS, st.lists(ROWS.filter(lambda row: len(row) == MOST), min_size=2, max_size=5), RULES)
def test_updates_come_to_what_a_fresh_look_finds(pattern, rows, rule):
    machine, (ends, least) = own(pattern), rule
    held = holes(machine, rows[0], ends=ends, least=least)
    at = torch.arange(1, MOST + 1)
    for row in rows[1:]:
        held.update(*canvas(row))
        fresh = holes(machine, row, ends=ends, least=least)
        assert torch.equal(held.allow(torch.zeros_like(at), at), fresh.allow(torch.zeros_like(at), at))
        assert torch.equal(held.feasible(torch.tensor([0])), fresh.feasible(torch.tensor([0])))


@EXAMPLES
@given(PATTERNS, ROWS, RULES, st.integers(0, 9))
def test_joint_fill_is_the_best_of_all(pattern, row, rule, seed):
    machine, (ends, least) = own(pattern), rule
    every = fillings(machine, row, ends=ends, least=least)
    rows, at = asked(row)
    if not every or not len(at):
        return
    log_p = beliefs(len(at), seed)
    found = holes(machine, row, ends=ends, least=least).fill(rows, at, log_p)
    worth = {full: sum(log_p[n, full[i - 1]].item() for n, i in enumerate(at.tolist())) for full in every}
    full = list(row)
    for i, token in zip(at.tolist(), found.tolist(), strict=True):
        full[i - 1] = token
    assert worth[tuple(full)] == pytest.approx(max(worth.values()))


@EXAMPLES
@given(PATTERNS, ROWS, RULES, st.integers(0, 9), st.data())
def test_a_joint_fill_of_some_positions_leaves_the_others_possible(pattern, row, rule, seed, data):
    machine, (ends, least) = own(pattern), rule
    every = fillings(machine, row, ends=ends, least=least)
    rows, at = asked(row)
    if not every or not len(at):
        return
    some = torch.tensor(sorted(data.draw(st.sets(st.sampled_from(range(len(at))), min_size=1))))
    log_p = beliefs(len(at), seed)[some]
    held = holes(machine, row, ends=ends, least=least)
    zero = torch.zeros(len(some), dtype=torch.int64)
    for found in (held.fill(rows[some], at[some], log_p), held.sample(rows[some], at[some], log_p, zero, zero)):
        then = list(row)
        for i, token in zip(at[some].tolist(), found.tolist(), strict=True):
            then[i - 1] = token
        assert fillings(machine, then, ends=ends, least=least)
    worth = max(sum(log_p[n, full[i - 1]].item() for n, i in enumerate(at[some].tolist())) for full in every)
    best = held.fill(rows[some], at[some], log_p)
    assert log_p.gather(1, best[:, None]).sum().item() == pytest.approx(worth)


@pytest.mark.parametrize(
    ("pattern", "row", "ends", "least"),
    [
        ("[ab]*", [None, None, None], False, 0),
        ("(?:ab)*|b*", [None, None, None], True, 0),
        ("(?:a|b|é)*a", [None, 4, None, None], True, 2),
        ("a*b?", [None, None, None, None], True, 1),
    ],
)
def test_joint_samples_have_the_probabilities_that_they_should(pattern, row, ends, least):
    machine = own(pattern)
    every = fillings(machine, row, ends=ends, least=least)
    rows, at = asked(row)
    log_p = beliefs(len(at), 3)
    weight = np.array([np.exp(sum(log_p[n, full[i - 1]].item() for n, i in enumerate(at.tolist()))) for full in every])
    chance = weight / weight.sum()
    held, draws = holes(machine, row, ends=ends, least=least), 600
    count = dict.fromkeys(every, 0)
    for seed in range(draws):
        found = held.sample(rows, at, log_p, torch.full_like(at, seed), torch.zeros_like(at))
        full = list(row)
        for i, token in zip(at.tolist(), found.tolist(), strict=True):
            full[i - 1] = token
        count[tuple(full)] += 1
    seen = np.array([count[full] for full in every])
    often = chance * draws >= 5
    seen, expected = np.append(seen[often], seen[~often].sum()), np.append(chance[often], chance[~often].sum()) * draws
    chi2 = ((seen - expected) ** 2 / np.maximum(expected, 1e-9))[expected > 0].sum()
    freedom = max((expected > 0).sum() - 1, 1)
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom) + 4  # beyond four standard deviations
    again = held.sample(rows, at, log_p, torch.full_like(at, 7), torch.zeros_like(at))
    assert torch.equal(again, held.sample(rows, at, log_p, torch.full_like(at, 7), torch.zeros_like(at)))


@EXAMPLES
@given(PATTERNS, ROWS, RULES, st.integers(0, 15))
def test_repair_opens_as_few_as_there_can_be(pattern, row, rule, pinned):
    machine, (ends, least) = own(pattern), rule
    tokens, state = canvas(row, State.DONE)
    for i in range(len(row)):
        if pinned >> i & 1 and row[i] is not None:
            state[0, i + 1] = State.FIXED
    free = [None if s != State.FIXED else token for token, s in zip(row, state[0, 1:].tolist(), strict=True)]
    held = holes(machine, row, ends=ends, least=least)
    every = fillings(machine, free, ends=ends, least=least)
    if not every:
        with pytest.raises(BadInput, match=r"position|fits"):
            held.repair(tokens, state)
        return
    opened = held.repair(tokens, state)
    assert not bool((opened & (state != State.DONE)).any())
    then = [None if o else token for o, token in zip(opened[0, 1:].tolist(), row, strict=True)]
    assert fillings(machine, then, ends=ends, least=least)
    written = [i for i, s in enumerate(state[0, 1:].tolist()) if s == State.DONE]
    fewest = min(sum(full[i] != row[i] for i in written) for full in every)
    assert int(opened.sum()) == fewest


def test_repair_prefers_what_is_doubted():
    machine = own("aa|bb")
    row = [2, 3]
    tokens, state = canvas(row, State.DONE)
    held = holes(machine, row, ends=False, least=0)
    for doubt, opened in (([0, 0.9, 0.1], 1), ([0, 0.1, 0.9], 2)):
        assert held.repair(tokens, state, torch.tensor([doubt])).nonzero().tolist() == [[0, opened]]


def test_free_rows_and_free_positions_are_left_alone():
    held = Holes(TOKENS)
    held.enter(1, [Span(automaton=automaton(own("aa")), start=1, stop=2)])
    held.update(torch.zeros(3, 4, dtype=torch.int64), torch.full((3, 4), int(State.OPEN), dtype=torch.uint8))
    rows, at = torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 1, 1])
    mask = held.allow(rows, at)
    assert mask[[0, 1, 3]].all()
    assert mask[2].nonzero().tolist() == [[6]]
    log_p = beliefs(4, 0)
    assert held.fill(rows, at, log_p).tolist() == [*log_p.argmax(-1)[:2].tolist(), 6, int(log_p[3].argmax())]
    held.leave(1)
    assert held.allow(rows, at).all()


def test_rows_of_unlike_constraints_do_not_touch_each_other():
    held = Holes(TOKENS)
    held.enter(
        0, [Span(automaton=automaton(own("a*")), start=0, stop=3), Span(automaton=automaton(own("b")), start=3, stop=4)]
    )
    held.enter(1, [Span(automaton=automaton(own("(?:ab)*")), start=1, stop=3, ends=True)])
    held.update(torch.zeros(2, 4, dtype=torch.int64), torch.full((2, 4), int(State.OPEN), dtype=torch.uint8))
    rows, at = torch.tensor([1, 0, 0, 1]), torch.tensor([1, 2, 3, 2])
    words = [{TOKENS[t] for t in row.nonzero()[:, 0].tolist()} for row in held.allow(rows, at)]
    assert words == [{b"", b"a", b"ab"}, {b"a", b"aa"}, {b"b"}, {b"", b"b", b"ab"}]


def test_what_is_absent_behind_an_end_is_no_contradiction():
    held = holes(own("a*"), [2, END, MASK, MASK], ends=True, least=0)
    tokens, state = canvas([2, END, MASK, MASK])
    state[0, 3:] = State.ABSENT
    held.update(tokens, state)
    assert bool(held.feasible(torch.tensor([0])))


def test_reasons_name_the_length_or_the_pin():
    held = holes(own("aaaaaaaaa"), [None, None], ends=True, least=0)
    assert "5 tokens, and there is room for 2" in held.why(0, canvas([None, None])[0][0])
    row = [None, 3, None]
    held = holes(own("a*"), row, ends=True, least=0)
    assert "token 3 (b'b') at position 2" in held.why(0, canvas(row)[0][0])


def test_zero_probability_is_no_excuse():
    held = holes(own("ab"), [None, None], ends=True, least=0)
    log_p = torch.full((2, len(TOKENS)), -torch.inf).double()
    log_p[:, 6] = 0.0
    rows, at = asked([None, None])
    zero = torch.zeros(2, dtype=torch.int64)
    for found in (held.fill(rows, at, log_p), held.sample(rows, at, log_p, zero, zero)):
        assert fits(own("ab"), tuple(found.tolist()), ends=True, least=0)


def test_overlapping_spans_are_refused():
    a = automaton(own("a"))
    with pytest.raises(BadInput, match="overlap"):
        Holes(TOKENS).enter(0, [Span(automaton=a, start=0, stop=2), Span(automaton=a, start=1, stop=3)])
    assert Meter().left_s > 0


def test_a_row_without_spans_is_free():
    found = Holes(TOKENS)
    found.enter(0, [Span(automaton=automaton(own("a")), start=0, stop=1)])
    assert found.covers(torch.tensor([0, 0]), torch.tensor([0, 1])).tolist() == [True, False]
    found.enter(0, [])
    assert not found.rows
    assert bool(found.allow(torch.tensor([0]), torch.tensor([0])).all())
