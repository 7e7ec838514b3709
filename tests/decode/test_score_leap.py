"""Leaps along a score: the published steps, exact in the limit, at the pace of the schedule."""

import math

import pytest
import torch
from test_exactness import LENGTH, SIZE, chi_square_p, draw

from exact import ExactDenoiser, ExactScore
from unmask.base.canvas import Canvas
from unmask.base.errors import BadInput, Unsupported
from unmask.base.vocab import Traits
from unmask.decode.decoder import build
from unmask.decode.loop import denoise
from unmask.decode.policies import score_leap
from unmask.decode.propose import Sampling, propose
from unmask.noise import clock

SCHEDULES = {
    "log-linear": Traits(says="score", clock=True, sigmas=(0.0, -math.log(1e-3))),
    "geometric": Traits(says="score", clock=True, schedule="geometric", sigmas=(1e-4, 20.0)),
}
PRESETS = ["sedd-euler", "sedd-analytic"]


@pytest.mark.parametrize(
    ("name", "schedule", "steps"),
    [
        ("sedd-euler", "geometric", 384),  # most of its jumps are in a few of its steps
        ("sedd-analytic", "geometric", 384),
        ("sedd-analytic", "log-linear", 128),  # where both are one
    ],
)
def test_many_steps_reach_the_noise_floor_and_few_do_not(name, schedule, steps):
    model = ExactScore.random(SIZE, LENGTH, seed=1, traits=SCHEDULES[schedule])
    assert chi_square_p(model, draw(model, name, rows=2000, steps=steps)) > 1e-3
    assert chi_square_p(model, draw(model, name, rows=500, steps=4)) < 1e-6


@pytest.mark.parametrize("name", PRESETS)
def test_networks_that_say_log_probabilities_leap_as_an_exact_score(name):
    clean = ExactDenoiser.random(SIZE, LENGTH, seed=1, traits=Traits())
    score = ExactScore.random(SIZE, LENGTH, seed=1, traits=SCHEDULES["log-linear"])
    texts = draw(clean, name, rows=500, steps=32)
    assert torch.equal(texts, draw(score, name, rows=500, steps=32))


@pytest.mark.parametrize("rank", ["random", "confidence"])
def test_scores_are_beliefs_for_every_other_policy(rank):
    clean = ExactDenoiser.random(SIZE, LENGTH, seed=1, traits=Traits())
    score = ExactScore.random(SIZE, LENGTH, seed=1, traits=SCHEDULES["log-linear"])
    options = {"rank": rank, "temperature": 1.0, "rows": 200}
    assert torch.equal(*(draw(model, "whole x quota", **options) for model in (clean, score)))


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_left_falls_as_the_schedule_says(name):
    """Of all masks 1 - alpha(s) are there after an analytic step; Euler's are the product of its steps."""
    traits, steps, rows = SCHEDULES["geometric"], 24, 2000
    model = ExactScore.random(SIZE, LENGTH, seed=1, traits=traits)
    decoder = build(name, traits=traits, vocab=model.vocab, steps=steps)
    canvas = Canvas.of([([0] * LENGTH, [True] * LENGTH)] * rows, mask=SIZE, seeds=range(rows))
    sigma, expected, count = (lambda t: 1e-4 ** (1 - t) * 20.0**t), 1.0, 0
    for k, _ in enumerate(denoise(model, canvas, decoder)):
        t, s = 1 - k / steps, 1 - (k + 1) / steps
        alpha = math.exp(-sigma(t))
        if name == "sedd-euler":
            expected *= 1 - min(1.0, sigma(t) * math.log(20 / 1e-4) * (t - s) * alpha / (1 - alpha))
        else:
            expected = 1 - math.exp(-sigma(s)) if k + 1 < steps else 0.0
        error = (expected * (1 - expected) / (rows * LENGTH)) ** 0.5
        assert abs(float(canvas.open.double().mean()) - expected) <= 5 * error + 1e-6, k
        count += 0.05 < expected < 0.95
    assert count > 3  # there is something to see
    told = torch.stack([t[0] for t in model.times])
    torch.testing.assert_close(told, (1 - torch.arange(len(told)) / steps).double(), rtol=0, atol=1e-6)


class Fixed:
    """A network that always says the same log ratios (V,), the last of them about the mask."""

    def __init__(self, ratios, traits):
        self.ratios, self.traits, self.max_length = ratios, traits, 8
        self.vocab = ExactDenoiser.random(len(ratios) - 1, 1).vocab

    def read(self, tokens, **rest):
        return self.ratios.expand(*tokens.shape, -1).clone()

    def head(self, features):
        return features


def published(name, ratios, traits, t, s):
    """(V,) probabilities of the next token of a mask, from the matrices of the paper; the mask is the last token.

    Q takes every token to the mask at rate 1. Analytic: (exp(-d Q) r)_y exp(d Q)(mask | y) for d = sigma(t) - sigma(s);
    Euler: the rates sigma'(t) r_y Q(mask | y) over t - s. Both are cut off at 0 and made a distribution, as sampled.
    """
    size = len(ratios)
    rates = torch.zeros(size, size, dtype=torch.float64)  # column: from
    rates[-1] = 1.0
    rates -= torch.eye(size, dtype=torch.float64)
    score = ratios.exp()
    score[-1] = 1.0
    at = torch.tensor([t, s], dtype=torch.float64, requires_grad=True)
    sigma = clock.sigma(traits, at)
    if name == "sedd-euler":
        (slope,) = torch.autograd.grad(sigma[0], at)
        step = (t - s) * slope[0] * score * rates[-1]
        step[-1] = 1 - step[:-1].sum()
    else:
        d = (sigma[0] - sigma[1]).detach()
        step = (torch.linalg.matrix_exp(-d * rates) @ score) * torch.linalg.matrix_exp(d * rates)[-1]
    step = step.clamp(min=0)
    return step / step.sum()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("turn", [0, 3, 6, 8])
@pytest.mark.parametrize("shift", [-3.0, 0.0, 2.0])
def test_a_step_is_the_published_one_whatever_the_score(monkeypatch, name, schedule, turn, shift):
    """The chance of a jump, between two coins around it; the tokens of a jump, by what is offered of them."""
    traits, steps = SCHEDULES[schedule], 10
    ratios = torch.tensor([0.3, -1.0, 0.9, -2.0, 5.0], dtype=torch.float64) + shift
    model = Fixed(ratios, traits)
    decoder = build(name, traits=traits, vocab=model.vocab, steps=steps)
    canvas = Canvas.of([([0, 0], [True, True])], mask=4)
    canvas.step += turn
    plan = decoder.window(canvas, traits, None)
    wanted = published(name, ratios, traits, float(plan.t), float(plan.s))
    jump, tokens = 1 - wanted[-1], wanted[:-1] / wanted[:-1].sum()

    offer = propose(model, plan, Sampling())
    torch.testing.assert_close(offer.log_prob[0], tokens.max().log().expand(2))
    torch.testing.assert_close(offer.entropy[0], -(tokens * tokens.log()).sum().expand(2))
    for coin, taken in ((jump * (1 - 1e-6), True), (jump * (1 + 1e-6), False)):
        if coin >= 1:
            continue  # no coin is that high: it jumps for certain
        monkeypatch.setattr(score_leap, "coin", lambda plan, stream, coin=coin: coin.expand(plan.targets.shape))
        assert [s == 2 for s in decoder.policy(offer, plan).state[0].tolist()] == [taken] * 2


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_sum_of_an_exact_score_is_one(schedule):
    traits = SCHEDULES[schedule]
    joint = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    for factor in (1.0, 0.25):
        model = ExactScore(joint, traits, factor=factor)
        decoder = build("sedd-euler", traits=traits, vocab=model.vocab, steps=5)
        canvas = Canvas.of([([0, 0], [True, True])], mask=SIZE)
        for turn in range(5):
            canvas.step[:] = turn
            plan = decoder.window(canvas, traits, None)
            for forbidden in ((), (1,)):  # what may not be written does not change the pace
                offer = propose(model, plan, Sampling(forbidden=forbidden))
                torch.testing.assert_close(offer.mass, torch.full((1, 2), factor, dtype=torch.float64).log())


def test_the_last_step_takes_everything_however_low_the_score():
    joint = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    model = ExactScore(joint, SCHEDULES["log-linear"], factor=1e-9)
    canvas = Canvas.of([([0, 0], [True, True])] * 20, mask=SIZE, seeds=range(20))
    turns = list(denoise(model, canvas, build("sedd-analytic", traits=model.traits, vocab=model.vocab, steps=6)))
    assert len(turns) == 6
    assert bool((turns[-2].edit.state == 1).all())
    assert not bool(canvas.open.any())


def test_uniform_noise_is_refused():
    model = Fixed(torch.zeros(5, dtype=torch.float64), Traits(says="score", noise="uniform", clock=True))
    with pytest.raises(Unsupported, match="noise that masks tokens"):
        build("sedd-euler", traits=model.traits, vocab=model.vocab)
    decoder = build("whole x quota", traits=model.traits, vocab=model.vocab)
    with pytest.raises(Unsupported, match="can't be decoded"):
        next(denoise_one(model, decoder))


def denoise_one(model, decoder):
    canvas = Canvas.of([([0], [True])], mask=4)
    yield propose(model, decoder.window(canvas, model.traits, None), decoder.sampling)


def test_leaps_have_names():
    model = ExactScore.random(SIZE, LENGTH, traits=SCHEDULES["log-linear"])
    assert build("whole x score_leap", traits=model.traits, vocab=model.vocab, leap="euler").policies[0].leap == "euler"
    with pytest.raises(BadInput, match="leap is one of euler, analytic"):
        build("sedd-euler", traits=model.traits, vocab=model.vocab, leap="far")
    with pytest.raises(BadInput, match="leap has no effect"):
        build("mdlm", traits=model.traits, vocab=model.vocab, leap="euler")
