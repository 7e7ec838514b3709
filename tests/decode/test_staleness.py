"""When an approximate cache is made anew: after a number of forwards, or once what is kept has moved."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from stale import LENGTH, ROWS, network

from exact import RandomConditionals
from unmask.base.canvas import Canvas
from unmask.base.errors import Unsupported
from unmask.base.step import State
from unmask.decode import loop
from unmask.decode.decoder import build
from unmask.decode.loop import denoise
from unmask.decode.staleness import Staleness


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


def turned(model, canvas, row, plan, then, *, bare=False):
    """By hand: 1 - cosine of what the first layer of a row, read alone, hands on at each position that is not fed."""
    length, fed = int(canvas.length[row]), set(plan.positions[plan.rows.tolist().index(row)].tolist())
    both = []
    for tokens in (then, canvas.tokens[row]):
        text = tokens[None, :length].clone()
        if bare:
            text[0, canvas.state[row, :length] == State.FIXED] = model.vocab.mask
        said = []
        hook = model.layers[0].register_forward_hook(lambda layer, given, told, said=said: said.append(told[0]))
        model(text)
        hook.remove()
        both.append(said[0].double())
    away = 1 - torch.cosine_similarity(*both, dim=-1)
    return away[[at for at in range(length) if at not in fed]].tolist()


class TestDrift:
    @pytest.mark.parametrize(("cache", "bound"), [("prefix", 0.02), ("dual", 0.03), ("dual", 0.1)])
    @pytest.mark.parametrize("guidance", [0.0, 0.5])
    @torch.inference_mode()
    def test_a_forward_is_full_once_the_first_layer_has_turned_too_far(self, cache, bound, guidance):
        """Step by step, beside the same numbers from rows that are read alone, layer by layer."""
        model = network()
        options = {"cache": cache, "block": 8, "drift": bound, "guidance": guidance}
        decoder = build("vicinity x quota", traits=model.traits, vocab=model.vocab, **options)
        canvas = Canvas.of(ROWS, mask=model.vocab.mask, seeds=range(len(ROWS)))
        before, then, seen = canvas.tokens.clone(), {}, []
        states, lasts = canvas.state.clone(), dict.fromkeys(range(len(ROWS)), True)
        for turn in denoise(model, canvas, decoder):
            was = Canvas(before, states)
            for i, (row, now) in enumerate(zip(turn.plan.rows.tolist(), full(turn.plan, canvas), strict=True)):
                start, end = turn.plan.targets[i, 0], turn.plan.targets[i].max() + 1
                if not lasts[row]:  # no block begins
                    fed = torch.arange(start, end if cache == "dual" else canvas.length[row])
                    asked = replace(turn.plan.take(torch.tensor([i])), positions=fed[None])
                    away = turned(model, was, row, asked, then[row])
                    away += turned(model, was, row, asked, then[row], bare=True) if guidance else []
                    far = sum(away) / len(away)
                    assert abs(far - bound) > 1e-6, "too near to tell"
                    assert now == (far > bound)
                    assert now or float(canvas.moved[row]) == pytest.approx(far, abs=1e-6)
                    seen.append(now)
                else:
                    assert now
                then[row] = before[row].clone() if now else then[row]
                lasts[row] = bool((turn.edit.state[i] != State.OPEN).all())
            before, states = canvas.tokens.clone(), canvas.state.clone()
        assert seen.count(False) > 3
        assert seen.count(True) > 3

    @pytest.mark.parametrize("guidance", [0.0, 0.5])
    def test_moves_are_the_same_to_the_bit_whatever_the_company(self, guidance):
        model, options = network(), {"cache": "dual", "block": 6, "drift": 0.05, "guidance": guidance}

        def moves(rows, most):
            decoder = build("vicinity x quota", traits=model.traits, vocab=model.vocab, **options)
            canvas, told = Canvas.of(rows, mask=model.vocab.mask), [[] for _ in rows]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(loop, "Staleness", partial(Staleness, most))
                for turn in denoise(model, canvas, decoder):
                    for row in turn.plan.rows.tolist():
                        told[row].append(float(canvas.moved[row]))
            return told

        together = moves(ROWS, 2048)
        assert sum(far > 0 for row in together for far in row) > 9
        assert moves(ROWS, 1) == together
        assert [moves([row], 2048)[0] for row in ROWS] == together

    def test_what_nobody_can_ask_one_layer_of_is_renewed_by_steps(self):
        with pytest.raises(Unsupported, match=r"RandomConditionals can't be asked for that alone; use refresh"):
            turns_of("fast-dllm-dual", block=6, drift=0.1)

    def test_nothing_is_kept_of_rows_that_have_left(self):
        model = network()
        decoder = build("fast-dllm-dual", traits=model.traits, vocab=model.vocab, block=6, drift=0.1, guidance=0.5)
        canvas, staleness = Canvas.of(ROWS, mask=model.vocab.mask), Staleness()
        staleness.join(1, decoder)
        with torch.inference_mode():
            plan = decoder.look(canvas, model.traits, model.cache(6, LENGTH))
            staleness.look(model, canvas, plan)
            staleness.note(canvas, plan)
        assert staleness.watches(1)
        assert not staleness.watches(0)
        assert staleness.positions == 2 * len(ROWS[1][0])
        staleness.leave(1)
        assert not staleness.watches(1)
        assert not {**staleness._now, **staleness._then}
