"""Constraints on what decoders write: every text fits, drawn as is promised, and what can't be is refused before."""

import re

import pytest
import torch

from exact import ExactDenoiser, RandomConditionals
from unmask.base.canvas import Canvas
from unmask.base.errors import BadInput, Unsupported
from unmask.base.step import State
from unmask.base.vocab import Traits, Vocab
from unmask.constrain.automata.vocabulary import Vocabulary
from unmask.constrain.compile import compile_here
from unmask.constrain.holes import Holes, Span
from unmask.constrain.spec import Constraint, Grammar, Regex
from unmask.decode.control import check
from unmask.decode.decoder import build
from unmask.decode.loop import denoise
from unmask.decode.session import Session
from unmask.text.layout import Fixed, Gap, lay

ALL, LEFT = Traits(sees="all", reads=(1, 2, 4)), Traits(sees="left", speaks="next")
TOKENS = [b"a", b"b", b"ab", b"ba", b"", b""]
EOS, MASK = 4, 5
DECODERS = [
    ("whole x quota", {"rank": "random", "temperature": 1.0}),
    ("whole x quota", {"steps": 2}),
    ("whole x everything", {"temperature": 0.7, "top_p": 0.5}),
    ("whole x everything", {"temperature": 1.0, "top_k": 1}),
    ("block x threshold", {"block": 4, "threshold": 0.4}),
    ("block x factor", {"block": 2, "factor": 1.0}),
    ("whole x entropy_bound", {"bound": 1.0, "temperature": 1.0}),
    ("mdlm", {"steps": 5}),
    ("remdm", {"steps": 9, "eta": 0.5}),
    ("block x threshold + edit", {"block": 4, "threshold": 0.3, "edit_threshold": 0.0}),
    ("whole x quota + edit", {"steps": 3, "edit_threshold": 0.3, "temperature": 1.0}),
    ("wino", {"threshold": 0.3, "doubt": 0.5, "block": 4}),
    ("whole x renoise", {"steps": 6, "bound": 2.0}),
    ("block x renoise", {"block": 4, "steps": 6, "bound": 1.0, "temperature": 1.0}),
    ("d2f", {"block": 2, "threshold": 0.4, "blocks": 3}),
    ("llada", {"steps": 4, "guidance": 1.0}),
    ("ar", {"temperature": 1.0}),
    ("fast-dllm", {"block": 4, "threshold": 0.4, "temperature": 0.5}),
]


def form(pattern, tokens=TOKENS, ends=(EOS,)):
    return compile_here(Constraint(body=Regex(pattern)), Vocabulary(tokens, ends))


def random_model(seed, length=9, traits=ALL):
    model = RandomConditionals(5, length, seed=seed, traits=traits, scale=4.0)
    model.vocab = Vocab(size=6, mask=MASK, eos=EOS)
    return model


def spelled(tokens):
    return b"".join(TOKENS[token] for token in tokens).decode()


@pytest.mark.parametrize(("name", "options"), DECODERS)
@pytest.mark.parametrize("pattern", ["(ab|ba){2,5}", "a*ba*", "(aab|bba)*"])
def test_every_text_fits(name, options, pattern):
    automaton = form(pattern)
    for ends in (True, False):
        model = random_model(len(name))
        internal = {"no_end_before": 1.0 if ends else float("inf")}
        decoder = build(name, traits=model.traits, vocab=model.vocab, internal=internal, **options)
        row = lay([Fixed(ids=(0,), text=None), Gap(length=8, given={2: 0} if pattern == "a*ba*" else None)])
        span = Span(automaton=automaton, start=1, stop=9, ends=ends)
        count = 12
        session = Session(model, [row] * count, decoder, range(count), ends=ends, spans=[[span]] * count)
        assert sum(1 for _ in session.run()) < 200
        for filled in session.results():
            assert not filled.left
            assert re.fullmatch(pattern, spelled(filled.gaps[0]))
            assert ends or len(filled.gaps[0]) == 8
            assert all(one is None or -torch.inf < one.log_prob <= 1e-9 for one in filled.changes[0])


def balanced(text):
    """Whether a text is a balanced one, an `a` before each `b` that closes it."""
    cuts = [i for i, letter in enumerate(text) if letter == "b"]
    return not text or (text[0] == "a" and any(balanced(text[1:i]) and balanced(text[i + 1 :]) for i in cuts))


def joined(text):
    """Whether a text is `a`, two such texts with `ab` between, or one between `b` and `a`."""
    cuts = [i for i in range(len(text)) if text[i : i + 2] == "ab"]
    around = text[:1] + text[-1:] == "ba" and joined(text[1:-1])
    return text == "a" or around or any(joined(text[:i]) and joined(text[i + 2 :]) for i in cuts)


@pytest.mark.parametrize(("name", "options"), DECODERS)
@pytest.mark.parametrize(
    ("text", "fits"),
    [('start: "a" start "b" start |', balanced), ('start: start "ab" start | "b" start "a" | "a"', joined)],
)
def test_every_text_is_one_of_the_grammar(name, options, text, fits):
    """Written by an automaton of a bounded depth, and read by the rules themselves."""
    automaton = compile_here(Constraint(body=Grammar(text, depth=2)), Vocabulary(TOKENS, (EOS,)))
    model = random_model(len(name) + 1)
    decoder = build(name, traits=model.traits, vocab=model.vocab, internal={"no_end_before": 1.0}, **options)
    row = lay([Fixed(ids=(0,), text=None), Gap(length=8, given={3: 1})])
    span = Span(automaton=automaton, start=1, stop=9, ends=True)
    session = Session(model, [row] * 8, decoder, range(8), ends=True, spans=[[span]] * 8)
    assert sum(1 for _ in session.run()) < 200
    for filled in session.results():
        assert fits(spelled(filled.gaps[0]))


def test_two_gaps_beside_free_rows():
    model = random_model(3)
    decoder = build("mdlm", traits=ALL, vocab=model.vocab, steps=4, internal={"no_end_before": float("inf")})
    row = lay([Gap(length=3), Fixed(ids=(0, 1), text=None), Gap(length=4)])
    spans = [Span(automaton=form("(ab)*"), start=0, stop=3), Span(automaton=form("b*a?"), start=5, stop=9)]

    def written(held):
        session = Session(model, [row] * len(held), decoder, range(len(held)), spans=held)
        list(session.run())
        return session.results()

    both = written([spans if i % 2 else [] for i in range(20)])
    free = written([[]] * 20)
    assert [f.gaps for f in both[::2]] == [f.gaps for f in free[::2]]
    assert [f.changes for f in both[::2]] == [f.changes for f in free[::2]]
    for filled in both[1::2]:
        assert re.fullmatch("(ab)*", spelled(filled.gaps[0]))
        assert re.fullmatch("b*a?", spelled(filled.gaps[1]))


class Sure:
    """Edits that the model wants, each of which would do alone."""

    TEXTS = "ab|ba|bb"

    def run(self, weights):
        """`bb` as it is edited by a model of independent tokens."""
        joint = torch.einsum("i,j->ij", *torch.tensor(weights, dtype=torch.float64))
        model = ExactDenoiser(joint, traits=ALL)
        decoder = build("whole x threshold + edit", traits=ALL, vocab=model.vocab, edit_threshold=0.5)
        canvas = Canvas.of([([2, 2], [True, True])], mask=2)
        canvas.tokens[:], canvas.state[:] = 1, State.DONE
        holes = Holes([b"a", b"b", b""])
        holes.enter(0, [Span(automaton=form(self.TEXTS, [b"a", b"b", b""], ()), start=0, stop=2)])
        turns = sum(1 for _ in denoise(model, canvas, decoder, None, holes))
        return canvas.tokens[0].tolist(), turns


@pytest.mark.parametrize(
    ("weights", "wanted"), [([[0.8, 0.2], [0.9, 0.1]], [1, 0]), ([[0.9, 0.1], [0.8, 0.2]], [0, 1])]
)
def test_of_edits_that_contradict_each_other_the_surest_stands(weights, wanted):
    tokens, turns = Sure().run(weights)
    assert tokens == wanted
    assert turns < 20


LETTERS = [b"a", b"b", b"c", b""]
PATTERN = "[abc]*(ab|ca)[abc]*"


def belief(model, text, at):
    """(V,) probabilities of a position, given the tokens of a text that are not None."""
    evidence = torch.tensor([[-1 if token is None else token for token in text]])
    return model.log_prob(evidence, torch.tensor([at])).exp()[0]


def one_by_one(model, together):
    """What writing from left to right draws: each token from what is offered, given that the text can fit.

    Args:
        together: whether a token stands for the fillings of all open positions, or for itself.
    """
    fits = torch.tensor([bool(re.fullmatch(PATTERN, "".join("abc"[t] for t in s))) for s in model.states.tolist()])
    chance = torch.zeros(len(model.states), dtype=torch.float64)
    for i, state in enumerate(model.states.tolist()):
        p = 1.0 if fits[i] and state[0] == 0 else 0.0
        for at in range(1, model.max_length):
            known = [*state[:at], *[None] * (model.max_length - at)]
            same = (model.states[:, :at] == torch.tensor(state[:at])).all(1) & fits
            if not bool(same.any()):
                p = 0.0
                break
            if together:
                offers = [belief(model, known, j) for j in range(at, model.max_length)]
                weight = torch.stack([offers[j][model.states[:, at + j]] for j in range(len(offers))]).prod(0) * same
            else:
                possible = torch.bincount(model.states[same, at], minlength=model.size) > 0
                offer = belief(model, known, at) * possible
                p *= float(offer[state[at]] / offer.sum())
                continue
            p *= float(weight[model.states[:, at] == state[at]].sum() / weight.sum())
        chance[i] = p
    return chance


@pytest.mark.parametrize(
    ("name", "traits", "options", "together"),
    [
        ("ar", LEFT, {}, False),
        ("ar", Traits(sees="all", reads=(1,)), {}, False),
        ("whole x quota", ALL, {"rank": "position"}, True),
    ],
)
def test_one_token_at_a_time_is_drawn_as_promised(name, traits, options, together):
    model, rows = ExactDenoiser.random(3, 4, seed=2, traits=traits), 800
    decoder = build(name, traits=traits, vocab=model.vocab, temperature=1.0, **options)
    canvas = Canvas.of([([0] * 4, [False, True, True, True])] * rows, mask=3, seeds=range(rows))
    holes, span = Holes(LETTERS), Span(automaton=form(PATTERN, LETTERS, ()), start=0, stop=4)
    for row in range(rows):
        holes.enter(row, [span])
    list(denoise(model, canvas, decoder, None, holes))
    chance = one_by_one(model, together)
    assert float(chance.sum()) == pytest.approx(1.0)
    counts = torch.bincount(model.index(canvas.tokens), minlength=len(chance)).double()
    assert not bool((counts > 0)[chance == 0].any())
    some = chance > 0
    statistic = float(((counts - chance * rows) ** 2 / (chance * rows))[some].sum())
    freedom = torch.tensor((int(some.sum()) - 1) / 2, dtype=torch.float64)
    assert float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64))) > 1e-3


@pytest.mark.parametrize("name", ["whole x everything", "whole x renoise"])
def test_one_step_takes_the_best_that_go_together(name):
    model = ExactDenoiser.random(3, 4, seed=5, traits=ALL)
    options = {} if name == "whole x everything" else {"steps": 1}
    decoder = build(name, traits=ALL, vocab=model.vocab, **options)
    canvas = Canvas.of([([3] * 4, [True] * 4)], mask=3)
    holes = Holes(LETTERS)
    holes.enter(0, [Span(automaton=form("(ab|bc|ca){2}", LETTERS, ()), start=0, stop=4)])
    list(denoise(model, canvas, decoder, None, holes))
    offers = torch.stack([belief(model, [None] * 4, at) for at in range(4)])
    texts = [s for s in model.states.tolist() if re.fullmatch("(ab|bc|ca){2}", "".join("abc"[t] for t in s))]
    best = max(texts, key=lambda s: float(torch.stack([offers[i, t] for i, t in enumerate(s)]).log().sum()))
    assert canvas.tokens[0].tolist() == best


class TestRefusals:
    """Before any forward."""

    def ask(self, pattern="(ab)*", name="mdlm", given=None, **options):
        model = random_model(0)
        row = lay([Fixed(ids=(0,), text=None), Gap(length=3, given=given)])
        decoder = build(name, traits=ALL, vocab=model.vocab, **options)
        span = Span(automaton=form(pattern), start=1, stop=4)
        try:
            Session(model, [row], decoder, [0], spans=[[span]])
        finally:
            assert model.calls == 0

    @pytest.mark.parametrize(
        ("call", "error", "says"),
        [
            ({"name": "llada", "lookahead": 2}, Unsupported, "lookahead"),
            ({"name": "self-speculative"}, Unsupported, "drafted"),
            ({"pattern": "(aabb){4}"}, BadInput, "shortest text that fits has"),
            ({"pattern": "a"}, BadInput, "exactly 3 tokens"),
            ({"given": {1: 1}, "pattern": "a*"}, BadInput, "the token 1 at position 2 contradicts"),
        ],
    )
    def test_with_the_reason(self, call, error, says):
        with pytest.raises(error, match=says):
            self.ask(**call)

    def test_a_constraint_of_another_vocabulary(self):
        model = random_model(0)
        decoder = build("mdlm", traits=ALL, vocab=model.vocab)
        other = Span(automaton=form("a*", LETTERS, ()), start=0, stop=2)
        canvas = Canvas.of([([5, 5], [True, True])], mask=5)
        with pytest.raises(BadInput, match="not for this model"):
            check(decoder, [other], canvas, TOKENS)
