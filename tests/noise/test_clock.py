"""The time of a network is turned into its total noise as its schedule says."""

import math

import pytest
import torch

from unmask.base.errors import BadInput, UnknownName
from unmask.base.vocab import Traits
from unmask.noise import clock
from unmask.noise.schedules import TABLE, LogLinear

T = torch.tensor([0.0, 1e-5, 0.25, 0.5, 1.0], dtype=torch.float64)
PUBLISHED = {
    "log-linear": ((0.0, -math.log(1e-3)), lambda t: -torch.log1p(-(1 - 1e-3) * t)),
    "geometric": ((1e-4, 20.0), lambda t: 1e-4 ** (1 - t) * 20.0**t),
    "linear": ((0.0, 10.0), lambda t: 10 * t),
    "cosine": ((0.0, -math.log(1e-3)), lambda t: -torch.log(1e-3 + (1 - 1e-3) * torch.cos(math.pi / 2 * t))),
}


@pytest.mark.parametrize("name", TABLE)
def test_total_noise_is_as_published(name):
    sigmas, formula = PUBLISHED[name]
    found = clock.sigma(Traits(clock=True, schedule=name, sigmas=sigmas), T)
    torch.testing.assert_close(found, formula(T), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[[0, -1]], torch.tensor(sigmas, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_without_ends_a_schedule_has_its_own():
    assert clock.schedule(Traits()) == LogLinear()


@pytest.mark.parametrize(
    ("name", "sigmas"),
    [
        ("log-linear", (0.1, 5.0)),
        ("cosine", (1e-3, 5.0)),
        ("geometric", (0.0, 20.0)),
        ("linear", (-1.0, 3.0)),
        ("linear", (3.0, 3.0)),
        ("log-linear", (0.0, math.inf)),
        ("geometric", (math.nan, 1.0)),
        ("geometric", (1.0,)),
    ],
)
def test_ends_that_can_not_be(name, sigmas):
    with pytest.raises(BadInput, match=f"schedule '{name}' starts"):
        clock.schedule(Traits(schedule=name, sigmas=sigmas))


def test_unknown_schedules():
    with pytest.raises(UnknownName, match="no schedule called"):
        clock.schedule(Traits(schedule="sigmoid"))
