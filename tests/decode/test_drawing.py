"""What is drawn and told, against a slow reference that looks at one row at a time and at all of its tokens, sorted."""

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.base import seeds
from unmask.base.canvas import Canvas
from unmask.base.errors import BadInput
from unmask.base.step import State
from unmask.base.vocab import Traits, Vocab
from unmask.decode import nucleus
from unmask.decode import propose as propose_module
from unmask.decode.bias import Biases, checked
from unmask.decode.decoder import build
from unmask.decode.nucleus import row_sum
from unmask.decode.propose import BLOCK, Sampling, propose
from unmask.decode.windows.whole import Whole

ENDS = (2, 4)
FORBIDDEN = (5,)


class Says:
    """A model that says what it was given, (R, W, V)."""

    traits, device = Traits(sees="all"), torch.device("cpu")

    def __init__(self, logits: Tensor, mask: int | None = None) -> None:
        self.logits, self.asked = logits, 0
        self.vocab = Vocab(
            size=logits.shape[-1], mask=logits.shape[-1] - 1 if mask is None else mask, eos=ENDS[0], stops=ENDS[1:]
        )

    def read(self, tokens: Tensor, **rest) -> Tensor:
        return self.logits[: len(tokens), : tokens.shape[1]]

    def head(self, features: Tensor) -> Tensor:
        self.asked += len(features)
        return features


@dataclass
class Row:
    """How one row is drawn."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    no_end_before: float = 0
    heat: float = 1.0
    bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int = 0


def gumbel(key: Tensor, number: int) -> float:
    return float(-(-seeds.uniform(seeds.key(key, "gumbel", number)).log()).log())


def winner(nats: dict[int, float], key: Tensor) -> int:
    return max(nats, key=lambda i: (nats[i] + gumbel(key, i), -i))


def winner_of_rounds(nats: dict[int, float], key: Tensor) -> int:
    """Blocks race by what they weigh together, then the tokens of the best one."""
    blocks: dict[int, list[int]] = {}
    for i in nats:
        blocks.setdefault(i // BLOCK, []).append(i)
    most = max(nats.values())
    weigh = {b: math.fsum(math.exp(nats[i] - most) for i in own) for b, own in blocks.items()}
    first = max((b for b in weigh if weigh[b]), key=lambda b: math.log(weigh[b]) + gumbel(key, BLOCK + b))
    return max(blocks[first], key=lambda i: (nats[i] + gumbel(key, i % BLOCK), -i))


def reference(logits: Tensor, row: Row, vocab: Vocab, *, position: int, key: Tensor, now: int) -> dict[str, Any]:
    """What is offered for logits (V,)."""
    x = [(float(one) + dict(row.bias).get(i, 0.0)) / row.heat for i, one in enumerate(logits.double())]
    for i in (*FORBIDDEN, vocab.mask, *(vocab.ends if position < row.no_end_before else ())):
        x[i] = -math.inf
    order = sorted(range(len(x)), key=lambda i: (-x[i], i))
    weights = (torch.tensor(x, dtype=torch.float64) - x[order[0]]).exp()
    units = [int(share * 2**62) for share in (weights / row_sum(weights[None])).tolist()]  # rounded as they are there
    before, bar = [0, *accumulate(units[i] for i in order)], Fraction(row.top_p) * 2**62
    least = x[order[min(row.top_k or len(x), len(x)) - 1]]
    kept = [i for i, told in zip(order, before, strict=False) if (row.top_p == 1 or told < bar) and x[i] >= least]
    total = math.fsum(math.exp(x[i] - x[order[0]]) for i in kept)
    log_p = {i: x[i] - x[order[0]] - math.log(total) for i in kept}
    drawn = order[0]
    if row.temperature > 0:
        limits = torch.tensor([[row.top_k], [row.top_p]], dtype=torch.float64).split(1)
        told = next(nucleus.kept(torch.tensor([x], dtype=torch.float64), *limits))[2]
        listed = told is not None and (row.top_k > 0 or row.top_p < 1)
        warm = {i: log_p[i] / row.temperature for i in kept}
        drawn = winner(warm, key) if listed else winner_of_rounds(warm, key)
    p = [math.exp(log_p[i]) for i in kept]
    return {
        "tokens": drawn,
        "log_prob": log_p[drawn],
        "best": order[0],
        "top": log_p[order[0]],
        "standing": log_p.get(now, -math.inf),
        "entropy": -math.fsum(one * math.log(one) for one in p if one),
        "margin": p[0] - (p[1] if len(p) > 1 else 0.0),
        "ranked": [(i, log_p[i]) for i in kept if log_p[i] > -math.inf][: row.top_logprobs],
    }


def offered(logits: Tensor, rows: list[Row], seed: int, reads=propose_module.ALL_READS, mask: int | None = None):
    """A proposal over all positions of these rows, and its plan."""
    model = Says(logits, mask)
    length = logits.shape[1]
    canvas = Canvas.of(
        [([0] * length, [True] * length)] * len(rows), mask=model.vocab.mask, seeds=range(seed, seed + len(rows))
    )
    canvas.tokens[:] = torch.arange(length) % 7  # what stands there
    plan = Whole()(canvas, model.traits, None)
    columns = {name: [getattr(row, name) for row in rows] for name in vars(rows[0])}
    biases = Biases(len(rows), torch.device("cpu"))
    for r, bias in enumerate(columns.pop("bias")):
        biases.set(r, ((0, 99.0), (1, 98.0), (2, 97.0), (3, -99.0)))  # of who stood there before
        biases.set(r, bias)
    knobs = {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}
    heat = knobs.pop("heat")
    knobs["top_logprobs"] = knobs["top_logprobs"].long()
    sampling = Sampling(forbidden=FORBIDDEN, t_max=heat, t_min=heat, bias=biases, **knobs)
    return propose(model, plan, sampling, reads=reads), plan, model.vocab


def compare(logits: Tensor, rows: list[Row], seed: int) -> None:
    offer, plan, vocab = offered(logits, rows, seed)
    for r, row in enumerate(rows):
        for i in range(logits.shape[1]):
            key = seeds.key(plan.seed[r], "token", plan.turn[r, i], plan.targets[r, i])
            wanted = reference(logits[r, i], row, vocab, position=i, key=key, now=int(plan.standing[r, i]))
            ranked = wanted.pop("ranked")
            assert (offer.ranked is None) == (not any(row.top_logprobs for row in rows))
            if offer.ranked is not None:
                there = offer.ranked_log_prob[r, i] > -math.inf
                ids, values = offer.ranked[r, i, there], offer.ranked_log_prob[r, i, there]
                assert ids.tolist() == [i for i, _ in ranked]
                assert values.tolist() == pytest.approx([v for _, v in ranked], rel=1e-12, abs=1e-12)
                own = values[ids == offer.tokens[r, i]]
                assert not len(own) or own == offer.log_prob[r, i]  # to the bit
            for name, value in wanted.items():
                told = getattr(offer, name)[r, i].item()
                if name in ("tokens", "best"):
                    assert told == value, (name, row)
                else:
                    assert told == pytest.approx(value, rel=1e-12, abs=1e-12), (name, row)


ROWS = st.builds(
    Row,
    temperature=st.sampled_from([0.0, 0.0, 0.3, 1.0, 1.5]),
    top_k=st.sampled_from([0, 0, 1, 7, 80, 700]),
    top_p=st.sampled_from([1.0, 1.0, 0.3, 0.9, 0.999999]),
    no_end_before=st.sampled_from([0.0, 2.0, math.inf]),
    heat=st.sampled_from([1.0, 1.0, 0.7]),
    bias=st.sampled_from([(), (), ((0, 3.5), (3, -100.0), (6, 1.25)), ((7, 100.0),)]),
    top_logprobs=st.sampled_from([0, 0, 1, 5, 20]),
)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(ROWS, min_size=1, max_size=5),
    size=st.sampled_from([9, 64, 65, 600]),
    scale=st.sampled_from([0.01, 1.0, 4.0, 30.0]),
    steps=st.sampled_from([None, 1.0, 0.01]),
    missing=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 1000),
)
def test_against_the_reference(rows, size, scale, steps, missing, seed):
    """Unlike rows, flat and sharp, with logits that are equal (whole steps) and tokens that can't be."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), 3, size, generator=draw) * scale
    if steps is not None:
        logits = (logits / steps).round() * steps
    gone = torch.rand(logits.shape, generator=draw) < missing
    gone[..., :2] = False
    compare(logits.masked_fill(gone, -torch.inf), rows, seed)


@pytest.mark.parametrize("size", [256, 257, 512, 600])
@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
def test_of_blocks_and_their_tokens(size, scale):
    logits = torch.randn(3, 4, size, generator=torch.Generator().manual_seed(size)) * scale
    logits[:, ::2, : size // 2] = -torch.inf
    compare(logits, [Row(temperature=1.0), Row(temperature=0.4), Row(temperature=1.0, top_p=0.9)], 1)


@pytest.mark.parametrize("elements", [1, 6000, 1 << 18])
def test_any_number_at_a_time(monkeypatch, elements):
    logits = torch.randn(5, 4, 3000, generator=torch.Generator().manual_seed(5)) * 3
    wide = [Row(temperature=1.0, top_p=0.999, heat=9.0, top_logprobs=2), Row(top_p=0.9, heat=3.0, top_k=900)]
    cool = Row(temperature=0.7, top_p=0.8, bias=((3, 2.0),))
    rows = [Row(temperature=1.0, top_logprobs=3), cool, Row(top_k=3), *wide]
    wanted, _, _ = offered(logits, rows, 3)
    assert wanted.ranked is not None
    assert wanted.ranked_log_prob is not None
    assert torch.equal(wanted.ranked[3, :, 0], wanted.best[3])  # however its nucleus was found
    assert torch.equal(wanted.ranked_log_prob[3, :, 0], wanted.top[3])
    assert bool((wanted.ranked_log_prob[3, :, 1] > -math.inf).all())
    monkeypatch.setitem(propose_module.DRAWN_ELEMENTS, "cpu", elements)
    found, _, _ = offered(logits, rows, 3)
    for name in ("tokens", "log_prob", "best", "top", "standing", "entropy", "margin", "ranked", "ranked_log_prob"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


def test_one_bias_of_all_rows_is_that_of_each():
    logits = torch.randn(3, 4, 60, generator=torch.Generator().manual_seed(5)) * 3
    bias = ((0, 3.5), (3, -100.0), (6, 1.25))
    wanted, plan, _ = offered(logits, [Row(bias=bias, temperature=1.0)] * 3, 3)
    sampling = Sampling(forbidden=FORBIDDEN, temperature=1.0, bias=bias)
    found = propose(Says(logits), plan, sampling)
    for name in ("tokens", "log_prob", "best", "top", "standing", "entropy", "margin"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([(1, 2.0)], "is a map"),
        ({9: 1}, "ids from 0 to 8"),
        ({-1: 1}, "ids from 0 to 8"),
        ({"x": 1}, "ids from 0 to 8"),
        ({True: 1}, "ids from 0 to 8"),
        ({1.0: 1}, "ids from 0 to 8"),
        ({"1": 1, 1: 2}, "each once"),
        ({1: 101}, "adds -100 to 100"),
        ({1: math.nan}, "adds -100 to 100"),
        ({1: "2"}, "adds -100 to 100"),
        ({1: True}, "adds -100 to 100"),
        ({3: 0.5}, "never written"),
    ],
)
def test_a_bias_is_refused(asked, said):
    with pytest.raises(BadInput, match=said):
        checked(asked, 9, frozenset({3}))


def test_a_bias_as_it_is_asked_for():
    assert checked(None, 9, frozenset()) == checked({}, 9, frozenset()) == ()
    assert checked({"7": -100, 2: 1}, 9, frozenset({7})) == ((2, 1.0), (7, -100.0))


def test_statistics_that_nobody_reads_change_nothing():
    logits = torch.randn(3, 4, 600, generator=torch.Generator().manual_seed(6)) * 3
    rows = [Row(temperature=1.0), Row(temperature=0.7, top_p=0.8), Row()]
    whole, _, _ = offered(logits, rows, 3)
    part, _, _ = offered(logits, rows, 3, reads=())
    assert part.entropy is None
    assert part.margin is None
    for name in ("tokens", "log_prob", "best", "top", "standing"):
        assert torch.equal(getattr(part, name), getattr(whole, name)), name


def test_a_long_row_alone_is_told_the_same():
    """To the bit, though threads share the sum of a row that has no company."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        logits = torch.randn(6, 1, 150_001, generator=torch.Generator().manual_seed(7)) * 3
        rows = [Row(temperature=1.0), Row(), Row(top_p=0.5), Row(top_p=0.9, heat=9.0), Row(top_p=0.999), Row()]
        together, _, _ = offered(logits, rows, 0)
        for r in range(len(rows)):
            alone, _, _ = offered(logits[r : r + 1], rows[r : r + 1], r)
            for name in ("tokens", "log_prob", "top", "standing", "entropy", "margin"):
                assert torch.equal(getattr(alone, name)[0], getattr(together, name)[r]), (name, r)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "row", [Row(), Row(temperature=1.0), Row(top_p=0.9), Row(top_p=0.01), Row(top_k=3, temperature=0.5)]
)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_no_number_is_told(row, poison):
    logits = torch.zeros(1, 2, 600)
    logits[0, 1, 300] = poison
    offer, _, _ = offered(logits, [row], 0, reads=())
    assert offer.log_prob.isnan().tolist() == [[False, True]]


@pytest.mark.parametrize("name", ["mdlm", "remdm"])
def test_only_those_are_asked_that_may_change(name):
    """Their coins don't look at the model; each decides what it would decide if it were offered all."""
    model = Says(torch.randn(2, 12, 50, generator=torch.Generator().manual_seed(8)))
    canvas = Canvas.of([([0] * 12, [False, *[True] * 11])] * 2, mask=model.vocab.mask, seeds=(1, 2))
    decoder = build(name, traits=model.traits, vocab=model.vocab, steps=4)
    num_open = 0
    while not bool(canvas.done.all()):
        plan = decoder.window(canvas, model.traits, None)
        num_open += int((plan.state == State.OPEN).sum())
        every = (plan.targets >= 0) & (plan.state != State.FIXED)
        all_offers = propose(model, plan, decoder.sampling, asked=every)
        before, model.asked = model.asked, 0
        offer = propose(model, plan, decoder.sampling, asked=decoder.asks(plan), reads=decoder.reads)
        assert model.asked < before or bool((plan.left == 0).all())
        edit, wanted = decoder.policy(offer, plan), decoder.policy(all_offers, plan)
        assert torch.equal(edit.tokens, wanted.tokens)
        assert torch.equal(edit.state, wanted.state)
        canvas.apply(plan, edit, offer)
        model.asked = 0


def test_numbers_stay_below_one(monkeypatch):
    monkeypatch.setattr(seeds, "_finalise", lambda x: torch.full_like(x, -1))  # all bits set
    assert seeds.uniform(torch.zeros(1, dtype=torch.int64)) < 1


def many(logits: Tensor, count: int, temperature: float, seed: int = 0) -> Tensor:
    """(count,) draws from logits (V,), of which 9 is the mask's."""
    offer, _, _ = offered(logits.expand(1, count, -1), [Row(temperature=temperature)], seed, reads=(), mask=9)
    return offer.tokens[0]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_draws_are_from_the_softmax(temperature):
    """Chi-square over all tokens of three blocks, the last one short; it tells a temperature from another one, too."""
    size, count = 600, 12000
    logits = torch.randn(size, generator=torch.Generator().manual_seed(9))
    logits[torch.tensor([*FORBIDDEN, 9, *range(100, 300)])] = -torch.inf
    logits[-1] = 3.0
    tokens = many(logits, count, temperature)

    def p_value(warm: float) -> float:
        wanted = (logits.double() / warm).softmax(0) * count
        counts = torch.bincount(tokens, minlength=size).double()
        often = wanted >= 5
        told, wanted = (torch.cat([x[often], x[~often].sum()[None]]) for x in (counts, wanted))
        square = ((told - wanted) ** 2 / wanted).sum()
        return float(torch.special.gammaincc(torch.tensor((len(told) - 1) / 2, dtype=torch.float64), square / 2))

    assert p_value(temperature) > 1e-3
    assert p_value(temperature * 1.25) < 1e-6


def test_what_can_not_be_is_never_drawn(monkeypatch):
    """Whatever the coins say: all of them are as low or as high as they can be, some here and some there."""
    real, ends = seeds.uniform, torch.tensor([2.0**-54, 1 - 2.0**-53], dtype=torch.float64)
    monkeypatch.setattr(seeds, "uniform", lambda keys: ends[(real(keys) < 0.5).long()])
    size = 5 * BLOCK + 9
    logits = torch.randn(size, generator=torch.Generator().manual_seed(4)) * 4
    shut = torch.tensor([*FORBIDDEN, 9, *range(20, 30), *range(BLOCK, 3 * BLOCK), *range(size - 5, size)])
    logits[shut] = -torch.inf
    tokens = torch.cat([many(logits, 400, temperature, seed) for seed, temperature in enumerate((1.0, 0.3, 1e-9))])
    assert len(tokens.unique()) > 20
    assert not bool(torch.isin(tokens, shut).any())


def test_distributions_that_are_alike_give_the_same_tokens():
    """About as often as any can without knowing of each other, (1 - d) / (1 + d) for a total variation of d: drafts."""
    draw = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 600, 3000, generator=draw) * 2
    others = logits + torch.randn(logits.shape, generator=draw) * 0.1
    apart = (logits.double().softmax(-1) - others.double().softmax(-1)).abs().sum(-1).mean() / 2
    row = [Row(temperature=1.0)]
    same = (offered(logits, row, 0, reads=())[0].tokens == offered(others, row, 0, reads=())[0].tokens).double().mean()
    assert 0.02 < apart < 0.06
    assert same > (1 - apart) / (1 + apart) - 0.02
