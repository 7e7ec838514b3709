"""What is left open is chosen by forwards and their costs, by nothing else; with the number the text is the same."""

import pytest
import torch

from unmask.base.errors import BadInput, Unsupported
from unmask.base.vocab import Traits, Vocab
from unmask.decode.decoder import build
from unmask.engine import backends, sizes
from unmask.engine.engine import Engine
from unmask.engine.request import Request
from unmask.models.backbone import Shape, Transformer
from unmask.text.layout import Fixed, Gap, lay

FLAT = {1: 1.0, 1024: 1.0}
STEEP = {1: 1.0, 1024: 1024.0}
BENT = {1: 1.0, 6: 1.05, 12: 3.0, 1024: 300.0}
"""A forward of some positions costs what one does, a wide one does not."""


def network(**traits):
    traits = {"sees": "all", "reads": (1, 4, 16), **traits}
    shape = Shape(vocab_size=40, width=32, depth=2, heads=4, hidden=64, max_length=96, qk_norm=True)
    model = Transformer(shape, Vocab(size=40, mask=0, eos=1), Traits(**traits), seed=4).eval()
    with torch.no_grad():
        model.norm.weight.fill_(8.0)
    return model


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(sizes, "LENGTH", 32)


@pytest.fixture
def priced(monkeypatch):
    """Says what forwards cost here."""

    def price(costs):
        monkeypatch.setattr(backends, "costs", lambda model, most=0: costs)

    return price


def made(model, decoder="block x quota", **options):
    options = {"steps": 2, "block": "auto", **options}
    options = {name: value for name, value in options.items() if value is not None}
    return build(decoder, traits=model.traits, vocab=model.vocab, **options)


def request(decoder, seed=0, prompt=(5, 9, 7)):
    return Request(layout=lay([Fixed(ids=prompt, text=None), Gap(length=40)]), decoder=decoder, seed=seed)


def written(model, requests, **engine):
    """Tokens and log-probabilities of each, and what was chosen for it."""
    engine = Engine(model, **engine)
    ids, done = [engine.add(one) for one in sizes.settled(requests, model, None)], {}
    while engine.busy:
        for delta in engine.step():
            assert delta.error is None
            if delta.result is not None:
                done[delta.id] = delta.result
    return [([(c.token, c.log_prob) for c in done[id].trace], dict(done[id].chosen)) for id in ids]


class TestChoice:
    @pytest.mark.parametrize(("costs", "best"), [(FLAT, 16), (STEEP, 1), (BENT, 4)])
    def test_it_follows_from_what_forwards_cost(self, priced, costs, best):
        """With two steps a block, what is free is as wide as may be, and what is dear is done alone."""
        priced(costs)
        model = network()
        assert sizes.settle(made(model, steps=2), model, None).chosen == (("block", best),)

    def test_it_writes_most_tokens_a_second_of_all(self, priced):
        """Measured the long way: each choice by itself, through the engine, a text at a time."""
        priced(BENT)
        model = network()
        options = {"threshold": 0.2, "steps": None, "block": 4, "blocks": "auto"}
        chosen = sizes.settle(made(model, "d2f", **options), model, None)
        rates = {}
        for choice in made(model, "d2f", **options).choices:
            spent = 0.0
            for seed in range(len(sizes.TEXTS)):
                engine = Engine(model, rows=1)
                engine.add(Request(layout=lay([Gap(length=sizes.LENGTH)]), decoder=sizes._endless(choice), seed=seed))
                while engine.busy:
                    before = engine.stats.positions
                    engine.step()
                    spent += sizes.between(BENT, engine.stats.positions - before)
            rates[choice.chosen] = sizes.LENGTH * len(sizes.TEXTS) / spent
        assert len(rates) == 4
        assert rates[chosen.chosen] == pytest.approx(max(rates.values()))

    def test_of_equals_the_first_is_taken(self):
        assert sizes.fastest([[2, 2], [4], [1, 1, 1, 1]], STEEP) == 0
        assert sizes.fastest([[2, 2, 2], [4], [1, 1, 1, 1]], STEEP) == 1
        assert sizes.fastest([[2, 2], [4], [8]], FLAT) == 1

    def test_forwards_are_counted_by_what_they_feed(self):
        """The first block has one place left, then each takes two, the first of which reads what was written."""
        model = network()
        (one,) = (c for c in made(model, steps=2).choices if c.chosen == (("block", 4),))
        widths = sizes.fed(sizes._endless(one), model, [(5, 9, 7)])
        assert widths[:5] == [4, 8, 4, 8, 4]
        assert len(widths) == 1 + 2 * 8

    def test_more_is_tried_where_more_is_open(self):
        model = network()
        found = made(model, "many x quota", blocks="auto").choices
        assert [dict(c.chosen) for c in found[:5]] == [
            *({"block": 16, "blocks": n} for n in (1, 2, 4, 8)),
            {"block": 1, "blocks": 1},
        ]
        assert len(found) == 12
        assert all((c.window.block, c.window.blocks) == tuple(dict(c.chosen).values()) for c in found)

    def test_it_is_tried_once_for_a_decoder(self, priced, monkeypatch):
        priced(FLAT)
        model, tried, fed = network(), [], sizes.fed
        monkeypatch.setattr(sizes, "fed", lambda *rest: tried.append(rest) or fed(*rest))
        for _ in range(2):
            sizes.settle(made(model), model, None)
        assert len(tried) == 3
        early = made(model, internal={"no_end_before": 9})
        assert sizes.settle(early, model, None).sampling.no_end_before == 9  # its own, though tried as the one before
        assert len(tried) == 3
        sizes.settle(made(model, steps=1), model, None)
        assert len(tried) == 6

    def test_not_more_kinds_are_tried_than_there_is_time_for(self, priced, monkeypatch):
        priced(FLAT)
        monkeypatch.setattr(sizes, "KINDS", 1)
        model = network()
        sizes.settle(made(model, steps=1), model, None)
        with pytest.raises(Unsupported, match="give numbers"):
            sizes.settle(made(model, steps=2), model, None)
        assert sizes.settle(made(model, steps=1), model, None).chosen

    def test_wider_forwards_are_measured_when_they_are_asked_about(self):
        model = network()
        few = backends.costs(model)
        more = backends.costs(model, 60)
        assert list(more) == [*few, 66]
        assert {width: more[width] for width in few} == few


class TestText:
    @pytest.mark.parametrize(("costs", "best"), [(FLAT, 16), (STEEP, 1), (BENT, 4)])
    def test_the_number_in_its_place_gives_the_same_text(self, priced, costs, best):
        priced(costs)
        model = network()
        ((text, chosen),) = written(model, [request(made(model, temperature=0.8), seed=3)], rows=1)
        assert chosen == {"block": best}
        assert written(model, [request(made(model, temperature=0.8, **chosen), seed=3)], rows=1) == [(text, {})]

    def test_it_is_the_same_in_any_company_and_after_any_past(self, priced):
        priced(BENT)
        model = network()
        alone = written(model, [request(made(model))], rows=1)[0]
        others = [
            request(made(model, block=16), 1, (30,)),
            request(made(model, steps=1), 2),
            request(made(model), 4, (8,)),
        ]
        assert written(model, [*others, request(made(model)), *others], rows=3, positions=24)[3] == alone
        fresh = network()
        written(fresh, others, rows=2)
        assert written(fresh, [request(made(fresh))], rows=1)[0] == alone

    def test_an_engine_takes_nothing_that_is_left_open(self):
        model = network()
        with pytest.raises(BadInput, match="left open"):
            Engine(model, rows=1).add(request(made(model)))


class TestRefusals:
    def test_one_size_is_no_choice(self):
        model = network(sees="blocks", block=8, reads=())
        decoder = made(model)
        assert (decoder.choices, decoder.chosen, decoder.window.block) == ((), (("block", 8),), 8)

    @pytest.mark.parametrize("decoder", ["llada", "fast-dllm-dual", "ar"])
    def test_windows_without_blocks_have_no_sizes(self, decoder):
        with pytest.raises(BadInput, match="block=auto chooses among"):
            made(network(), decoder, steps=None)

    def test_a_model_that_reads_no_blocks(self):
        with pytest.raises(Unsupported, match="no blocks at all"):
            made(network(reads=()))

    def test_other_options_are_not_left_open(self):
        model = network()
        with pytest.raises(BadInput, match="steps is a whole number"):
            made(model, steps="auto")
        with pytest.raises(BadInput, match="from 1, or auto, not 'fast'"):
            made(model, block="fast")
        with pytest.raises(BadInput, match="blocks has no effect"):
            made(model, blocks="auto")

    def test_drafts_are_as_wide_as_pays_anyway(self):
        model = network()
        assert made(model, "self-speculative", steps=None) == made(model, "self-speculative", steps=None, block=None)
