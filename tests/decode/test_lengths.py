"""Which lengths are tried, and which of the tries is kept."""

import torch

from exact import KnownDenoiser
from unmask.base.canvas import Canvas
from unmask.base.vocab import Traits
from unmask.decode.decoder import build
from unmask.decode.lengths import BEHIND, fit
from unmask.decode.session import Session
from unmask.text.layout import Fixed, Gap, lay

A, B, END = 0, 1, 2


class Counting(KnownDenoiser):
    """Believes that END stands behind B and three times A, and nowhere else; that A is likely everywhere."""

    device = torch.device("cpu")

    def log_prob(self, evidence, target):
        rows = torch.arange(len(target))
        before = torch.stack([evidence[rows, (target - k).clamp(min=0)] for k in (1, 2, 3)], 1)
        ended = (before == A).all(1) & (target >= 4) & (evidence[rows, (target - 4).clamp(min=0)] == B)
        found = torch.full((len(target), self.size), -9.0, dtype=torch.float64)
        found[:, A] = -1.0
        found[ended, END] = 0.0
        return found.log_softmax(-1)


def rows_of(lengths, behind=(END, B)):
    return [lay([Fixed(ids=(B, B), text=None), Gap(length=n), Fixed(ids=behind, text=None)]) for n in lengths]


def test_the_length_that_the_suffix_asks_for():
    model = Counting(3, 16)
    for traits in (Traits(), Traits(speaks="next")):
        model.traits = traits
        decoder = build("llada", traits=model.traits, vocab=model.vocab, internal={"forbidden": (END,)})
        session = Session(model, rows_of([1, 2, 3, 4, 5]), decoder, [0] * 5)
        list(session.run())
        assert {token for filled in session.results() for token in filled.gaps[0]} == {A}
        found = session.fit()
        assert max(range(5), key=lambda i: found[i]) == 2
        calls = model.calls
        session.fit()
        assert model.calls == calls + 1


def test_it_is_the_mean_over_tokens_masked_alone():
    model = Counting(3, 16)
    text = [B, B, A, A, A, END, B, A, END, B, B]
    canvas = Canvas.of([(text, [2 <= i < 5 for i in range(len(text))]), ([B, A], [False, True])], mask=3)
    canvas.tokens[0, :11] = torch.tensor(text)
    found = fit(model, canvas, [[5], [2]])
    asked = []
    for at in range(5, 5 + BEHIND):
        evidence = torch.full((1, 16), -1)
        evidence[0, :11] = torch.tensor(text)
        evidence[0, at] = -1
        asked.append(float(model.log_prob(evidence, torch.tensor([at]))[0, text[at]]))
    torch.testing.assert_close(found, torch.tensor([sum(asked) / BEHIND, 0.0], dtype=torch.float64))


def test_only_up_to_the_next_gap():
    model = Counting(3, 16)
    canvas = Canvas.of([([B, A, END, A, B], [False, True, False, True, False])], mask=3)
    assert float(fit(model, canvas, [[2, 4]])[0]) == float(
        (fit(model, canvas, [[2]]) + fit(model, canvas, [[4]]))[0] / 2
    )
