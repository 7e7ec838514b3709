"""What every window x policy promises, checked for every entry of the tables."""

import pytest
import torch

from exact import RandomConditionals
from pairs import goes
from unmask.base.canvas import Canvas
from unmask.base.errors import Unsupported
from unmask.base.step import Edit, State
from unmask.base.vocab import Traits
from unmask.decode import policies, windows
from unmask.decode.decoder import build
from unmask.decode.loop import denoise
from unmask.decode.presets import PRESETS
from unmask.decode.propose import propose
from unmask.decode.trace import Trace, record

TRAITS = {
    "next": Traits(sees="left", speaks="next"),
    "whole": Traits(sees="all"),
    "block": Traits(sees="blocks", block=4),
    "vicinity": Traits(sees="all"),
    "canvas": Traits(sees="context-then-canvas", block=4),
    "many": Traits(sees="blocks", block=4),
    "draft": Traits(sees="left", speaks="next"),
}
CHAINS = [*policies.TABLE, "threshold + edit", "quota + remask", "ancestral + remask", "ancestral + remask + edit"]
FIRST = [c for c in CHAINS if c not in ("remask", "edit")]  # these two follow a policy that accepts
PAIRS = [(window, chain) for window in windows.TABLE for chain in FIRST if goes(window, chain)]
SIZE, LENGTH = 5, 11
ROWS = [
    ([1, 2, 0, 0, 0, 0, 0], [False, False, True, True, True, True, True]),
    ([1, 0, 0, 3, 0, 0, 4, 0, 0, 0, 2], [False, True, True, False, True, True, False, True, True, True, False]),
    ([4, 4, 4, 4, 0, 0, 0, 0, 0], [False, False, False, False, True, True, True, True, True]),
]


def write(window, chain, rows=ROWS, seeds=(7, 8, 9), **options):
    model = RandomConditionals(SIZE, LENGTH, seed=2, traits=TRAITS[window])
    decoder = build(f"{window} x {chain}", traits=model.traits, vocab=model.vocab, temperature=0.7, **options)
    canvas = Canvas.of(rows, mask=SIZE, seeds=seeds)
    traces, turns = [Trace() for _ in rows], []
    for turn in denoise(model, canvas, decoder):
        record(traces, canvas, turn)
        turns.append(turn)
        assert len(turns) < 200, "does not end"
    return model, canvas, traces, turns


@pytest.mark.parametrize(("window", "chain"), PAIRS)
class TestEveryDecoder:
    def test_ends_with_everything_written_and_no_mask(self, window, chain):
        _, canvas, _, _ = write(window, chain)
        assert bool(canvas.done.all())
        there = canvas.state != State.ABSENT
        assert not bool(canvas.open.any())
        assert not bool((there & (canvas.tokens == SIZE)).any())

    def test_never_touches_what_is_given(self, window, chain):
        _, canvas, _, _ = write(window, chain)
        for b, (tokens, is_open) in enumerate(ROWS):
            for i, (token, hole) in enumerate(zip(tokens, is_open, strict=True)):
                assert hole or int(canvas.tokens[b, i]) == token
            assert bool((canvas.state[b, len(tokens) :] == State.ABSENT).all())

    def test_the_same_seed_gives_the_same_text_whatever_the_neighbours(self, window, chain):
        _, together, _, _ = write(window, chain)
        for b in (2, 0, 1):
            _, alone, _, _ = write(window, chain, rows=[ROWS[b]], seeds=[(7, 8, 9)[b]])
            assert torch.equal(alone.tokens[0], together.tokens[b, : len(ROWS[b][0])])
        _, swapped, _, _ = write(window, chain, rows=ROWS[::-1], seeds=(9, 8, 7))
        assert torch.equal(swapped.tokens.flip(0), together.tokens)

    def test_another_seed_gives_another_text(self, window, chain):
        if (window, chain) == ("next", "renoise"):
            pytest.skip("it writes the best token, and there is no noise to see at its only step")
        texts = {tuple(write(window, chain, seeds=(s, s, s))[1].tokens.flatten().tolist()) for s in range(4)}
        assert len(texts) > 1

    def test_the_trace_tells_the_whole_story(self, window, chain):
        _, canvas, traces, _ = write(window, chain)
        for b, (tokens, is_open) in enumerate(ROWS):
            text = [SIZE if hole else token for token, hole in zip(tokens, is_open, strict=True)]
            for change in traces[b]:
                text[change.position] = change.token
            assert text == canvas.tokens[b, : len(tokens)].tolist()
            assert all(c.log_prob <= 1e-9 for c in traces[b])

    def test_a_budget_of_steps_holds(self, window, chain):
        budget = {} if window in ("next", "draft") else {"steps": 3}  # where each forward gives one token at least
        _, canvas, _, _ = write(window, chain, **budget)
        most = {
            "next": max(sum(is_open) for _, is_open in ROWS),
            "whole": 3,
            "block": 3 * 3,
            "vicinity": 3,
            "canvas": 3 * 3,
            "many": 3 * 3,
            "draft": 2 * max(sum(is_open) for _, is_open in ROWS),
        }[window]
        rounds = 16 * (3 if window == "block" else 1) if "edit" in chain else 0
        assert int(canvas.forwards.max()) <= most + rounds


@pytest.mark.parametrize("window", windows.TABLE)
@pytest.mark.parametrize("chain", FIRST)
def test_what_does_not_go_together_is_refused(window, chain):
    traits, vocab = TRAITS[window], RandomConditionals(SIZE, LENGTH).vocab
    if goes(window, chain):
        build(f"{window} x {chain}", traits=traits, vocab=vocab)
    else:
        with pytest.raises(Unsupported, match=r"go with|needs|stays"):
            build(f"{window} x {chain}", traits=traits, vocab=vocab)


def test_cached_blocks_equal_full_forwards():
    """The cache changes what is fed, never what comes out."""
    model, fast, _, _ = write("block", "quota")
    slow_model = RandomConditionals(SIZE, LENGTH, seed=2, traits=TRAITS["block"])
    decoder = build("block x quota", traits=slow_model.traits, vocab=slow_model.vocab, temperature=0.7)
    canvas = Canvas.of(ROWS, mask=SIZE, seeds=(7, 8, 9))
    while not bool(canvas.done.all()):
        plan = decoder.window(canvas, slow_model.traits, None)
        canvas.apply(plan, decoder.policy(propose(slow_model, plan, decoder.sampling), plan))
    assert torch.equal(canvas.tokens, fast.tokens)
    assert model.fed < slow_model.fed


def test_a_commit_rides_in_the_next_blocks_first_forward():
    model, canvas, _, turns = write("block", "everything", rows=[([0] * 8, [True] * 8)], seeds=[0])
    assert [turn.plan.positions[0].tolist() for turn in turns] == [[0, 1, 2, 3], list(range(8))]
    assert turns[1].plan.keep[0].tolist() == [True] * 4 + [False] * 4
    assert model.calls == 2
    assert int(canvas.forwards[0]) == 2


def test_an_ar_step_feeds_one_token():
    _, _, _, turns = write("next", "everything", rows=[([3, 4, 0, 0, 0], [False, False, True, True, True])], seeds=[0])
    assert [turn.plan.positions[0].tolist() for turn in turns] == [[0, 1], [2], [3]]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs(name):
    window = PRESETS[name].window
    model = RandomConditionals(SIZE, LENGTH, traits=TRAITS[window])
    canvas = Canvas.of(ROWS, mask=SIZE, seeds=(1, 2, 3))
    list(denoise(model, canvas, build(name, traits=model.traits, vocab=model.vocab)))
    assert bool(canvas.done.all())


def test_end_of_text_ends_a_row_once_all_before_it_is_written():
    model = RandomConditionals(SIZE, LENGTH, traits=TRAITS["whole"])
    tokens = torch.tensor([[1, SIZE, SIZE, SIZE, SIZE]])
    state = torch.tensor([[0, 1, 1, 1, 1]], dtype=torch.uint8)
    canvas = Canvas(tokens, state, eos=4, stops=torch.tensor([True]))
    decoder = build("whole x quota", traits=model.traits, vocab=model.vocab)
    plan = decoder.window(canvas, model.traits, None)
    edit = Edit.nothing(plan)
    where = torch.tensor([[False, True, False, False]])
    canvas.apply(plan, edit.accept(where, torch.full((1, 4), 4)))
    assert canvas.state[0].tolist() == [0, 1, 2, 1, 1]  # position 1 is still open, so the end may yet move nothing
    plan = decoder.window(canvas, model.traits, None)
    canvas.apply(plan, Edit.nothing(plan).accept(torch.tensor([[True, False, False, False]]), torch.full((1, 4), 2)))
    assert canvas.state[0].tolist() == [0, 2, 2, 3, 3]
    assert bool(canvas.done[0])
