"""What windows feed and keep, and where a row whose last block is not a whole one ends."""

import pytest
import torch

from exact import RandomConditionals
from unmask.base.canvas import Canvas
from unmask.base.errors import Unsupported
from unmask.base.vocab import Traits
from unmask.decode.decoder import build
from unmask.decode.loop import denoise
from unmask.decode.session import Session
from unmask.text.layout import Fixed, Gap, lay


class Known(RandomConditionals):
    """A denoiser that a session can ask for its device."""

    device = torch.device("cpu")


SIZE, LENGTH = 5, 12
ROWS = [
    ([1, 2, *[0] * 8], [False] * 2 + [True] * 8),
    ([3, 1, 4, 1, 2, *[0] * 7], [False] * 5 + [True] * 7),
    ([2, 0, 0, 3, 0, 0, 0, 1, 0], [False, True, True, False, True, True, True, False, True]),
]


def run(name, traits, rows=ROWS, seed=0, length=LENGTH, **options):
    model = Known(SIZE, length, seed=seed, traits=traits)
    canvas = Canvas.of(rows, mask=SIZE, seeds=range(len(rows)))
    decoder = build(name, traits=traits, vocab=model.vocab, **options)
    return model, canvas, list(denoise(model, canvas, decoder))


class TestVicinity:
    @pytest.mark.parametrize("cache", ["prefix", "dual"])
    @pytest.mark.parametrize("speaks", ["here", "next"])
    @pytest.mark.parametrize(
        "options", [{"threshold": 0.6}, {"factor": 0.7}, {"steps": 6}, {"temperature": 0.8}, {"guidance": 1.0}]
    )
    def test_is_exact_where_keys_are_tokens(self, cache, speaks, options):
        """What a denoiser of known beliefs keeps does not go stale, so less is fed and the same comes out."""
        traits = Traits(speaks=speaks)
        for seed in range(4):
            slow, wanted, turns = run("whole x threshold", traits, seed=seed, block=3, **options)
            fast, found, same = run("vicinity x threshold", traits, seed=seed, block=3, cache=cache, **options)
            assert torch.equal(found.tokens, wanted.tokens)
            assert len(same) == len(turns)
            assert fast.fed < slow.fed

    @pytest.mark.parametrize(("cache", "later"), [("prefix", list(range(2, 8))), ("dual", [2, 3, 4])])
    def test_feeds_all_at_the_start_of_a_block_and_less_later(self, cache, later):
        rows = [([1, 1, *[0] * 6], [False] * 2 + [True] * 6)]
        _, _, turns = run("vicinity x quota", Traits(), rows, block=3, cache=cache)
        second = [p + 3 for p in later if p < 5]
        assert [t.plan.positions[0].tolist() for t in turns] == [
            list(range(8)),
            later,
            later,
            list(range(8)),
            second,
            second,
        ]
        assert [int(t.plan.keep.sum()) for t in turns] == [*(2, 0, 0, 5, 0, 0)] if cache == "prefix" else [8, 0, 0] * 2

    def test_a_block_that_its_first_forward_completes_costs_no_second_one(self):
        _, _, turns = run("fast-dllm-dual", Traits(), threshold=0.01, block=3)
        assert len(turns) == 3
        assert all(bool((t.plan.positions[:, 0] == 0).all()) for t in turns)

    def test_the_row_about_the_first_token_of_a_block_is_fed_where_models_speak_of_the_next(self):
        rows = [([1, 1, *[0] * 6], [False] * 2 + [True] * 6)]
        _, _, turns = run("vicinity x quota", Traits(speaks="next"), rows, block=3, cache="dual")
        assert turns[1].plan.positions[0].tolist() == [1, 2, 3, 4]

    @pytest.mark.parametrize("traits", [Traits(sees="left", speaks="next"), Traits(sees="blocks", block=4)])
    def test_models_with_an_exact_cache_are_sent_there(self, traits):
        with pytest.raises(Unsupported, match="exact cache"):
            run("fast-dllm-dual", traits)


class TestTheLastBlock:
    """Block models are trained on whole blocks: one that the length cuts is written whole, and cut."""

    def write(self, gap, name="sdar", room=LENGTH, **options):
        traits = Traits(sees="blocks", block=4)
        model = Known(SIZE, room, seed=3, traits=traits)
        decoder = build(name, traits=traits, vocab=model.vocab, **options)
        session = Session(model, [lay([Fixed(ids=(1, 2), text=None), Gap(length=gap)])], decoder, [0])
        list(session.run())
        (filled,) = session.results()
        return session, filled

    @pytest.mark.parametrize("options", [{}, {"steps": 2}, {"threshold": 0.5, "steps": 3}, {"name": "llada2-edit"}])
    def test_a_shorter_text_is_the_beginning_of_a_longer_one(self, options):
        _, whole = self.write(10, **options)
        for gap in (3, 7, 9):
            session, cut = self.write(gap, **options)
            assert cut.gaps[0] == whole.gaps[0][:gap]
            assert cut.left == 0
            assert len(session.cells(0)) == gap + 2
            assert sorted({c.position for c in cut.trace}) == list(range(2, gap + 2))
            assert len(cut.changes[0]) == gap

    def test_what_is_cut_is_not_waited_for(self):
        _, whole = self.write(6, rank="position", steps=4)
        _, cut = self.write(3, rank="position", steps=4)
        assert (whole.forwards, cut.forwards) == (6, 3)

    def test_a_model_that_has_no_room_for_it_gets_the_shorter_block(self):
        session, cut = self.write(7, room=9)
        assert session.canvas.tokens.shape[1] == 9
        assert len(cut.gaps[0]) == 7

    def test_a_row_with_nothing_to_write_takes_no_forward(self):
        traits = Traits(sees="blocks", block=4)
        model = Known(SIZE, LENGTH, traits=traits)
        decoder = build("sdar", traits=traits, vocab=model.vocab)
        session = Session(model, [lay([Fixed(ids=(1, 2), text=None)])], decoder, [0])
        assert list(session.run()) == []
        assert session.canvas.tokens.tolist() == [[1, 2]]
