"""The quality dial: medium changes nothing, less effort is fewer forwards, what was given stays."""

import pytest
import torch

from exact import RandomConditionals
from pairs import goes
from unmask.base.canvas import Canvas
from unmask.base.errors import BadInput
from unmask.base.vocab import Traits, Vocab
from unmask.decode import policies, windows
from unmask.decode.decoder import build
from unmask.decode.effort import DIAL, EFFORTS, moved
from unmask.decode.loop import denoise
from unmask.decode.options import OPTIONS
from unmask.decode.presets import PRESETS

TRAITS = {
    "next": Traits(sees="left", speaks="next"),
    "whole": Traits(sees="all"),
    "block": Traits(sees="blocks", block=8),
    "vicinity": Traits(sees="all"),
    "canvas": Traits(sees="context-then-canvas", block=8),
    "many": Traits(sees="blocks", block=8),
    "draft": Traits(sees="left", speaks="next"),
}
VOCAB = Vocab(size=6, mask=5, eos=1)
LENGTH = 24
CHAINS = [*(p for p in policies.TABLE if p not in ("remask", "edit", "everything", "verify")), "threshold + edit"]
CHAINS += ["ancestral + remask"]
WITHOUT = [name for name in PRESETS if PRESETS[name].window in ("next", "draft")]


def made(name, window, **options):
    return build(name, traits=TRAITS[window], vocab=VOCAB, **options)


def write(name, window, *, stride=None, seeds=(7, 8), **options):
    model = RandomConditionals(5, LENGTH, seed=2, traits=TRAITS[window])
    decoder = build(name, traits=model.traits, vocab=model.vocab, temperature=0.7, **options)
    if stride is not None:
        decoder = decoder.at("medium")
        object.__setattr__(decoder, "stride", stride)
    rows = [([1, 2] + [0] * (LENGTH - 2), [False] * 2 + [True] * (LENGTH - 2))] * len(seeds)
    canvas = Canvas.of(rows, mask=5, seeds=seeds)
    for count, _ in enumerate(denoise(model, canvas, decoder)):
        assert count < 500, "does not end"
    return canvas


class TestNumbers:
    @pytest.mark.parametrize("name", DIAL)
    def test_less_effort_is_bolder_and_a_probability_stays_one(self, name):
        value = 0.8 if DIAL[name].odds else 16
        numbers = [moved(name, value, "medium", effort) for effort in EFFORTS]
        assert numbers[EFFORTS.index("medium")] == value
        rising = sorted(numbers)
        assert numbers in (rising, rising[::-1])
        assert numbers[0] != value
        if DIAL[name].odds:
            assert all(0 < n < 1 for n in numbers)
            assert moved(name, 1.0, "medium", "instant") == 1.0

    def test_odds_are_divided(self):
        assert moved("threshold", 0.9, "medium", "instant") == pytest.approx(0.5)
        assert moved("threshold", 0.9, "medium", "low") == pytest.approx(0.75)
        assert moved("threshold", 0.75, "low", "medium") == pytest.approx(0.9)

    def test_the_table_names_options_only(self):
        assert set(DIAL) - {"stride"} <= set(OPTIONS)


class TestDecoders:
    @pytest.mark.parametrize("name", [p for p in PRESETS if p not in WITHOUT])
    def test_medium_is_the_preset(self, name):
        window = PRESETS[name].window
        assert made(name, window) == made(name, window, effort="medium")
        low, instant = (made(name, window, effort=effort) for effort in ("low", "instant"))
        assert made(name, window).easier == (low, instant)
        (after,) = low.easier
        assert after.numbers == pytest.approx(instant.numbers)
        assert instant.easier == ()

    def test_what_is_given_wins(self):
        whole = made("fast-dllm", "whole", effort="instant", threshold=0.9)
        assert whole.numbers == {"stride": 4, "threshold": 0.9}
        whole = made("fast-dllm", "whole", effort="instant", steps=8, threshold=0.9)
        assert whole.numbers == {"stride": 1, "threshold": 0.9}
        assert made("llada", "whole", effort="low", steps=8).stride == 1

    def test_the_dial_of_a_models_own_defaults(self):
        own = {"decoder": "fast-dllm", "threshold": 0.75, "effort": "low"}
        assert made(None, "whole", defaults=own).numbers == {"stride": 2, "threshold": pytest.approx(0.5)}
        assert made(None, "whole", defaults=own, effort="medium").numbers == {"stride": 1, "threshold": 0.75}

    @pytest.mark.parametrize("window", [w for w in windows.TABLE if w != "draft"])
    def test_where_a_forward_takes_all_it_sees_there_is_no_effort(self, window):
        with pytest.raises(BadInput, match="effort has no effect on this decoder"):
            made(f"{window} x everything", window, effort="low")
        assert made(f"{window} x everything", window).easier == ()

    def test_nor_token_by_token(self):
        for name in (*WITHOUT, "next x threshold"):
            window = PRESETS[name].window if name in PRESETS else "next"
            with pytest.raises(BadInput, match="effort has no effect"):
                made(name, window, effort="medium")

    @pytest.mark.parametrize("value", ["hi", 1, True, ""])
    def test_other_values_are_refused(self, value):
        with pytest.raises(BadInput, match="effort is one of instant, low, medium, high"):
            made("llada", "whole", effort=value)


@pytest.mark.parametrize(
    ("window", "chain"),
    [(w, chain) for w in windows.TABLE if w not in ("next", "draft") for chain in CHAINS if goes(w, chain)],
)
class TestForwards:
    def test_less_effort_is_fewer_forwards(self, window, chain):
        spent = [int(write(f"{window} x {chain}", window, effort=effort).turn.sum()) for effort in EFFORTS]
        assert spent == sorted(spent)
        assert spent[0] < spent[2]

    def test_a_stride_is_as_many_steps_at_once(self, window, chain):
        name = f"{window} x {chain}"
        fast, few = write(name, window, stride=4, steps=24), write(name, window, steps=6)
        assert torch.equal(fast.tokens, few.tokens)
        assert torch.equal(fast.turn, few.turn)


def test_a_budget_that_the_stride_does_not_divide_is_kept():
    for steps, stride in ((7, 2), (7, 4), (5, 8), (22, 3)):
        canvas = write("whole x quota", "whole", steps=steps, stride=stride)
        assert canvas.turn.tolist() == [-(-steps // stride)] * 2


@pytest.mark.parametrize("window", ["whole", "vicinity"])
def test_what_is_given_is_no_part_of_the_budget(window):
    """A gap between two texts is written at the stride of its own positions."""
    model = RandomConditionals(5, LENGTH, seed=2, traits=TRAITS[window])
    row = ([1] * 4 + [0] * 8 + [2] * 12, [False] * 4 + [True] * 8 + [False] * 12)
    for effort, forwards in (("instant", 2), ("low", 4), ("medium", 8)):
        canvas = Canvas.of([row], mask=5)
        decoder = build(f"{window} x quota", traits=model.traits, vocab=model.vocab, effort=effort)
        assert sum(1 for _ in denoise(model, canvas, decoder)) == forwards
        assert canvas.tokens[0, 12:].tolist() == [2] * 12
