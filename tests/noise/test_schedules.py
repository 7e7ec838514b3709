"""Schedules are what they say: inverse, slope, ends, and one bound for all of them."""

import pytest
import torch

from unmask.noise.absorb import elbo_weight
from unmask.noise.schedules import TABLE, Cosine, LogLinear, complete, covers

PUBLISHED = {**TABLE, "log-linear 1e-3": LogLinear(eps=1e-3), "cosine 1e-3": Cosine(eps=1e-3)}
T = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)


@pytest.mark.parametrize("schedule", PUBLISHED.values(), ids=PUBLISHED)
def test_time_undoes_alpha_and_slope_is_the_derivative(schedule):
    t = T.clone().requires_grad_()
    alpha = schedule.alpha(t)
    (slope,) = torch.autograd.grad(alpha.sum(), t)
    assert torch.allclose(schedule.slope(T), slope, rtol=1e-10, atol=0)
    assert bool((slope <= 0).all())
    # Where little is left to lose, alpha says little about t: geometric loses its last digits near both ends.
    wrong = (schedule.time(alpha.detach()) - T).abs() * slope.abs() / alpha.detach()
    assert float(wrong.max()) < 1e-12


@pytest.mark.parametrize("schedule", PUBLISHED.values(), ids=PUBLISHED)
def test_time_stays_between_0_and_1(schedule):
    t = schedule.time(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    assert t[0] == 0
    assert t[2] == 1
    assert 0 < t[1] < 1


def test_ends_are_as_published():
    assert {name for name, schedule in PUBLISHED.items() if complete(schedule)} == {"log-linear", "cosine"}
    assert covers(LogLinear(eps=1e-3)) == (0, pytest.approx(0.999, abs=1e-15))
    assert covers(TABLE["linear"]) == (0, pytest.approx(1 - 4.5e-5, abs=1e-6))
    assert covers(TABLE["geometric"])[0] == pytest.approx(1e-4, rel=1e-3)


def test_the_weight_of_the_published_log_linear_form_is_one_over_t():
    assert torch.allclose(elbo_weight(LogLinear(eps=1e-3), T), 1 / T, rtol=1e-10)
    assert torch.allclose(elbo_weight(LogLinear(), T), 1 / T, rtol=1e-10)
