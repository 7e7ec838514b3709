"""Ways to the same gradient: one size of blocks or a mixture of it, parts of any sizes, rows in any order."""

from dataclasses import replace

import pytest
import torch
from rows import NEXT, VOCAB, batch, gradient, net

from unmask.objectives.ar import Autoregressive
from unmask.objectives.block import Block
from unmask.objectives.masked import Masked
from unmask.objectives.mixture import Mixture

ROWS = batch([16], [7, 9], [5, 3], [16], [4, 4, 4, 4], [10])
OBJECTIVES = [Masked(), Masked(times="stratified"), Block(block=4), Mixture(blocks=(1, 4, None)), Autoregressive()]


def learn(objective, model, *parts, tokens):
    """The gradient of some parts of one global batch, one after the other, and their nats."""
    losses = [objective(model, part, tokens) for part in parts]
    for loss in losses:
        loss.total.backward()
    return gradient(model), torch.cat([loss.nats for loss in losses])


@pytest.mark.parametrize("times", ["exact-k-stratified", "exact-k", "iid", "stratified", "clipped"])
@pytest.mark.parametrize("size", [1, 4, 5, None])
def test_a_mixture_of_one_size_is_that_size(size, times):
    model, mixture = net(), Mixture(blocks=(size,), times=times)
    alone = Masked(times=times) if size is None else Block(block=size, times=times)
    ours, theirs = mixture.corrupt(ROWS, VOCAB, 1, 2), alone.corrupt(ROWS, VOCAB, 1, 2)
    assert torch.equal(ours.noisy, theirs.noisy)
    assert torch.equal(ours.weight, theirs.weight)
    found = learn(mixture, model, ours, tokens=ours.tokens)
    wanted = learn(alone, model, theirs, tokens=theirs.tokens)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_parts_of_any_sizes_and_rows_in_any_order(objective):
    model = net(NEXT) if isinstance(objective, Autoregressive) else net()
    noised = objective.corrupt(ROWS, VOCAB, 0, 0)
    wanted, nats = learn(objective, model, noised, tokens=noised.tokens)
    assert float(wanted.abs().max()) > 1e-3
    parts = [noised.part(*ends) for ends in ((0, 1), (1, 2), (2, 3), (3, 4), (4, 99))]
    torch.testing.assert_close(
        learn(objective, model, *parts, tokens=noised.tokens), (wanted, nats), rtol=0, atol=1e-12
    )
    order = torch.tensor([3, 0, 5, 2, 4, 1])
    mixed = learn(objective, model, noised.rows(order), tokens=noised.tokens)
    torch.testing.assert_close(mixed, (wanted, nats[order]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_the_gradient_is_the_slope_of_the_loss(objective):
    """Finite differences along the gradient itself: recomputed chunks and detached nats included."""
    model = net(NEXT) if isinstance(objective, Autoregressive) else net()
    noised = objective.corrupt(ROWS, VOCAB, 0, 0)
    slope, _ = learn(replace(objective, chunk=24 * 3), model, noised, tokens=noised.tokens)
    way, totals = slope / slope.norm(), []
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    with torch.no_grad():
        for step in (1e-5, -1e-5):
            torch.nn.utils.vector_to_parameters(start + step * way, model.parameters())
            totals.append(objective(model, noised, noised.tokens).total.item())
    assert (totals[0] - totals[1]) / 2e-5 == pytest.approx(float(slope.norm()), rel=1e-6)
