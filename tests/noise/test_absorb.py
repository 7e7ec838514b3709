"""Units and masks, against the slow and obvious way."""

import pytest
import torch

from unmask.base import seeds
from unmask.base.attend import NOBODY
from unmask.noise.absorb import NO_UNIT, Units, absorb, levels, ranks
from unmask.noise.schedules import TABLE as SCHEDULES
from unmask.noise.times import TABLE as TIMES

DOCUMENTS = torch.tensor(
    [
        [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2],
        [0, 0, 0, 0, 0, 0, 0, NOBODY, NOBODY, NOBODY, NOBODY, NOBODY],
        [0] * 12,
        [NOBODY] * 12,
    ]
)
PLACES = torch.tensor(
    [
        [0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3],
        [0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0],
        list(range(12)),
        [0] * 12,
    ]
)
COUNTS = DOCUMENTS != NOBODY
COUNTS[2, 0] = False  # a given position inside a document
NUMBERS = seeds.uniform(seeds.key(1, "test", torch.arange(4)[:, None], torch.arange(12)))


def slow(block: int | None) -> dict[tuple[int, int, int], list[int]]:
    found: dict[tuple[int, int, int], list[int]] = {}
    for b in range(4):
        for i in range(12):
            if COUNTS[b, i]:
                piece = int(PLACES[b, i]) // block if block else 0
                found.setdefault((b, int(DOCUMENTS[b, i]), piece), []).append(i)
    return found


@pytest.mark.parametrize("block", [None, 1, 2, 3, 4, 12, 50])
def test_units_are_pieces_of_documents_or_blocks_that_restart_with_them(block):
    units, expected = Units.of(DOCUMENTS, PLACES, COUNTS, block), slow(block)
    assert units.size.tolist() == [len(v) for v in expected.values()]
    assert list(zip(units.row.tolist(), units.first.tolist(), strict=True)) == [
        (k[0], v[0]) for k, v in expected.items()
    ]
    for number, (where, slots) in enumerate(expected.items()):
        assert (units.index == number).nonzero().tolist() == [[where[0], i] for i in slots]
    assert torch.equal(units.index == NO_UNIT, ~COUNTS)


def test_a_block_size_per_row():
    units = Units.of(DOCUMENTS, PLACES, COUNTS, torch.tensor([2, 3, 12, 1]))
    assert units.size.tolist() == [2, 2, 1, 2, 1, 2, 2, 3, 3, 1, 11]


@pytest.mark.parametrize("block", [None, 3])
def test_ranks_are_those_of_the_numbers_within_the_unit(block):
    rank = ranks(Units.of(DOCUMENTS, PLACES, COUNTS, block), NUMBERS)
    for (b, _, _), slots in slow(block).items():
        for i in slots:
            assert rank[b, i] == sum(NUMBERS[b, j] < NUMBERS[b, i] for j in slots)


@pytest.mark.parametrize("law", ["exact-k", "exact-k-stratified"])
@pytest.mark.parametrize("block", [None, 1, 3])
def test_exactly_k_of_each_unit_are_masked_and_padding_never(law, block):
    units = Units.of(DOCUMENTS, PLACES, COUNTS, block)
    level = levels(units.size, TIMES[law], SCHEDULES["log-linear"], TIMES[law].draw(seeds.key(0, "t", units.first)))
    hidden = absorb(units, level, NUMBERS)
    assert not bool((hidden & ~COUNTS).any())
    for number, (b, slots) in enumerate((k[0], v) for k, v in slow(block).items()):
        assert int(hidden[b, slots].sum()) == int(level.count[number])
        kept, gone = NUMBERS[b, slots][~hidden[b, slots]], NUMBERS[b, slots][hidden[b, slots]]
        assert not len(kept) or kept.min() > gone.max()


def test_all_subsets_of_size_k_are_equally_likely():
    units = Units.of(*(torch.zeros(6000, 4).long(), torch.arange(4).expand(6000, 4), torch.ones(6000, 4).bool()))
    level = levels(units.size, TIMES["exact-k"], SCHEDULES["log-linear"], torch.full((6000,), 0.4).double())
    numbers = seeds.uniform(seeds.key(0, "subsets", torch.arange(6000)[:, None], torch.arange(4)))
    codes = (absorb(units, level, numbers) * torch.tensor([8, 4, 2, 1])).sum(1)
    found = codes.bincount(minlength=16)
    assert found.nonzero().flatten().tolist() == [3, 5, 6, 9, 10, 12]  # two of four
    assert float((found[found > 0] / 6000 - 1 / 6).abs().max()) < 4.5 * (5 / 36 / 6000) ** 0.5


def test_each_position_is_masked_with_the_probability_of_its_unit():
    shape = (4000, 6)
    units = Units.of(torch.zeros(shape).long(), torch.arange(6).expand(shape), torch.ones(shape).bool(), 3)
    level = levels(units.size, TIMES["iid"], SCHEDULES["cosine"], torch.tensor([0.2, 0.7]).double().repeat(4000))
    numbers = seeds.uniform(seeds.key(0, "positions", torch.arange(4000)[:, None], torch.arange(6)))
    share = absorb(units, level, numbers).double().mean(0)
    expected = level.probability[:2].repeat_interleave(3)
    assert float((share - expected).abs().max()) < 4.5 * 0.5 / 4000**0.5


def test_nothing_to_mask_is_no_error():
    nobody = torch.full((2, 3), NOBODY)
    units = Units.of(nobody, torch.zeros_like(nobody), nobody != NOBODY)
    level = levels(units.size, TIMES["exact-k"], SCHEDULES["log-linear"], torch.empty(0).double())
    assert not bool(absorb(units, level, torch.rand(2, 3)).any())
    assert torch.equal(units.spread(level.weight), torch.zeros(2, 3).double())


@pytest.mark.parametrize("name", ["log-linear", "linear", "cosine", "geometric"])
def test_the_share_of_masks_is_the_probability(name):
    """400,000 units of one position: a share of masks that is off by 1% is found."""
    rows, length = 400, 1000
    place = torch.arange(length).expand(rows, length)
    units = Units.of(torch.zeros_like(place), place, torch.ones_like(place, dtype=torch.bool), block=1)
    numbers = torch.full((rows * length,), 0.6, dtype=torch.float64)
    noise = levels(units.size, TIMES["iid"], SCHEDULES[name], numbers)
    coins = seeds.uniform(seeds.key(3, "test", torch.arange(rows)[:, None], torch.arange(length)))
    share, wanted = absorb(units, noise, coins).double().mean(), noise.probability.mean()
    error = float((wanted * (1 - wanted) / (rows * length)).sqrt())
    assert abs(float(share - wanted)) < 4 * error
    assert 4 * error < 0.01 * float(wanted)
