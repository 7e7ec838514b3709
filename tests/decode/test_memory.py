"""What a network has said of a row that did not change is not asked again, and nothing else comes of it."""

import pytest
import torch

from exact import RandomConditionals
from unmask.base.attend import Attend
from unmask.base.canvas import Canvas
from unmask.base.errors import Unsupported
from unmask.base.step import State
from unmask.base.vocab import Traits
from unmask.decode.decoder import build
from unmask.decode.guidance import Guided
from unmask.decode.loop import denoise
from unmask.decode.memory import Remembering
from unmask.decode.propose import propose

SIZE, LENGTH = 5, 12


class Counted(RandomConditionals):
    """Counts the rows that travel."""

    travelled = 0

    def read(self, tokens, **rest):
        self.travelled += len(tokens)
        return super().read(tokens, **rest)


def canvas_of():
    rows = [([1, 2] + [0] * n, [False, False] + [True] * n) for n in (10, 4, 7)]
    return Canvas.of(rows, mask=SIZE, seeds=[3, 4, 5])


@pytest.mark.parametrize("name", ["mdlm", "remdm", "llada", "dream"])
@pytest.mark.parametrize("guidance", [None, 1.0])
def test_the_same_tokens_from_fewer_rows(name, guidance):
    model = Counted(SIZE, LENGTH)
    decoder = build(name, traits=model.traits, vocab=model.vocab, steps=60, guidance=guidance)
    plain, canvas = canvas_of(), canvas_of()
    judge = Guided(model, guidance, plain.state == State.FIXED) if guidance else model
    with torch.inference_mode():
        while not bool(plain.done.all()):
            plan = decoder.window(plain, model.traits, None)
            offer = propose(judge, plan, decoder.sampling, asked=decoder.asks(plan), reads=decoder.reads)
            plain.apply(plan, decoder.policy(offer, plan), offer)
    all_rows, model.travelled = model.travelled, 0
    for _ in denoise(model, canvas, decoder):
        pass
    assert torch.equal(canvas.tokens, plain.tokens)
    assert torch.equal(canvas.turn, plain.turn)
    halves = 2 if guidance else 1
    assert model.travelled == halves * int(canvas.forwards.sum()) <= all_rows
    if name == "mdlm":  # a row changes once per token at most
        assert (canvas.forwards <= torch.tensor([10, 4, 7]) + 1).all()
        assert model.travelled < all_rows / 2


def test_another_text_in_the_row_is_read():
    model = Counted(SIZE, LENGTH)
    memory = Remembering(model, 2)
    at = torch.arange(4).expand(2, 4)
    ask = {
        "positions": at,
        "attend": build("mdlm", traits=model.traits, vocab=model.vocab).window(canvas_of(), model.traits, None).attend,
    }
    first = memory.read(torch.tensor([[1, 2, 5, 5], [1, 2, 5, 5]]), **ask)
    again = memory.read(torch.tensor([[1, 2, 5, 5], [1, 3, 5, 5]]), **ask)
    assert memory.spared.tolist() == [True, False]
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[1], again[1])
    memory.forget(torch.tensor([0]))
    memory.read(torch.tensor([[1, 2, 5, 5], [1, 3, 5, 5]]), **ask)
    assert memory.spared.tolist() == [False, True]


def asked_of(memory, rows, texts):
    """Let some rows be read; whether each was spared."""
    tokens = torch.tensor(texts)
    memory.read(
        tokens, positions=torch.arange(4).expand_as(tokens), attend=Attend(kind="full"), rows=torch.tensor(rows)
    )
    return memory.spared.tolist()


ROW = 4 * (SIZE + 1) * 8
"""Bytes of the features of a row of 4 positions."""


class TestWhatIsKept:
    def test_rows_that_had_no_part_in_the_last_forward(self):
        memory = Remembering(Counted(SIZE, LENGTH), 3)
        one, two, three = [1, 2, 5, 5], [2, 2, 5, 5], [3, 2, 5, 5]
        assert asked_of(memory, [0, 1, 2], [one, two, three]) == [False] * 3
        assert asked_of(memory, [2], [[3, 2, 1, 5]]) == [False]
        assert asked_of(memory, [1, 0], [two, one]) == [True, True]
        assert asked_of(memory, [1, 2], [two, [3, 2, 1, 5]]) == [True, True]
        assert asked_of(memory, [1, 2], [two, three]) == [True, False]
        assert memory.kept_bytes == 3 * ROW

    def test_is_never_more_than_a_number_of_bytes(self):
        model = Counted(SIZE, LENGTH)
        memory = Remembering(model, 4, most_bytes=2 * ROW + 1)
        texts = [[i, 2, 5, 5] for i in range(4)]
        wanted = [
            Remembering(model, 1).read(
                torch.tensor([text]), positions=torch.arange(4)[None], attend=Attend(kind="full")
            )
            for text in texts
        ]
        assert asked_of(memory, [0, 1, 2], texts[:3]) == [False] * 3
        assert asked_of(memory, [0, 1, 2], texts[:3]) == [True, True, False]  # the first of an answer, and no more
        assert asked_of(memory, [3], texts[3:]) == [False]
        assert asked_of(memory, [3, 1], [texts[3], texts[1]]) == [True, False]
        for rows in ([0], [1, 2], [3, 0, 1], [2, 1], [0, 1, 2, 3]):
            tokens = torch.tensor([texts[row] for row in rows])
            at = torch.arange(4).expand_as(tokens)
            said = memory.read(tokens, positions=at, attend=Attend(kind="full"), rows=torch.tensor(rows))
            assert torch.equal(said, torch.cat([wanted[row] for row in rows]))
            assert memory.kept_bytes <= 2 * ROW + 1

    def test_nothing_where_there_is_no_room(self):
        memory = Remembering(Counted(SIZE, LENGTH), 1, most_bytes=ROW - 1)
        assert asked_of(memory, [0], [[1, 2, 5, 5]]) == [False]
        assert asked_of(memory, [0], [[1, 2, 5, 5]]) == [False]
        assert memory.kept_bytes == 0


def test_a_network_with_a_clock_is_always_asked():
    model = RandomConditionals(SIZE, LENGTH)
    model.traits = Traits(clock=True)
    with pytest.raises(Unsupported, match="time"):
        Remembering(model, 1)
