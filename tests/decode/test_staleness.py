"""When an approximate cache is made anew: after a number of forwards, or once what is offered has moved."""

import pytest
import torch
from stale import LENGTH, ROWS, network

from exact import RandomConditionals
from unmask.base.canvas import Canvas
from unmask.decode.decoder import build
from unmask.decode.loop import denoise
from unmask.decode.staleness import distance


def turns_of(name, model=None, rows=ROWS, **options):
    model = model or RandomConditionals(5, LENGTH, seed=1)
    canvas = Canvas.of(rows, mask=model.vocab.mask, seeds=range(len(rows)))
    decoder = build(name, traits=model.traits, vocab=model.vocab, **options)
    turns = list(denoise(model, canvas, decoder))
    return canvas, turns


def full(plan, canvas):
    return ((plan.positions >= 0).sum(1) == canvas.length[plan.rows]).tolist()


class TestRefresh:
    @pytest.mark.parametrize("cache", ["prefix", "dual"])
    def test_every_forward_is_no_cache(self, cache):
        model = network()
        options = {"block": 8, "threshold": 0.5}
        wanted, _ = turns_of("fast-dllm", model, **options)
        kept, _ = turns_of(f"fast-dllm-{cache}", model, **options)
        assert not torch.equal(kept.tokens, wanted.tokens), "the test needs a network for which a stale cache matters"
        fresh, turns = turns_of(f"fast-dllm-{cache}", model, **options, refresh=1)
        assert torch.equal(fresh.tokens, wanted.tokens)
        assert all(all(full(turn.plan, fresh)) for turn in turns)

    @pytest.mark.parametrize("cache", ["prefix", "dual"])
    def test_every_few_forwards_of_a_block(self, cache):
        canvas, turns = turns_of("vicinity x quota", cache=cache, block=8, refresh=3)
        for row, (tokens, is_open) in enumerate(ROWS):
            blocks = [sum(is_open[at : at + 8]) for at in range(is_open.index(True), len(tokens), 8)]
            wanted = [step % 3 == 0 for steps in blocks for step in range(steps)]
            assert [
                full(t.plan, canvas)[t.plan.rows.tolist().index(row)] for t in turns if row in t.plan.rows
            ] == wanted

    def test_beyond_the_block_is_as_published(self):
        _, published = turns_of("fast-dllm-dual", block=6)
        _, same = turns_of("fast-dllm-dual", block=6, refresh=6)
        assert [t.plan.positions.tolist() for t in same] == [t.plan.positions.tolist() for t in published]


class TestDrift:
    @pytest.mark.parametrize("bound", [0.01, 0.05, 0.1])
    def test_the_next_forward_is_full_once_an_offer_has_moved_too_far(self, bound):
        canvas, turns = turns_of("vicinity x quota", network(), cache="dual", block=8, drift=bound)
        last, wanted, seen = {}, dict.fromkeys(range(len(ROWS)), True), []
        for turn in turns:
            plan, offer = turn.plan, turn.offer
            for i, (row, now) in enumerate(zip(plan.rows.tolist(), full(plan, canvas), strict=True)):
                assert now == wanted[row]
                seen.append(now)
                there = {
                    int(at): (offer.best[i, k], offer.top[i, k].exp(), offer.margin[i, k])
                    for k, at in enumerate(plan.targets[i])
                    if offer.is_open[i, k]
                }
                last[row] = there if now else last[row]
                far = max(float(distance(last[row][at], told)) for at, told in there.items())
                block_ends = bool((canvas_after(turn, i) != 1).all())
                wanted[row] = block_ends or far > bound
        assert seen.count(False) > 3
        assert seen.count(True) > 7  # blocks

    def test_is_at_most_the_total_variation(self):
        p, q = (
            torch.randn(2, 500, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(2).softmax(-1)
        )
        told = []
        for x in (p, q):
            best = x.topk(2, -1)
            told.append((best.indices[:, 0], best.values[:, 0], best.values[:, 0] - best.values[:, 1]))
        least, tv = distance(*told), (p - q).abs().sum(-1) / 2
        assert (least <= tv + 1e-12).all()
        assert (told[0][0] != told[1][0]).any()
        two = torch.tensor([[0.7, 0.3], [0.6, 0.4]], dtype=torch.float64), torch.tensor([[0.2, 0.8], [0.9, 0.1]])
        told = [(x.argmax(-1), x.max(-1).values, x.max(-1).values - x.min(-1).values) for x in two]
        torch.testing.assert_close(distance(*told), torch.tensor([0.5, 0.3]), check_dtype=False)  # exact for two tokens


def canvas_after(turn, i):
    """States of the targets of a row after a turn."""
    return turn.edit.state[i]
