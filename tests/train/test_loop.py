"""One step: what it adds up, what it refuses, what follows it."""

import copy
import math

import pytest
import torch
from toy import recipe

from unmask.base.errors import BadCheckpoint, TrainingFailed
from unmask.train import precision, run
from unmask.train.loop import Trainer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop")
    return folder, run._prepare(recipe(folder), folder)


def trainer(made, objective="masked", **options) -> Trainer:
    folder, corpus = made
    return run._trainer(recipe(folder, objective, **{"steps": 1000, **options}), corpus)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("objective", ["masked", "block", "mixture", "ar"])
def test_accumulation_changes_nothing_but_memory(made, objective):
    whole = trainer(made, objective, precision="float32")
    parts = trainer(made, objective, precision="float32", accumulate=4)
    for _ in range(3):
        a, b = whole.step(), parts.step()
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    for name, weight in weights(whole.model).items():
        torch.testing.assert_close(weight, weights(parts.model)[name], atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("objective", ["masked", "block", "mixture", "ar"])
def test_the_loss_goes_down_and_so_does_the_held_out_bound(made, objective):
    _, corpus = made
    learner = trainer(made, objective)
    before = learner.evaluate(corpus.held_out)
    losses = [learner.step()["loss"] for _ in range(40)]
    after = learner.evaluate(corpus.held_out)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert after.nats < 0.8 * before.nats
    assert 0 < after.stderr < after.nats
    assert learner.evaluate(corpus.held_out) == after


def test_bfloat16_products_leave_float32_weights_and_about_the_same_loss(made):
    one, other = trainer(made, precision="float32"), trainer(made, precision="bfloat16")
    assert one.step()["loss"] == pytest.approx(other.step()["loss"], rel=0.02)
    assert {p.dtype for p in other.model.parameters()} == {torch.float32}
    assert {p.dtype for p in other.average.parameters()} == {torch.float32}


def test_even_rows_give_the_same_logits_and_gradients(made):
    model = trainer(made).model
    features = torch.randn(5, model.shape.width)
    expected = model.head(features)
    expected.square().sum().backward()
    gradient = model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    seen = []
    even = precision.EvenRows(model, rows=8)
    whole = model.head
    model.head = lambda x: seen.append(len(x)) or whole(x)
    found = even.head(features)
    found.square().sum().backward()
    assert seen == [8]
    assert even.traits is model.traits
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(model.embed_tokens.weight.grad, gradient)


def test_the_average_follows_by_its_formula(made):
    learner = trainer(made, ema=0.5)
    expected = weights(learner.average)
    for step in range(4):
        learner.step()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {n: decay * e + (1 - decay) * weights(learner.model)[n] for n, e in expected.items()}
    for name, weight in weights(learner.average).items():
        torch.testing.assert_close(weight, expected[name])


def test_no_average_is_the_weights_themselves(made):
    learner = trainer(made, ema=0)
    learner.step()
    for name, weight in weights(learner.average).items():
        assert torch.equal(weight, weights(learner.model)[name])


def spoil(learner, monkeypatch, steps):
    """The loss of these steps is not a number."""
    fair = type(learner.objective).__call__

    def call(self, model, noised, tokens):
        loss = fair(self, model, noised, tokens)
        if learner.progress.step not in steps:
            return loss
        return type(loss)(total=loss.total * math.nan, nats=loss.nats, weight=loss.weight, parts=loss.parts)

    monkeypatch.setattr(type(learner.objective), "__call__", call)


def test_a_step_that_is_not_finite_is_skipped_and_counted(made, monkeypatch):
    learner = trainer(made)
    spoil(learner, monkeypatch, {2, 3})
    for _ in range(2):
        learner.step()
    before = copy.deepcopy(learner.state().tensors)
    assert math.isnan(learner.step()["loss"])
    learner.step()
    assert (learner.progress.skipped, learner.progress.skipped_in_a_row, learner.progress.step) == (2, 2, 4)
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.state().tensors.items())
    assert math.isfinite(learner.step()["loss"])
    assert (learner.progress.skipped, learner.progress.skipped_in_a_row) == (2, 0)


def test_too_many_in_a_row_end_the_run_with_a_diagnosis(made, monkeypatch):
    learner = trainer(made, patience=3)
    spoil(learner, monkeypatch, range(1, 100))
    learner.step()
    before = weights(learner.model)
    learner.step()
    learner.step()
    with pytest.raises(
        TrainingFailed, match=r"3 steps in a row.*embed_tokens.*non-finite weights in none.*optimizer\.lr"
    ):
        learner.step()
    assert all(torch.equal(before[name], weight) for name, weight in weights(learner.model).items())


def test_a_spoilt_gradient_is_noticed_even_if_the_loss_is_fine(made):
    learner = trainer(made)
    learner.model.norm.weight.register_hook(lambda grad: grad * math.inf)
    before = weights(learner.model)
    assert math.isfinite(learner.step()["loss"])
    assert learner.progress.skipped == 1
    assert all(torch.equal(before[name], weight) for name, weight in weights(learner.model).items())


def test_the_state_of_another_network_is_refused(made):
    learner = trainer(made)
    state = learner.state()
    state.tensors["model.norm.weight"] = torch.ones(3)
    with pytest.raises(BadCheckpoint, match=r"another network: norm\.weight"):
        learner.restore(state)


def test_a_state_goes_round(made):
    one = trainer(made)
    for _ in range(3):
        one.step()
    other = trainer(made)
    other.restore(one.state())
    for _ in range(2):
        assert one.step()["loss"] == other.step()["loss"]
    mine, theirs = one.state(), other.state()
    assert all(torch.equal(tensor, theirs.tensors[name]) for name, tensor in mine.tensors.items())
