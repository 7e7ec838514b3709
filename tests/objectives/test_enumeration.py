"""Bounds and likelihoods against sums over every mask and every order, on texts short enough to write these out."""

import math
from itertools import permutations, product

import numpy as np
import pytest
import torch
from torch import Tensor

from exact import UNKNOWN, ExactDenoiser, KnownDenoiser, RandomConditionals
from unmask.base.batch import Batch
from unmask.base.errors import BadInput, UnknownName, Unsupported
from unmask.base.vocab import Traits
from unmask.noise import schedules
from unmask.noise.absorb import levels
from unmask.noise.times import Times
from unmask.objectives import TABLE
from unmask.objectives.ar import Autoregressive
from unmask.objectives.block import Block
from unmask.objectives.likelihood import likelihood
from unmask.objectives.loss import Noised
from unmask.objectives.masked import Masked
from unmask.objectives.mixture import Mixture

SIZE, LENGTH = 3, 5
TEXT = torch.tensor([2, 0, 1, 1, 0])
ALL_ASKED = torch.ones(LENGTH, dtype=torch.bool)
ASKED = torch.tensor([True, False, True, True, True])
CLOSE = 1e-10


def rows_of(tokens: Tensor, samples: int = 1) -> Batch:
    place = torch.arange(len(tokens)).expand(samples, -1)
    return Batch(
        tokens=tokens.expand(samples, -1),
        documents=torch.zeros_like(place),
        places=place,
        samples=torch.arange(samples),
    )


def nats(model: KnownDenoiser, tokens: Tensor, known: set[int], target: int) -> float:
    """-log p(token at target | tokens at known), asked of the belief itself: no attention, no objective."""
    evidence = torch.tensor([[int(tokens[i]) if i in known else UNKNOWN for i in range(len(tokens))]])
    return -float(model.log_prob(evidence, torch.tensor([target]))[0, tokens[target]])


def pieces(asked: Tensor, block: int | None) -> list[list[int]]:
    """The asked positions of each block."""
    places = asked.nonzero()[:, 0].tolist()
    groups: dict[int, list[int]] = {}
    for i in places:
        groups.setdefault(0 if block is None else i // block, []).append(i)
    return list(groups.values())


def over_orders(model: KnownDenoiser, tokens: Tensor, asked: Tensor, block: int | None = None) -> float:
    """The mean, over all orders of writing each block, of the chain rule."""
    total = 0.0
    for piece in pieces(asked, block):
        given = {i for i in range(len(tokens)) if i not in piece}
        if block is not None:
            given = {i for i in given if i < (piece[0] // block + 1) * block}
        orders = list(permutations(piece))
        total += sum(
            nats(model, tokens, given | set(order[:j]), order[j]) for order in orders for j in range(len(order))
        ) / len(orders)
    return total


def over_masks(model: KnownDenoiser, tokens: Tensor) -> list[tuple[int, float]]:
    """(masked positions, sum of nats of those) of every mask."""
    found = []
    for hidden in product((False, True), repeat=len(tokens)):
        known = {i for i, h in enumerate(hidden) if not h}
        found.append((sum(hidden), sum(nats(model, tokens, known, i) for i, h in enumerate(hidden) if h)))
    return found


def integral(sums: list[tuple[int, float]], length: int, low: float = 0.0, high: float = 1.0) -> float:
    """The integral over mask probabilities p of 1/p times the expected sum of nats; a polynomial, so it is exact."""
    x, w = np.polynomial.legendre.leggauss(12)
    p, w = low + (high - low) * (x + 1) / 2, w * (high - low) / 2
    return float(sum(w @ (p ** (k - 1) * (1 - p) ** (length - k)) * s for k, s in sums if k))


def every_mask(tokens: Tensor, mask: int, block: int | Tensor | None, size: int | None) -> tuple[Noised, Tensor]:
    """Every choice of exactly-k masks in every block, and how probable it is."""
    groups = pieces(torch.ones_like(tokens, dtype=torch.bool), size)
    hidden, weight, chance = [], [], []
    for choice in product((False, True), repeat=len(tokens)):
        counts = [sum(choice[i] for i in group) for group in groups]
        if all(counts):
            w = [0.0] * len(tokens)
            for group, k in zip(groups, counts, strict=True):
                for i in group:
                    w[i] = len(group) / k if choice[i] else 0.0
            hidden.append(choice)
            weight.append(w)
            of = zip(groups, counts, strict=True)
            chance.append(math.prod(1 / (len(group) * math.comb(len(group), k)) for group, k in of))
    batch, gone = rows_of(tokens, len(hidden)), torch.tensor(hidden)
    noised = Noised(
        batch=batch,
        noisy=batch.tokens.masked_fill(gone, mask),
        weight=torch.tensor(weight, dtype=torch.float64),
        counts=torch.ones_like(gone),
        block=block,
    )
    return noised, torch.tensor(chance, dtype=torch.float64)


class Peeking(RandomConditionals):
    """As a real network may be: sure of every token that it is shown."""

    def read(self, tokens, **options):
        logits = super().read(tokens, **options)
        shown = torch.nn.functional.one_hot(tokens, SIZE + 1) * (tokens != SIZE)[..., None]
        return logits + 1e3 * shown


@pytest.fixture(scope="module")
def model():
    return RandomConditionals(SIZE, LENGTH, seed=3)


@pytest.fixture(scope="module")
def bound(model):
    return over_orders(model, TEXT, ALL_ASKED)


class TestOneBound:
    def test_integral_over_mask_probabilities(self, model, bound):
        assert integral(over_masks(model, TEXT), LENGTH) == pytest.approx(bound, abs=CLOSE)

    def test_mean_over_counts(self, model, bound):
        sums = over_masks(model, TEXT)
        by_count = sum(s / (k * math.comb(LENGTH, k)) for k, s in sums if k)
        assert by_count == pytest.approx(bound, abs=CLOSE)

    @pytest.mark.parametrize("name", schedules.TABLE)
    def test_every_schedule_over_what_it_covers(self, model, name):
        schedule, sums = schedules.TABLE[name], over_masks(model, TEXT)
        x, w = np.polynomial.legendre.leggauss(400)
        level = levels(
            torch.full((400,), LENGTH), Times(stratified=False, counts=False), schedule, torch.tensor((x + 1) / 2)
        )
        p, weight = level.probability.numpy(), level.weight.numpy() * w / 2
        found = sum(float(weight @ (p**k * (1 - p) ** (LENGTH - k))) * s for k, s in sums)
        low, high = schedules.covers(schedule)
        assert found == pytest.approx(integral(sums, LENGTH, low, high), abs=CLOSE)

    @pytest.mark.parametrize("name", ["log-linear", "cosine"])
    def test_the_default_schedules_cover_everything(self, name):
        assert schedules.covers(schedules.TABLE[name]) == pytest.approx((0, 1), abs=1e-15)

    def test_clipped_times_are_a_mean_over_the_clipped_range(self, model):
        x, w = np.polynomial.legendre.leggauss(12)
        law, sums = Times(stratified=True, counts=False, low=0.3, high=0.8), over_masks(model, TEXT)
        level = levels(torch.full((12,), LENGTH), law, schedules.LogLinear(), torch.tensor((x + 1) / 2))
        p, weight = level.probability.numpy(), level.weight.numpy() * w / 2
        found = sum(float(weight @ (p**k * (1 - p) ** (LENGTH - k))) * s for k, s in sums)
        assert found == pytest.approx(integral(sums, LENGTH, 0.3, 0.8) / 0.5, abs=CLOSE)

    def test_of_a_true_joint_it_is_the_likelihood(self):
        exact = ExactDenoiser.random(SIZE, LENGTH, seed=4)
        truth = -float(exact.log_joint[exact.index(TEXT[None])])
        assert integral(over_masks(exact, TEXT), LENGTH) == pytest.approx(truth, abs=CLOSE)


class TestObjectives:
    """What an objective makes of every mask, summed with the mask's probability."""

    @pytest.mark.parametrize("size", [1, 2, 3, 4])
    @pytest.mark.parametrize("kind", [RandomConditionals, ExactDenoiser.random])
    def test_block(self, kind, size):
        model = kind(SIZE, LENGTH, seed=5)
        noised, chance = every_mask(TEXT, SIZE, size, size)
        found = float(chance @ Block(block=size)(model, noised, 1).nats.sum(1))
        assert found == pytest.approx(over_orders(model, TEXT, ALL_ASKED, size), abs=CLOSE)
        if isinstance(model, ExactDenoiser):
            assert found == pytest.approx(-float(model.log_joint[model.index(TEXT[None])]), abs=CLOSE)

    def test_masked(self, model, bound):
        noised, chance = every_mask(TEXT, SIZE, None, None)
        assert float(chance @ Masked()(model, noised, 1).nats.sum(1)) == pytest.approx(bound, abs=CLOSE)

    def test_blocks_of_one_are_the_left_to_right_factorisation(self, model):
        batch = rows_of(TEXT)
        noised = Block(block=1).corrupt(batch, model.vocab, 0, 0)
        assert bool((noised.noisy == SIZE).all())
        loss = Block(block=1)(model, noised, noised.tokens)
        chain = [nats(model, TEXT, set(range(i)), i) for i in range(LENGTH)]
        assert loss.nats[0].tolist() == pytest.approx(chain, abs=CLOSE)
        assert float(loss.total) == pytest.approx(sum(chain) / LENGTH, abs=CLOSE)
        left = RandomConditionals(SIZE, LENGTH, seed=3, traits=Traits(sees="left", speaks="next"))
        told = Autoregressive()(left, Autoregressive().corrupt(batch, left.vocab, 0, 0), LENGTH - 1)
        assert told.nats[0].tolist() == pytest.approx([0.0, *chain[1:]], abs=CLOSE)

    @pytest.mark.parametrize("times", ["iid", "stratified", "exact-k", "exact-k-stratified"])
    def test_one_block_is_the_masked_objective(self, model, times):
        batch = rows_of(TEXT, 7)
        whole = Masked(times=times).corrupt(batch, model.vocab, 1, 2)
        block = Block(block=LENGTH, times=times).corrupt(batch, model.vocab, 1, 2)
        assert torch.equal(whole.noisy, block.noisy)
        wanted = Masked(times=times)(model, whole, whole.tokens)
        # as a number it takes the short cut of one stream, as a tensor it takes two
        for size in (LENGTH, torch.full((7,), LENGTH)):
            noised = Noised(batch=batch, noisy=block.noisy, weight=block.weight, counts=block.counts, block=size)
            found = Block(block=LENGTH, times=times)(model, noised, block.tokens)
            assert torch.allclose(found.nats, wanted.nats, atol=CLOSE, rtol=0)
            assert float(found.total) == pytest.approx(float(wanted.total), abs=CLOSE)

    @pytest.mark.parametrize(
        ("objective", "size"),
        [
            (Masked(), None),
            (Masked(times="exact-k"), None),
            (Masked(times="stratified", clip=(0, 1), schedule="cosine"), None),
            (Masked(times="iid", clip=(0, 1), schedule="cosine"), None),
            (Block(block=2), 2),
            (Block(block=3, times="exact-k"), 3),
            (Block(block=2, times="iid", clip=(0, 1), schedule="cosine"), 2),
        ],
    )
    def test_what_is_drawn_has_the_bound_as_its_mean(self, model, objective, size):
        assert not objective.noise.biased
        batch = rows_of(TEXT, 4000)
        loss = objective(model, objective.corrupt(batch, model.vocab, 0, 0), 4000 * LENGTH)
        each = loss.nats.sum(1)
        wanted = over_orders(model, TEXT, ALL_ASKED, size)
        assert abs(float(each.mean()) - wanted) < 4 * float(each.std()) / 4000**0.5
        assert float(loss.total) * LENGTH == pytest.approx(float(each.mean()))

    def test_a_mixture_has_the_mean_of_its_bounds(self, model):
        batch = rows_of(TEXT, 4000)
        mixture = Mixture(blocks=(1, 2, None), shares=(1, 1, 2))
        loss = mixture(model, mixture.corrupt(batch, model.vocab, 0, 0), 4000 * LENGTH)
        wanted = [over_orders(model, TEXT, ALL_ASKED, size) for size in (1, 2, None)]
        each = loss.nats.sum(1)
        expected = (wanted[0] + wanted[1] + 2 * wanted[2]) / 4
        assert abs(float(each.mean()) - expected) < 4 * float(each.std()) / 4000**0.5
        assert float(loss.total) * LENGTH == pytest.approx(float(each.mean()))

    @pytest.mark.parametrize("objective", [Masked(), Block(block=2), Mixture(blocks=(1, 2, None))])
    def test_nobody_is_shown_what_is_asked(self, model, objective):
        noised = objective.corrupt(rows_of(TEXT, 20), model.vocab, 0, 0)
        assert torch.equal(objective(Peeking(SIZE, LENGTH, seed=3), noised, 1).nats, objective(model, noised, 1).nats)

    def test_a_biased_law_says_so(self):
        for options in ({"times": "clipped"}, {"times": "iid"}, {"weight": "none"}, {"times": "iid", "clip": (0.1, 1)}):
            assert Masked(**options).noise.biased
        assert Masked(times="iid", clip=(0, 1), schedule="linear").noise.biased


BOUNDS = ["elbo", "exact-k", "any-order"]


class TestLikelihood:
    @pytest.mark.parametrize("estimator", BOUNDS)
    @pytest.mark.parametrize("asked", [ALL_ASKED, ASKED])
    @pytest.mark.parametrize("block", [None, 2, 3])
    def test_bounds(self, estimator, asked, block):
        traits = Traits() if block is None else Traits(sees="blocks", block=block)
        model = RandomConditionals(SIZE, LENGTH, seed=6, traits=traits)
        wanted = over_orders(model, TEXT, asked, block)
        found = likelihood(model, TEXT, asked, estimator, samples=600, rows=64)
        assert found.bound
        assert found.stderr > 0
        assert found.forwards == 600 * (max(map(len, pieces(asked, block))) if estimator == "any-order" else 1)
        assert abs(found.nats - wanted) < 4 * found.stderr

    @pytest.mark.parametrize("estimator", BOUNDS)
    def test_few_samples_are_unbiased_and_know_their_error(self, model, bound, estimator):
        found = [likelihood(model, TEXT, ALL_ASKED, estimator, samples=8, seed=s) for s in range(250)]
        values = torch.tensor([f.nats for f in found])
        assert abs(float(values.mean()) - bound) < 4 * float(values.std()) / 250**0.5
        claimed = torch.tensor([f.stderr for f in found]).square().mean().sqrt()
        assert 0.6 < float(claimed / values.std()) < 1.7

    @pytest.mark.parametrize("estimator", BOUNDS)
    def test_of_a_true_joint(self, estimator):
        exact = ExactDenoiser.random(SIZE, LENGTH, seed=4)
        truth = -float(exact.log_joint[exact.index(TEXT[None])])
        found = likelihood(exact, TEXT, ALL_ASKED, estimator, samples=300)
        # every order of a joint has the same likelihood: nothing is left to chance
        slack = CLOSE if estimator == "any-order" else 4 * found.stderr
        assert abs(found.nats - truth) < slack

    def test_left_to_right_is_exact(self, model):
        for asked in (ALL_ASKED, ASKED):
            places = asked.nonzero()[:, 0].tolist()
            given = set(range(LENGTH)) - set(places)
            wanted = sum(nats(model, TEXT, given | {j for j in places if j < i}, i) for i in places)
            found = likelihood(model, TEXT, asked, "left-to-right")
            assert found.nats == pytest.approx(wanted, abs=CLOSE)
            assert (found.stderr, found.forwards, found.bound) == (0.0, len(places), False)

    def test_left_to_right_in_blocks(self):
        model = RandomConditionals(SIZE, LENGTH, seed=6, traits=Traits(sees="blocks", block=2))
        wanted = sum(nats(model, TEXT, set(range(i)), i) for i in range(LENGTH))
        found = likelihood(model, TEXT, ALL_ASKED, "left-to-right")
        assert found.nats == pytest.approx(wanted, abs=CLOSE)

    def test_ar_is_exact(self):
        asked = torch.tensor([False, True, False, True, True])
        wanted = sum(nats(RandomConditionals(SIZE, LENGTH, seed=6), TEXT, set(range(i)), i) for i in (1, 3, 4))
        for traits in (
            Traits(sees="left", speaks="next"),
            Traits(reads=(1,)),
            Traits(sees="blocks", block=2, reads=(1,)),
        ):
            model = RandomConditionals(SIZE, LENGTH, seed=6, traits=traits)
            found = likelihood(model, TEXT, asked, "ar")
            assert found.nats == pytest.approx(wanted, abs=CLOSE)
            assert (found.stderr, found.forwards, found.bound) == (0.0, 1, False)

    def test_the_same_seed_is_the_same_estimate_however_it_is_batched(self, model):
        for estimator in BOUNDS:
            found = {round(likelihood(model, TEXT, ASKED, estimator, samples=9, rows=r).nats, 9) for r in (1, 4, 64)}
            assert len(found) == 1
        assert likelihood(model, TEXT, ASKED, "exact-k", seed=1) != likelihood(model, TEXT, ASKED, "exact-k", seed=2)

    @pytest.mark.parametrize("estimator", [*BOUNDS, "left-to-right", "ar"])
    @pytest.mark.parametrize("traits", [Traits(reads=(1,)), Traits(sees="blocks", block=2, reads=(1,))])
    def test_nobody_is_shown_what_is_asked(self, estimator, traits):
        honest, peeking = (kind(SIZE, LENGTH, seed=3, traits=traits) for kind in (RandomConditionals, Peeking))
        wanted = likelihood(honest, TEXT, ASKED, estimator, samples=20)
        assert likelihood(peeking, TEXT, ASKED, estimator, samples=20) == wanted

    def test_one_sample_has_no_error_to_tell(self, model):
        assert math.isnan(likelihood(model, TEXT, ALL_ASKED, "exact-k", samples=1).stderr)


class TestRefusals:
    def test_bad_input(self, model):
        with pytest.raises(UnknownName, match="exact-k"):
            likelihood(model, TEXT, ALL_ASKED, "exactk")
        with pytest.raises(BadInput, match="samples"):
            likelihood(model, TEXT, ALL_ASKED, "exact-k", samples=0)
        with pytest.raises(BadInput, match="nothing"):
            likelihood(model, TEXT, ~ALL_ASKED, "exact-k")
        with pytest.raises(BadInput, match="mask"):
            likelihood(model, torch.tensor([0, SIZE, 1, 1, 0]), ALL_ASKED, "exact-k")
        left = RandomConditionals(SIZE, LENGTH, traits=Traits(sees="left", speaks="next"))
        with pytest.raises(BadInput, match="before the text"):
            likelihood(left, TEXT, ALL_ASKED, "ar")

    @pytest.mark.parametrize(
        ("estimator", "traits"),
        [
            ("exact-k", Traits(clock=True)),
            ("exact-k", Traits(says="score")),
            ("exact-k", Traits(noise="uniform")),
            ("exact-k", Traits(sees="left", speaks="next")),
            ("left-to-right", Traits(sees="left", speaks="next")),
            ("ar", Traits()),
            ("ar", Traits(sees="blocks", block=2)),
        ],
    )
    def test_estimators_that_do_not_fit(self, estimator, traits):
        model = RandomConditionals(SIZE, LENGTH, traits=traits)
        with pytest.raises(Unsupported):
            likelihood(model, TEXT, torch.tensor([False, True, True, True, True]), estimator)

    @pytest.mark.parametrize("name", TABLE)
    @pytest.mark.parametrize("traits", [Traits(clock=True), Traits(says="score"), Traits(noise="hybrid")])
    def test_objectives_that_do_not_fit(self, name, traits):
        objective = TABLE[name](block=2) if name == "block" else TABLE[name]()
        model = RandomConditionals(SIZE, LENGTH, traits=traits)
        noised = objective.corrupt(rows_of(TEXT), model.vocab, 0, 0)
        with pytest.raises(Unsupported):
            objective(model, noised, noised.tokens)

    @pytest.mark.parametrize("name", ["masked", "block", "mixture"])
    def test_masks_and_the_lack_of_them(self, name, model):
        objective = TABLE[name](block=2) if name == "block" else TABLE[name]()
        with pytest.raises(BadInput, match="mask"):
            objective.corrupt(rows_of(torch.tensor([0, SIZE, 1])), model.vocab, 0, 0)
        with pytest.raises(Unsupported, match="mask"):
            objective.corrupt(rows_of(TEXT), type(model.vocab)(size=4), 0, 0)
        left = RandomConditionals(SIZE, LENGTH, traits=Traits(sees="left", speaks="next"))
        with pytest.raises(Unsupported, match="sees"):
            objective(left, objective.corrupt(rows_of(TEXT), left.vocab, 0, 0), LENGTH)
