"""The learning rate over time, and Muon against torch's own."""

from itertools import pairwise

import pytest
import torch

from unmask.train import optim
from unmask.train.recipe import OptimizerSection, ScheduleSection


def test_the_rate_warms_up_stays_and_falls():
    schedule = ScheduleSection(warmup=10, decay=0.2, fall="linear", floor=0.1)
    rates = [optim.rate(step, schedule, 100) for step in range(100)]
    assert rates[0] == 0.1
    assert rates[9:80] == [1.0] * 71
    assert rates[80] < 1
    assert all(a > b for a, b in pairwise(rates[79:]))
    assert rates[-1] == pytest.approx(0.1)


def test_a_longer_run_has_the_same_rates_up_to_where_the_shorter_falls():
    schedule = ScheduleSection(warmup=10, decay=0.2)
    for step in range(optim.decay_start(schedule, 100)):
        assert optim.rate(step, schedule, 100) == optim.rate(step, schedule, 1000)


@pytest.mark.parametrize("decay_start", [None, 7])
@pytest.mark.parametrize(("warmup", "decay"), [(0, 0.0), (0, 1.0), (50, 0.2), (5, 0.5)])
def test_the_rate_is_a_share_whatever_the_settings(warmup, decay, decay_start):
    schedule = ScheduleSection(warmup=warmup, decay=decay, decay_start=decay_start)
    assert all(0 <= optim.rate(step, schedule, 20) <= 1 for step in range(25))


@pytest.mark.parametrize("shape", [(16, 16), (24, 16), (16, 24)])
def test_muon_is_torchs_muon(shape):
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    options = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9}
    one = optim.Muon([ours], **options, dtype=torch.bfloat16)
    other = torch.optim.Muon([theirs], **options, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        one.step()
        other.step()
    torch.testing.assert_close(ours, theirs, atol=5e-4, rtol=1e-2)


def test_muon_treats_alike_matrices_one_by_one():
    torch.manual_seed(0)
    gradients = torch.randn(3, 12, 8)
    together = optim.orthogonal(gradients, torch.float32)
    for one, gradient in zip(together, gradients, strict=True):
        torch.testing.assert_close(one, optim.orthogonal(gradient[None], torch.float32)[0])
        values = torch.linalg.svdvals(one)
        assert 0.3 < float(values.min()) <= float(values.max()) < 1.3


def test_the_update_has_the_size_that_adamw_has():
    weight = torch.nn.Parameter(torch.zeros(64, 32))
    muon = optim.Muon([weight], lr=1.0, weight_decay=0.0)
    weight.grad = torch.randn(64, 32)
    muon.step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_vectors_do_not_decay_and_words_go_to_adamw(lm, name):
    made = optim.Optimizers(lm.model, OptimizerSection(name=name))
    params = dict(lm.model.named_parameters())
    by_id = {id(p): n for n, p in params.items()}
    seen = []
    for optimiser, names in made.each:
        for group in optimiser.param_groups:
            for p in group["params"]:
                seen.append(by_id[id(p)])
                assert (group["weight_decay"] > 0) == (p.dim() >= 2)
                hidden = by_id[id(p)].startswith("layers.") and p.dim() == 2
                assert isinstance(optimiser, optim.Muon) == (hidden and name == "muon")
        assert names == [by_id[id(p)] for group in optimiser.param_groups for p in group["params"]]
    assert sorted(seen) == sorted(params)
