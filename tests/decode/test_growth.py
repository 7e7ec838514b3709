"""Rows that find their own length: what the rules do, and that they do what was published."""

import re

import pytest
import torch

from exact import RandomConditionals
from unmask.base.attend import Attend
from unmask.base.canvas import NEW, Canvas
from unmask.base.errors import BadInput, TooLong, Unsupported
from unmask.base.step import State
from unmask.base.vocab import Traits, Vocab
from unmask.constrain.automata.vocabulary import Vocabulary
from unmask.constrain.compile import compile_here
from unmask.constrain.holes import Span
from unmask.constrain.spec import Constraint, Regex
from unmask.decode.decoder import build
from unmask.decode.session import Session
from unmask.text.layout import Fixed, Gap, lay

MASK, EOS, EXPAND, DELETE, SIZE = 0, 1, 2, 3, 12
LETTERS = range(4, SIZE)
DAEDAL = {"name": "daedal", "start": 4, "tail": 4, "insert": 3, "block": 5}
TOKENS = {"name": "dreamon"}


class Knowing:
    """A network that is told what to believe: from a row's ids to a token and its probability, and a second best."""

    max_length = 64
    device = torch.device("cpu")

    def __init__(self, believe, *, speaks="here"):
        self.believe, self.traits = believe, Traits(sees="all", speaks=speaks)
        self.vocab = Vocab(size=SIZE, mask=MASK, eos=EOS, expand=EXPAND, delete=DELETE)
        self.seen = []

    def read(self, tokens, *, positions, attend, t=None, rows=None, **rest):
        shift = int(self.traits.speaks == "next")
        found = torch.zeros(*tokens.shape, SIZE, dtype=torch.float64)
        for row, there, out in zip(tokens, positions >= 0, found, strict=True):
            ids = row[there].tolist()
            self.seen.append(ids)
            for at, (token, p, *second) in enumerate(self.believe(ids)):
                if at >= shift:
                    held = torch.full((SIZE,), (1 - p) / (SIZE - 1))
                    held[second] *= 1.01
                    held[token] = p
                    out[at - shift] = held.log()
        return found

    def head(self, features):
        return features


def open_to(low, high, size=4, *, given=None):
    """A gap that may come to have another size."""
    return Gap(length=size, given=given, bounds=(low, high))


def grow(model, low, high, *, prefix=(5, 6), suffix=(), size=4, count=1, spans=(), ends=True, low_end=None, **options):
    row = lay([Fixed(ids=prefix, text=None), open_to(low, high, size), Fixed(ids=suffix, text=None)])
    early = float("inf") if suffix else float(len(prefix) + (low if low_end is None else low_end))
    internal = {"no_end_before": early}
    decoder = build(options.pop("name"), traits=model.traits, vocab=model.vocab, internal=internal, **options)
    session = Session(model, [row] * count, decoder, range(count), ends=ends, spans=[spans] * count if spans else ())
    for forwards, _ in enumerate(session.run()):
        assert forwards < 200
    return session.results()


def knows(text, start=2, *, p=0.95):
    """Believes in a text that begins at a position, and in ends of text behind it."""

    def believe(ids):
        return [(text[at - start], p) if 0 <= at - start < len(text) else (EOS, p) for at in range(len(ids))]

    return believe


class TestDaedal:
    @pytest.mark.parametrize("speaks", ["here", "next"])
    @pytest.mark.parametrize("length", [1, 3, 4, 9, 20, 30])
    def test_growth_finds_the_length_of_a_text(self, length, speaks):
        text = [LETTERS[i % len(LETTERS)] for i in range(length)]
        model = Knowing(knows(text), speaks=speaks)
        (found,) = grow(model, 1, 60, **DAEDAL)
        assert found.gaps == [text]
        assert found.ended == "stop"
        widest = max(len(ids) for ids in model.seen) - 2
        assert length < widest <= max(4, length + 4 + 3) + 2  # ends in half of the tail, one step more, and the padding
        assert [c.position for c in found.trace if c.token != EOS] == list(range(2, 2 + length))

    def test_never_beyond_the_bound_and_never_below_it(self):
        text = [LETTERS[i % len(LETTERS)] for i in range(30)]
        model = Knowing(knows(text))
        (found,) = grow(model, 1, 13, **DAEDAL)
        assert found.gaps == [text[:13]]
        assert found.ended == "length"
        assert max(len(ids) for ids in model.seen) == 15
        (found,) = grow(Knowing(knows(text[:2])), 6, 13, size=6, **DAEDAL)
        assert len(found.gaps[0]) == 6
        assert found.gaps[0][:2] == text[:2]

    def test_a_mask_that_the_model_has_no_word_for_gives_way(self):
        """It sees 3 places too few, is at a loss at the last, and no end is in sight."""
        text = [LETTERS[i] for i in range(6)]

        def believe(ids):
            size = len(ids) - 2
            if size >= len(text):
                return knows(text)(ids)
            return [(text[at - 2], 0.95) if 0 <= at - 2 < size - 1 else (text[5], 0.1) for at in range(len(ids))]

        model = Knowing(believe)
        (found,) = grow(model, 1, 40, **{**DAEDAL, "enough": 0.0, "unsure": 0.2, "tail": 1})
        assert found.gaps == [text]
        assert [len(ids) - 2 for ids in model.seen] == [4, 6, 6]  # the block of 5, and what was pushed out of it
        assert [c.position for c in found.trace] == [2, 3, 4, 5, 6, 7]
        assert [c.step for c in found.trace] == [0, 0, 0, 1, 1, 2]

    def test_what_a_threshold_of_certainty_stops(self):
        def believe(ids):
            return [(LETTERS[0], 0.05) if at < 5 else (EOS, 0.95) for at in range(len(ids))]

        grew = Knowing(believe)
        grow(grew, 1, 40, **{**DAEDAL, "enough": 0.0, "unsure": 0.2, "ended": 1.0})
        still = Knowing(believe)
        grow(still, 1, 40, **{**DAEDAL, "enough": 0.0, "unsure": 0.2, "ended": 0.0})
        assert max(map(len, grew.seen)) > max(map(len, still.seen))

    @pytest.mark.parametrize("seed", range(12))
    @pytest.mark.parametrize("block", [3, 50])
    def test_as_published(self, seed, block):
        """Token by token what a plain reading of the publication writes, with as many forwards."""
        model = RandomConditionals(6, 40, seed=seed, scale=2.5, traits=Traits(sees="all"))
        model.vocab = Vocab(size=7, mask=6, eos=1)
        numbers = {"insert": 3, "unsure": 0.45, "enough": 0.35, "ended": 0.6, "tail": 4}
        high = (8, 25, 36)[seed % 3]
        row = lay([Fixed(ids=(2, 3), text=None), open_to(1, high, 5)])
        decoder = build(
            "daedal", traits=model.traits, vocab=model.vocab, block=block, threshold=0.8, start=5, **numbers
        )
        session = Session(model, [row], decoder, [0])
        list(session.run())
        (found,) = session.results()
        told, forwards = published(model, [2, 3], 5, high, block, 0.8, **numbers)
        assert found.gaps == [told]
        assert found.forwards == forwards
        assert len(told) <= high

    def test_streams_only_grow(self):
        model = RandomConditionals(6, 60, seed=3, scale=2.5, traits=Traits(sees="all"))
        model.vocab = Vocab(size=7, mask=6, eos=1)
        row = lay([Fixed(ids=(2, 3), text=None), open_to(1, 50, 5)])
        decoder = build(
            "daedal", traits=model.traits, vocab=model.vocab, block=6, start=5, unsure=0.5, insert=4, temperature=0.5
        )
        session, told = Session(model, [row], decoder, [4], ends=True), []
        for _ in session.run():
            now = session.readings[0].committed
            assert now[: len(told)] == told
            told = now
        assert session.results()[0].gaps[-1] == told
        assert len(session.results()[0].layout.tokens) > 7


def published(model, prompt, start, high, block, threshold, *, insert, unsure, enough, ended, tail):
    """DAEDAL for one row, word by word, with lists."""
    mask, eos, gap, forwards = model.vocab.mask, model.vocab.eos, [model.vocab.mask] * start, 0

    def look():
        tokens = torch.tensor([prompt + gap])
        features = model.read(tokens, positions=torch.arange(tokens.shape[1])[None], attend=Attend(kind="full"))
        logits = model.head(features[0]).double()[len(prompt) :]
        logits[:, mask] = -torch.inf
        return logits.softmax(-1)

    def ending(p):
        sure = [float(q[eos]) for q in p if int(q.argmax()) == eos][-tail:]
        return sum(sure) / tail

    p = None
    while len(gap) < high:
        p, forwards = look(), forwards + 1
        if ending(p) >= enough:
            break
        gap += [mask] * min(insert, high - len(gap))
        p = None
    if pad := min(tail // 2, high - len(gap)):
        gap, p = gap + [eos] * pad, None
    at = 0
    while at < len(gap):
        if p is None:
            p, forwards = look(), forwards + 1
        still = [i for i in range(at, min(at + block, len(gap))) if gap[i] == mask]
        sure = {i: float(p[i].max()) for i in still}
        taken = [i for i in still if sure[i] > threshold] or [max(still, key=lambda i: sure[i])]
        lost = [i for i in still if i not in taken and sure[i] < unsure]
        for i in taken:
            gap[i] = int(p[i].argmax())
        if lost and len(gap) < high and ending(p) < ended:
            i = min(lost, key=lambda i: sure[i])
            gap[i + 1 : i + 1] = [mask] * min(insert - 1, high - len(gap))
        p = None
        while at < len(gap) and mask not in gap[at : at + block]:
            at += block
    return gap, forwards


class TestTokens:
    def counts(self, wanted, start=2):
        """Believes in `wanted` tokens: asks for more or fewer at its first mask, else for letters."""

        def believe(ids):
            gap = len(ids) - 2 - 2
            told = [(LETTERS[0], 0.5)] * len(ids)
            still = [at for at in range(2, 2 + gap) if ids[at] == MASK]
            for at in still:
                told[at] = (LETTERS[at % len(LETTERS)], 0.8)
            if still and gap != wanted:
                told[still[0]] = (EXPAND if gap < wanted else DELETE, 0.9, LETTERS[1])
            return told

        return believe

    @pytest.mark.parametrize("wanted", [1, 2, 4, 7, 11])
    def test_the_model_says_how_long_it_is(self, wanted):
        model = Knowing(self.counts(wanted))
        (found,) = grow(model, 1, 20, suffix=(7, 8), **TOKENS)
        assert len(found.gaps[0]) == wanted
        assert not {EXPAND, DELETE, MASK} & set(found.gaps[0])
        assert found.row[-2:] == [7, 8]
        assert found.forwards == abs(wanted - 4) + wanted
        assert sorted(c.position for c in found.trace) == list(range(2, 2 + wanted))

    @pytest.mark.parametrize(("low", "high"), [(1, 6), (3, 20), (4, 5)])
    def test_within_its_bounds(self, low, high):
        for wanted in (1, 40):
            (found,) = grow(Knowing(self.counts(wanted)), low, high, suffix=(7, 8), **TOKENS)
            assert len(found.gaps[0]) == (low if wanted == 1 else high)
            assert not found.left

    def test_one_that_never_makes_up_its_mind_comes_to_an_end(self):
        def believe(ids):
            return [(EXPAND if (len(ids) + at) % 2 else DELETE, 0.9) for at in range(len(ids))]

        (found,) = grow(Knowing(believe), 1, 9, suffix=(7, 8), **TOKENS)
        assert 1 <= len(found.gaps[0]) <= 9
        assert not found.left

    def test_many_at_once(self):
        def believe(ids):
            return [(EXPAND, 0.9) if len(ids) - 4 < 10 else (LETTERS[1], 0.9)] * len(ids)

        decoder = {"name": "whole x threshold", "threshold": 0.5, "lengths": "tokens"}
        (found,) = grow(Knowing(believe), 1, 14, suffix=(7, 8), **decoder)
        assert found.gaps == [[LETTERS[1]] * 14]  # 4, 8, and the 6 of 8 for which there is room
        assert found.forwards == 3

    def test_without_bounds_the_tokens_are_never_written(self):
        def believe(ids):
            return [((EXPAND, DELETE)[at % 2], 0.9) for at in range(len(ids))]

        model = Knowing(believe)
        decoder = build("dreamon", traits=model.traits, vocab=model.vocab)
        session = Session(model, [lay([Fixed(ids=(5, 6), text=None), Gap(length=6)])], decoder, [0])
        list(session.run())
        (found,) = session.results()
        assert len(found.gaps[0]) == 6
        assert not {EXPAND, DELETE} & set(found.gaps[0])

    def test_an_end_of_text_that_deletes_ends_nothing(self):
        model = Knowing(self.counts(2))
        model.vocab = Vocab(size=SIZE, mask=MASK, eos=DELETE, expand=EXPAND, delete=DELETE)
        (found,) = grow(model, 1, 20, suffix=(7, 8), ends=False, **TOKENS)
        assert len(found.gaps[0]) == 2


def test_a_row_is_resized_by_itself():
    rows = [([5, 0, 0, 7], [False, True, True, False]), ([6, 0], [False, True])]
    canvas = Canvas.of(rows, mask=MASK, seeds=(3, 4))
    canvas.turn[:], canvas.forwards[:], canvas.step[:], canvas.best[0, 2] = 4, 3, 2, 9
    other = canvas.resized(0, [0, 1, NEW, 3], token=MASK)
    assert other.tokens.tolist() == [[5, MASK, MASK, 7]]
    assert other.state.tolist() == [[State.FIXED, State.OPEN, State.OPEN, State.FIXED]]
    assert other.best.tolist() == [[-1, -1, -1, -1]]
    wider = canvas.resized(0, [0, 1, 2, NEW, NEW, 3], token=8, state=State.DONE)
    assert wider.tokens.tolist() == [[5, MASK, MASK, 8, 8, 7]]
    assert wider.best.tolist() == [[-1, -1, 9, -1, -1, -1]]
    assert [int(x) for x in (wider.turn, wider.forwards, wider.step, wider.length, wider.origin, wider.seed)] == [
        4, 3, 0, 6, 1, 3,
    ]  # fmt: skip
    canvas.enter(0, wider)
    assert canvas.tokens.tolist() == [[5, MASK, MASK, 8, 8, 7], [6, MASK, MASK, MASK, MASK, MASK]]
    assert canvas.state[1].tolist() == [0, 1, 3, 3, 3, 3]
    assert canvas.length.tolist() == [6, 2]


def test_rows_grow_alike_in_any_company():
    """Noise and lengths of a row are its own."""
    model = RandomConditionals(6, 60, seed=1, scale=2.5, traits=Traits(sees="all"))
    model.vocab = Vocab(size=7, mask=6, eos=1)
    options = {"block": 6, "start": 5, "unsure": 0.5, "insert": 4, "temperature": 0.8}
    decoder = build("daedal", traits=model.traits, vocab=model.vocab, **options)
    rows = [lay([Fixed(ids=(2,) * n, text=None), open_to(1, 30, 5)]) for n in (1, 4, 9)]
    together = Session(model, rows, decoder, [7, 8, 9], ends=True)
    list(together.run())
    sizes = set()
    for i, row in enumerate(rows):
        alone = Session(model, [row], decoder, [7 + i], ends=True)
        list(alone.run())
        assert alone.results()[0].row == together.results()[i].row
        assert alone.results()[0].trace.changes == together.results()[i].trace.changes
        sizes.add(len(alone.results()[0].row) - len(row.tokens))
    assert max(sizes) > 0


SPELL = [b"a", b"", b"b", b"c", b"ab", b"ba", b""]


class TestConstrained:
    @pytest.mark.parametrize("pattern", ["(ab|ba)*c", "a{3}b{3}", "[abc]*"])
    def test_every_text_fits_however_it_grew(self, pattern):
        form = compile_here(Constraint(body=Regex(pattern)), Vocabulary(SPELL, (1,)))
        model = RandomConditionals(6, 60, seed=5, scale=2.5, traits=Traits(sees="all"))
        model.vocab = Vocab(size=7, mask=6, eos=1)
        span = Span(automaton=form, start=2, stop=2 + 7, ends=True, least=0)
        options = {"name": "daedal", "block": 6, "unsure": 0.6, "insert": 4, "temperature": 0.8, "tail": 4}
        found = grow(model, 1, 40, size=7, count=20, spans=(span,), low_end=0, **options)
        for filled in found:
            text = b"".join(SPELL[token] for token in filled.gaps[0]).decode()
            assert re.fullmatch(pattern, text)
            assert not filled.left
        assert max(len(filled.row) for filled in found) > 9

    def test_tokens_that_resize_are_no_text_of_a_constraint(self):
        form = compile_here(Constraint(body=Regex("a*")), Vocabulary([b"", b"", b"", b"", *[b"a"] * 8], ()))
        span = Span(automaton=form, start=2, stop=6)
        with pytest.raises(Unsupported, match="constraint"):
            grow(Knowing(knows([])), 1, 20, suffix=(7, 8), spans=(span,), **TOKENS)


class TestRefusals:
    def row(self, *, gaps=1, given=None, low=1, high=20):
        return lay([Fixed(ids=(5, 6), text=None), open_to(low, high, given=given)] * gaps)

    @pytest.mark.parametrize(
        ("error", "says", "row", "options"),
        [
            (BadInput, "no rule", {}, {"name": "llada"}),
            (BadInput, "no rule", {}, {"name": "daedal", "lengths": "try"}),
            (BadInput, "can't have 4", {"low": 5}, DAEDAL),
            (BadInput, "can't have 4", {"high": 3}, DAEDAL),
            (TooLong, "grow to 102", {"high": 100}, DAEDAL),
            (Unsupported, "has 2", {"gaps": 2}, DAEDAL),
            (Unsupported, "pinned", {"given": {1: 7}}, DAEDAL),
            (Unsupported, "steps", {}, {**DAEDAL, "steps": 9}),
            (Unsupported, "takes? nothing back|take nothing back", {}, {"name": "remdm", "lengths": "daedal"}),
            (Unsupported, "window whole", {}, {"name": "fast-dllm-dual", "lengths": "daedal"}),
            (Unsupported, "window whole", {}, {"name": "block x threshold", "block": 4, "lengths": "daedal"}),
            (Unsupported, "lookahead", {}, {"name": "llada", "lengths": "daedal", "lookahead": 2}),
        ],
    )
    def test_what_can_not_be_honoured(self, error, says, row, options):
        model = Knowing(knows([4, 5]))
        model.traits = Traits(sees="all", reads=(4,))
        options = dict(options)
        decoder = build(options.pop("name"), traits=model.traits, vocab=model.vocab, **options)
        with pytest.raises(error, match=says):
            Session(model, [self.row(**row)], decoder, [0])
        assert not model.seen

    def test_a_gap_before_other_text_needs_tokens(self):
        with pytest.raises(Unsupported, match="'try'"):
            grow(Knowing(knows([])), 1, 9, suffix=(7, 8), **DAEDAL)
        model = Knowing(knows([]))
        model.vocab = Vocab(size=SIZE, mask=MASK, eos=EOS)
        with pytest.raises(Unsupported, match="tokens to expand"):
            grow(model, 1, 9, suffix=(7, 8), **TOKENS)

    def test_options_of_a_rule_need_the_rule(self):
        model = Knowing(knows([]))
        with pytest.raises(BadInput, match="start has no effect"):
            build("llada", traits=model.traits, vocab=model.vocab, start=4)
        with pytest.raises(BadInput, match="tail has no effect"):
            build("dreamon", traits=model.traits, vocab=model.vocab, tail=4)
        with pytest.raises(BadInput, match="lengths is one of try, daedal, tokens"):
            build("llada", traits=model.traits, vocab=model.vocab, lengths="guess")
