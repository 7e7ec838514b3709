"""With an exact denoiser, every window x policy that claims to sample exactly does: chi-square against the joint."""

import pytest
import torch
from torch import Tensor

from exact import ExactDenoiser
from unmask.base.canvas import Canvas
from unmask.base.vocab import Traits
from unmask.decode.decoder import build
from unmask.decode.loop import denoise

ALL = Traits(sees="all")
BLOCKS = Traits(sees="blocks", block=2)
LEFT = Traits(sees="left", speaks="next")
SIZE, LENGTH, ROWS = 3, 4, 3000


def draw(model: ExactDenoiser, name: str, *, given: int = 0, rows: int = ROWS, **options: object) -> Tensor:
    """(rows, L) texts, the first `given` positions fixed to 0."""
    decoder = build(name, traits=model.traits, vocab=model.vocab, **options)
    row = ([0] * LENGTH, [i >= given for i in range(LENGTH)])
    canvas = Canvas.of([row] * rows, mask=model.size, seeds=range(rows))
    for _ in denoise(model, canvas, decoder):
        pass
    return canvas.tokens


def chi_square_p(model: ExactDenoiser, texts: Tensor, given: int = 0) -> float:
    """The probability of a chi-square this large if the texts came from the joint given its fixed positions."""
    possible = (model.states[:, :given] == 0).all(1)
    expected = model.joint[possible] / model.joint[possible].sum() * len(texts)
    counts = torch.bincount(model.index(texts), minlength=len(model.joint))[possible].double()
    assert int(counts.sum()) == len(texts)
    statistic, freedom = float(((counts - expected) ** 2 / expected).sum()), int(possible.sum()) - 1
    return float(torch.special.gammaincc(torch.tensor(freedom / 2).double(), torch.tensor(statistic / 2).double()))


EXACT = [
    ("ar", LEFT, {"temperature": 1.0}, 1),
    ("whole x quota", ALL, {"rank": "random", "temperature": 1.0}, 0),
    ("whole x quota", ALL, {"rank": "position", "temperature": 1.0}, 1),
    ("whole x quota", ALL, {"rank": "entropy", "temperature": 1.0}, 0),
    ("whole x quota", ALL, {"rank": "margin", "temperature": 1.0, "block": 2}, 0),
    ("whole x entropy_bound", ALL, {"bound": 0.0, "temperature": 1.0}, 0),
    ("block x quota", BLOCKS, {"rank": "random", "temperature": 1.0}, 1),
    ("block x quota", BLOCKS, {"rank": "entropy", "temperature": 1.0}, 0),
    ("mdlm", ALL, {"steps": 128}, 0),
    ("bd3", BLOCKS, {"steps": 128}, 0),
    ("remdm", ALL, {"steps": 256, "eta": 0.02}, 0),
    ("remdm", ALL, {"steps": 256, "eta": 0.02, "remask": "rescale"}, 0),
]


@pytest.mark.parametrize(("name", "traits", "options", "given"), EXACT)
def test_reaches_the_noise_floor(name, traits, options, given):
    model = ExactDenoiser.random(SIZE, LENGTH, seed=1, traits=traits)
    assert chi_square_p(model, draw(model, name, given=given, **options), given) > 1e-3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("whole x everything", {"temperature": 1.0}),
        ("whole x quota", {"temperature": 1.0, "steps": 2}),
        ("whole x quota", {"temperature": 0.5, "rank": "random"}),
    ],
)
def test_the_test_can_fail(name, options):
    model = ExactDenoiser.random(SIZE, LENGTH, seed=1, traits=ALL)
    assert chi_square_p(model, draw(model, name, **options)) < 1e-6


def test_nucleus_sampling_keeps_the_right_tokens():
    model = ExactDenoiser(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    decoder = build("llada", traits=ALL, vocab=model.vocab, temperature=1.0, top_p=0.7)
    canvas = Canvas.of([([0], [True])] * 4000, mask=4, seeds=range(4000))
    list(denoise(model, canvas, decoder))
    share = torch.bincount(canvas.tokens[:, 0], minlength=4) / 4000
    assert torch.allclose(share, torch.tensor([0.625, 0.375, 0, 0]), atol=0.03)


def test_top_k_keeps_k_and_temperature_sharpens():
    model = ExactDenoiser(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    for options, wanted in (
        ({"top_k": 3}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0]),
        ({"temperature": 0.5}, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
    ):
        decoder = build("llada", traits=ALL, vocab=model.vocab, **{"temperature": 1.0, **options})
        canvas = Canvas.of([([0], [True])] * 4000, mask=4, seeds=range(4000))
        list(denoise(model, canvas, decoder))
        share = torch.bincount(canvas.tokens[:, 0], minlength=4) / 4000
        assert torch.allclose(share, torch.tensor(wanted), atol=0.03)
