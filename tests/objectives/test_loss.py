"""What a loss may depend on, and what it may not."""

from dataclasses import replace

import pytest
import torch
from rows import NEXT, VOCAB, batch, gradient, net

from unmask.base.attend import NOBODY
from unmask.base.batch import Batch
from unmask.base.errors import BadInput, BadRecipe, UnknownName, Unsupported
from unmask.base.vocab import Traits, Vocab
from unmask.objectives import TABLE
from unmask.objectives.ar import Autoregressive
from unmask.objectives.block import Block
from unmask.objectives.loss import Noised, nll
from unmask.objectives.masked import Masked
from unmask.objectives.mixture import Mixture

OBJECTIVES = {
    "masked": Masked(),
    "masked iid": Masked(times="iid"),
    "block": Block(block=4),
    "mixture": Mixture(blocks=(1, 4, None), shares=(1, 1, 2)),
    "ar": Autoregressive(),
}
ROWS = batch([16], [7, 9], [5, 3], [16], [4, 4, 4, 4], [10], [1, 15], [16])


def network(name: str):
    return net(NEXT) if name == "ar" else net()


@pytest.fixture(params=OBJECTIVES)
def name(request):
    return request.param


def test_every_objective_of_the_table_is_tested():
    assert {type(o) for o in OBJECTIVES.values()} == set(TABLE.values())


def test_noise_is_a_pure_function_of_its_arguments(name):
    objective = OBJECTIVES[name]
    one, two = objective.corrupt(ROWS, VOCAB, 3, 5), objective.corrupt(ROWS, VOCAB, 3, 5)
    assert torch.equal(one.noisy, two.noisy)
    assert torch.equal(one.weight, two.weight)
    if name != "ar":
        for other in (
            objective.corrupt(ROWS, VOCAB, 4, 5),
            objective.corrupt(ROWS, VOCAB, 3, 6),
            objective.corrupt(replace(ROWS, epoch=1), VOCAB, 3, 5),
        ):
            assert not torch.equal(one.noisy, other.noisy)


def test_noise_belongs_to_the_row_wherever_it_stands_in_the_batch(name):
    objective, order = OBJECTIVES[name], torch.tensor([5, 2, 7, 0, 1, 6, 4, 3])
    mixed = Batch(
        tokens=ROWS.tokens[order],
        documents=ROWS.documents[order],
        places=ROWS.places[order],
        samples=ROWS.samples[order],
    )
    straight, turned = objective.corrupt(ROWS, VOCAB, 0, 0), objective.corrupt(mixed, VOCAB, 0, 0)
    assert torch.equal(straight.noisy[order], turned.noisy)
    assert torch.equal(straight.weight[order], turned.weight)


def test_only_real_text_is_masked_and_only_masks_are_asked_about(name):
    given = replace(ROWS, tokens=ROWS.tokens.masked_fill((ROWS.places == 0) & (ROWS.documents != NOBODY), VOCAB.bos))
    noised = OBJECTIVES[name].corrupt(given, VOCAB, 0, 0)
    hidden = noised.noisy == VOCAB.mask
    assert torch.equal(noised.noisy[~hidden], given.tokens[~hidden])
    assert not bool(hidden[given.documents == NOBODY].any())
    assert not bool(hidden[given.tokens == VOCAB.bos].any())
    assert torch.equal(noised.counts, (given.documents != NOBODY) & (given.tokens != VOCAB.bos))
    if name != "ar":
        assert torch.equal(noised.weight > 0, hidden)


@pytest.mark.parametrize("law", ["exact-k", "exact-k-stratified"])
@pytest.mark.parametrize("block", [None, 1, 4])
def test_exact_counts_weigh_every_unit_by_its_size_whatever_is_drawn(law, block):
    objective = Masked(times=law) if block is None else Block(block=block, times=law)
    noised = objective.corrupt(ROWS, VOCAB, 0, 0)
    assert float(noised.weight.sum()) == pytest.approx(noised.tokens, abs=1e-9)


@pytest.mark.parametrize("parts", [2, 4])
def test_loss_and_gradient_do_not_depend_on_accumulation(name, parts):
    objective, model = OBJECTIVES[name], network(name)
    noised = objective.corrupt(ROWS, VOCAB, 0, 0)
    whole = objective(model, noised, noised.tokens)
    whole.total.backward()
    wanted, total, nats = gradient(model), 0.0, []
    for at in range(0, 8, 8 // parts):
        loss = objective(model, noised.part(at, at + 8 // parts), noised.tokens)
        loss.total.backward()
        total += float(loss.total.detach())
        nats.append(loss.nats)
    assert total == pytest.approx(float(whole.total.detach()), abs=1e-12)
    assert torch.allclose(torch.cat(nats), whole.nats, atol=1e-12)
    assert torch.allclose(gradient(model), wanted, atol=1e-12)


def test_a_row_costs_the_same_whoever_travels_with_it(name):
    objective, model = OBJECTIVES[name], network(name)
    noised = objective.corrupt(ROWS, VOCAB, 0, 0)
    together = objective(model, noised, noised.tokens).nats
    for b in range(8):
        assert torch.allclose(objective(model, noised.part(b, b + 1), noised.tokens).nats[0], together[b], atol=1e-12)


def test_packed_documents_cost_what_they_cost_alone(name):
    objective, model = OBJECTIVES[name], network(name)
    packed = objective.corrupt(batch([7, 5, 4], [3, 9]), VOCAB, 0, 0)
    loss = objective(model, packed, packed.tokens)
    loss.total.backward()
    wanted, total = gradient(model), 0.0
    for b, start, size in ((0, 0, 7), (0, 7, 5), (0, 12, 4), (1, 0, 3), (1, 3, 9)):
        piece, block = slice(start, start + size), packed.block
        alone = Noised(
            batch=replace(batch([size], length=size), tokens=packed.batch.tokens[b : b + 1, piece]),
            noisy=packed.noisy[b : b + 1, piece],
            weight=packed.weight[b : b + 1, piece],
            counts=packed.counts[b : b + 1, piece],
            block=block[b : b + 1] if torch.is_tensor(block) else block,
        )
        one = objective(model, alone, packed.tokens)
        one.total.backward()
        total += float(one.total.detach())
        assert torch.allclose(one.nats[0], loss.nats[b, piece], atol=1e-12)
    assert total == pytest.approx(float(loss.total.detach()), abs=1e-12)
    assert torch.allclose(gradient(model), wanted, atol=1e-12)


def test_padding_changes_nothing(name):
    objective, model = OBJECTIVES[name], network(name)
    short, long = batch([12], [5, 7], length=12), batch([12], [5, 7], length=20)
    long.tokens[:, :12] = short.tokens
    ours, theirs = objective.corrupt(short, VOCAB, 0, 0), objective.corrupt(long, VOCAB, 0, 0)
    if name != "mixture":  # there a row that is whole needs to know how long it is
        assert torch.equal(ours.noisy, theirs.noisy[:, :12])
        found, wanted = objective(model, theirs, 24), objective(model, ours, 24)
        assert torch.allclose(found.nats[:, :12], wanted.nats, atol=1e-12)
    other = long.tokens.clone()
    other[:, 12:] = 9
    again = objective.corrupt(replace(long, tokens=other), VOCAB, 0, 0)
    assert torch.equal(objective(model, again, 24).nats, objective(model, theirs, 24).nats)


@pytest.mark.parametrize("chunk", [1, 24 * 5, 1 << 24])
def test_chunks_change_memory_and_nothing_else(name, chunk):
    objective, model = OBJECTIVES[name], network(name)
    noised = objective.corrupt(ROWS, VOCAB, 0, 0)
    wanted = objective(model, noised, 100)
    wanted.total.backward()
    expected = gradient(model)
    found = replace(objective, chunk=chunk)(model, noised, 100)
    found.total.backward()
    assert torch.allclose(found.nats, wanted.nats, atol=1e-12)
    assert torch.allclose(gradient(model), expected, atol=1e-12)


def test_logits_are_never_more_than_a_chunk():
    seen, model = [], net()
    head = model.head
    model.head = lambda features: seen.append(features.shape[:-1].numel()) or head(features)
    noised = Masked().corrupt(ROWS, VOCAB, 0, 0)
    Masked(chunk=24 * 5)(model, noised, 100)
    assert max(seen) == 5
    assert sum(seen) == int((noised.weight > 0).sum())


def test_nothing_masked_is_a_loss_of_zero_with_gradients(name):
    objective, model = OBJECTIVES[name], network(name)
    noised = objective.corrupt(ROWS, VOCAB, 0, 0)
    loss = objective(model, replace(noised, weight=torch.zeros_like(noised.weight)), noised.tokens)
    loss.total.backward()
    assert float(loss.total.detach()) == 0
    assert not bool(gradient(model).any())


class TestSubstitution:
    """The mask has no probability, and visible tokens cost nothing (SUBS)."""

    def test_the_logit_of_the_mask_does_not_matter(self):
        logits = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        targets = torch.tensor([1, 2, 3, 4, 5])
        for value in (-1e9, 0.0, 50.0):
            changed = logits.clone()
            changed[:, 0] = value
            changed.requires_grad_()
            nats = nll(changed, targets, 0)
            assert torch.equal(nats, -logits[:, 1:].log_softmax(-1)[torch.arange(5), targets - 1])
            (slope,) = torch.autograd.grad(nats.sum(), changed)
            assert not bool(slope[:, 0].any())
        assert bool((nll(logits, targets, None) > nll(logits, targets, 0)).all())

    def test_features_of_visible_positions_do_not_matter(self):
        model = net()
        noised = Masked().corrupt(ROWS, VOCAB, 0, 0)
        wanted = Masked()(model, noised, 100).total
        read = model.read
        visible = (noised.noisy != VOCAB.mask)[..., None]
        model.read = lambda *args, **kwargs: read(*args, **kwargs).masked_fill(visible, torch.nan)
        assert Masked()(model, noised, 100).total == wanted

    def test_half_precision_is_summed_in_float32(self):
        logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
        assert nll(logits, torch.tensor([1, 2, 3, 4]), 0).dtype == torch.float32


class TestShift:
    def test_models_of_the_next_token_are_asked_one_slot_earlier(self):
        """Their features moved by one slot are those of a model that speaks of its own position."""
        here, there = net(), net(Traits(speaks="next"))
        read = here.read

        def moved(tokens, **kwargs):
            features = read(tokens, **kwargs)
            return torch.cat([features[:, 1:], features[:, :1]], dim=1)

        there.read = moved
        rows = batch([16], [16])
        noised = Masked().corrupt(rows, VOCAB, 0, 0)
        known = noised.weight.clone()
        known[:, 0] = 0  # the first position speaks of itself
        noised = replace(noised, weight=known)
        assert torch.equal(Masked()(there, noised, 9).nats, Masked()(here, noised, 9).nats)


class TestMixture:
    def test_rows_are_read_in_blocks_of_their_size(self):
        model, mixture = net(), OBJECTIVES["mixture"]
        noised = mixture.corrupt(ROWS, VOCAB, 0, 0)
        found = mixture(model, noised, 100)
        for b, size in enumerate(noised.block.tolist()):
            row = replace(noised.part(b, b + 1), block=None if size == 16 else size)
            objective = Masked() if size == 16 else Block(block=size)
            assert torch.allclose(objective(model, row, 100).nats[0], found.nats[b], atol=1e-12)
        assert float(sum(v for k, v in found.parts.items() if k.startswith("nats"))) == pytest.approx(
            100 * float(found.total.detach())
        )
        assert sum(int(v) for k, v in found.parts.items() if k.startswith("tokens")) == noised.tokens

    def test_shares_are_kept_evenly_in_every_batch_and_exactly_on_average(self):
        mixture = Mixture(blocks=(1, 4, None), shares=(1, 2, 3))
        counts = torch.stack(
            [
                (mixture.corrupt(ROWS, VOCAB, 0, step).block[:, None] == torch.tensor([1, 4, 16])).sum(0)
                for step in range(300)
            ]
        ).double()
        exact = torch.tensor([8 / 6, 16 / 6, 4.0], dtype=torch.float64)
        assert float((counts - exact).abs().max()) < 1
        assert float((counts.mean(0) - exact).abs().max()) < 0.1

    def test_each_size_is_stratified_by_itself(self):
        rows = batch(*[[16]] * 24)
        noised = Mixture(blocks=(4, None)).corrupt(rows, VOCAB, 0, 0)
        whole = noised.noisy[noised.block == 16]
        assert sorted(torch.ceil((whole == 0).sum(1) / 16 * 12).int().tolist())[::6] == [1, 7]
        blocks = noised.noisy[noised.block == 4].view(-1, 4)
        assert (blocks == 0).sum(1).bincount(minlength=5).tolist() == [0, 12, 12, 12, 12]


class TestRefusals:
    @pytest.mark.parametrize("kind", [Masked, Mixture])
    def test_names_and_settings(self, kind):
        with pytest.raises(UnknownName, match="Did you mean 'exact-k"):
            kind(times="exact-kk")
        with pytest.raises(UnknownName, match="schedule"):
            kind(times="iid", schedule="log")
        with pytest.raises(UnknownName, match="weight"):
            kind(weight="elbow")
        with pytest.raises(BadRecipe, match="no schedule"):
            kind(schedule="cosine")
        with pytest.raises(BadRecipe, match="no clip"):
            kind(clip=(0.3, 0.8))
        with pytest.raises(BadInput, match="low"):
            kind(times="iid", clip=(0.8, 0.3))

    def test_sizes(self):
        with pytest.raises(BadRecipe, match="block"):
            Block(block=0)
        with pytest.raises(BadRecipe, match="blocks"):
            Mixture(blocks=())
        with pytest.raises(BadRecipe, match="shares"):
            Mixture(blocks=(1, None), shares=(1, 1, 1))

    def test_vocabularies_and_texts(self):
        with pytest.raises(Unsupported, match="mask token"):
            Masked().corrupt(ROWS, Vocab(size=24), 0, 0)
        with pytest.raises(BadInput, match="holds the mask"):
            Masked().corrupt(replace(ROWS, tokens=ROWS.tokens * 0), VOCAB, 0, 0)

    def test_networks(self):
        noised = Masked().corrupt(ROWS, VOCAB, 0, 0)
        with pytest.raises(Unsupported, match="sees"):
            Masked()(net(NEXT), noised, 1)
        with pytest.raises(Unsupported, match="speaks"):
            Autoregressive()(net(), noised, 1)
        scores = net()
        scores.traits = Traits(says="score")
        with pytest.raises(Unsupported, match="says"):
            Masked()(scores, noised, 1)
