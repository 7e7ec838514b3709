"""What top-k and top-p keep, against a sort of all tokens and sums of Python's whole numbers."""

from fractions import Fraction
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.decode import nucleus

ALL = 1.0
KNOBS = [(0, 0.3), (0, 0.9), (0, 1 - 1e-9), (7, ALL), (700, ALL), (700, 0.8), (70, 0.999), (0, 1e-6), (10**6, 0.5)]


def columns(knobs):
    top_k, top_p = torch.tensor(knobs, dtype=torch.float64).T[:, :, None]
    return top_k, top_p


def reference(logits, top_k, top_p):
    """The ids that are kept of logits (V,), by rising id."""
    weights = (logits - logits.max()).exp()
    shares = (weights / nucleus.row_sum(weights[None])).tolist()
    order = sorted(range(len(logits)), key=lambda i: (-float(logits[i]), i))
    units = [int(shares[i] * 2**62) for i in order]
    before = [0, *accumulate(units)]
    least = float(logits[order[min(top_k or len(order), len(order)) - 1]])
    bar = Fraction(top_p) * 2**62
    return sorted(
        i
        for i, sum_before in zip(order, before, strict=False)
        if (top_p >= 1 or sum_before < bar) and float(logits[i]) >= least
    )


def told(logits, top_k, top_p):
    """What `kept` says: the ids and logits of each row, and how they were told."""
    found = [None] * len(logits)
    for rows, values, ids in nucleus.kept(logits, top_k, top_p):
        ids = torch.arange(logits.shape[1]).expand_as(values) if ids is None else ids
        for row, value, id in zip(rows.tolist(), values, ids, strict=True):
            here = value > -torch.inf
            assert found[row] is None
            assert id[value.max(-1).indices] == logits[row].max(-1).indices  # the first of those that are equal
            found[row] = (dict(zip(id[here].tolist(), value[here].tolist(), strict=True)), value, id)
    return found


def compare(logits, knobs):
    top_k, top_p = columns(knobs)
    outside, found = nucleus.outside(logits, top_k, top_p), told(logits, top_k, top_p)
    for row, (k, p) in enumerate(knobs):
        wanted = [i for i in reference(logits[row], k, p) if logits[row, i] > -torch.inf]
        assert [i for i in (~outside[row]).nonzero()[:, 0].tolist() if logits[row, i] > -torch.inf] == wanted
        assert found[row][0] == {i: float(logits[row, i]) for i in wanted}


def drawn(rows, size, scale, seed, steps=None):
    logits = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return logits if steps is None else (logits / steps).round() * steps


@settings(max_examples=40, deadline=None)
@given(
    size=st.sampled_from([3, 64, 65, 600, 3000]),
    scale=st.sampled_from([0.0, 1e-12, 0.01, 1.0, 4.0, 300.0]),
    steps=st.sampled_from([None, 1.0, 0.01]),
    missing=st.sampled_from([0.0, 0.5]),
    bins=st.sampled_from([(2, 1), (5, 3), (64, 16), (nucleus.BINS, nucleus.SORTED)]),
    seed=st.integers(0, 1000),
)
def test_against_a_sort(size, scale, steps, missing, bins, seed):
    """Flat and sharp, equal and nearly equal, with tokens that can't be; bins so few that they are counted again."""
    logits = drawn(len(KNOBS), size, scale, seed, steps)
    gone = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed)) < missing
    gone[:, :2] = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nucleus, "BINS", bins[0])
        patch.setattr(nucleus, "SORTED", bins[1])
        compare(logits.masked_fill(gone, -torch.inf), KNOBS)


@pytest.mark.parametrize("outlier", [-3.4e38, -1e3, 20.0, 700.0])
def test_values_that_leave_all_others_in_one_bin(outlier):
    logits = drawn(len(KNOBS), 5000, 0.01, 3)
    logits[:, 11] = outlier
    compare(logits, KNOBS)


@pytest.mark.parametrize(("top_p", "count"), [(0.75, 768), (0.75 + 1e-15, 769), (0.75 - 1e-15, 768), (0.5, 512)])
def test_a_border_that_lies_between_two_of_many_equal_tokens(top_p, count):
    """1,024 tokens of 1/1,024 each: sums are exact, and those of the lowest ids are kept."""
    logits = torch.full((1, 2048), -torch.inf, dtype=torch.float64)
    logits[0, ::2] = 1.25
    ((ids, _, _),) = told(logits, *columns([(0, top_p)]))
    assert sorted(ids) == list(range(0, 2 * count, 2))


def test_a_row_is_told_the_same_in_any_company():
    """To the bit, and in arrays of the same size: 40 rows of unlike width, together, in parts, and alone."""
    scales = torch.tensor([0.0, 0.01, 0.5, 1.0, 2.0, 4.0, 8.0, 30.0], dtype=torch.float64).repeat(5)
    logits = drawn(40, 9000, 1.0, 7) * scales[:, None]
    top_k, top_p = columns([KNOBS[i % len(KNOBS)] for i in range(40)])
    together = told(logits, top_k, top_p)
    for size in (1, 3, 16):
        for some in torch.arange(40).split(size):
            apart = told(logits[some], top_k[some], top_p[some])
            for row, (ids, value, id) in zip(some.tolist(), apart, strict=True):
                assert ids == together[row][0]
                assert torch.equal(value, together[row][1])
                assert torch.equal(id, together[row][2])
    assert len({len(value) for _, value, _ in together}) > 2


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_of_what_is_no_number_nothing_is_taken_out(poison):
    logits = drawn(len(KNOBS), 3000, 1.0, 5)
    logits[:, 1234] = poison
    top_k, top_p = columns(KNOBS)
    assert not nucleus.outside(logits, top_k, top_p).any()
    for _, values, ids in nucleus.kept(logits, top_k, top_p):
        assert ids is None
        assert values.equal(logits) or poison != poison
        assert (values[:, 1234] == poison).all() or values[:, 1234].isnan().all()
