"""Laws of noise levels: even where they say so, uniform for each unit, and blind to the order of rows."""

import pytest
import torch

from unmask.base import seeds
from unmask.base.errors import BadInput
from unmask.noise.absorb import levels
from unmask.noise.schedules import TABLE as SCHEDULES
from unmask.noise.times import TABLE, Times

NAMES = sorted(TABLE)


def keys(seed: int, units: int) -> torch.Tensor:
    return seeds.key(seed, "test", torch.arange(units))


@pytest.mark.parametrize("name", NAMES)
def test_each_unit_is_uniform_over_seeds(name):
    draws = torch.stack([TABLE[name].draw(keys(s, 7)) for s in range(1500)])
    assert bool(((draws > 0) & (draws < 1)).all())
    for edge in (0.1, 0.25, 0.5, 0.9):
        share = (draws < edge).double().mean(0)
        assert float((share - edge).abs().max()) < 4.5 * (edge * (1 - edge) / 1500) ** 0.5


@pytest.mark.parametrize("name", [n for n in NAMES if TABLE[n].stratified])
@pytest.mark.parametrize("units", [1, 2, 13, 256])
def test_stratified_covers_evenly(name, units):
    strata = (TABLE[name].draw(keys(3, units)) * units).long()
    assert sorted(strata.tolist()) == list(range(units))


@pytest.mark.parametrize("name", NAMES)
def test_a_number_belongs_to_its_unit_not_to_its_place(name):
    mine, order = keys(5, 64), torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(TABLE[name].draw(mine)[order], TABLE[name].draw(mine[order]))


def test_strata_are_shuffled():
    draws = torch.stack([TABLE["stratified"].draw(keys(s, 8)) for s in range(2000)])
    assert float(torch.corrcoef(draws.T)[0, 1]) == pytest.approx(-1 / 7, abs=0.07)  # neighbours as any other pair


def test_exact_counts_are_uniform_and_their_weights_say_so():
    size = torch.tensor([1, 4, 9])
    for unit in range(3):
        n = int(size[unit])
        numbers = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        level = levels(size[unit].expand(n), TABLE["exact-k"], SCHEDULES["log-linear"], numbers)
        assert level.count.tolist() == list(range(1, n + 1))
        assert torch.allclose(level.weight, n / level.count.double(), rtol=1e-15)
    edge = torch.tensor([2.0**-54, 1 - 2.0**-53], dtype=torch.float64)
    assert levels(torch.tensor([5, 5]), TABLE["exact-k"], SCHEDULES["log-linear"], edge).count.tolist() == [1, 5]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_clipped_keeps_mask_probabilities_in_range_under_every_schedule(schedule):
    level = levels(torch.ones(500).long(), TABLE["clipped"], schedule, TABLE["clipped"].draw(keys(0, 500)))
    assert float(level.probability.min()) == pytest.approx(0.3, abs=0.01)
    assert float(level.probability.max()) == pytest.approx(0.8, abs=0.01)
    assert float(level.probability.min()) >= 0.3 - 1e-12
    assert float(level.probability.max()) <= 0.8 + 1e-12


def test_bias_is_said():
    assert {name for name in NAMES if TABLE[name].biased} == {"iid", "stratified", "clipped"}
    assert not Times(stratified=True, counts=False).biased


@pytest.mark.parametrize(
    ("low", "high", "counts"), [(0.5, 0.5, False), (-0.1, 1, False), (0, 1.1, False), (0.3, 1, True)]
)
def test_a_range_that_means_nothing_is_refused(low, high, counts):
    with pytest.raises(BadInput, match="low"):
        Times(stratified=True, counts=counts, low=low, high=high)
