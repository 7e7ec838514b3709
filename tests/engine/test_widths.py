"""Widths of drafts follow costs and what became of drafts, and never the text."""

import pytest
import torch

from unmask.base.vocab import Traits, Vocab
from unmask.decode.decoder import build
from unmask.decode.windows.draft import NONE, WIDEST, WIDTH
from unmask.engine import backends
from unmask.engine.engine import Engine
from unmask.engine.request import Request
from unmask.engine.widths import Widths
from unmask.models.backbone import Shape, Transformer
from unmask.text.layout import Fixed, Gap, lay

FLAT = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0, 16: 1.0, 33: 1.0}
STEEP = {1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0, 16: 16.0, 33: 33.0}


def test_costs_lie_on_lines_between_what_was_measured():
    widths = Widths({1: 1.0, 4: 4.0, 8: 6.0}, shadows=False)
    assert [widths.cost(n) for n in (1, 2, 4, 6, 8, 10)] == [1, 2, 4, 5, 6, 7]


@pytest.mark.parametrize("shadows", [True, False])
def test_what_is_free_is_as_wide_as_may_be_and_what_is_dear_is_not_done(shadows):
    assert Widths(FLAT, shadows=shadows).best(1.0) == WIDEST
    assert Widths(FLAT, shadows=shadows).best(0.0) == NONE
    assert Widths(STEEP, shadows=shadows).best(0.9) == NONE


def test_the_best_width_is_the_best_of_all():
    widths, right = Widths({1: 1.0, 2: 1.1, 4: 1.3, 8: 2.0, 16: 4.0, 33: 9.0}, shadows=True), 0.8
    rates = {NONE: 1 / widths.cost(2)}
    for width in range(1, WIDEST + 1):
        tokens = sum(right**i for i in range(width + 1))
        rates[width] = tokens / (widths.cost(width + 1) + widths.cost(2 * width + 1))
    best = widths.best(right)
    assert rates[best] == max(rates.values())
    assert 1 < best < WIDEST


def network(speaks):
    traits = Traits(sees="all", reads=(1, 4)) if speaks == "here" else Traits(sees="left", speaks="next")
    shape = Shape(vocab_size=40, width=32, depth=2, heads=4, hidden=64, max_length=96, qk_norm=True)
    model = Transformer(shape, Vocab(size=40, mask=0, eos=1), traits, seed=4).eval()
    with torch.no_grad():
        model.norm.weight.fill_(8.0)
    return model


def written(model, decoder, costs, *, rows=3, **options):
    engine = Engine(model, rows=rows, costs=costs)
    made = build(decoder, traits=model.traits, vocab=model.vocab, **options)
    prompts = [(5, 9, 7), (30,), (11, 12, 13, 14, 15)]
    ids = [
        engine.add(Request(layout=lay([Fixed(ids=prompt, text=None), Gap(length=40)]), decoder=made, seed=seed))
        for seed, prompt in enumerate(prompts)
    ]
    done, widths = {}, set()
    while engine.busy:
        for delta in engine.step():
            assert delta.error is None
            if delta.result is not None:
                done[delta.id] = delta.result
        widths |= {record.width for record in engine.widths._records.values()}
    return [(done[id].gaps, [c.log_prob for c in done[id].trace]) for id in ids], widths, engine.stats.forwards


@pytest.mark.parametrize("speaks", ["here", "next"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_text_is_that_of_token_by_token_writing_whatever_a_forward_costs(speaks, temperature):
    model = network(speaks)
    plain, _, _ = written(model, "ar", None, temperature=temperature)
    seen = set()
    for costs in (FLAT, STEEP, {1: 1.0, 2: 1.1, 4: 1.3, 8: 2.0, 16: 4.0, 33: 9.0}):
        texts, widths, _ = written(model, "self-speculative", costs, temperature=temperature)
        for (gaps, told), (wanted, known) in zip(texts, plain, strict=True):
            assert gaps == wanted
            assert told == pytest.approx(known, abs=1e-6)
        seen |= widths
    assert NONE in seen
    assert len(seen) > 2


def test_a_width_that_is_given_stays():
    model = network("here")
    _, widths, forwards = written(model, "self-speculative", STEEP, block=2)
    assert widths == set()
    _, _, others = written(model, "self-speculative", None, block=2)
    assert forwards == others


def test_without_drafts_there_are_as_many_forwards_as_tokens_until_one_is_tried_again():
    model = network("here")
    _, widths, forwards = written(model, "self-speculative", STEEP)
    _, _, plain = written(model, "ar", None)
    assert widths <= {NONE, WIDTH}
    assert forwards <= plain + 2


def test_costs_are_measured_once():
    model = network("here")
    found = backends.costs(model)
    assert list(found) == [w for w in backends.WIDTHS if w < model.max_length]
    assert all(seconds > 0 for seconds in found.values())
    assert backends.costs(model) == found  # to the last digit, so nothing was measured again
