"""Which slot speaks of a position, and what it has seen: checked against beliefs that are asked directly."""

import pytest
import torch

from exact import UNKNOWN, RandomConditionals
from unmask.base.batch import Batch
from unmask.base.errors import Unsupported
from unmask.base.vocab import Traits
from unmask.objectives.block import Block
from unmask.objectives.likelihood import likelihood
from unmask.objectives.loss import Noised
from unmask.objectives.masked import Masked
from unmask.objectives.mixture import Mixture

SIZE, LENGTH, ROWS = 3, 7, 40
NEXT_BLOCKS = Traits(sees="blocks", block=3, speaks="next", reads=(1,))
DRAW = torch.Generator().manual_seed(0)
TEXTS = torch.randint(0, SIZE, (ROWS, LENGTH), generator=DRAW)
PLACE = torch.arange(LENGTH)
BATCH = Batch(
    tokens=TEXTS,
    documents=torch.zeros_like(TEXTS),
    places=PLACE.expand_as(TEXTS).clone(),
    samples=torch.arange(ROWS),
)


def asked_of(model: RandomConditionals, noised: Noised, seen: torch.Tensor) -> torch.Tensor:
    """(B, L) weighted nats, from what each position has `seen` (B, L, L) of the noisy and clean texts."""
    evidence = torch.where(seen, TEXTS[:, None], UNKNOWN).flatten(0, 1)
    target = PLACE.repeat(ROWS)
    nats = -model.log_prob(evidence, target)[torch.arange(len(target)), TEXTS.flatten()]
    return nats.view(ROWS, LENGTH) * noised.weight


def seen_in_blocks(noised: Noised, size: int, *, shift: bool) -> torch.Tensor:
    """(B, L, L) what of the text is evidence about each position."""
    visible = (noised.noisy != SIZE)[:, None]
    q, k = PLACE[:, None], PLACE[None]
    before, same = k // size < q // size, k // size == q // size
    inside = same & visible & (k != q)
    if shift:  # the slot before a block belongs to the block before, which sees nothing of what comes
        inside = inside & (q % size != 0)
    return before | inside


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("speaks", ["here", "next"])
def test_blocks(size, speaks):
    model = RandomConditionals(SIZE, LENGTH, traits=Traits(sees="blocks", block=size, speaks=speaks))
    noised = Block(block=size).corrupt(BATCH, model.vocab, 0, 0)
    found = Block(block=size)(model, noised, noised.tokens).nats
    wanted = asked_of(model, noised, seen_in_blocks(noised, size, shift=speaks == "next"))
    first = int(speaks == "next")  # the first position of a document has no slot before it
    assert torch.allclose(found[:, first:], wanted[:, first:], atol=1e-12, rtol=0)


@pytest.mark.parametrize("speaks", ["here", "next"])
def test_whole_texts(speaks):
    model = RandomConditionals(SIZE, LENGTH, traits=Traits(speaks=speaks))
    noised = Masked().corrupt(BATCH, model.vocab, 0, 0)
    seen = (noised.noisy != SIZE)[:, None] & (PLACE[:, None] != PLACE[None])
    found, wanted = Masked()(model, noised, noised.tokens).nats, asked_of(model, noised, seen)
    first = int(speaks == "next")
    assert torch.allclose(found[:, first:], wanted[:, first:], atol=1e-12, rtol=0)


@pytest.mark.parametrize("speaks", ["here", "next"])
def test_a_mixture_reads_each_row_in_its_size(speaks):
    model, mixture = RandomConditionals(SIZE, LENGTH, traits=Traits(speaks=speaks)), Mixture(blocks=(1, 3, None))
    noised = mixture.corrupt(BATCH, model.vocab, 0, 0)
    found = mixture(model, noised, noised.tokens).nats
    first = int(speaks == "next")
    for size in (1, 3, LENGTH):
        rows = noised.block == size
        wanted = asked_of(model, noised, seen_in_blocks(noised, size, shift=first == 1 and size < LENGTH))
        assert int(rows.sum()) >= ROWS // 3
        assert torch.allclose(found[rows, first:], wanted[rows, first:], atol=1e-12, rtol=0)


class TestLikelihood:
    """One text, read in another way than the model's own."""

    asked = PLACE > 0

    def chain(self, model: RandomConditionals, seen: torch.Tensor) -> float:
        """Nats of the text's asked positions, given what each has `seen` (L, L)."""
        evidence = torch.where(seen, TEXTS[0], UNKNOWN)
        log_p = model.log_prob(evidence, PLACE)[PLACE, TEXTS[0]]
        return -float(log_p[self.asked].sum())

    @pytest.mark.parametrize("traits", [NEXT_BLOCKS, Traits(speaks="next"), Traits(reads=(3,))])
    def test_in_order_every_model_has_seen_what_comes_before(self, traits):
        model = RandomConditionals(SIZE, LENGTH, traits=traits)
        found = likelihood(model, TEXTS[0], self.asked, "left-to-right", rows=2)
        assert found.nats == pytest.approx(self.chain(model, PLACE[None] < PLACE[:, None]), abs=1e-10)
        if traits.sees == "blocks":
            assert found.forwards == 3  # all blocks at once
            assert likelihood(model, TEXTS[0], self.asked, "ar").nats == pytest.approx(found.nats, abs=1e-10)

    @pytest.mark.parametrize("estimator", ["elbo", "exact-k", "any-order"])
    def test_a_size_that_was_trained_is_read_like_a_native_one(self, estimator):
        native = RandomConditionals(SIZE, LENGTH, traits=Traits(sees="blocks", block=3))
        mixed = RandomConditionals(SIZE, LENGTH, traits=Traits(reads=(1, 3)))
        wanted = likelihood(native, TEXTS[0], self.asked, estimator, samples=16)
        assert likelihood(mixed, TEXTS[0], self.asked, estimator, samples=16, block=3) == wanted
        assert likelihood(mixed, TEXTS[0], self.asked, estimator, samples=16) != wanted

    def test_blocks_of_one_leave_nothing_to_chance(self):
        mixed = RandomConditionals(SIZE, LENGTH, traits=Traits(reads=(1, 3)))
        found = likelihood(mixed, TEXTS[0], self.asked, "exact-k", samples=16, block=1)
        assert (found.stderr, found.bound, found.forwards) == (0.0, False, 1)
        assert found.nats == pytest.approx(self.chain(mixed, PLACE[None] < PLACE[:, None]), abs=1e-10)

    @pytest.mark.parametrize(
        ("traits", "block"), [(Traits(reads=(1, 3)), 2), (Traits(), 4), (Traits(sees="left", speaks="next"), 3)]
    )
    def test_a_size_that_was_not_trained_is_refused(self, traits, block):
        estimator = "ar" if traits.sees == "left" else "exact-k"
        with pytest.raises(Unsupported, match="block"):
            likelihood(RandomConditionals(SIZE, LENGTH, traits=traits), TEXTS[0], self.asked, estimator, block=block)
